"""Trajectories against float64, windows, batches; percentiles, alerts and the file a table goes to."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import chat_factory as tiny
import numpy as np
import pandas as pd
import pytest
import torch
from chat_factory import MERGES, STRIPS
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import tokenization_utils_base

from persona_axis import Axis, AxisFileError, AxisMismatchError, Cap, CapError
from persona_axis import drift as drift_module
from persona_axis.chat import ChatModel
from persona_axis.conversations import Conversation
from persona_axis.drift import (
    COLUMNS,
    TOKEN_COLUMNS,
    Alarm,
    TableWriter,
    add_percentiles,
    alerts,
    context_limit,
    percentiles,
    trajectories,
    trajectory,
)
from persona_axis.errors import ConversationError, DriftError
from persona_axis.model import windows as windows_module

LAYERS = (0, 2)
HIDDEN = 32
Log = list[dict[str, str]]


def axis_for(chat: ChatModel, layers: Sequence[int] = LAYERS, tables: bool = True, roles: int = 3) -> Axis:
    """An axis of random directions that fits the model, with distributions of about the size of its projections."""
    random = np.random.default_rng(5)
    shape = (len(layers), chat.hidden_size)
    stated = {**chat.facts, "num_layers": chat.n_layers, "provenance": "fitted", "recommended_layer": layers[-1]}
    quantiles = {
        name: np.sort(random.normal(shift, 2.0, size=(len(layers), 101)), axis=1)
        for name, shift in (("default", 1.0), ("roles", -1.0))
    }
    default, vectors = random.normal(size=shape), random.normal(size=(roles, *shape))
    return Axis.from_means(
        default, vectors, layers=layers, metadata={**stated, "role_names": list("abcdefgh"[:roles])},
        quantiles=quantiles if tables else None,
    )  # fmt: skip


def log(*contents: str, system: str = "") -> Log:
    said = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 99, contents, strict=False)]
    return [{"role": "system", "content": system}, *said] if system else said


TALK = log("what is rain ?", "old rain .", "why ? why ?", "no", "bread ?", "yes yes . a b c", system="be old .")


@contextmanager
def passes(chat: ChatModel) -> Iterator[list[int]]:
    """The lengths of the batches that went through the model while the block was entered."""
    seen: list[int] = []

    def note(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["input_ids"].shape[1])

    handle = chat.model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def states(chat: ChatModel, ids: Sequence[int]) -> dict[int, torch.Tensor]:
    """Every layer's output [tokens, hidden] of a plain run of the whole model, in float64."""
    kept: dict[int, torch.Tensor] = {}
    handles = [
        layer.register_forward_hook(
            lambda _m, _a, out, at=at: kept.__setitem__(at, (out[0] if isinstance(out, tuple) else out)[0].double())
        )
        for at, layer in enumerate(chat.model.model.layers)
    ]
    with torch.no_grad():
        chat.model(torch.tensor([list(ids)]))
    for handle in handles:
        handle.remove()
    return kept


def close(frame: pd.DataFrame, other: pd.DataFrame, atol: float = 2e-5) -> None:
    """The same table, but for rounding."""
    assert list(frame.columns) == list(other.columns)
    for name in frame.columns:
        if frame[name].dtype == np.float64 and not name.startswith("percentile"):
            np.testing.assert_allclose(frame[name], other[name], atol=atol, rtol=0)
        elif not name.startswith("percentile"):
            pd.testing.assert_series_equal(frame[name], other[name])


