"""Rounds: what is drawn first, where more goes, when it stops, and that a stopped run goes on in its round."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import chat_factory as tiny
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_axis import Axis
from persona_axis.errors import ExtractionError
from persona_axis.extract import Interrupted, Options, extract, run_directory
from persona_axis.extraction import events
from persona_axis.extraction.certainty import Certainty, SplitHalf, noise_free, split_half, split_prompts
from persona_axis.extraction.plan import DEFAULT, Plan, make_plan
from persona_axis.extraction.records import Recorded
from persona_axis.extraction.rounds import Standing, first_round, given_up, in_vain, next_round, why_not
from persona_axis.judges import Judged
from persona_axis.sampling import Sampling

ROLES = 6
SHORT = Sampling(max_new_tokens=8)
OPTIONS = Options(
    prompts=2, questions=40, default_samples=4, sampling=SHORT, batch_size=32, min_accepted=4, calibration=60
)


def plan_of(options: Options = OPTIONS, roles: int = ROLES) -> Plan:
    return make_plan(tiny.chat(), tiny.probes(roles, 40), options, 32)


def known(drawn: Sequence[int], spread: Sequence[float], low: float, accepted: Sequence[int] | None = None) -> Standing:
    """What is known after a round, made by hand: one layer, certain as questions go."""
    split = SplitHalf(low**2 / (2 - low**2), low**2 / (2 - low**2), 1.0)
    return Standing(
        np.array(drawn), np.array(accepted or drawn), np.array(spread, dtype=float), {1: Certainty(split, None)}
    )


class TestOrder:
    @given(prompts=st.integers(1, 5), questions=st.integers(2, 40), samples=st.integers(1, 3), cut=st.integers(1, 600))
    @settings(max_examples=60, deadline=None)
    def test_every_beginning_is_spread_evenly(self, prompts: int, questions: int, samples: int, cut: int) -> None:
        options = replace(OPTIONS, prompts=prompts, questions=questions, default_samples=samples)
        plan = plan_of(options)
        stop = tuple(min(cut, most) for most in plan.ceilings)
        whole, part = plan.until(plan.ceilings), plan.until(stop)
        for role, most in zip((DEFAULT, *plan.roles), plan.ceilings, strict=True):
            order = plan._items(role, whole)
            assert len(set(order)) == len(order) == most
            begun = plan._items(role, part)
            assert begun == order[: len(begun)]
            asked = Counter(item.question for item in begun)
            assert max(asked.values()) - min(Counter({q: asked[q] for q in plan.questions}).values()) <= 1
            # A prompt may lead by one in every turn through the questions and in every turn through the groups.
            of_prompts = Counter(item.prompt for item in begun)
            counts = [of_prompts[p] for p in range(plan.prompts_of(role))]
            assert max(counts) - min(counts) <= 1 + len(begun) // 8 + len(begun) // questions

    def test_two_prompts_both_meet_every_group(self) -> None:
        plan = plan_of()
        begun = plan._items(plan.roles[0], plan.until((0, 16, *[0] * (ROLES - 1))))
        pairs = {(plan.group_of[item.question], item.prompt) for item in begun}
        assert len(pairs) == 16

    def test_roles_begin_at_different_questions(self) -> None:
        plan = plan_of()
        part = plan.until((0, *[16] * ROLES))
        first = [frozenset(item.question for item in plan._items(role, part)) for role in plan.roles]
        assert len(set(first)) > 1 and frozenset.union(*first) == set(plan.questions)

    def test_rounds_join_without_overlap(self) -> None:
        plan = plan_of()
        one = plan.until((10, 3, 0, 5, 7, 1, 2))
        two = plan.until((20, 3, 8, 80, 7, 9, 2), one)
        assert two.rollouts == 10 + 8 + 75 + 8
        drawn = [
            item for part in (one, two) for index in range(plan.n_blocks)
            for batch in plan.block(index, part).batches for item in batch.items
        ]  # fmt: skip
        assert len(drawn) == len(set(drawn)) == one.rollouts + two.rollouts
        seeds = [b.seed for part in (one, two) for i in range(plan.n_blocks) for b in plan.block(i, part).batches]
        assert len(set(seeds)) == len(seeds)


class TestCertainty:
    def test_halves_of_known_noise(self) -> None:
        """A signal of length 1 and noise of n parts: the whole's cosine with the signal is what the halves foretell."""
        rng = np.random.default_rng(0)
        signal = np.eye(400)[0]
        for sigma in (0.02, 0.1):
            parts = signal + sigma * rng.normal(size=(1, 8, 400))
            split = split_half(np.zeros((1, 8, 400)), np.ones((1, 8)), parts[0], np.ones(8), seed=0)
            whole = parts[0].mean(axis=0)
            assert abs(noise_free(split.cosine) - whole[0] / np.linalg.norm(whole)) < 0.01
        assert noise_free(1) == 1 and noise_free(0) == 0 and noise_free(-0.2) == 0

    def test_prompts_that_differ_are_noise_of_their_own(self) -> None:
        rng = np.random.default_rng(1)
        wordings = rng.normal(size=(6, 5, 1, 50)) * 2
        by_prompt = np.eye(50)[0] * -4 + np.broadcast_to(wordings, (6, 5, 8, 50)).mean(axis=2)
        by_question = np.repeat(by_prompt.mean(axis=1, keepdims=True), 8, axis=1)  # every question saw all prompts
        default = (np.zeros((8, 50)), np.ones(8))
        over_questions = split_half(by_question, np.ones((6, 8)), *default, seed=0)
        over_prompts = split_prompts(by_prompt, np.ones((6, 5)), *default, seed=0)
        assert over_prompts is not None
        assert over_questions.cosine == pytest.approx(1) and 0.5 < over_prompts.cosine < 0.95
        certainty = Certainty(over_questions, over_prompts)
        assert certainty.expected == noise_free(over_prompts.cosine)  # the smaller counts
        assert certainty.low == noise_free(over_prompts.low) <= certainty.expected
        assert split_prompts(by_prompt[:, :1], np.ones((6, 1)), *default, seed=0) is None


    @pytest.mark.parametrize("groups", [2, 3])
    def test_of_too_few_questions_nothing_is_certain(self, groups: int) -> None:
        rng = np.random.default_rng(2)
        sums, default = rng.normal(size=(6, groups, 20)), 5 + rng.normal(size=(groups, 20))
        found = split_half(sums, np.ones((6, groups)), default, np.ones(groups), seed=0)
        assert 0.5 < found.cosine < 1 and (found.low, found.high) == (-1.0, 1.0)
        assert Certainty(found, None).low == 0


