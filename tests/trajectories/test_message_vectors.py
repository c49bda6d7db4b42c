"""What represents a user's message: means over its own tokens, found by conversation and turn."""

from __future__ import annotations

import sys
from dataclasses import replace

import chat_factory as tiny
import numpy as np
import pandas as pd
import pytest
import torch

from persona_axis.axis import Axis
from persona_axis.conversations import Conversation
from persona_axis.drift import trajectories
from persona_axis.drivers import changes_by_kind, message_vectors, predictability, sentence_vectors
from persona_axis.errors import DriftError
from persona_axis.trajectories import messages as module

LAYER = 1
WORDS = "rain bread money sleep work dark bright old new one two three".split()


def said(name, *messages, system=None):
    """A conversation from its messages: `u:` the user's, `a:` the assistant's."""
    roles = {"u": "user", "a": "assistant"}
    opening = [] if system is None else [{"role": "system", "content": system}]
    turns = [{"role": roles[m[0]], "content": m[2:].strip()} for m in messages]
    return Conversation(name, (*opening, *turns))


def spoken(seed, turns):
    random = np.random.default_rng(seed)
    lines = (f"{who}: " + " ".join(random.choice(WORDS, random.integers(1, 6))) for _ in range(turns) for who in "ua")
    return said(f"c{seed}", *lines)


@pytest.fixture(scope="module")
def chat():
    return tiny.chat()


def hidden_states(chat, messages):
    """ids and the output of the layer, by transformers itself."""
    ids = chat.encode(messages, generation_prompt=False)
    with torch.inference_mode():
        states = chat.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    return ids, states[LAYER + 1][0].double().numpy()


def user_tokens(chat, ids):
    """Places of each user message's tokens, read off the special tokens of the tiny template."""
    special = {name: chat.tokenizer.convert_tokens_to_ids(name) for name in ("<|user|>", "<|end|>")}
    found, inside = [], False
    for place, token in enumerate(ids):
        if token == special["<|user|>"]:
            inside = True
            found.append([])
        elif token == special["<|end|>"]:
            inside = False
        elif inside:
            found[-1].append(place)
    return found


@pytest.mark.parametrize("template", ["MARKED", "PLAIN", "TRIMS", "DATED"])
def test_means_over_the_messages_own_tokens(template):
    chat = tiny.chat(getattr(tiny, template))
    conversation = said(
        "talk", "u: what about rain ?", "a: bread .", "u: no , money", "a: be like rain", "u: hello", "a: yes",
        system="be a ghost .",
    )  # fmt: skip
    found = message_vectors(chat, [conversation], LAYER)
    ids, states = hidden_states(chat, conversation.messages)
    places = user_tokens(chat, ids)
    assert [len(p) for p in places] == [4, 3, 1]
    assert list(found.index) == [("talk", 1), ("talk", 2), ("talk", 3)]
    assert list(found.index.names) == ["conversation", "turn"]
    assert found.shape == (3, 32) and (found.dtypes == np.float32).all()
    np.testing.assert_allclose(found.to_numpy(), [states[p].mean(axis=0) for p in places], atol=1e-5)


def test_batched_is_one_by_one(chat, monkeypatch):
    conversations = [spoken(seed, turns) for seed, turns in enumerate((1, 6, 2, 9, 3))]
    together = message_vectors(chat, iter(conversations), LAYER)
    assert len(together) == 21
    monkeypatch.setattr(module, "_TOKENS_AT_ONCE", 1)
    alone = message_vectors(chat, conversations, LAYER)
    pd.testing.assert_frame_equal(together, alone, atol=1e-5)
    again = pd.concat([message_vectors(chat, [c], LAYER) for c in conversations])
    pd.testing.assert_frame_equal(alone, again)


def test_batches_stay_below_the_bound_and_keep_the_order(monkeypatch):
    monkeypatch.setattr(module, "_TOKENS_AT_ONCE", 20)
    lengths = [3, 5, 9, 30, 2, 2, 2, 10, 10, 1]
    reads = [module._Read(list(range(n)), {("c", n): [(0, 1)]}) for n in lengths]
    batches = list(module._batches(reads))
    assert [read for batch in batches for read in batch] == reads
    assert all(len(b) == 1 or len(b) * max(len(r.ids) for r in b) <= 20 for b in batches)
    assert [len(b) for b in batches] == [2, 1, 1, 3, 2, 1]


def test_a_message_alone_does_not_know_what_was_said_before(chat):
    one = said("one", "u: rain", "a: bread .", "u: money ?", "a: yes")
    two = said("two", "u: sleep work", "a: no .", "u: money ?", "a: yes", system="be a ghost .")
    vectors = message_vectors(chat, [one, two], LAYER, alone=True)
    assert list(vectors.index) == [("one", 1), ("one", 2), ("two", 1), ("two", 2)]
    np.testing.assert_allclose(vectors.loc[("one", 2)], vectors.loc[("two", 2)], atol=1e-6)
    _, states = hidden_states(chat, [{"role": "user", "content": "money ?"}])
    ids = chat.encode([{"role": "user", "content": "money ?"}], generation_prompt=False)
    np.testing.assert_allclose(vectors.loc[("one", 2)], states[user_tokens(chat, ids)[0]].mean(axis=0), atol=1e-5)
    within = message_vectors(chat, [one, two], LAYER)
    assert not np.allclose(within.loc[("one", 2)], within.loc[("two", 2)], atol=1e-3)