TEMPLATES = {
    "marked": tiny.MARKED, "plain": tiny.PLAIN, "folded": tiny.NO_SYSTEM, "merged": MERGES, "trims": tiny.TRIMS,
    "strips": STRIPS,
}  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.filterwarnings("ignore:the chat template has no system role")
class TestAgainstFloat64:
    def test_turns_of_every_speaker(self, template: str) -> None:
        chat = tiny.chat(template)
        axis = axis_for(chat)
        thought = [*TALK[:2], {"role": "assistant", "content": "<think>a b</think>old rain ."}, *TALK[3:]]
        messages = thought if template == STRIPS else TALK
        with passes(chat) as seen:
            frame = trajectory(chat, axis, messages, speakers=("system", "user", "assistant"))
        ids, ranges = chat.encode_messages(messages)
        assert seen == [len(ids)]
        full = states(chat, ids)
        rows = iter(frame.itertuples())
        for message, (a, b) in zip(messages, ranges, strict=True):
            for layer in LAYERS:
                row = next(rows)
                expected = full[layer][a:b].mean(0) @ axis.direction[axis.row(layer)].double()
                assert row.projection == pytest.approx(float(expected), abs=1e-5)
                assert (row.speaker, row.layer, row.tokens) == (message["role"], layer, b - a)
        assert next(rows, None) is None
        close(trajectory(chat, axis, messages), frame[frame["speaker"] == "assistant"].reset_index(drop=True))

    def test_single_tokens(self, template: str) -> None:
        chat = tiny.chat(template)
        axis = axis_for(chat)
        with passes(chat) as seen:
            frame = trajectory(chat, axis, TALK, speakers=("assistant", "user"), tokens=True)
        assert len(seen) == 1 and tuple(frame.columns) == TOKEN_COLUMNS[:-1]
        ids, ranges = chat.encode_messages(TALK)
        full = states(chat, ids)
        expected = [
            (turn, message["role"], n, ids[a + n], chat.tokenizer.decode([ids[a + n]]), layer,
             float(full[layer][a + n] @ axis.direction[axis.row(layer)].double()))
            for turn, message, (a, b) in zip((1, 1, 2, 2, 3, 3), TALK[1:], ranges[1:], strict=True)
            for n in range(b - a)
            for layer in LAYERS
        ]  # fmt: skip
        found = list(frame.drop(columns="conversation").itertuples(index=False, name=None))
        assert [row[:-1] for row in found] == [row[:-1] for row in expected]
        np.testing.assert_allclose([r[-1] for r in found], [r[-1] for r in expected], atol=1e-5)
        assert set(frame["conversation"]) == {"conversation 1"}