class TestAllocation:
    def test_batches_are_counted_as_they_are_drawn(self) -> None:
        plan = plan_of(replace(OPTIONS, batch_size=7))
        for part in (first_round(plan), plan.until(plan.ceilings, first_round(plan)), plan.until((3, *[0] * ROLES))):
            drawn = [len(plan.block(index, part).batches) for index in range(plan.n_blocks)]
            assert plan.batches(part) == sum(drawn)

    def test_why_a_run_ends_short(self) -> None:
        plan = plan_of(replace(OPTIONS, min_accepted=10))
        part = plan.until((60, *[12] * ROLES))
        refused = known(part.stop, [1.0] * 7, 0.0, [60, 10, 3, 3, 3, 3, 3])
        again = [Recorded((30, *[5] * ROLES), 0.0, 0.0), Recorded(part.stop, 0.0, 0.0)]
        said = why_not(plan, part, refused, again)
        assert said == "1 of 6 roles have 10 accepted replies; of 72 that were drawn in roles the judge accepted 25"
        enough = known(part.stop, [1.0] * 7, 0.5)
        assert "hardly helped" in why_not(plan, part, enough, again)
        assert "more prompts, questions or default_samples" in why_not(plan, part, enough, again[1:])
        few = plan_of(replace(OPTIONS, questions=3))
        assert "3 questions are too few to tell" in why_not(few, part, enough, again)

    def test_the_first_round_can_give_every_role_its_vector(self) -> None:
        plan = plan_of(replace(OPTIONS, min_accepted=10))
        first = first_round(plan)
        assert first.stop == (48, *[12] * ROLES) and first.start == (0,) * (1 + ROLES)
        assert first_round(plan_of(replace(OPTIONS, precision=1))).stop == plan.ceilings
        small = plan_of(replace(OPTIONS, questions=3, prompts=1, default_samples=1))
        assert first_round(small).stop == (12, *[3] * ROLES)

    def test_more_goes_where_neyman_puts_it(self) -> None:
        options = replace(OPTIONS, questions=40, prompts=5, default_samples=100, precision=0.99)
        plan = plan_of(options)
        spread = np.array([1.0, 0.5, 0.5, 1.0, 1.0, 3.0, 3.0])
        now = known([20, *[10] * ROLES], spread, low=0.985)
        more = next_round(plan, plan.until(tuple(now.drawn)), now, [Recorded(tuple(now.drawn), 0.99, 0.985)])
        assert more is not None
        drawn = np.array(more.stop)
        weight = spread / np.array([1, *[ROLES] * ROLES])
        noise = (weight**2 / drawn).sum()
        wanted = (weight**2 / now.drawn).sum() * (1 - 0.99) / (1 - 0.985)
        assert 0.8 * wanted < noise < wanted  # what seems enough, and hardly more
        raised = drawn > now.drawn
        assert raised[[0, 5, 6]].all() and not raised[[1, 2]].any()
        level = drawn[raised] / weight[raised]
        assert level.max() / level.min() < 1.1  # proportional to sigma where any is added

    def test_a_round_at_most_doubles_and_ends_at_the_ceiling(self) -> None:
        plan = plan_of(replace(OPTIONS, precision=0.999999))
        now = known([60, *[10] * ROLES], [1.0] * 7, low=0.5)
        following = next_round(plan, plan.until(tuple(now.drawn)), now, [Recorded(tuple(now.drawn), 0.6, 0.5)])
        assert following is not None and 100 < following.rollouts <= 120 + len(plan.ceilings)
        full = known(plan.ceilings, [1.0] * 7, low=0.5)
        assert next_round(plan, plan.until(plan.ceilings), full, [Recorded(plan.ceilings, 0.6, 0.5)]) is None

    def test_it_stops_when_it_is_certain(self) -> None:
        plan = plan_of()
        now = known([60, *[10] * ROLES], [1.0] * 7, low=0.9901)
        assert next_round(plan, plan.until(tuple(now.drawn)), now, [Recorded(tuple(now.drawn), 1.0, 0.9901)]) is None

    def test_roles_without_enough_accepted_get_more_and_hopeless_ones_none(self) -> None:
        plan = plan_of(replace(OPTIONS, min_accepted=10))
        accepted = [60, 10, 7, 1, 0, 0, 12]
        now = known([60, 12, 12, 12, 12, 30, 12], [1.0] * 4 + [np.nan] * 2 + [1.0], 0.999, accepted)
        assert given_up(now).tolist() == [False] * 5 + [True, False]
        following = next_round(plan, plan.until(tuple(now.drawn)), now, [Recorded(tuple(now.drawn), 1.0, 0.999)])
        assert following is not None
        more = np.array(following.stop) - now.drawn
        assert (more[[0, 1, 5, 6]] == 0).all() and 3 <= more[2] <= 12 and (more[[3, 4]] == 12).all()

    def test_rounds_that_hardly_help_are_in_vain(self) -> None:
        first, little, half = Recorded((100,), 0.96, 0.95), Recorded((200,), 0.96, 0.953), Recorded((200,), 0.98, 0.974)
        assert in_vain([first, little]) and not in_vain([first, half]) and not in_vain([first])
        assert not in_vain([first, Recorded((120,), 0.96, 0.9501)])  # too few more to tell


