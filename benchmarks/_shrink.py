"""A tiny config of any model type that transformers knows: its own defaults, with every size made small.

Sizes are recognised by the names that configs share; what a default leaves out (None, 0, an empty list) stays out,
so that a type keeps the parts it has by default. Types whose sizes depend on each other have rules of their own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

WIDTH, LAYERS, HEADS, HEAD, VOCABULARY = 32, 4, 4, 8, 128
WINDOW = 8  # fewer tokens than a generation has, so that what lies outside of a window is left out

_GROUPS = (
    (WIDTH, (
        "hidden_size d_model n_embd embedding_size embedding_dim emb_dim_embedding lru_width attention_hidden_size "
        "word_embed_proj_dim input_embedding_size output_embedding_size q_lora_rank kv_lora_rank o_lora_rank "
        "vision_output_dim out_hidden_size projector_output_dim adapter_out_dim input_dim pronunciation_embed_dim "
        "shape_embed_dim linear_attn_dim attention_dim hidden_size_global router_hidden_size ple_embed_dim "
        "backbone_hidden_size output_proj_dims"
    )),
    (2 * WIDTH, (
        "intermediate_size moe_intermediate_size decoder_ffn_dim encoder_ffn_dim ffn_dim ffn_hidden_size dff d_ff "
        "dim_ff d_inner emb_dim mlp_dim shared_expert_intermediate_size shared_experts_intermediate_size "
        "shared_intermediate_size intermediate_size_mlp expert_ffn_hidden_size feed_forward_size "
        "dense_intermediate_size moe_shared_expert_intermediate_size prompt_mid_dim projector_input_dim"
    )),
    (LAYERS, (
        "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_blocks num_encoder_layers "
        "num_decoder_layers depth"
    )),
    (HEADS, (
        "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads attention_heads "
        "num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads linear_num_value_heads "
        "linear_num_heads linear_num_key_heads index_n_heads mamba_num_heads conf_num_attention_heads"
    )),
    (2, (
        "num_key_value_heads num_kv_heads kv_n_heads swa_num_key_value_heads num_experts_per_tok "
        "num_experts_per_token moe_topk moe_k moe_top_k topk_group n_group num_expert_group n_groups "
        "mamba_n_groups mamba_ngroups num_mem_blocks cross_attn_k num_global_layers"
    )),
    (HEAD, (
        "head_dim v_head_dim qk_rope_head_dim qk_nope_head_dim index_head_dim linear_key_head_dim "
        "linear_value_head_dim linear_head_dim kv_channels swa_head_dim dim_head mamba_d_head mamba_head_dim "
        "mamba_headdim d_head d_kv attention_head_size laurel_rank hidden_size_per_layer_input rotary_dim "
        "attention_head_dim query_pre_attn_scalar mamba_d_state state_size ssm_state_size mamba_dt_rank "
        "time_step_rank adapter_rank gated_norm_rank hc_lowrank num_random_blocks_dim"
    )),
    (2 * HEAD, (
        "qk_head_dim mamba_chunk_size chunk_size block_size local_attention_window_len rel_extent d_rel"
    )),
    (WINDOW, (
        "sliding_window local_attention attention_window_size window_size sliding_window_size index_topk "
        "attention_chunk_size keep_window_size"
    )),
    (4, (
        "num_experts n_routed_experts num_local_experts moe_num_experts zero_expert_num ngram_vocab_size_base "
        "prompt_length split_ngram_parts num_query_groups mm_tokens_per_image"
    )),
    (1, (
        "n_shared_experts num_shared_experts moe_num_shared_experts first_k_dense_replace num_dense_layers "
        "num_kv_shared_layers moe_layer_start_index"
    )),
    (VOCABULARY, (
        "vocab_size max_position_embeddings n_positions n_ctx max_seq_len model_max_length max_target_positions "
        "context_length decoder_vocab_size vocab_size_per_layer_input unpadded_vocab_size audio_vocab_size "
        "pronunciation_vocab_size shape_vocab_size encoder_hash_byte_group_vocab original_max_position_embeddings "
        "codebook_size"
    )),
)  # fmt: skip
_SIZES = {name: size for size, names in _GROUPS for name in names.split()}

_VISION = {"image_size": 28, "patch_size": 14, "crop_size": 28}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

# What the general rule cannot know, by model type (of a whole model or of one of its parts).
_MAMBA = {"mamba_n_heads": HEAD, "mamba_d_head": HEAD}  # times each other: expand * hidden_size
_LATENT = {"num_key_value_heads": HEADS}  # latent attention keeps no grouped keys
_OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys((
        "axk1", "axk2", "bailing_hybrid", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "kimi_linear",
        "minicpm3", "youtu",
    ), _LATENT),
    "bamba": {**_MAMBA, "attn_layer_indices": [1, 3]},
    "blenderbot": {"encoder_layers": LAYERS},
    "cohere_compass_text": {
        "layer_types": ["full_attention"] * LAYERS,
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10_000.0}},
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 2 * WIDTH, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "num_key_value_heads": HEADS, "first_k_dense_replace": 1},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots3_note_text": {**_LATENT, "n_routed_experts": 4, "n_group": 1, "topk_group": 1},
    "falcon_h1": {"mamba_d_ssm": 2 * WIDTH, **_MAMBA},
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["linear_attention", "full_attention"] * (LAYERS // 2)},
    "hunyuan_v1_dense": {"head_dim": HEAD},
    "hunyuan_v1_moe": {"head_dim": HEAD, "num_experts": 4, "moe_topk": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "mamba2": {"num_heads": HEAD, "head_dim": HEAD},
    "ministral": {"head_dim": HEAD},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": HEAD, "indexer_budget": 16,
        "indexer_compress_ratio": 2,
    },
    "reformer": {"axial_pos_shape": (8, 16), "axial_pos_embds_dim": (8, WIDTH - 8)},
    "xlstm": {"hidden_size": 2 * WIDTH, "embedding_dim": 2 * WIDTH, "qk_dim_factor": 1.0, "v_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"]},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"]},
}  # fmt: skip


def shrunk(model_type: str) -> PretrainedConfig:
    """The tiny config of a model type; raises whatever its config class raises."""
    return _shrunk(CONFIG_MAPPING[model_type])


def _shrunk(kind: type[PretrainedConfig]) -> PretrainedConfig:
    sizes = {f.name: _small(f.name, _default(f)) for f in dataclasses.fields(kind)}
    own = _OWN.get(kind.model_type, {})
    chosen = {name: size for name, size in sizes.items() if size is not None} | own
    parts = {name: part for name, part in _parts(kind).items() if name not in own}
    config = kind(**chosen, **parts)
    missing = {name: kinds for name, kinds in _kinds_left_out(kind, config).items() if name not in own}
    return kind(**chosen, **parts, **missing) if missing else config


def _parts(kind: type[PretrainedConfig]) -> dict[str, PretrainedConfig]:
    """The configs inside a config, shrunk as well."""
    try:
        default = kind()
    except Exception:  # a type that has no default states its parts in `_OWN`
        return {}
    return {
        name: _shrunk(type(part))
        for name, part in vars(default).items()
        if isinstance(part, PretrainedConfig) and not name.startswith("_")
    }


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _small(name: str, default: Any) -> Any:
    """What to pass for one field, or None to leave it as it is."""
    if name in _TOKENS:
        return _TOKENS[name]
    if name == "is_decoder":
        return True
    if isinstance(default, bool) or not isinstance(default, int | float) or default <= 0:
        return None
    if name == "initializer_range":
        return 0.2  # wide, so that the greedy choices of a random model are not all near-ties
    if name.endswith(("_token_id", "_token_index", "_token_type_id")):
        return VOCABULARY - 1
    small = _VISION.get(name) or _SIZES.get(name)
    return None if small is None else type(default)(min(small, default))


def _kinds_left_out(kind: type[PretrainedConfig], config: PretrainedConfig) -> dict[str, list[str]]:
    """Lists of kinds of layers that cover, in few layers, every kind which the type's own default has."""
    default, found = kind(), {}
    settable = {f.name for f in dataclasses.fields(kind)}
    for name in ("layer_types", "mlp_layer_types", "layers_block_type"):
        small, large = getattr(config, name, None), getattr(default, name, None)
        if name not in settable or not small or not large or set(small) >= set(large):
            continue
        kinds = list(dict.fromkeys(large))
        found[name] = [kinds[at % len(kinds)] for at in range(max(LAYERS, len(kinds)))]
    return found