class TestTable:
    def test_columns_and_what_they_tell(self) -> None:
        chat = tiny.chat()
        axis = axis_for(chat)
        said = [*TALK, {"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
        one = Conversation("x", tuple(said), "coding", "held_out", ("edit", None, "venting", "how-to", "edit"))
        frame = trajectory(chat, axis, one, speakers=("user", "assistant", "system"), layers=2)
        assert tuple(frame.columns) == tuple(c for c in COLUMNS if c != "projection_before")
        assert frame["turn"].tolist() == [1, 1, 1, 2, 2, 3, 3, 4, 4]
        assert frame["kind"].isna().tolist() == [True, False, False, True, True, False, False, False, False]
        assert frame["kind"].dropna().tolist() == ["edit", "edit", "venting", "venting", "how-to", "edit"]
        assert set(frame["domain"]) == {"coding"} and set(frame["split"]) == {"held_out"} and set(frame["layer"]) == {2}
        plain = trajectory(chat, axis_for(chat, tables=False), TALK)
        assert tuple(plain.columns) == COLUMNS[: COLUMNS.index("projection") + 1]
        assert plain["domain"].isna().all() and plain["kind"].isna().all()
        assert [str(t) for t in plain.dtypes] == ["string", "string", "string", "int64", "string", "string", "int64",
                                                  "int64", "float64"]  # fmt: skip

    def test_percentiles_are_those_of_replies(self) -> None:
        chat = tiny.chat()
        axis = axis_for(chat)
        frame = trajectory(chat, axis, TALK, speakers=("user", "assistant"))
        replies = frame[frame["speaker"] == "assistant"]
        for layer, rows in replies.groupby("layer"):
            for name in ("default", "roles"):
                expected = percentiles(axis, layer, rows["projection"], name)
                np.testing.assert_array_equal(rows[f"percentile_{name}"], expected)
        assert frame[frame["speaker"] == "user"]["percentile_default"].isna().all()

    def test_a_reply_without_tokens_has_no_projection(self) -> None:
        chat = tiny.chat()
        frame = trajectory(chat, axis_for(chat), log("a", "", "b", "yes"), layers=[0])
        assert frame["tokens"].tolist() == [0, 1]
        assert frame["projection"].isna().tolist() == [True, False] == frame["percentile_default"].isna().tolist()
        tokens = trajectory(chat, axis_for(chat), log("a", ""), tokens=True)
        assert len(tokens) == 0 and tuple(tokens.columns) == TOKEN_COLUMNS[:-1]

    def test_of_nobody_who_spoke(self) -> None:
        chat = tiny.chat()
        frame = trajectory(chat, axis_for(chat), log("a", "b"), speakers=("system",))
        assert len(frame) == 0 and list(frame.columns) == list(trajectory(chat, axis_for(chat), TALK).columns)


class TestLevers:
    def test_before_and_after_a_cap(self) -> None:
        chat = tiny.chat()
        axis = axis_for(chat)
        plain = trajectory(chat, axis, TALK)
        cap = Cap(axis.direction[:1], [0], floor=50.0)
        with passes(chat) as seen:
            frame = trajectory(chat, axis, TALK, lever=cap)
        assert len(seen) == 1 and list(frame.columns)[-3:-1] == ["projection_before", "percentile_default"]
        at = frame["layer"] == 0
        np.testing.assert_allclose(frame[at]["projection"], 50.0, atol=1e-3)
        np.testing.assert_array_equal(frame[at]["projection_before"], plain[at]["projection"])
        assert (frame[~at]["projection"] == frame[~at]["projection_before"]).all()
        assert not np.allclose(frame[~at]["projection"], plain[~at]["projection"], atol=1e-2)
        pd.testing.assert_frame_equal(trajectory(chat, axis, TALK), plain)  # nothing of it stays
        tokens = trajectory(chat, axis, TALK, lever=[cap], tokens=True)
        assert tuple(tokens.columns) == TOKEN_COLUMNS
        np.testing.assert_allclose(tokens[tokens["layer"] == 0]["projection"], 50.0, atol=1e-3)

    def test_a_cap_made_for_another_model_is_refused(self) -> None:
        chat = tiny.chat()
        axis = axis_for(chat)
        cap = axis_for(tiny.chat(seed=1)).cap([0], floor=0.0)
        with pytest.raises(AxisMismatchError, match="another model"):
            trajectory(chat, axis, TALK, lever=cap)
        assert len(trajectory(chat, axis, TALK, lever=cap, allow=["weights"]))


class TestRefused:
    def test_an_axis_of_another_model_or_of_other_layers(self) -> None:
        chat = tiny.chat()
        with pytest.raises(AxisMismatchError, match="weights"):
            trajectory(chat, axis_for(tiny.chat(seed=1)), TALK)
        assert len(trajectory(chat, axis_for(tiny.chat(seed=1)), TALK, allow=["weights"]))
        with pytest.raises(AxisMismatchError, match="layer 1 is not in this axis, which has layers 0, 2"):
            trajectory(chat, axis_for(chat), TALK, layers=[0, 1])

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"speakers": "assistant"}, "expected some of system, user, assistant"),
            ({"speakers": ("human",)}, "human"),
            ({"speakers": ()}, "expected some of"),
            ({"overflow": "truncate"}, "refuse or window"),
            ({"layers": []}, "expected a layer's number or a list of one or more"),
        ],
    )
    def test_settings_are_refused_before_the_first_conversation(self, options: dict[str, Any], match: str) -> None:
        chat = tiny.chat()
        with pytest.raises(DriftError, match=match):
            trajectories(chat, axis_for(chat), iter([]), **options)

    def test_conversations_that_are_none(self) -> None:
        chat = tiny.chat()
        with pytest.raises(ConversationError, match="conversation 1.*empty"):
            trajectory(chat, axis_for(chat), [])
        with pytest.raises(ConversationError, match="conversation 'x'.*no assistant turn"):
            trajectory(chat, axis_for(chat), Conversation("x", (TALK[1],)))

    def test_a_template_that_changes_what_was_said(self) -> None:
        chat = tiny.chat(tiny.PLAIN.replace("{{ m['content'] }}", "{{ m['content'] | replace('rain', 'a') }}"))
        with pytest.raises(DriftError, match="conversation 'x': the chat template changes what was said"):
            trajectory(chat, axis_for(chat), Conversation("x", tuple(TALK)))
        strict = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('the user comes first') }}{% endif %}"
        chat = tiny.chat(strict + tiny.PLAIN)
        with pytest.raises(DriftError, match="conversation 1: the chat template does not take these messages.*first"):
            trajectory(chat, axis_for(chat), TALK[2:])

    def test_activations_that_are_not_finite(self) -> None:
        chat = tiny.chat()
        axis = axis_for(chat)

        def spoil(_module: Any, _args: Any, output: torch.Tensor) -> None:
            output[:, -2] = torch.inf  # before the token that ends the last reply

        chat.model.model.layers[2].register_forward_hook(spoil)
        with pytest.raises(DriftError, match=r"conversation 1, turn 2 \(assistant\): NaN or infinite .* layer 2"):
            trajectory(chat, axis, log("a", "b", "c", "d"))

    def test_hooks_that_do_not_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        chat = tiny.chat()
        axis = axis_for(chat)
        monkeypatch.setattr(chat.model.model, "forward", lambda **_: None)
        with pytest.raises(DriftError, match=r"layers \[0, 2\] did not show"):
            trajectory(chat, axis, TALK)


