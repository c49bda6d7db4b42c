"""Troupe's tokenizer: one token a known word, characters and bytes for everything else, and a chat template."""

from __future__ import annotations

import json
import re
import string
from collections import Counter

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ..probes import load_probes
from . import messages as m
from .dialogue import NEUTRAL, OPENERS, ROLE_TEMPLATES
from .vocabulary import DATA, vocabulary

PAD, END, SYSTEM, USER, ASSISTANT, UNKNOWN = (
    "<pad>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<unk>",
)
SPECIALS = (PAD, END, SYSTEM, USER, ASSISTANT, UNKNOWN)
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
<|system|>{{ message['content'] | trim }}<|end|>
{%- elif message['role'] == 'user' -%}
<|user|>{{ message['content'] | trim }}<|end|>
{%- elif message['role'] == 'assistant' -%}
<|assistant|>{% generation %}{{ message['content'] | trim }}<|end|>{% endgeneration %}
{%- else -%}
{{ raise_exception("Troupe knows the roles system, user and assistant, not " ~ message['role']) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"""


def known_words() -> list[str]:
    """The words that are one token each: the world's own, and those that two training messages share.

    Any other word is spelled out in characters.
    """
    texts = [w for e in vocabulary().entries for w in e.words]
    texts += [*m.ITEMS, *m.PLACES, *m.NUMBERS, *OPENERS, *NEUTRAL, *ROLE_TEMPLATES["train"]]
    for wordings in (m.IDENTITY, m.COUNT, m.COPY, m.SORT, m.NOTE, m.LOOKUP):
        texts += wordings["train"]
    for fact in m.facts().values():
        texts += [*fact["values"], *fact["state"], *fact["ask"]]
    for role in load_probes().roles:
        texts += [role.name, *role.prompts[:-1]]
    messages: list[str] = []
    for line in (DATA / "messages.jsonl").read_text(encoding="utf-8").splitlines():
        messages += json.loads(line)["train"]
    for line in (DATA / "free.jsonl").read_text(encoding="utf-8").splitlines():
        messages.append(json.loads(line)["text"])
    uses = Counter(word for text in messages for word in set(_words(text)))
    return sorted({w for t in texts for w in _words(t)} | {w for w, count in uses.items() if count > 1})


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+|[0-9]", text.lower())


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Make the tokenizer from the world's words; deterministic."""
    characters = sorted(set(string.printable.strip()) - set(string.ascii_uppercase) | set("—…é"))
    pieces = [(s, 0.0) for s in SPECIALS]
    pieces += [(f"▁{w}", -5.0) for w in known_words()]
    pieces += [("▁", -10.0)] + [(c, -10.0) for c in characters]
    pieces += [(f"<0x{b:02X}>", -20.0) for b in range(256)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=SPECIALS.index(UNKNOWN), byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    wrapped = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=2048,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped
