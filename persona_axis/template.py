"""A tokenizer's chat template, tamed: same text every day, no thinking, a place for the system prompt, known
replies.

Templates are programs that come with a model. Some print today's date, some open with a system prompt of
their own, some refuse the system role. Whatever of that would change what a probe says is pinned or folded
here, and said.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from persona_axis.errors import ModelError

Messages = Sequence[Mapping[str, str]]

TEMPLATE_DATE = datetime(2026, 1, 1)
THINKING_MARKS = ("<think>", "</think>", "<thinking>", "[THINK]", "<|channel|>analysis")
_DIRECTIVES = "aAbBcdefFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ"
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


class ChatTemplate:
    """Renders messages ({"role", "content"}) to text with everything variable held still.

    `has_system`: the template takes a system role; where it does not, the system prompt is folded into the
    first user turn. `injected`: text the template puts before the user's first words although no system
    prompt was given, or "". `opens_thinking`: the template itself opens a thinking block that the reply then
    continues. Raises `ModelError` where there is no template, or where it does not render a user's message.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
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
        to."""
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
            return [{**rest[0], "content": f"{system}\n\n{rest[0]['content']}"}, *rest[1:]]
        return [{"role": "user", "content": system}, *rest]

    def encode_turns(self, messages: Messages) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a whole conversation, and the half-open range of tokens of each assistant message in
        order.

        By the template's generation marks where it has them, else by where the messages' texts lie in the
        rendered conversation. A turn's stop token may still be inside its range: only the caller knows the
        stop tokens.
        """
        folded = self.fold(messages)
        replies = sum(m["role"] == "assistant" for m in folded)
        if self.marks_replies:
            ids, mask = self._marked(folded)
            ranges = _runs(mask)
        else:
            ids, ranges = self._located(folded)
        if len(ranges) != replies:
            raise ModelError(
                f"the chat template shows {len(ranges)} assistant turns where the conversation has {replies}"
            )
        return ids, ranges

    def turn_end_ids(self) -> tuple[int, ...]:
        """The special token that the template writes right after a reply, if it writes one."""
        text = self._render(
            [{"role": "user", "content": "Zebra"}, {"role": "assistant", "content": "Quagga"}]
        )
        after: list[int] = self.tokenizer(text.rpartition("Quagga")[2], add_special_tokens=False)["input_ids"]
        added = set(self.tokenizer.get_added_vocab().values())
        return tuple(after[:1]) if after and after[0] in added else ()

    def _marked(self, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
        encoded = self._apply(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        return list(encoded["input_ids"]), list(encoded["assistant_masks"])

    def _located(self, messages: list[dict[str, str]]) -> tuple[list[int], list[tuple[int, int]]]:
        text = self._render(messages)
        places = self._places(messages, text)
        if not getattr(self.tokenizer, "is_fast", False):
            raise ModelError(
                "this tokenizer cannot say where its tokens lie in the text: use its fast version"
            )
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets: list[tuple[int, int]] = encoded["offset_mapping"]
        ranges = []
        for start, end in places:
            inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start and b > a]
            ranges.append((inside[0], inside[-1] + 1) if inside else (0, 0))
        return list(encoded["input_ids"]), ranges

    def _places(self, messages: list[dict[str, str]], text: str) -> list[tuple[int, int]]:
        """Character ranges of the assistant contents: the same conversation is rendered with contents that
        cannot be mistaken for anything else, which shows the text between them; the real contents then fall
        into place."""
        marks = [f"Zq{chr(97 + i % 26)}{i}x" for i in range(len(messages))]
        frame = self._render([{**m, "content": mark} for m, mark in zip(messages, marks, strict=True)])
        where = [frame.find(mark) for mark in marks]
        position, at, places = 0, 0, {}
        # In the order of the rendered text: some templates move the system prompt behind earlier turns.
        for index in sorted(range(len(messages)), key=lambda i: where[i]):
            content, found = messages[index]["content"], where[index]
            between = frame[position : max(found, 0)]
            if found < 0 or not text.startswith(between, at):
                raise ModelError(
                    f"cannot tell which tokens of this conversation are the assistant's (at {content[:40]!r})"
                )
            start, position = at + len(between), found + len(marks[index])
            kept = _as_kept(text, start, content, frame[position : position + 1])
            if kept is None:
                raise ModelError(
                    "the chat template changes what was said, so its tokens cannot be found: "
                    f"{content[:40]!r}"
                )
            at = start + len(kept)
            places[index] = (start, at)
        return [places[i] for i, message in enumerate(messages) if message["role"] == "assistant"]

    def _takes_system(self) -> bool:
        try:
            text = self._render(
                [{"role": "system", "content": "Quagga"}, {"role": "user", "content": "Zebra"}], True
            )
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


def _as_kept(text: str, start: int, content: str, following: str) -> str | None:
    """The content as it stands in the text from `start` to the character `following`: many templates trim."""
    for kept in (content, content.strip(), content.rstrip(), content.lstrip()):
        if text.startswith(kept, start) and text[start + len(kept) :][:1] == following:
            return kept
    return None


def _spoken(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """What is left of a template's opening once its furniture (special tokens, role names) is taken away, if
    it speaks."""
    for token in sorted(tokenizer.get_added_vocab(), key=len, reverse=True):
        text = text.replace(token, " ")
    text = re.sub(r"<[^<>\s]{1,40}>|\[/?[A-Z_]{2,}\]", " ", text)
    words = [w for w in re.findall(r"[^\W\d_]{2,}", text) if w.lower() not in _FURNITURE]
    return " ".join(text.split()) if len(words) >= 3 else ""


def _closing(mark: str) -> str:
    return mark.replace("<", "</").replace("[", "[/")


def _runs(mask: Sequence[int]) -> list[tuple[int, int]]:
    """Half-open ranges where the mask is 1."""
    edges = [
        i for i in range(len(mask) + 1) if (mask[i - 1] if i else 0) != (mask[i] if i < len(mask) else 0)
    ]
    return list(zip(edges[::2], edges[1::2], strict=True))