CONVERSATIONS = st.lists(
    st.lists(st.sampled_from(["a", "old rain .", "why ? " * 9, "yes no bread"]), min_size=2, max_size=8),
    min_size=1,
    max_size=12,
)


class TestBatches:
    @settings(max_examples=15, deadline=None)
    @given(CONVERSATIONS, st.sampled_from([40, 120, 16384]))
    def test_batched_equals_alone_in_the_order_given(self, contents: list[list[str]], at_once: int) -> None:
        chat = _shared()
        axis = axis_for(chat)
        logs = [log(*texts) for texts in contents]
        with pytest.MonkeyPatch.context() as patch, passes(chat) as seen:
            patch.setattr(drift_module, "_TOKENS_AT_ONCE", at_once)
            patch.setattr(drift_module, "_TOKENS_AHEAD", 2 * at_once)
            together = list(trajectories(chat, axis, logs))
        assert len(seen) <= len(logs) and (at_once < 16384 or len(seen) == 1)
        assert len(together) == len(logs)
        for number, (frame, one) in enumerate(zip(together, logs, strict=True), 1):
            named = Conversation(f"conversation {number}", tuple(one))
            close(frame, trajectory(chat, axis, named))

    def test_positions_that_are_learned_do_not_notice_the_padding(self) -> None:
        chat = tiny.chat(model=tiny.gpt2())
        axis, logs = axis_for(chat, layers=(0, 1)), [TALK, log("a", "b"), log("a", "no", "b", "yes")]
        for frame, one in zip(trajectories(chat, axis, logs), logs, strict=True):
            alone = trajectory(chat, axis, Conversation(frame["conversation"][0], tuple(one)))
            close(frame, alone)

    def test_a_batch_that_does_not_fit_into_memory_is_halved(self, monkeypatch: pytest.MonkeyPatch) -> None:
        chat = tiny.chat()
        axis = axis_for(chat)
        logs = [TALK, log("a", "b"), log("a", "no", "b", "yes")]
        expected = list(trajectories(chat, axis, logs))
        own = chat.model.model.forward

        def small(**inputs: Any) -> Any:
            if inputs["input_ids"].shape[0] > 1:
                raise torch.OutOfMemoryError("out of memory")
            return own(**inputs)

        monkeypatch.setattr(chat.model.model, "forward", small)
        for frame, other in zip(trajectories(chat, axis, logs), expected, strict=True):
            close(frame, other)

    def test_conversations_are_asked_for_as_they_are_needed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(drift_module, "_TOKENS_AHEAD", 100)
        chat, asked = tiny.chat(), []

        def endless() -> Iterator[Log]:
            while True:
                asked.append(1)
                yield TALK

        found = trajectories(chat, axis_for(chat), endless())
        for _ in range(10):
            next(found)
        assert len(asked) < 20


_CHATS: list[ChatModel] = []


def _shared() -> ChatModel:
    if not _CHATS:
        _CHATS.append(tiny.chat())
    return _CHATS[0]


def with_context(limit: int, template: str = tiny.PLAIN) -> ChatModel:
    chat = tiny.chat(template)
    chat.model.config.max_position_embeddings = limit
    return chat


