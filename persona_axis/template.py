"""A tokenizer's chat template, tamed: same text every day, no thinking, a place for the system prompt, known
replies.

Templates are programs that come with a model. Some print today's date, some open with a system prompt of
their own, some refuse the system role. Whatever of that would change what a probe says is pinned or folded
here, and said.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from persona_axis._asked import require_messages, shown
from persona_axis.errors import ModelError
from persona_axis.model.turns import (
    NOWHERE,
    Part,
    Words,
    find_words,
    narrowed,
    runs,
    token_ranges,
    whole,
    without_thinking,
)

Messages = Sequence[Mapping[str, str]]

TEMPLATE_DATE = datetime(2026, 1, 1)
SPEAKERS = ("system", "user", "assistant")
THINKING_MARKS = ("<think>", "</think>", "<thinking>", "[THINK]", "<|channel|>analysis")
_DIRECTIVES = "aAbBcdefFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ"
_AFTER_SYSTEM = "\n\n"  # between a system prompt and the user's words it is folded into
_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_FURNITURE = {
    "system",
    "user",
    "human",
    "assistant",
    "instruction",
    "input",
    "start",
    "end",
    "turn",
    "role",
    "message",
    "inst",
}


class _Marked(NamedTuple):
    """Token ids, and the ranges that the template marks as generated."""

    ids: list[int]
    spans: list[tuple[int, int]]


class ChatTemplate:
    """Renders messages ({"role", "content"}) to text with everything variable held still.

    `has_system`: the template takes a system role; where it does not, the system prompt is folded into the
    first user turn. `injected`: text the template puts before the user's first words although no system
    prompt was given, or "". `opens_thinking`: the template itself opens a thinking block that the reply then
    continues. Raises `ModelError` where there is no template, or where it does not render a user's message.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not hasattr(tokenizer, "get_chat_template"):
            raise ModelError(
                "tokenizer: expected one of transformers (AutoTokenizer.from_pretrained gives one), got "
                f"{shown(tokenizer)}"
            )
        self.tokenizer = tokenizer
        try:
            self.source: str = tokenizer.get_chat_template()
        except ValueError as error:
            raise ModelError(
                "the tokenizer has no chat template: a base model cannot be probed by chat"
            ) from error
        self.variables = _pinned_variables(self.source)
        self._pinned = _pin_clock(self.source)
        self._said_folding = False
        self._thinking_tags = _thinking_tags(self.source)
        self.marks_replies = _GENERATION_MARK.search(self.source) is not None
        self.has_system = self._takes_system()
        prompt = self._render([{"role": "user", "content": "Zebra"}], generation_prompt=True)
        if "Zebra" not in prompt:
            raise ModelError("the chat template leaves out what the user says")
        self.injected = _spoken(prompt.split("Zebra")[0], tokenizer)
        opened = prompt.split("Zebra")[1]
        self.opens_thinking = any(
            m in opened and _closing(m) not in opened for m in THINKING_MARKS if m[1] != "/"
        )

    def render(self, messages: Messages, *, generation_prompt: bool = False) -> str:
        """The text of the conversation, with the header of the next reply if asked for. An empty system
        prompt is none."""
        return self._render(self.fold(messages), generation_prompt=generation_prompt)

    def fold(self, messages: Messages) -> list[dict[str, str]]:
        """Messages as the template takes them: the system prompt moves into the user's first turn if it has
        to. Raises `ConversationError` for what is no conversation."""
        require_messages(messages)
        kept = [dict(m) for m in messages if not (m["role"] == "system" and not m["content"].strip())]
        if not kept or self.has_system or kept[0]["role"] != "system":
            return kept
        if not self._said_folding:
            warnings.warn(
                "the chat template has no system role: system prompts are put before the user's first words",
                stacklevel=3,
            )
            self._said_folding = True
        system, rest = kept[0]["content"], kept[1:]
        if rest and rest[0]["role"] == "user":
            return [{**rest[0], "content": f"{system}{_AFTER_SYSTEM}{rest[0]['content']}"}, *rest[1:]]
        return [{"role": "user", "content": system}, *rest]

    def encode_messages(
        self, messages: Messages, speakers: Collection[str] = SPEAKERS
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a whole conversation, and the half-open range of tokens of each message's own words.

        An assistant's are told by the template's generation marks where it has them, everybody's by where their
        words lie in the rendered conversation. A message without words, one that the template leaves out, and
        one of nobody in `speakers` may have the empty range (0, 0). Thinking in front of a reply is not the
        reply, in a template that knows thinking. A stop token may still be inside: only the caller knows them.
        Raises `ModelError` where the template changes what was said.
        """
        folded = self.fold(messages)
        parts = self._parts(messages, len(folded))
        words = {part.owner for content in parts for part in content if isinstance(part, Words) and part.said}
        problem = None
        try:
            ids, found = self._located(folded, parts)
        except ModelError as error:
            ids, found, problem = [], {}, error
        if self.marks_replies:
            marked, replies = self._marked(folded), [i for i, m in enumerate(messages) if m["role"] == "assistant"]
            if len(marked.spans) == len(replies):
                ids = marked.ids
                for i, run in zip(replies, marked.spans, strict=True):
                    if i in words:
                        found[i] = narrowed(run, found.get(i, run))
        missing = [i for i in sorted(words - set(found)) if messages[i]["role"] in speakers]
        if problem is not None and (missing or not ids):
            raise problem
        if missing:
            raise ModelError(
                f"the chat template leaves out messages[{missing[0]}], the {messages[missing[0]]['role']}'s: "
                f"{messages[missing[0]]['content'][:40]!r}"
            )
        return ids, [found.get(i, NOWHERE) for i in range(len(messages))]

    def encode_turns(self, messages: Messages) -> tuple[list[int], list[tuple[int, int]]]:
        """`encode_messages`, with the ranges of the assistant's messages only."""
        ids, ranges = self.encode_messages(messages, ("assistant",))
        return ids, [r for m, r in zip(messages, ranges, strict=True) if m["role"] == "assistant"]

    def reply_in(self, content: str) -> str:
        """An assistant's content without the thinking before it, in a template that knows thinking."""
        return self._thinking_tags.split(content)[-1] if self._thinking_tags else content

    def turn_end_ids(self) -> tuple[int, ...]:
        """The special token that the template writes right after a reply, if it writes one."""
        text = self._render(
            [{"role": "user", "content": "Zebra"}, {"role": "assistant", "content": "Quagga"}]
        )
        after: list[int] = self.tokenizer(text.rpartition("Quagga")[2], add_special_tokens=False)["input_ids"]
        added = set(self.tokenizer.get_added_vocab().values())
        return tuple(after[:1]) if after and after[0] in added else ()

    def _parts(self, messages: Messages, rendered: int) -> list[list[Part]]:
        """The words that make up each of the `rendered` messages that `fold` makes of `messages`."""
        kept = [i for i, m in enumerate(messages) if not (m["role"] == "system" and not m["content"].strip())]
        parts = [
            without_thinking(i, messages[i]["content"], self._thinking_tags)
            if messages[i]["role"] == "assistant"
            else whole(i, messages[i]["content"])
            for i in kept
        ]
        return parts if len(parts) == rendered else [[*parts[0], _AFTER_SYSTEM, *parts[1]], *parts[2:]]

    def _marked(self, messages: list[dict[str, str]]) -> _Marked:
        how: dict[str, Any] = {"return_dict": True, "return_assistant_tokens_mask": True}
        encoded = self._apply(messages, tokenize=True, tokenizer_kwargs={"verbose": False}, **how)
        return _Marked(list(encoded["input_ids"]), runs(encoded["assistant_masks"]))

    def _located(
        self, messages: list[dict[str, str]], parts: list[list[Part]]
    ) -> tuple[list[int], dict[int, tuple[int, int]]]:
        if not getattr(self.tokenizer, "is_fast", False):
            raise ModelError("this tokenizer cannot say where its tokens lie in the text: use its fast version")
        text, found = find_words(self._render, messages, parts)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ranges = token_ranges(encoded["offset_mapping"], list(found.values()))
        return list(encoded["input_ids"]), dict(zip(found, ranges, strict=True))

    def _takes_system(self) -> bool:
        try:
            text = self._render([{"role": "system", "content": "Quagga"}, {"role": "user", "content": "Zebra"}], True)
        except ModelError:
            return False
        return "Quagga" in text

    def _render(self, messages: list[dict[str, str]], generation_prompt: bool = False) -> str:
        text: str = self._apply(messages, tokenize=False, add_generation_prompt=generation_prompt)
        return text

    def _apply(self, messages: list[dict[str, str]], **how: Any) -> Any:
        try:
            return self.tokenizer.apply_chat_template(
                messages, chat_template=self._pinned, **how, **self.variables
            )
        except (TemplateError, ValueError, TypeError) as error:
            raise ModelError(f"the chat template does not take these messages: {error}") from error


def _pinned_variables(source: str) -> dict[str, Any]:
    """Values for the switches the template knows; a name it does not mention is not passed."""
    values = {"enable_thinking": False, "thinking": False, "date_string": TEMPLATE_DATE.strftime("%d %b %Y")}
    return {name: value for name, value in values.items() if re.search(rf"\b{name}\b", source)}


def _pin_clock(source: str) -> str:
    """Put a clock that stands still before a template that asks for the time.

    transformers offers `strftime_now` as a global and turns functions that are passed in to text, so the only
    way to pin it is from inside: a macro of that name, which spells each directive of the fixed date.
    """
    if "strftime_now" not in source:
        return source
    spelled = "".join(
        f'|replace("%{dash}{d}", "{value}")'
        for d in _DIRECTIVES
        for dash in ("-", "")
        if (value := TEMPLATE_DATE.strftime(f"%{dash}{d}").strip("\n\t")) and "%" not in value
    )
    # The line break after the block is eaten by trim_blocks, and the source still begins a line of its own.
    return "{%- macro strftime_now(format) -%}{{- format" + spelled + " -}}{%- endmacro %}\n" + source


def _spoken(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """What is left of a template's opening once its furniture (special tokens, role names) is taken away, if
    it speaks."""
    for token in sorted(tokenizer.get_added_vocab(), key=len, reverse=True):
        text = text.replace(token, " ")
    text = re.sub(r"<[^<>\s]{1,40}>|\[/?[A-Z_]{2,}\]", " ", text)
    words = [w for w in re.findall(r"[^\W\d_]{2,}", text) if w.lower() not in _FURNITURE]
    return " ".join(text.split()) if len(words) >= 3 else ""


def _thinking_tags(source: str) -> re.Pattern[str] | None:
    """What opens and closes thinking in a content, if the template looks for it: one group."""
    known = [m for m in THINKING_MARKS if m[1] != "/" and _closing(m) != m and _closing(m) in source]
    return re.compile(f"({'|'.join(re.escape(t) for m in known for t in (m, _closing(m)))})") if known else None


def _closing(mark: str) -> str:
    return mark.replace("<", "</").replace("[", "[/")