def test_several_messages_before_a_reply_are_one_and_none_is_none(chat):
    conversation = said("c", "a: hello", "u: rain", "u: bread money", "a: yes", "a: no", "u: sleep", "a: bright")
    found = message_vectors(chat, [conversation], LAYER)
    assert list(found.index) == [("c", 2), ("c", 4)]  # the first and the third reply answer nobody
    ids, states = hidden_states(chat, conversation.messages)
    rain, bread, sleep = user_tokens(chat, ids)
    expected = [states[rain + bread].mean(axis=0), states[sleep].mean(axis=0)]
    np.testing.assert_allclose(found.to_numpy(), expected, atol=1e-5)


def test_an_empty_message_has_no_vector_and_a_last_one_without_a_reply_neither(chat):
    conversation = said("c", "u: rain", "a: yes", "u:", "a: no", "u: bread", "a: old", "u: money")
    assert list(message_vectors(chat, [conversation], LAYER).index) == [("c", 1), ("c", 3)]
    with pytest.raises(DriftError, match="no assistant turn answers a user's message"):
        message_vectors(chat, [said("c", "a: hello")], LAYER)
    with pytest.raises(DriftError, match="no assistant turn answers"):
        message_vectors(chat, [], LAYER)


def test_refused(chat):
    with pytest.raises(DriftError, match="two conversations have the id 'c1'"):
        message_vectors(chat, [spoken(1, 2), spoken(1, 3)], LAYER)
    long = said("long", "u: " + "rain " * 300, "a: yes")
    with pytest.raises(DriftError, match="'long' has 30. tokens where the model's context has 256: .* alone"):
        message_vectors(chat, [spoken(1, 1), long], LAYER)
    changing = tiny.chat(tiny.PLAIN.replace("{{ m['content'] }}", "{{ m['content'] | replace('rain', 'snow') }}"))
    with pytest.raises(DriftError, match="conversation 'wet': the chat template changes what was said"):
        message_vectors(changing, [said("wet", "u: rain", "a: yes")], LAYER)
    broken = tiny.chat()
    broken.model.model.layers[0].mlp.down_proj.weight.data[:] = float("nan")
    with pytest.raises(DriftError, match="'c1', turn 1: NaN or infinite activations at layer 1"):
        message_vectors(broken, [spoken(1, 2)], LAYER)


def test_from_conversations_to_predictability(chat):
    """Projections that are made of the messages themselves are predicted from their vectors."""
    conversations = [spoken(seed, 5) for seed in range(40)]
    vectors = message_vectors(chat, conversations, LAYER)
    random = np.random.default_rng(0)
    level = vectors.to_numpy(np.float64) @ random.normal(size=32)
    level = level / level.std() + 0.3 * random.normal(size=len(level))
    frame = vectors.index.to_frame(index=False).assign(projection=level, layer=LAYER, speaker="assistant")
    found = predictability(vectors, frame, LAYER)
    assert found.next.low > 0.5 and (found.turns, found.conversations) == (160, 40)


def test_from_a_trajectory_to_what_drives_it(chat):
    """The table that `drift` writes and the vectors of the same conversations fit together, empty replies and all."""
    axis = Axis.from_direction(
        np.eye(32, dtype=np.float32)[:2], layers=[LAYER, 2], metadata={**chat.facts, "num_layers": 3}
    )
    kinds = ("edit", "venting", None, "edit", "venting")
    conversations = [replace(spoken(seed, 5), kinds=kinds) for seed in range(20)]
    conversations[3].messages[5]["content"] = ""  # the third reply
    frame = pd.concat(trajectories(chat, axis, conversations, speakers=("user", "assistant")))
    changes = changes_by_kind(frame, LAYER).set_index("kind")
    assert changes["turns"].to_dict() == {"edit": 19, "venting": 40}  # none for the edit after the empty reply
    found = predictability(message_vectors(chat, conversations, LAYER), frame, LAYER)
    assert (found.turns, found.conversations) == (20 * 4 - 2, 20)


def test_sentence_vectors_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(DriftError, match=r"^sentence vectors need .*: pip install 'persona-axis\[embeddings\]'$"):
        sentence_vectors("any", [spoken(0, 2)])


def test_sentence_vectors(tmp_path):
    library = pytest.importorskip("sentence_transformers")
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(
        vocab_size=len(tiny.tokenizer()), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )).save_pretrained(tmp_path / "bert")  # fmt: skip
    tiny.tokenizer().save_pretrained(tmp_path / "bert")
    library.SentenceTransformer(str(tmp_path / "bert")).save(str(tmp_path / "embedder"))
    one = said("one", "a: hello", "u: rain", "u: money ?", "a: yes", "u:", "a: no", "u: bread", "a: old")
    found = sentence_vectors(str(tmp_path / "embedder"), [one, spoken(3, 2)])
    assert list(found.index) == [("one", 2), ("one", 4), ("c3", 1), ("c3", 2)] and found.shape == (4, 16)
    expected = library.SentenceTransformer(str(tmp_path / "embedder")).encode(["rain\n\nmoney ?", "bread"])
    np.testing.assert_allclose(found.to_numpy()[:2], expected, atol=1e-5)
    with pytest.raises(DriftError, match="no assistant turn answers"):
        sentence_vectors(str(tmp_path / "embedder"), [said("c", "a: hello")])
    with pytest.raises(DriftError, match="cannot load the sentence-transformers model"):
        sentence_vectors(str(tmp_path / "nowhere"), [one])