class TestContext:
    def test_its_length_is_the_configs_or_the_tokenizers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert context_limit(tiny.chat()) == 256 == context_limit(tiny.chat(model=tiny.gpt2()))
        chat = tiny.chat()
        monkeypatch.setattr(windows_module, "text_config", lambda _: object())
        assert context_limit(chat) is None
        chat.tokenizer.model_max_length = 77
        assert context_limit(chat) == 77

    def test_a_conversation_that_does_not_fit_is_refused_with_its_length(self) -> None:
        chat, long = with_context(40), log(*["a b c"] * 12)
        axis, tokens = axis_for(chat), len(chat.encode(log(*["a b c"] * 12), generation_prompt=False))
        with pytest.raises(DriftError, match=f"conversation 1 has {tokens} tokens where .* holds 40"):
            trajectory(chat, axis, long)
        with pytest.raises(DriftError, match="conversation 'x' has more than 40 tokens"):
            trajectory(chat, axis, Conversation("x", tuple(log(*["a b c d e f g"] * 12))))
        chat.model.config.max_position_embeddings = tokens
        assert len(trajectory(chat, axis, long, layers=0)) == 6

    def test_a_turn_that_does_not_fit_alone(self) -> None:
        chat = with_context(40)
        with pytest.raises(DriftError, match="conversation 1, turn 3: the assistant's message .* context of 40"):
            trajectory(chat, axis_for(chat), log("a", "b", "c", "d", "e", "a b c " * 20), overflow="window")


    @pytest.mark.parametrize("template", [tiny.PLAIN, tiny.MARKED], ids=["plain", "marked"])
    def test_transformers_does_not_warn_of_what_is_checked_here(
        self, template: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said: list[str] = []
        monkeypatch.setattr(tokenization_utils_base.logger, "warning", lambda text, *_more: said.append(text))
        chat, axis = tiny.chat(template), axis_for(tiny.chat(template))
        chat.tokenizer.model_max_length = 20
        trajectory(chat, axis, log(*["a b c"] * 12))
        trajectory(chat, axis, log(*["a b c"] * 99), overflow="window")
        assert not said


@pytest.mark.filterwarnings("ignore:the chat template has no system role")
class TestWindows:
    @settings(max_examples=25, deadline=None)
    @given(
        st.lists(st.sampled_from(["a", "yes no", "old rain . why ?"]), min_size=2, max_size=60),
        st.booleans(),
        st.integers(45, 90),
        st.sampled_from(["plain", "marked", "folded", "merged", "strips"]),
    )
    def test_every_turn_is_read_once_with_what_went_before(
        self, contents: list[str], system: bool, limit: int, template: str
    ) -> None:
        chat = _WINDOWED.setdefault(template, tiny.chat(TEMPLATES[template]))
        axis, said = axis_for(chat), log(*contents, system="be old ." if system else "")
        speakers = ("system", "user", "assistant")
        chat.model.config.max_position_embeddings = 10**6
        whole = trajectory(chat, axis, said, speakers=speakers)
        chat.model.config.max_position_embeddings = limit
        with passes(chat) as seen:
            found = trajectory(chat, axis, said, speakers=speakers, overflow="window")
        told = ["turn", "speaker", "tokens", "layer"]
        pd.testing.assert_frame_equal(found[told], whole[told])
        assert max(seen) <= limit
        total = len(chat.encode(said, generation_prompt=False))
        if total <= limit:
            assert seen == [total]
            pd.testing.assert_frame_equal(found, whole)
        else:
            same = np.isclose(found["projection"], whole["projection"], atol=2e-5, equal_nan=True)
            # The first window is the conversation's own beginning.
            assert len(seen) > 1 and same[: 2 * (limit // 2 // 9)].all()

    def test_a_later_window_is_a_conversation_of_the_system_prompt_and_what_went_before(self) -> None:
        chat, said = with_context(60), log(*["a b c", "yes no bread"] * 12, system="be old .")
        axis = axis_for(chat)
        found = trajectory(chat, axis, said, overflow="window", speakers=("user", "assistant"))
        # 6 tokens for the first two of the system prompt and the start, 5 a message: 10 messages fit, and 9 end with
        # the user. The last 5 of these, 25 tokens of the 27 that half of the context leaves, are history of the next
        # window; 4 more are read in it.
        first, later = said[:10], [said[0], *said[5:14]]
        chat.model.config.max_position_embeddings = 256
        expected = trajectory(chat, axis, first, speakers=("user", "assistant"))
        np.testing.assert_allclose(found["projection"][:18], expected["projection"], atol=2e-5)
        expected = trajectory(chat, axis, later, speakers=("user", "assistant"))
        np.testing.assert_allclose(found["projection"][18:26], expected["projection"][10:], atol=2e-5)

    def test_logs_that_do_not_alternate(self) -> None:
        chat = with_context(60)
        roles = ["assistant"] * 9 + ["user"] * 20 + ["assistant"] * 20 + ["user", "assistant"] * 9
        said = [{"role": role, "content": "a b c"} for role in roles]
        frame = trajectory(chat, axis_for(chat), said, layers=0, speakers=("user", "assistant"), overflow="window")
        assert frame["speaker"].tolist() == roles and frame["projection"].notna().all()

    def test_one_that_does_not_fit_stands_in_its_place_among_others(self) -> None:
        chat = with_context(60)
        axis, long = axis_for(chat), log(*["a b c"] * 40)
        found = list(trajectories(chat, axis, [TALK, long, TALK, TALK], overflow="window"))
        assert [set(frame["conversation"]) for frame in found] == [{f"conversation {n}"} for n in (1, 2, 3, 4)]
        close(
            found[1].assign(conversation="x"), trajectory(chat, axis, long, overflow="window").assign(conversation="x")
        )


_WINDOWED: dict[str, ChatModel] = {}


def check_long_log(turns: int) -> None:
    """A log of so many replies: 101 tokens hold 20 messages of 5 and the start of the text. The first window ends
    with the last message of the user, the 19th. From then on half a context, 50 tokens, holds 9 messages of history,
    of which the first is the user's, and 10 more are read, up to the user's again."""
    said = log("a b c", "yes no bread") * turns
    chat = with_context(101)
    axis = axis_for(chat, layers=[0])
    numbers, rows, start = [], 0, 0
    with passes(chat) as seen:
        for frame in trajectories(chat, axis, [said], overflow="window"):
            assert len(frame) < drift_module._ROWS_AT_ONCE + 50
            numbers.append(frame["turn"].to_numpy())
            rows = max(rows, len(frame))
            start = start or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start  # kB
    assert np.array_equal(np.concatenate(numbers), np.arange(1, turns + 1))
    assert len(seen) == 1 + math.ceil((2 * turns - 19) / 10) and max(seen) <= 101
    # Hidden states would be 13 kB a turn.
    assert grown < 64 * 2**10


def test_a_long_log_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift_module, "_ROWS_AT_ONCE", 500)
    check_long_log(2_000)


@pytest.mark.slow
def test_a_log_of_100_000_turns_is_streamed() -> None:
    check_long_log(100_000)


# Percentiles


def table_axis(table: Sequence[float]) -> Axis:
    chat = _shared()
    stated = {**chat.facts, "num_layers": chat.n_layers, "provenance": "fitted", "recommended_layer": 1}
    means = np.eye(2, HIDDEN)
    return Axis.from_means(
        means[:1], means[1:][None], layers=[1], metadata={**stated, "role_names": ["a"]},
        quantiles={"default": np.array([table])},
    )  # fmt: skip


STEPS = st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), min_size=100, max_size=100)


