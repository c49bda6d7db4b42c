"""Scripts played with a model: a cache kept from turn to turn changes nothing, and what is read is the replies' own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import chat_factory as tiny
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import HIDDEN, LAYERS, VOCAB, build
from test_residual import hooks

from persona_axis import Axis, AxisMismatchError, Cap, CapError
from persona_axis.chat import ChatModel
from persona_axis.conversations import Script, Turn, load_scripts
from persona_axis.drift import COLUMNS, trajectories
from persona_axis.errors import DriftError
from persona_axis.levers import Lever
from persona_axis.model.memory import Memory
from persona_axis.residual import reading
from persona_axis.sampling import NucleusDraw, Sampling
from persona_axis.simulate import Simulation, _Asides, simulate
from persona_axis.steer import add
from persona_axis.talks.playuser import as_seen_by_user
from persona_axis.talks.speaking import _Reader, speak
from persona_axis.talks.talk import Talk

GREEDY = Sampling(temperature=0, max_new_tokens=9)
KEPT = ("llama", "qwen3", "gpt2", "gpt_neox")
SLIDING = ("gemma2", "gemma3")

FORGETS = tiny.PLAIN.replace(  # earlier replies shrink to their first word, as thinking does in other templates
    "{{ m['content'] }}", "{{ m['content'] if m['role'] != 'assistant' else m['content'].split(' ')[0] }}"
)


def family_chat(family: str, template: str = tiny.MARKED) -> ChatModel:
    """A model of conftest's with a word for each of its token ids."""
    tokenizer = tiny.tokenizer(template)
    tokenizer.add_tokens([f"w{i}" for i in range(VOCAB - len(tokenizer))])
    return ChatModel.load(build(family), tokenizer=tokenizer)


@pytest.fixture(scope="module")
def chats() -> Callable[[str], ChatModel]:
    made: dict[str, ChatModel] = {}

    def chat(family: str) -> ChatModel:
        if family not in made:
            made[family] = family_chat(family)
        return made[family]

    return chat


@pytest.fixture
def chat(chats: Callable[[str], ChatModel]) -> ChatModel:
    return chats("llama")


@pytest.fixture(scope="module")
def troupe() -> ChatModel:
    return ChatModel.load("troupe", dtype="float32")


def script(name: str, *said: str, domain: str = "coding") -> Script:
    return Script(name, domain, "train", "someone who asks", tuple(Turn("how-to", text) for text in said))


# Messages and conversations of different lengths, so that rows need padding and drop out one by one.
SCRIPTS = (
    script("long", "how should i sleep ?", "why ?", "rain ! bread , money .", "no ."),
    script("short", "hello you", "be ghost .", domain="emotional"),
    script("wordy", "a", "b c d e f g h how what why should i do about you user", "one two three", domain="writing"),
)


def axis_for(chat: ChatModel, layers: Sequence[int] | None = None, tables: bool = False) -> Axis:
    random = np.random.default_rng(3)
    at = list(range(chat.n_layers)) if layers is None else list(layers)
    shape = (len(at), chat.hidden_size)
    quantiles = {"default": np.sort(random.normal(size=(len(at), 101)), axis=1)} if tables else None
    stated = {"provenance": "fitted", "num_layers": chat.n_layers, "recommended_layer": at[-1]}
    metadata = {**chat.facts, **stated, "role_names": ["a", "b"]}
    default, roles = random.normal(size=shape), random.normal(size=(2, *shape))
    return Axis.from_means(default, roles, layers=at, metadata=metadata, quantiles=quantiles)


def messages(simulation: Simulation) -> list[tuple[dict[str, str], ...]]:
    return [conversation.messages for conversation in simulation.conversations]


def close(frame: pd.DataFrame, other: pd.DataFrame, atol: float = 1e-4) -> None:
    """The same table but for float32 rounding."""
    assert list(frame.columns) == list(other.columns)
    for name in frame.columns:
        if name.startswith("projection"):
            np.testing.assert_allclose(frame[name], other[name], atol=atol, rtol=1e-5)
        elif not name.startswith("percentile"):
            pd.testing.assert_series_equal(frame[name], other[name])


def mean_of_reply(
    chat: ChatModel, lever: Lever | None, layer: int, direction: torch.Tensor, asked: list[int], said: list[int]
) -> float:
    """One plain pass over prompt and reply under the lever."""
    kept: list[torch.Tensor] = []
    with torch.no_grad(), chat.under(lever), reading(chat.model, [layer], lambda _, h: kept.append(h[0].double())):
        chat.model(torch.tensor([[*asked, *said]]), use_cache=False)
    return float((kept[0][len(asked) :] @ direction.double()).mean())


