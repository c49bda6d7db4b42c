"""The bytes of one token. A token may be a part of a character: alone it is no text, and joined bytes are."""

from __future__ import annotations

import re
from typing import Any

_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
_HALVES = {"level": ["Ã", "©"], "fallback": ["<0xC3>", "<0xA9>"]}  # the two bytes of é, as vocabularies write them


def _alphabet() -> dict[str, int]:
    """GPT-2's, of all byte-level vocabularies: a byte that prints is its Latin-1 character, the others follow."""
    prints = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(prints)]
    return {chr(byte): byte for byte in prints} | {chr(256 + i): byte for i, byte in enumerate(others)}


_ALPHABET = _alphabet()


def bytes_of(tokenizer: Any, token: int, text: str) -> list[int] | None:
    """The bytes of a token whose decoded text is `text`; None where the vocabulary does not tell."""
    if "\ufffd" not in text:
        return list(text.encode())
    piece = str(tokenizer.convert_ids_to_tokens(token))
    if token in tokenizer.added_tokens_decoder:  # written as it is, in every vocabulary
        return list(piece.encode())
    if (byte := _FALLBACK.fullmatch(piece)) and _joins(tokenizer, "fallback"):
        return [int(byte[1], 16)]
    if all(char in _ALPHABET for char in piece) and _joins(tokenizer, "level"):
        return [_ALPHABET[char] for char in piece]
    return None


def _joins(tokenizer: Any, kind: str) -> bool:
    """Whether the tokenizer's decoder reads its pieces in this way: asked of the decoder, as its names differ."""
    return str(tokenizer.convert_tokens_to_string(_HALVES[kind])).strip() == "é"
