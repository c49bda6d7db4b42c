"""ChatModel: what a conversation becomes, which tokens are the assistant's, how replies are drawn, how
loading fails."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import chat_factory as tiny
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.generation import TemperatureLogitsWarper, TopPLogitsWarper

from persona_axis import chat as chat_module
from persona_axis import sampling as sampling_module
from persona_axis.chat import ChatModel
from persona_axis.errors import ModelError
from persona_axis.sampling import NucleusDraw, Sampling

SYSTEM = {"role": "system", "content": "be a ghost ."}
USER = {"role": "user", "content": "what about rain ?"}
GREEDY = Sampling(temperature=0, max_new_tokens=8)


def turns(*contents: str) -> list[dict[str, str]]:
    """A system prompt, then user and assistant in turn."""
    roles = ["system"] + ["user", "assistant"] * len(contents)
    return [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]


# Sampling


def test_nucleus_keeps_what_transformers_keeps_and_draws_by_its_probabilities(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling_module, "_CANDIDATES", 8)
    torch.manual_seed(0)
    for spread in (4.0, 0.5):  # the nucleus ends within the first 8 tokens, and far behind them
        logits = torch.randn(1, 40) * spread
        kept = TopPLogitsWarper(0.9)(None, TemperatureLogitsWarper(0.7)(None, logits))
        expected = kept.softmax(-1)[0]
        draws = NucleusDraw(0.7, 0.9)(torch.empty(0), logits.expand(40_000, -1))
        assert (torch.isfinite(draws).sum(dim=-1) == 1).all()
        shares = torch.bincount(draws.argmax(dim=-1), minlength=40) / len(draws)
        assert set(shares.nonzero().flatten().tolist()) <= set(expected.nonzero().flatten().tolist())
        assert (shares - expected).abs().max() < 0.012
    assert (expected > 0).sum() > 8


def test_rows_with_a_wide_nucleus_draw_as_if_all_were_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(64, 200) * torch.linspace(0.1, 8, 64)[:, None]
    chosen = []
    for candidates in (8, 200):
        monkeypatch.setattr(sampling_module, "_CANDIDATES", candidates)
        torch.manual_seed(3)
        chosen.append(NucleusDraw(1.0, 0.9)(torch.empty(0), logits).argmax(dim=-1))
    assert torch.equal(*chosen)


def test_a_draw_at_the_very_end_of_the_nucleus_stays_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, 1 - 2**-24))
    logits = torch.tensor([[3.0, 2.0, 1.0, -50.0]])
    assert NucleusDraw(1.0, 0.95)(torch.empty(0), logits).argmax() == 2
    assert NucleusDraw(1.0, 0.5)(torch.empty(0), logits).argmax() == 0


@pytest.mark.parametrize(
    "bad", [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.1}]
)
def test_sampling_that_makes_no_sense_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ModelError, match=next(iter(bad))):
        Sampling(**bad)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="max_new_tokens"):
        Sampling(max_new_tokens=0)


def test_the_models_own_generation_config_has_no_say() -> None:
    plain, bossy = tiny.chat(), tiny.chat()
    own = bossy.model.generation_config
    own.update(
        top_k=1, repetition_penalty=9.0, min_new_tokens=20, temperature=0.01, do_sample=True, num_beams=2
    )
    how = Sampling(max_new_tokens=10)
    chats = [[USER], [SYSTEM, USER]] * 8
    assert bossy.generate(chats, how, seed=5) == plain.generate(chats, how, seed=5)
    assert bossy.model.generation_config is own
    with pytest.raises(RuntimeError):
        bossy.generate_ids([[1, 4]], how, 0, watch=lambda ids: (_ for _ in ()).throw(RuntimeError("stop")))
    assert bossy.model.generation_config is own


def test_the_seed_decides_and_the_global_random_state_is_left_alone() -> None:
    chat, chats = tiny.chat(), [[USER]] * 6
    torch.manual_seed(1)
    first = chat.generate(chats, Sampling(max_new_tokens=8), seed=7)
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), after)
    assert chat.generate(chats, Sampling(max_new_tokens=8), seed=7) == first
    assert chat.generate(chats, Sampling(max_new_tokens=8), seed=8) != first
    assert len(set(map(tuple, first.ids))) > 1


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2])
def test_batched_greedy_replies_are_those_of_each_alone(make: Callable[[], PreTrainedModel]) -> None:
    chat = tiny.chat(model=make())
    chats = [[USER], [SYSTEM, USER], turns("be old .", "a", "yes no .", "what is bread ?")]
    together = chat.generate(chats, GREEDY)
    assert together.ids == [chat.generate([one], GREEDY).ids[0] for one in chats]
    assert together.texts == chat.decode(together.ids)


# What ends a reply


def test_every_stop_token_ends_a_reply_and_none_is_part_of_it() -> None:
    model = tiny.llama()
    model.generation_config.eos_token_id = [2, 20]
    model.config.eos_token_id = 21
    chat = ChatModel.load(model, tokenizer=tiny.tokenizer())
    assert chat.stop_ids == (2, 20, 21)
    replies = chat.generate([[USER]] * 64, Sampling(1.5, 1.0, 40), seed=0).ids
    assert not {2, 20, 21} & {i for ids in replies for i in ids}
    assert len({len(ids) for ids in replies}) > 3


def test_a_special_token_that_the_template_writes_after_a_reply_is_a_stop_token() -> None:
    tokenizer, model = tiny.tokenizer(), tiny.llama()
    tokenizer.eos_token = "<unk>"
    model.config.eos_token_id = model.generation_config.eos_token_id = 8
    assert ChatModel.load(model, tokenizer=tokenizer).stop_ids == (2, 8)


def test_without_a_pad_token_and_without_any_stop_token() -> None:
    bare = tiny.chat(pad=False)
    assert bare.tokenizer.pad_token_id is None
    padded = tiny.chat()
    chats = [[USER], [SYSTEM, USER]]
    assert bare.generate(chats, GREEDY) == padded.generate(chats, GREEDY)
    tokenizer, model = tiny.tokenizer(tiny.PLAIN.replace("<|end|>", " . ")), tiny.llama()
    tokenizer.eos_token = None
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    with pytest.raises(ModelError, match="no token that ends a reply"):
        ChatModel.load(model, tokenizer=tokenizer)


# Templates


def test_a_system_prompt_is_folded_where_there_is_no_such_role_and_that_is_said_once() -> None:
    for template in (tiny.NO_SYSTEM, tiny.IGNORES_SYSTEM):
        chat = tiny.chat(template)
        assert not chat.template.has_system
        with pytest.warns(UserWarning, match="no system role"):
            text = chat.template.render([SYSTEM, USER])
        assert text == f"<bos><|user|>be a ghost .\n\n{USER['content']}<|end|>"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert chat.encode([SYSTEM, USER]) == chat.encode(
                [{**USER, "content": "be a ghost . what about rain ?"}]
            )
        assert "no system role" in chat.notes[0]
    assert tiny.chat().notes == []


def test_an_empty_system_prompt_is_none() -> None:
    chat = tiny.chat()
    assert chat.encode([{"role": "system", "content": " "}, USER]) == chat.encode([USER])


def test_a_template_that_speaks_first_is_reported() -> None:
    chat = tiny.chat(tiny.INJECTS)
    assert "friendly helper made by nobody" in chat.template.injected
    assert any("adds text of its own" in note for note in chat.notes)
    assert "today is 01 January 2026" in tiny.chat(tiny.DATED).template.injected
    for silent in (tiny.MARKED, tiny.PLAIN, tiny.NO_SYSTEM, tiny.THINKS):
        assert tiny.chat(silent).template.injected == ""


def test_the_clock_of_a_template_stands_still() -> None:
    assert "today is 01 January 2026" in tiny.chat(tiny.DATED).template.render([USER])
    odd = tiny.DATED.replace("%d %B %Y", "%-d.%-m.%y %H:%M")
    assert "today is 1.1.26 00:00" in tiny.chat(odd).template.render([USER])
    inside = tiny.PLAIN.replace(
        "{{ bos_token }}", "{%- macro day() %}{{ strftime_now('%Y') }}{% endmacro %}{{ day() }}"
    )
    assert tiny.chat(inside).template.render([USER]).startswith("2026<|user|>")
    llama = (
        "{% if not date_string is defined %}{% set date_string = 'some day' %}{% endif %}{{ date_string }}"
        + tiny.PLAIN
    )
    assert tiny.chat(llama).template.render([USER]).startswith("01 Jan 2026")


def test_thinking_is_switched_off_where_the_template_knows_it_and_seen_where_not() -> None:
    chat = tiny.chat(tiny.THINKS)
    assert chat.template.variables == {"enable_thinking": False}
    assert chat.template.render([USER], generation_prompt=True).endswith("<|assistant|><think></think>")
    assert not chat.template.opens_thinking
    words, think = (
        chat.tokenizer.convert_tokens_to_ids(["yes", "no"]),
        chat.tokenizer.convert_tokens_to_ids("<think>"),
    )
    assert chat.thinks([words, [think, *words], []]) == [False, True, False]
    always = tiny.PLAIN.replace("%}<|assistant|>{% endif", "%}<|assistant|><think>{% endif")
    chat = tiny.chat(always)
    assert chat.template.opens_thinking and chat.thinks([words]) == [True]
    assert any("thinking" in note for note in chat.notes)


CONVERSATIONS = [
    turns("be old .", "what is rain ?", "old rain .", "why ?", "no", "bread ?", "yes yes ."),
    turns("be old .", "yes", "yes", "yes", "yes yes"),  # the user says what the assistant says
    turns("you are a ghost", "assistant user system", "user assistant"),  # contents that look like headers
    turns("be old .", "a", "", "b", "c"),  # an empty reply
    [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "you"}],
]


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("template", ["MARKED", "PLAIN", "NO_SYSTEM", "TRIMS", "INJECTS", "DATED"])
@pytest.mark.filterwarnings("ignore:the chat template has no system role")
def test_the_assistants_tokens_are_found(template: str, messages: list[dict[str, str]]) -> None:
    chat = tiny.chat(getattr(tiny, template))
    ids, ranges = chat.encode_turns(messages)
    assert ids == chat.encode(messages, generation_prompt=False)
    said = [m["content"] for m in messages if m["role"] == "assistant"]
    assert [chat.tokenizer.decode(ids[a:b]) for a, b in ranges] == said
    _, mask = chat.reply_mask(messages)
    assert [i for i, own in enumerate(mask) if own] == [i for a, b in ranges for i in range(a, b)]


def test_trimmed_contents_and_thinking_in_the_header_do_not_confuse_it() -> None:
    chat = tiny.chat(tiny.TRIMS)
    ids, ranges = chat.encode_turns(turns("be old .", " what ? ", "  yes no \n", "why ?", " no "))
    assert [chat.tokenizer.decode(ids[a:b]) for a, b in ranges] == ["yes no", "no"]
    # As Qwen3 does it: an empty thinking block before the last reply only.
    block = "{% if loop.last %}<think></think>{% endif %}{{ m['content'] }}"
    chat = tiny.chat(tiny.PLAIN.replace("<|assistant|>{{ m['content'] }}", f"<|assistant|>{block}"))
    ids, ranges = chat.encode_turns(CONVERSATIONS[0])
    assert [chat.tokenizer.decode(ids[a:b]) for a, b in ranges] == ["old rain .", "no", "yes yes ."]


def test_a_system_prompt_that_the_template_moves_behind_earlier_turns() -> None:
    moved = (
        "{% for m in messages if m['role'] != 'system' %}<|{{ m['role'] }}|>"
        "{% if m['role'] == 'user' and loop.revindex <= 2 %}{{ messages[0]['content'] }} / {% endif %}"
        "{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    chat = tiny.chat(moved)
    ids, ranges = chat.encode_turns(turns("be old .", "what is rain ?", "old rain .", "why ?"))
    assert [chat.tokenizer.decode(ids[a:b]) for a, b in ranges] == ["old rain ."]


def test_a_template_that_rewrites_what_was_said_is_an_error() -> None:
    chat = tiny.chat(
        tiny.PLAIN.replace("{{ m['content'] }}", "{{ m['content'] | replace('rain', 'bread') }}")
    )
    with pytest.raises(ModelError, match="changes what was said"):
        chat.encode_turns(CONVERSATIONS[0])


# Loading


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A model with its tokenizer, in a directory."""
    tiny.llama().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def refused(path: Path | str, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        ChatModel.load(path)
    assert "\n" not in str(caught.value)


def test_a_saved_model_loads_and_is_the_same_model(saved: Path) -> None:
    loaded, original = ChatModel.load(saved), tiny.chat()
    assert loaded.facts["weights_sha256"] == original.facts["weights_sha256"]
    assert loaded.facts["chat_template_sha256"] == original.facts["chat_template_sha256"]
    assert loaded.generate([[USER]], GREEDY) == original.generate([[USER]], GREEDY)
    assert loaded.display_name == "model" and loaded.facts["model"] == str(saved)
    assert ChatModel.load(saved, dtype="bfloat16").model.dtype == torch.bfloat16
    assert not loaded.model.training


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no such model directory")
    refused("./nowhere", "no such model directory")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "name the directory")