@contextmanager
def fed(chat: ChatModel) -> Iterator[list[torch.Size]]:
    """The shapes of the token ids that go through the model."""
    seen: list[torch.Size] = []
    embedding = chat.model.get_input_embeddings()
    handle = embedding.register_forward_pre_hook(lambda _module, args: seen.append(args[0].shape))
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def only_words(chat: ChatModel) -> Iterator[None]:
    """A random model that says no special tokens: what it said can then be read again from the text."""
    special = [i for i in chat.tokenizer.all_special_ids if i not in chat.stop_ids]

    def mute(_module: Any, _args: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, torch.tensor(special), -1e4)

    handle = chat.model.get_output_embeddings().register_forward_hook(mute)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def spoken(chat: ChatModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, list[list[int]]]]]:
    """The prompts and replies of each turn as token ids."""
    seen: list[tuple[Any, list[list[int]]]] = []
    generate = chat.generate_ids

    def spy(prompts: Any, *args: Any, **options: Any) -> list[list[int]]:
        seen.append((prompts, generate(prompts, *args, **options)))
        return seen[-1][1]

    with monkeypatch.context() as patch:
        patch.setattr(chat, "generate_ids", spy)
        yield seen


class TestKeptCache:
    @pytest.mark.parametrize("family", [*KEPT, *SLIDING])
    def test_changes_nothing(self, chats: Callable[[str], ChatModel], family: str) -> None:
        chat = chats(family)
        axis = axis_for(chat)
        kept, fresh = (
            simulate(chat, SCRIPTS, axis=axis, sampling=GREEDY, keep_cache=keep) for keep in (True, False)
        )
        assert messages(kept) == messages(fresh)
        close(kept.frame, fresh.frame)
        assert len(kept.frame) == (4 + 2 + 3) * LAYERS
        told = [note for note in kept.notes if "not kept" in note]
        assert bool(told) == (family in SLIDING) and "not kept" not in str(fresh.notes)
        assert all("SlidingWindow" in note for note in told)

    @pytest.mark.parametrize("keep", [True, False])
    @pytest.mark.parametrize("family", [*KEPT, "gemma2"])
    def test_a_batch_is_as_its_scripts_one_by_one(
        self, chats: Callable[[str], ChatModel], family: str, keep: bool
    ) -> None:
        chat = chats(family)
        axis = axis_for(chat)
        together = simulate(chat, SCRIPTS, axis=axis, sampling=GREEDY, keep_cache=keep)
        alone = simulate(chat, SCRIPTS, axis=axis, sampling=GREEDY, batch=1, keep_cache=keep)
        assert messages(together) == messages(alone)
        close(together.frame, alone.frame)

    def test_draws_are_the_same_too(self, chat: ChatModel) -> None:
        how = Sampling(temperature=1.0, top_p=0.9, max_new_tokens=9)
        kept, fresh = (simulate(chat, SCRIPTS, sampling=how, keep_cache=keep) for keep in (True, False))
        assert messages(kept) == messages(fresh)

    @pytest.mark.parametrize("family", [*KEPT, "gemma2"])
    def test_only_what_is_new_is_fed(
        self, chats: Callable[[str], ChatModel], family: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        chat = chats(family)
        with fed(chat) as shapes, spoken(chat, monkeypatch) as turns:
            simulate(chat, SCRIPTS[0], sampling=GREEDY)
        prefills = [shape[1] for shape in shapes if shape[1] > 1]
        expected, known = [], []
        for [prompt], [reply] in turns:
            same = next((i for i, (a, b) in enumerate(zip(known, prompt, strict=False)) if a != b), len(known))
            expected.append(len(prompt) - (0 if family == "gemma2" else same))
            known = [*prompt, *reply]
        assert prefills == expected
        assert sum(shape.numel() for shape in shapes) == sum(expected) + sum(
            len(reply) for _, [reply] in turns
        )  # a stop token is not fed before the template has said it

    def test_a_batch_feeds_as_much_as_its_longest_news(self, chat: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
        with fed(chat) as shapes, spoken(chat, monkeypatch) as turns:
            simulate(chat, SCRIPTS, sampling=GREEDY, turns=2)
        (first, replies), (second, _) = turns
        prefills = [shape for shape in shapes if shape[1] > 1]
        shared = []
        for asked, reply, prompt in zip(first, replies, second, strict=True):
            known = [*asked, *reply]
            shared.append(next((i for i, (a, b) in enumerate(zip(known, prompt, strict=False)) if a != b), len(known)))
        assert prefills[1] == (3, max(len(p) - s for p, s in zip(second, shared, strict=True)))
        assert prefills[1][1] < max(map(len, second))

    def test_a_template_that_rewrites_replies_is_followed(self) -> None:
        chat = family_chat("llama", FORGETS)
        axis = axis_for(chat)
        kept, fresh = (
            simulate(chat, SCRIPTS, axis=axis, sampling=GREEDY, keep_cache=keep) for keep in (True, False)
        )
        assert messages(kept) == messages(fresh)
        close(kept.frame, fresh.frame)
        assert any("read again" in note for note in kept.notes)

    def test_states_that_forget_and_positions_that_shift_are_not_kept(self) -> None:
        from transformers import LlamaConfig, MambaConfig, MambaForCausalLM

        size = len(tiny.tokenizer())
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": size, "eos_token_id": 2, "bos_token_id": 1}
        recurrent = tiny.chat(model=MambaForCausalLM(MambaConfig(**sizes, pad_token_id=0)).eval())
        found = simulate(recurrent, SCRIPTS[1], sampling=GREEDY)
        assert len(found.notes) == 1 and "not kept" in found.notes[0]
        assert messages(found) == messages(simulate(recurrent, SCRIPTS[1], sampling=GREEDY, keep_cache=False))
        for rope in ({"rope_type": "dynamic"}, {"full_attention": {"rope_type": "longrope"}}):
            model = tiny.llama()
            model.config = LlamaConfig(rope_parameters={"factor": 2.0, "rope_theta": 1e4, **rope})
            assert "position encoding" in Memory(model).unfit

    def test_a_prompt_that_is_known_already_still_gets_its_reply(self, chat: ChatModel) -> None:
        memory = Memory(chat.model)
        prompts = chat.encode_batch([{"role": "user", "content": text}] for text in ("a", "b c"))
        told = [chat.generate_ids(prompts, GREEDY, 0, memory=memory) for _ in range(2)]
        with fed(chat) as shapes:
            told.append(chat.generate_ids(prompts, GREEDY, 0, memory=memory))
        assert told[0] == told[1] == told[2] and shapes[0] == (2, 1)

    def test_a_turn_that_failed_leaves_no_memory(self, chat: ChatModel) -> None:
        memory, asked = Memory(chat.model), chat.encode([{"role": "user", "content": "why ?"}])
        said = chat.generate_ids([asked], GREEDY, 0, memory=memory)[0]
        again = [*asked, *said, 5, 6]

        def fail(_: torch.Tensor) -> None:
            raise RuntimeError("pulled the plug")

        with pytest.raises(RuntimeError, match="plug"):
            chat.generate_ids([again], GREEDY, 0, memory=memory, watch=fail)
        with fed(chat) as shapes:
            assert chat.generate_ids([again], GREEDY, 0, memory=memory) == chat.generate_ids([again], GREEDY, 0)
        assert shapes[0] == (1, len(again))


class TestReading:
    @pytest.mark.parametrize("family", [*KEPT, "gemma2"])
    def test_is_what_the_transcript_shows(self, chats: Callable[[str], ChatModel], family: str) -> None:
        chat = chats(family)
        axis = axis_for(chat, tables=True)
        with only_words(chat):
            played = simulate(chat, SCRIPTS, axis=axis, sampling=GREEDY, system="be old .")
        assert not any("read again" in note for note in played.notes)
        again = self.compare(chat, axis, played)
        pd.testing.assert_series_equal(played.frame["tokens"], again["tokens"])
        assert (played.frame["tokens"] == GREEDY.max_new_tokens).any()  # the last token of a cut reply counts

    def test_is_what_the_transcript_shows_on_troupe(self, troupe: ChatModel) -> None:
        axis = axis_for(troupe)
        how = Sampling(max_new_tokens=40)
        chosen = [script for domain in ("coding", "emotional") for script in load_scripts(domains=[domain])[:2]]
        kept, fresh = (
            simulate(troupe, chosen, axis=axis, turns=4, sampling=how, keep_cache=keep) for keep in (True, False)
        )
        self.compare(troupe, axis, kept)
        assert messages(kept) == messages(fresh)
        close(kept.frame, fresh.frame)

    def compare(self, chat: ChatModel, axis: Axis, played: Simulation) -> pd.DataFrame:
        """Check the table against the transcripts' trajectories, and give those."""
        again = pd.concat(trajectories(chat, axis, played.conversations), ignore_index=True)
        assert list(played.frame.columns) == list(again.columns)
        assert played.frame.dtypes.equals(again.dtypes)
        same = played.frame["tokens"] == again["tokens"]  # else the reply was drawn in other tokens than it is written
        assert same.mean() > 0.5
        close(played.frame[same], again[same])
        close(*(frame.drop(columns=["tokens", "projection"]) for frame in (played.frame, again)))
        return again

    def test_a_cap_shows_what_it_finds_and_what_it_leaves(self, chat: ChatModel) -> None:
        axis = axis_for(chat)
        cap = axis.cap([1, 2], floor=[2.0, 1.0], ceiling=[3.0, 1.0])
        directions = {layer: axis.direction[axis.row(layer)] for layer in axis.layers}
        prompts = chat.encode_batch([{"role": "user", "content": text}] for text in ("why ?", "how should i sleep ?"))
        said = speak(chat, prompts, GREEDY, 0, directions=directions, lever=cap)
        found = {0: None, 1: None, 2: axis.cap(1, floor=2.0, ceiling=3.0), 3: cap}  # the edits of earlier layers
        for row, (prompt, reply) in enumerate(zip(prompts, said.ids, strict=True)):
            for layer, direction in directions.items():
                before, after = (
                    mean_of_reply(chat, lever, layer, direction, prompt, reply) for lever in (found[layer], cap)
                )
                assert said.before[layer][row] == pytest.approx(before, abs=1e-4)
                assert said.projections[layer][row] == pytest.approx(after, abs=1e-4)
            assert 2 - 1e-4 <= said.projections[1][row] <= 3 + 1e-4
            assert said.projections[2][row] == pytest.approx(1, abs=1e-4)
        assert said.projections[0] == said.before[0] and said.projections[3] == said.before[3]

    @pytest.mark.parametrize("family", [*KEPT, "gemma2"])
    def test_a_cap_holds_in_every_turn(self, chats: Callable[[str], ChatModel], family: str) -> None:
        chat = chats(family)
        axis = axis_for(chat)
        cap = axis.cap([1, 2], floor=1.5, ceiling=2.5)
        capped, fresh = (
            simulate(chat, SCRIPTS, cap, axis=axis, sampling=GREEDY, keep_cache=keep) for keep in (True, False)
        )
        assert messages(capped) == messages(fresh)
        close(capped.frame, fresh.frame)
        said = capped.frame[(capped.frame["tokens"] > 0)]
        held = said[said["layer"].isin([1, 2])]
        assert held["projection"].between(1.5 - 1e-4, 2.5 + 1e-4).all()
        assert not held["projection_before"].between(1.5, 2.5).all()
        free = said[~said["layer"].isin([1, 2])]
        assert (free["projection"] == free["projection_before"]).all()
        assert messages(capped) != messages(simulate(chat, SCRIPTS, sampling=GREEDY))
        assert not hooks(chat.model)

    def test_several_levers_act_in_turn(self, chat: ChatModel) -> None:
        axis = axis_for(chat)
        push = add(axis.direction[[1]], [1], alpha=2.0)
        one = simulate(chat, SCRIPTS[1], push, axis=axis, layers=1, sampling=GREEDY).frame
        np.testing.assert_allclose(one["projection"], one["projection_before"] + 2, atol=1e-4)
        both = [push, axis.cap(1, ceiling=-1.0)]
        two = simulate(chat, SCRIPTS[1], both, axis=axis, layers=[1], sampling=GREEDY).frame
        assert (two["projection"] <= -1 + 1e-4).all()
        none = simulate(chat, SCRIPTS[1], [], axis=axis, layers=[1], sampling=GREEDY).frame
        assert "projection_before" not in none

    def test_empty_replies_keep_their_rows(self, chats: Callable[[str], ChatModel]) -> None:
        chat = family_chat("llama")
        chat.stop_ids = tuple(range(VOCAB))
        axis = axis_for(chat, tables=True)
        played = simulate(chat, SCRIPTS, axis.cap(1, floor=9.0), axis=axis, sampling=GREEDY)
        assert len(played.frame) == 9 * LAYERS and (played.frame["tokens"] == 0).all()
        assert played.frame[["projection", "projection_before", "percentile_default"]].isna().all(axis=None)
        assert [m["content"] for m in played.conversations[1].messages] == ["hello you", "", "be ghost .", ""]

    def test_hooks_that_did_not_run_are_noticed(self) -> None:
        reader = _Reader({2: torch.ones(HIDDEN)})
        reader(2, torch.ones(1, 3, HIDDEN))
        with pytest.raises(DriftError, match=r"layers \[2\] were read in 1 of 4 runs"):
            reader.means([3], 4)

    def test_activations_that_are_no_numbers_are_refused(self) -> None:
        chat = family_chat("llama")
        axis = axis_for(chat)
        lever = add(torch.full((1, HIDDEN), 1e38), [2], alpha=10.0)
        with pytest.raises(DriftError, match=r"script 'long', turn 1: NaN or infinite activations at layer 2"):
            simulate(chat, SCRIPTS[0], lever, axis=axis, layers=[2], sampling=GREEDY)


class TestTable:
    def test_tells_who_what_and_where(self, chat: ChatModel) -> None:
        axis = axis_for(chat, layers=[1, 3], tables=True)
        cap, system = axis.cap(1, floor=0.0), ["", "be old .", ""]
        played = simulate(chat, SCRIPTS, cap, axis=axis, sampling=GREEDY, system=system)
        frame = played.frame
        assert list(frame.columns) == [name for name in COLUMNS if name != "percentile_roles"]
        first = frame[frame["layer"] == 1]
        assert list(first["conversation"]) == ["long"] * 4 + ["short"] * 2 + ["wordy"] * 3
        assert list(first["turn"]) == [1, 2, 3, 4, 1, 2, 1, 2, 3]
        assert set(frame["speaker"]) == {"assistant"} and set(frame["kind"]) == {"how-to"}
        assert list(first["domain"].unique()) == ["coding", "emotional", "writing"] and set(frame["split"]) == {"train"}
        assert sorted(frame["layer"].unique()) == [1, 3]
        assert frame["percentile_default"].between(0, 100).all()
        short = played.conversations[1]
        assert short.id == "short" and short.kinds == ("how-to", "how-to") and short.split == "train"
        assert [m["role"] for m in short.messages] == ["system", "user", "assistant", "user", "assistant"]
        assert [m["role"] for m in played.conversations[0].messages[:2]] == ["user", "assistant"]

    def test_without_an_axis_there_are_only_the_conversations(self, chat: ChatModel) -> None:
        played = simulate(chat, SCRIPTS, sampling=GREEDY, turns=2)
        assert played.frame.empty and "projection" in played.frame
        assert [len(c.messages) for c in played.conversations] == [4, 4, 4]

    def test_progress_counts_replies(self, chat: ChatModel) -> None:
        told: list[tuple[int, int]] = []
        simulate(chat, SCRIPTS, sampling=GREEDY, batch=2, progress=lambda done, total: told.append((done, total)))
        assert told == [(2, 9), (4, 9), (5, 9), (6, 9), (7, 9), (8, 9), (9, 9)]


class TestSeeds:
    HOW = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=12)

    def test_the_same_seed_says_the_same(self, chat: ChatModel) -> None:
        first, again, other = (messages(simulate(chat, SCRIPTS, sampling=self.HOW, seed=s)) for s in (4, 4, 5))
        assert first == again and first != other

    def test_every_turn_and_every_batch_draws_anew(self, chat: ChatModel) -> None:
        twins = [script(name, "why ?", "why ?") for name in "ab"]
        apart = messages(simulate(chat, twins, sampling=self.HOW, batch=1))
        assert apart[0] != apart[1]
        assert len({m["content"] for m in apart[0] if m["role"] == "assistant"}) == 2

    def test_one_script_is_a_conversation(self, chat: ChatModel) -> None:
        played = simulate(chat, SCRIPTS[0], sampling=self.HOW, seed=7)
        talk = Talk(chat, self.HOW, seed=7)
        told = [talk.say(turn.text).text for turn in SCRIPTS[0].turns]
        assert [m["content"] for m in messages(played)[0][1::2]] == told


class TestSecondModel:
    def test_plays_the_user(self, chats: Callable[[str], ChatModel], monkeypatch: pytest.MonkeyPatch) -> None:
        chat, user = chats("llama"), family_chat("qwen3")
        with spoken(user, monkeypatch) as turns:
            played = simulate(
                chat, SCRIPTS[:2], user=user, turns=3, sampling=GREEDY, axis=axis_for(chat), system="be old ."
            )
        for one, its in zip(played.conversations, SCRIPTS, strict=False):
            assert [m["role"] for m in one.messages] == ["system", *["user", "assistant"] * 3]
            assert one.messages[1]["content"] == its.turns[0].text and one.kinds == ("how-to", None, None)
            for turn in (2, 3):
                asked = as_seen_by_user(its, one.messages[: 2 * turn - 1])
                alone = user.generate([asked], GREEDY).texts[0]
                assert one.messages[2 * turn - 1]["content"] == alone
        assert len(turns) == 2
        assert list(played.frame[played.frame["layer"] == 0]["kind"].isna()) == [False, True, True] * 2
        kept, fresh = (
            simulate(chat, SCRIPTS, user=user, turns=3, sampling=GREEDY, keep_cache=keep) for keep in (True, False)
        )
        assert messages(kept) == messages(fresh)
        whole = simulate(chat, SCRIPTS[1:], user=user, sampling=GREEDY)
        assert [len(conversation.kinds) for conversation in whole.conversations] == [2, 3]

    def test_is_not_under_the_lever_even_if_it_is_the_same_model(self, chat: ChatModel) -> None:
        cap = axis_for(chat).cap([0, 1], floor=4.0)
        said = simulate(chat, SCRIPTS[0], cap, user=chat, turns=2, sampling=GREEDY).conversations[0].messages
        asked = as_seen_by_user(SCRIPTS[0], said[:2])
        assert said[2]["content"] == chat.generate([asked], GREEDY).texts[0]
        with chat.under(cap):
            assert said[2]["content"] != chat.generate([asked], GREEDY).texts[0]
            assert said[3]["content"] == chat.generate([said[:3]], GREEDY).texts[0]

    def test_what_it_thinks_is_not_said(self, chat: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
        user = family_chat("llama", tiny.THINKS)
        monkeypatch.setattr(user, "decode", lambda ids: ["<think>secret</think>hello" for _ in ids])
        said = simulate(chat, SCRIPTS[0], user=user, turns=2, sampling=GREEDY).conversations[0].messages
        assert said[2] == {"role": "user", "content": "hello"}

    def test_each_model_is_told_of_for_itself(self) -> None:
        asides = _Asides()
        asides.rewritten.update({"the model": 2, "the user's model": 3})
        told = asides.told(4)
        assert len(told) == 2 and "after 2 of 4 replies the model's" in told[0]
        assert "after 3 of 4 replies the user's model's" in told[1]

    def test_sees_the_roles_swapped(self) -> None:
        its = replace(SCRIPTS[1], user="A baker, tired")
        seen = as_seen_by_user(its, [
            {"role": "system", "content": "secret"}, {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "yes"},
        ])  # fmt: skip
        assert [m["role"] for m in seen] == ["system", "user", "assistant", "user"]
        assert [m["content"] for m in seen[2:]] == ["hello", "yes"]
        assert "A baker, tired. " in seen[0]["content"] and "how you feel" in seen[0]["content"]
        assert "secret" not in str(seen)

    def test_too_long_for_the_user(self, chats: Callable[[str], ChatModel], monkeypatch: pytest.MonkeyPatch) -> None:
        user = family_chat("gpt2")
        monkeypatch.setattr(user.model.config, "n_positions", 40)
        with pytest.raises(DriftError, match="script 'long', turn 2: .* that the user's model can read"):
            simulate(chats("llama"), SCRIPTS[0], user=user, sampling=GREEDY)


class TestRefused:
    def test_a_conversation_that_outgrows_the_context(self, monkeypatch: pytest.MonkeyPatch) -> None:
        chat = family_chat("llama")
        with spoken(chat, monkeypatch) as turns:
            simulate(chat, SCRIPTS[0], sampling=GREEDY)
        room = len(turns[2][0][0]) + GREEDY.max_new_tokens
        monkeypatch.setattr(chat.model.config, "max_position_embeddings", room)
        assert len(simulate(chat, SCRIPTS[0], turns=3, sampling=GREEDY).conversations[0].messages) == 6
        with pytest.raises(DriftError, match=rf"script 'long', turn 4: \d+ tokens so far and 9 .* than the {room} "):
            simulate(chat, SCRIPTS[::-1], sampling=GREEDY)
        assert not hooks(chat.model)

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"scripts": []}, "no script"),
            ({"scripts": [SCRIPTS[0], SCRIPTS[1], SCRIPTS[0]]}, "script 'long' is given twice"),
            ({"scripts": [script("mute")]}, "script 'mute' has no turns"),
            ({"system": ["a"]}, "1 system prompts for 3 scripts"),
            ({"turns": 0}, "turns=0"),
            ({"batch": 0}, "batch=0"),
            ({"layers": [1]}, "without an axis"),
        ],
    )
    def test_settings_that_do_not_fit(self, chat: ChatModel, options: dict[str, Any], reason: str) -> None:
        with pytest.raises(DriftError, match=reason):
            simulate(chat, **{"scripts": SCRIPTS, **options})

    def test_an_axis_or_a_cap_of_another_model(self, chats: Callable[[str], ChatModel]) -> None:
        chat, axis = chats("llama"), axis_for(chats("qwen3"))
        with pytest.raises(AxisMismatchError, match="architecture"):
            simulate(chat, SCRIPTS, axis=axis)
        with pytest.raises(AxisMismatchError, match="architecture"):
            simulate(chat, SCRIPTS, axis.cap(1, floor=0.0), sampling=GREEDY)
        with pytest.raises(DriftError, match="expected a layer's number"):
            simulate(chat, SCRIPTS, axis=axis_for(chat), layers=[])
        with pytest.raises(AxisMismatchError, match="layer 9"):
            simulate(chat, SCRIPTS, axis=axis_for(chat), layers=[9])
        allowed = simulate(
            chat, SCRIPTS[1], axis.cap(1, floor=0.0), axis=axis, sampling=GREEDY, allow=["architecture", "weights"]
        )
        assert len(allowed.frame) == 2 * LAYERS

    @pytest.mark.parametrize("where", ["drawing", "progress"])
    def test_nothing_stays_on_the_model_after_an_error(self, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
        chat = family_chat("llama")
        axis = axis_for(chat)
        cap = axis.cap([1], floor=1.0)
        plain = messages(simulate(chat, SCRIPTS, sampling=GREEDY))

        def fail(*_: Any) -> None:
            raise RuntimeError("pulled the plug")

        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="plug"):
            if where == "drawing":
                patch.setattr(NucleusDraw, "__call__", fail)
            how = Sampling(temperature=1.0, max_new_tokens=9)
            simulate(chat, SCRIPTS, cap, axis=axis, sampling=how, progress=fail)
        assert not hooks(chat.model)
        assert messages(simulate(chat, SCRIPTS, sampling=GREEDY)) == plain
        simulate(chat, SCRIPTS, cap, axis=axis, sampling=GREEDY)