class RefusesOne:
    """A judge that takes every reply but those in the role r2."""

    name = "refuses one"

    def score(self, rollouts: Sequence[Judged]) -> list[int | None]:
        return [0 if r.role == tiny.probes(ROLES, 40).roles[2].name else 3 for r in rollouts]


class TestRun:
    def run(self, out: Path, precision: float, judge: object = None, stop_at: int = 10**9) -> list[events.Event]:
        heard: list[events.Event] = []

        def listen(event: events.Event) -> None:
            heard.append(event)
            if sum(isinstance(e, events.Progress) for e in heard) == stop_at:
                raise KeyboardInterrupt

        options = replace(OPTIONS, precision=precision)
        extract(tiny.chat(), tiny.probes(ROLES, 40), options, out=out, progress=listen, judge=judge)  # type: ignore[arg-type]
        return heard

    def test_rounds_until_it_is_certain_and_the_file_says_so(self, tmp_path: Path) -> None:
        heard = self.run(tmp_path / "a", 0.9)
        rounds = [event for event in heard if isinstance(event, events.Rounded)]
        stated = Axis.load(tmp_path / "a").metadata["precision"]
        assert len(rounds) > 1 and rounds[-1].more == 0 and all(r.more for r in rounds[:-1])
        assert rounds[-2].low < 0.9 <= rounds[-1].low == stated["low"] and rounds[-1].expected == stated["expected"]
        assert stated["rounds"] == [[r.rollouts, r.expected, r.low] for r in rounds]
        assert rounds[-1].rollouts < stated["of_rollouts"] == 6 * 80 + 5 * 40 * 4
        lines = (run_directory(tmp_path / "a") / "rollouts.jsonl").read_text().splitlines()
        assert len(lines) == rounds[-1].rollouts
        keys = [tuple(json.loads(line)[k] for k in ("role", "prompt", "question", "sample")) for line in lines]
        assert len(set(keys)) == len(keys)

    def test_stopped_in_the_second_round_and_gone_on(self, tmp_path: Path) -> None:
        through = self.run(tmp_path / "a", 0.9)
        batches = [e for e in through if isinstance(e, events.Progress)]
        later = next(i for i, e in enumerate(batches, start=1) if e.round == 2) + 1
        with pytest.raises(Interrupted):
            self.run(tmp_path / "b", 0.9, stop_at=later)
        heard = self.run(tmp_path / "b", 0.9)
        assert next(e.done for e in heard if isinstance(e, events.Planned)) > first_round(plan_of()).rollouts
        first, second = Axis.load(tmp_path / "a"), Axis.load(tmp_path / "b")
        for name, array in first.arrays.items():
            assert np.array_equal(array, second.arrays[name]), name
        assert first.metadata["precision"] == second.metadata["precision"]

    def test_a_higher_precision_goes_on_from_what_is_there(self, tmp_path: Path) -> None:
        self.run(tmp_path / "a", 0.8)
        before = Axis.load(tmp_path / "a").metadata["precision"]["rounds"]
        heard = self.run(tmp_path / "a", 1)
        there = next(e.done for e in heard if isinstance(e, events.Planned))
        assert there == before[-1][0] < 1280
        whole = Axis.load(tmp_path / "a")
        assert whole.metadata["precision"]["rounds"][-1][0] == 1280 and whole.metadata["tallies"]["drawn"] == 1280

    def test_a_role_that_is_refused_is_given_up(self, tmp_path: Path) -> None:
        self.run(tmp_path / "a", 0.9, RefusesOne())
        axis = Axis.load(tmp_path / "a")
        drawn = Counter(
            json.loads(line)["role"] for line in (run_directory(tmp_path / "a") / "rollouts.jsonl").open()
        )
        refused = tiny.probes(ROLES, 40).roles[2].name
        assert axis.metadata["roles_below"] == {refused: 0}
        assert drawn[refused] == 32 < OPTIONS.prompts * OPTIONS.questions

    @pytest.mark.parametrize(
        "content", [b"{", b"[[1, 2]]", b'[{"stop": [1]}]', b'[{"stop": [1], "expected": null, "low": null}]']
    )
    def test_damaged_rounds(self, tmp_path: Path, content: bytes) -> None:
        self.run(tmp_path / "a", 0.8)
        (run_directory(tmp_path / "a") / "rounds.json").write_bytes(content)
        with pytest.raises(ExtractionError, match=r"rounds.json is damaged"):
            self.run(tmp_path / "a", 0.8)

    def test_precision_is_a_share(self) -> None:
        for wrong in (0, 1.01, -1, float("nan")):
            with pytest.raises(ExtractionError, match="precision must lie in"):
                Options(precision=wrong)