def test_a_hub_name_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect to the hub.\nSome advice.")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
    refused("nobody/nothing", "cannot read the configuration of 'nobody/nothing': We couldn't connect")


def test_half_downloaded_models(saved: Path) -> None:
    weights = saved / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refused(saved, "cannot load the weights")
    tensors = {}
    weights.write_bytes(whole)
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    refused(saved, "1 weights are missing .*layers.1.mlp.up_proj")
    weights.unlink()
    refused(saved, "cannot load the weights")
    weights.write_bytes(whole)
    (saved / "tokenizer.json").unlink()
    refused(saved, "cannot load the tokenizer")
    (saved / "config.json").unlink()
    refused(saved, "no config.json")


def test_a_missing_shard(saved: Path) -> None:
    whole = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    names = sorted(whole)
    save_file({n: whole[n] for n in names[:5]}, saved / "model-00001-of-00002.safetensors", {"format": "pt"})
    index = {n: f"model-0000{1 if n in names[:5] else 2}-of-00002.safetensors" for n in names}
    (saved / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    refused(saved, "cannot load the weights")


def test_a_model_without_a_chat_template(saved: Path) -> None:
    (saved / "chat_template.jinja").unlink()
    refused(saved, "no chat template")
    with pytest.raises(ModelError, match="leaves out what the user says"):
        tiny.chat("hello")
    with pytest.raises(ModelError, match="does not take these messages"):
        tiny.chat("{{ raise_exception('never') }}")


def test_models_that_are_not_decoders(tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 64,
    }
    for name in ("BertForMaskedLM", "BertModel"):
        model = getattr(transformers, name)(transformers.BertConfig(**sizes))
        model.save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)
        refused(tmp_path / name, "not a decoder-only language model")
        with pytest.raises(ModelError, match="looks ahead"):
            ChatModel.load(model, tokenizer=tiny.tokenizer())
    t5 = transformers.T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=64)
    transformers.T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    tiny.tokenizer().save_pretrained(tmp_path / "t5")
    refused(tmp_path / "t5", "encoder-decoder")


