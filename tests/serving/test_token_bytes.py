from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chat_factory
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from persona_axis.chat import ChatModel
from persona_axis.serving._token_bytes import bytes_of

SAID = "é 😀 — café \t naïve\x00\u00ad"


def byte_level() -> Any:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(["no no"], trainers.BpeTrainer(vocab_size=260, initial_alphabet=alphabet))
    made = PreTrainedTokenizerFast(tokenizer_object=inner)
    made.add_tokens([AddedToken("<\ufffdÃ©>")])
    return made


def fallback() -> Any:
    words = {"▁": 256, "<unk>": 257, "a": 258, "c": 259, "f": 260}
    vocabulary = {**{f"<0x{i:02X}>": i for i in range(256)}, **words}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def troupe() -> Any:
    return ChatModel.load("troupe").tokenizer


@pytest.mark.parametrize(("make", "strips"), [(byte_level, False), (fallback, False), (troupe, True)])
def test_the_bytes_of_all_tokens_are_those_of_the_text(make: Callable[[], Any], strips: bool) -> None:
    tokenizer = make()
    ids = tokenizer(SAID, add_special_tokens=False)["input_ids"]
    texts = [tokenizer.decode([token]) for token in ids]
    joined = bytes(byte for token, text in zip(ids, texts, strict=True) for byte in bytes_of(tokenizer, token, text))
    assert sum("\ufffd" in text for text in texts) >= 4
    whole = tokenizer.decode(ids).encode()
    if strips:  # the space before a reply's first word: its decoder strips it from every token that it is given alone
        joined, whole = joined.replace(b" ", b""), whole.replace(b" ", b"")
    assert joined == whole
    assert "😀".encode() in joined


def test_what_is_written_as_it_is_and_what_nothing_tells() -> None:
    level = byte_level()
    added = level.convert_tokens_to_ids("<\ufffdÃ©>")
    assert bytes_of(level, added, level.decode([added])) == list("<\ufffdÃ©>".encode())
    words = chat_factory.tokenizer()
    rain = words.convert_tokens_to_ids("rain")
    assert bytes_of(words, rain, "rain") == list(b"rain")
    assert bytes_of(words, rain, "\ufffd") is None  # a vocabulary of words knows no bytes, though `rain` has letters