class TestPercentiles:
    @settings(max_examples=50, deadline=None)
    @given(STEPS, st.floats(0, 100))
    def test_they_turn_back_what_quantile_gives(self, steps: list[float], percentile: float) -> None:
        table = np.cumsum([-20.0, *steps])
        axis = table_axis(table)
        at_points = percentiles(axis, 1, table)
        for point, found in zip(table, at_points, strict=True):
            assert found == np.flatnonzero(table == point).mean()  # itself, or the middle of its step
        value = float(axis.quantile("default", percentile)[0])
        if not (table == value).any():
            assert percentiles(axis, 1, value) == pytest.approx(percentile, abs=1e-9)

    def test_outside_they_are_clipped_and_shapes_are_kept(self) -> None:
        axis = table_axis(np.arange(101.0))
        found = percentiles(axis, 1, [[-5.0, 0.0, 12.25], [100.0, 1e9, np.nan]])
        np.testing.assert_array_equal(found, [[0, 0, 12.25], [100, 100, np.nan]])
        assert percentiles(axis, 1, 50.0).shape == ()

    def test_a_file_without_that_distribution(self) -> None:
        axis = table_axis(np.arange(101.0))
        with pytest.raises(AxisFileError, match="quantiles_roles"):
            percentiles(axis, 1, [0.0], "roles")
        frame = replies({"a": [5.0]})
        assert list(add_percentiles(frame, axis).columns) == [*frame.columns, "percentile_default"]
        assert list(add_percentiles(frame.iloc[:0], axis).columns) == [*frame.columns, "percentile_default"]