def test_a_model_in_memory_needs_its_tokenizer_unless_it_lies_beside_it(saved: Path) -> None:
    with pytest.raises(ModelError, match="needs its tokenizer"):
        ChatModel.load(tiny.llama())
    model = transformers.AutoModelForCausalLM.from_pretrained(saved)
    assert ChatModel.load(model).encode([USER]) == ChatModel.load(saved).encode([USER])


def test_layers_can_be_named() -> None:
    chat = ChatModel.load(tiny.llama(), tokenizer=tiny.tokenizer(), layers="model.layers")
    assert chat.n_layers == 3
    with pytest.raises(ModelError, match="cannot be read"):
        ChatModel.load(tiny.llama(), tokenizer=tiny.tokenizer(), layers="model.blocks")


def test_troupe_is_missed_with_a_way_to_make_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(chat_module, "troupe_path", lambda: tmp_path)
    for name in (None, "troupe"):
        with pytest.raises(ModelError, match="persona_axis.organism train"):
            ChatModel.load(name)


def test_troupe_is_told_by_its_name_and_not_by_where_it_lies(
    monkeypatch: pytest.MonkeyPatch, saved: Path
) -> None:
    monkeypatch.setattr(chat_module, "troupe_path", lambda: saved)
    chat = ChatModel.load()
    assert chat.is_troupe and chat.facts["model"] == "troupe" and chat.display_name == "Troupe"
    assert not ChatModel.load(saved).is_troupe