class TestUnder:
    def test_none_one_and_several(self, chat: ChatModel) -> None:
        axis = axis_for(chat)
        asked = [[{"role": "user", "content": "why ?"}]]
        plain = chat.generate(asked, GREEDY).ids
        cap, push = axis.cap(1, floor=4.0), add(axis.direction[[2]], [2], alpha=3.0)
        assert isinstance(cap, Lever) and isinstance(push, Lever)
        with chat.under(None):
            assert chat.generate(asked, GREEDY).ids == plain
        with chat.under(iter([cap, push])):
            both = chat.generate(asked, GREEDY).ids
        with cap.on(chat.model), push.on(chat.model):
            assert chat.generate(asked, GREEDY).ids == both != plain
        assert not hooks(chat.model)

    def test_a_cap_is_told_the_template_and_what_is_allowed(self) -> None:
        chat, other = tiny.chat(), tiny.chat(tiny.PLAIN)
        cap = axis_for(chat).cap(1, floor=0.0)
        with pytest.raises(AxisMismatchError, match="chat template"), other.under(cap):
            pass
        with other.under(cap, allow=["chat_template"]):
            other.generate([[{"role": "user", "content": "why ?"}]], GREEDY)

    def test_an_unfit_lever_takes_the_others_off(self, chat: ChatModel) -> None:
        fine, unfit = axis_for(chat).cap(1, floor=0.0), Cap(torch.eye(3)[:1], [0], floor=0.0)
        with pytest.raises(CapError), chat.under([fine, unfit]):
            pass
        assert not hooks(chat.model)