# Alerts


def replies(conversations: dict[str, list[float]], layer: int = 1) -> pd.DataFrame:
    rows = [
        {"conversation": name, "turn": turn, "speaker": speaker, "layer": layer, "projection": value}
        for name, values in conversations.items()
        for turn, value in enumerate(values, 1)
        for speaker in ("user", "assistant")
    ]
    return pd.DataFrame(rows)


def told(found: pd.DataFrame) -> list[tuple[str, int]]:
    assert set(found["speaker"]) <= {"assistant"}
    return list(zip(found["conversation"], found["turn"], strict=True))


class TestAlerts:
    AXIS = table_axis(np.arange(101.0))
    FRAME = replies({"a": [4.9, 5.0, 5.1, 1.0, 2.0, 3.0], "b": [0.0, 9.0, 0.0, math.nan, 0.0], "c": [1.0, 1.0]})

    def test_every_reply_below_the_percentile(self) -> None:
        assert told(alerts(self.FRAME, self.AXIS, 5)) == [
            ("a", 1), ("a", 4), ("a", 5), ("a", 6), ("b", 1), ("b", 3), ("b", 5), ("c", 1), ("c", 2),
        ]  # fmt: skip
        assert told(alerts(self.FRAME, self.AXIS, 0)) == []
        assert list(alerts(self.FRAME, self.AXIS, 0).columns) == list(self.FRAME.columns)

    def test_only_so_many_in_a_row(self) -> None:
        assert told(alerts(self.FRAME, self.AXIS, 5, run=2)) == [("a", 4), ("a", 5), ("a", 6), ("c", 1), ("c", 2)]
        assert told(alerts(self.FRAME, self.AXIS, 5, run=3)) == [("a", 4), ("a", 5), ("a", 6)]
        assert told(alerts(self.FRAME, self.AXIS, 5, run=4)) == []

    def test_a_missing_turn_breaks_a_row_and_the_next_conversation_begins_anew(self) -> None:
        frame = replies({"a": [1.0, 1.0], "b": [1.0]})
        assert told(alerts(frame, self.AXIS, 5, run=3)) == []
        assert told(alerts(frame[frame["turn"] == 2], self.AXIS, 5, run=2)) == []
        gap = replies({"a": [1.0, 1.0, 1.0]})
        assert told(alerts(gap[gap["turn"] != 2], self.AXIS, 5, run=2)) == []

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(st.lists(st.sampled_from([1.0, 1.0, 9.0, math.nan]), min_size=1, max_size=12), min_size=1, max_size=4),
        st.integers(1, 4),
        st.data(),
    )
    def test_in_pieces_they_are_the_same(self, values: list[list[float]], run: int, data: st.DataObject) -> None:
        frame = replies({f"c{i}": row for i, row in enumerate(values)})
        cuts = sorted(data.draw(st.lists(st.integers(0, len(frame)), max_size=6)))
        alarm = Alarm(self.AXIS, 5, run=run)
        pieces = [alarm(frame.iloc[a:b]) for a, b in zip([0, *cuts], [*cuts, len(frame)], strict=True)]
        expected = [
            (f"c{i}", turn + 1)
            for i, row in enumerate(values)
            for turn in range(len(row))
            if any(
                start >= 0 and start + run <= len(row) and all(v < 5 for v in row[start : start + run])
                for start in range(turn - run + 1, turn + 1)
            )
        ]
        assert (
            [one for piece in pieces for one in told(piece)] == expected == told(alerts(frame, self.AXIS, 5, run=run))
        )

    def test_settings_that_make_no_sense(self) -> None:
        with pytest.raises(DriftError, match="at least 1 turn in a row, got 0"):
            alerts(self.FRAME, self.AXIS, 5, run=0)
        with pytest.raises(CapError, match="percentile 101"):
            alerts(self.FRAME, self.AXIS, 101)
        with pytest.raises(AxisMismatchError, match="layer 2 is not in this axis"):
            alerts(self.FRAME, self.AXIS, 5, layer=2)
        with pytest.raises(DriftError, match="layer 1 is not in the table, whose layers are 0"):
            alerts(replies({"a": [1.0]}, layer=0), self.AXIS, 5)


