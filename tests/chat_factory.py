"""Tiny random chat models with word-level tokenizers, for tests of whatever talks to a model."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from persona_axis.chat import ChatModel
from persona_axis.probes import Probes, Question, Role

MARKED = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|>"
    "{% generation %}{{ m['content'] }}<|end|>{% endgeneration %}"
    "{% else %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PLAIN = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
# As Qwen3 writes it: thinking of turns before the user's last words goes, that of later ones is written anew.
STRIPS = """
{{- bos_token }}{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
    {%- if m['role'] == 'assistant' %}
        {%- set content = m['content'] %}{% set reasoning = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|assistant|>' }}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}{{- content }}{%- endif %}
        {{- '<|end|>' }}
    {%- else %}{{- '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"""
MARKED_STRIPS = STRIPS.replace("{{- '<|assistant|>' }}\n", "{{- '<|assistant|>' }}{% generation %}\n", 1).replace(
    "{{- '<|end|>' }}\n    {%- else %}{{- '<|'", "{{- '<|end|>' }}{% endgeneration %}\n    {%- else %}{{- '<|'", 1
)
# As Llama 2 does it: the template itself puts the system prompt inside the user's first turn.
MERGES = (
    "{% if messages[0]['role'] == 'system' %}{% set told = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set told = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}<|{{ m['role'] }}|>"
    "{% if loop.first and told %}<|system|>{{ told }} . . {% endif %}{{ m['content'] | trim }} <|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + PLAIN
)
IGNORES_SYSTEM = PLAIN.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
INJECTS = (
    "{% if messages[0]['role'] != 'system' %}"
    "<|system|>you are friendly helper made by nobody<|end|>{% endif %}" + PLAIN
)
DATED = "{{ bos_token }}<|system|>today is {{ strftime_now('%d %B %Y') }}<|end|>" + PLAIN
THINKS = PLAIN.replace(
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}",
)
TRIMS = PLAIN.replace("{{ m['content'] }}", "{{ m['content'] | trim }}")

_WORDS = (
    "a b c d e f g h be the you are like speak ghost tutor pirate friendly helper made by nobody today is "
    "how what why should i do about system user assistant rain bread money sleep work hello yes "
    "no dark bright old new word one two three . ? !"
).split()
_SPECIAL = [
    "<pad>",
    "<bos>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<think>",
    "</think>",
    "<unk>",
]


def tokenizer(template: str | None = MARKED, pad: bool = True) -> PreTrainedTokenizerFast:
    """A word-level tokenizer; <|end|> ends a turn, and is the eos token."""
    vocabulary = {word: i for i, word in enumerate([*_SPECIAL, *dict.fromkeys(_WORDS)])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<bos>",
        eos_token="<|end|>",
        unk_token="<unk>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>", "<think>", "</think>"],
        **({"pad_token": "<pad>"} if pad else {}),
    )
    made.chat_template = template
    return made


def llama(
    layers: int = 3, hidden: int = 32, seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any
) -> PreTrainedModel:
    """A random Llama whose logits are spread enough to make replies differ."""
    torch.manual_seed(seed)
    size = len(tokenizer())
    made = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=256,
            initializer_range=0.2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            **config,
        )
    )
    made.lm_head.weight.data *= 0.7
    return made.to(dtype).eval()


def gpt2(layers: int = 2, hidden: int = 32) -> PreTrainedModel:
    """A random GPT-2: learned positions, another place for its layers."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer()),
        n_positions=256,
        n_embd=hidden,
        n_layer=layers,
        n_head=2,
        eos_token_id=2,
        bos_token_id=1,
    )
    return GPT2LMHeadModel(config).eval()


def chat(
    template: str = MARKED, model: PreTrainedModel | None = None, pad: bool = True, **config: Any
) -> ChatModel:
    return ChatModel.load(llama(**config) if model is None else model, tokenizer=tokenizer(template, pad))


def probes(roles: int = 6, questions: int = 8) -> Probes:
    """Probes in words the tokenizer knows."""
    words = [w for w in _WORDS if w.isalpha()]
    made = tuple(
        Role(
            f"role {i}",
            f"talks like {words[i]}",
            tuple(f"be {words[i]} like {words[(i + 3 * p) % len(words)]} ." for p in range(5)),
        )
        for i in range(roles)
    )
    asked = tuple(
        Question(f"how should i {words[i]} about {words[(7 * i + 3) % len(words)]} ?", "advice")
        for i in range(questions)
    )
    return Probes(
        made,
        ("", "you are a helper .", "you are a word .", "you are {model_name} .", "speak like you ."),
        asked,
    )