# Files


@pytest.fixture
def frames() -> list[pd.DataFrame]:
    chat = _shared()
    logs = [TALK, Conversation('x, "y"', tuple(log("a", "", "b", "yes")), "coding", None, ("edit", None))]
    return list(trajectories(chat, axis_for(chat), logs))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
class TestTableWriter:
    def test_what_is_read_back_is_what_was_appended(
        self, tmp_path: Path, frames: list[pd.DataFrame], suffix: str
    ) -> None:
        with TableWriter(tmp_path / f"t{suffix}") as table:
            for frame in frames:
                table.append(frame)
            assert [p.name for p in tmp_path.iterdir()] != [f"t{suffix}"]
        assert os.listdir(tmp_path) == [f"t{suffix}"] and table.rows == sum(map(len, frames))
        whole = pd.concat(frames, ignore_index=True)
        if suffix == ".parquet":
            pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), whole)
        else:
            back = pd.read_csv(tmp_path / "t.csv")
            assert list(back.columns) == list(whole.columns)
            for name in ("turn", "projection", "percentile_roles"):
                np.testing.assert_array_equal(back[name].to_numpy(), whole[name].to_numpy())
            assert back["conversation"].tolist() == whole["conversation"].tolist()
            assert back["kind"].isna().tolist() == whole["kind"].isna().tolist()

    def test_a_failure_leaves_the_old_file_and_nothing_else(
        self, tmp_path: Path, frames: list[pd.DataFrame], suffix: str
    ) -> None:
        path = tmp_path / f"t{suffix}"
        path.write_text("old")
        for failure in (RuntimeError("stop"), KeyboardInterrupt()):
            with pytest.raises(type(failure)), TableWriter(path) as table:
                table.append(frames[0])
                raise failure
        with pytest.raises(DriftError, match="do not fit a table of"), TableWriter(path) as table:
            table.append(frames[0])
            table.append(frames[0].drop(columns="kind"))
        assert path.read_text() == "old" and os.listdir(tmp_path) == [path.name]
        path.chmod(0o600)
        with TableWriter(path) as table:
            table.append(frames[0])
        assert path.stat().st_mode & 0o777 == 0o600 and os.listdir(tmp_path) == [path.name]
        with pytest.raises(DriftError, match="inside the `with` block"):
            table.append(frames[0])

    def test_a_disk_that_is_full(self, tmp_path: Path, frames: list[pd.DataFrame], suffix: str) -> None:
        path = tmp_path / f"t{suffix}"
        path.write_text("old")

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(DriftError, match="could not be written: No space left"), TableWriter(path) as table:
                table.append(frames[0])
        assert path.read_text() == "old" and os.listdir(tmp_path) == [path.name]

    def test_without_a_frame_there_are_columns_and_no_rows(self, tmp_path: Path, suffix: str) -> None:
        with TableWriter(tmp_path / f"t{suffix}"):
            pass
        read = pd.read_csv if suffix == ".csv" else pd.read_parquet
        back = read(tmp_path / f"t{suffix}")
        assert len(back) == 0 and tuple(back.columns) == COLUMNS[: COLUMNS.index("projection") + 1]

    def test_a_place_that_does_not_exist(self, tmp_path: Path, suffix: str) -> None:
        with (
            pytest.raises(DriftError, match="could not be written: No such file"),
            TableWriter(tmp_path / f"a/t{suffix}"),
        ):
            pytest.fail("entered")


def test_tables_have_one_of_two_forms(tmp_path: Path) -> None:
    with pytest.raises(DriftError, match=r"written as \.csv or \.parquet"):
        TableWriter(tmp_path / "t.xlsx")
