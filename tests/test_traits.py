"""Trait vectors: their probes, means by hand, pairing, resume, the file and what it refuses, cosines by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import chat_factory as tiny
import numpy as np
import pytest
import torch
from scipy.stats import t as student
from test_extract import full_activations, lines_of, relative
from traits_factory import FACTS, RECORDS, SMALL, TRAITS, extracted, folds_of, traits_of

from persona_axis import Axis, AxisFileError, AxisMismatchError, Cap, ExtractionError, ProbeError, plots
from persona_axis.chat import ChatModel
from persona_axis.extract import extract_traits, run_directory
from persona_axis.extraction import events
from persona_axis.files.safefile import read_safe, write_safe
from persona_axis.judges import Judged
from persona_axis.stats import folding
from persona_axis.trait_probes import as_roles, load_traits
from persona_axis.traits import TraitCosine, Traits, controls

# Probes


def write(directory: Path, records: Sequence[dict[str, Any]]) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "traits.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return directory


def test_the_shipped_traits_are_many_and_paired() -> None:
    traits = load_traits()
    assert len(traits) >= 64 and len({trait.kind for trait in traits}) >= 5
    assert all(len(trait.positive) == len(trait.negative) >= 2 for trait in traits)


def test_own_traits_are_read_and_chosen_by_name(tmp_path: Path) -> None:
    write(tmp_path, RECORDS)
    assert load_traits(tmp_path) == TRAITS
    assert [trait.name for trait in load_traits(tmp_path, ["friendly", "bright"])] == ["bright", "friendly"]
    with pytest.raises(ProbeError, match="no trait is called 'kind': there are bright, new, friendly"):
        load_traits(tmp_path, ["kind"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"positive": ["be a ."]}, "traits.jsonl:2: 'positive' of trait 'new' must be a list of at least 2"),
        ({"positive": "be a"}, "traits.jsonl:2: 'positive' of trait 'new' must be a list"),
        ({"negative": ["be a", "be b", "be c"]}, "traits.jsonl:2: trait 'new' has 2 positive and 3 negative"),
        ({"negative": ["be a", 3]}, "traits.jsonl:2: one of 'negative' of trait 'new' must be a text, got int"),
        ({"negative": ["be a", " be b"]}, "traits.jsonl:2: one of 'negative' .* white space"),
        ({"negative": ["be a", "BE bright!"]}, "traits.jsonl:2: text 'BE bright!' repeats the one at .*traits.jsonl:1"),
        ({"name": "Bright"}, "traits.jsonl:2: trait name 'Bright' repeats the one at .*traits.jsonl:1"),
        ({"opposite": ""}, "traits.jsonl:2: 'opposite' is empty"),
        ({"weight": 1}, "traits.jsonl:2: unknown key 'weight'"),
    ],
)
def test_bad_traits_are_refused_with_their_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    write(tmp_path, [RECORDS[0], {**RECORDS[1], **change}])
    with pytest.raises(ProbeError, match=said):
        load_traits(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="cannot read .*traits.jsonl"):
        load_traits(tmp_path)


def test_every_instruction_becomes_a_role() -> None:
    roles = as_roles(TRAITS, tiny.probes(), 2).roles
    assert [role.name for role in roles[:5]] == ["bright + 1", "bright + 2", "bright - 1", "bright - 2", "new + 1"]
    assert (roles[1].description, roles[1].prompts) == (TRAITS[0].description, (TRAITS[0].positive[1],))
    assert (roles[3].description, roles[3].prompts) == (TRAITS[0].opposite, (TRAITS[0].negative[1],))
    for pairs, said in ((1, "at least 2 pairs"), (3, "3 pairs of instructions asked for, trait 'bright' has 2")):
        with pytest.raises(ProbeError, match=said):
            as_roles(TRAITS, tiny.probes(), pairs)
    with pytest.raises(ProbeError, match="no traits"):
        as_roles((), tiny.probes(), 2)


# The run


class ByHash:
    """Accepts five replies in eight, by the reply and the role."""

    name = "by hash"

    def __init__(self) -> None:
        self.shown: list[Judged] = []

    def score(self, rollouts: Sequence[Judged]) -> list[int | None]:
        self.shown += rollouts
        return [(None, 0, 1, 3, 3, 3, 3, 3)[len(r.reply + r.role) % 8] for r in rollouts]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Traits, ChatModel, Path, ByHash]:
    chat, judge, out = tiny.chat(), ByHash(), tmp_path_factory.mktemp("run") / "traits"
    options = replace(SMALL, questions=10)  # the first two folds have two questions each
    found = extract_traits(chat, tiny.probes(questions=12), TRAITS, options, out=out, judge=judge)
    return found, chat, out, judge


def test_vectors_are_the_paired_differences_in_float64(run: tuple[Traits, ChatModel, Path, ByHash]) -> None:
    found, chat, out, _ = run
    probes, roles = tiny.probes(questions=12), as_roles(TRAITS, tiny.probes(), 2).roles
    asked = sorted({line["question"] for line in lines_of(run_directory(out))})
    count = found.arrays["folds"].shape[1]
    assert count in (2, 4)  # the judge leaves some eighths of the questions without a reply
    fold_of = {question: i % 8 % count for i, question in enumerate(asked)}
    means: dict[tuple[str, str, str], list[tuple[int, Any]]] = {}
    default = []
    for line in lines_of(run_directory(out)):
        if not line["accepted"]:
            continue
        role = next((r for r in roles if r.name == line["role"]), None)
        system = role.prompts[0] if role else probes.defaults_for(chat.display_name)[line["prompt"]]
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": str(probes.questions[line["question"]])})
        mean = full_activations(chat.model, chat.encode(messages), line["ids"]).mean(axis=1)
        if role:
            name, pole, pair = role.name.split()
            means.setdefault((name, pole, pair), []).append((fold_of[line["question"]], mean))
        else:
            default.append(mean)
    assert set(found.names) <= {trait.name for trait in TRAITS} and len(found.names) >= 2
    for i, name in enumerate(found.names):
        pole = {sign: [m for pair in "12" for m in means[name, sign, pair]] for sign in "+-"}
        by_fold = {
            sign: np.stack([np.mean([m for f, m in pole[sign] if f == fold], axis=0) for fold in range(count)])
            for sign in "+-"
        }
        folds = by_fold["+"] - by_fold["-"]  # [folds, layers, hidden]
        scale = np.abs(by_fold["+"]).max()
        assert np.abs(found.arrays["folds"][i] - folds).max() / scale < 1e-5
        vector = folds.mean(axis=0)
        unit = vector / np.linalg.norm(vector, axis=-1, keepdims=True)
        assert relative(found.direction(name), unit) < 1e-4
        for row, layer in enumerate(found.layers):
            place = found.places(name, layer)
            where = [by_fold["+"].mean(axis=0), by_fold["-"].mean(axis=0), np.mean(default, axis=0)]
            expected = [float(at[row] @ unit[row]) for at in where]
            assert list(place.values()) == pytest.approx(expected, abs=1e-4)
            pairs = [
                np.mean([m[row] for _, m in means[name, "+", p]], axis=0)
                - np.mean([m[row] for _, m in means[name, "-", p]], axis=0)
                for p in "12"
            ]
            cosine = float(pairs[0] @ pairs[1] / np.linalg.norm(pairs[0]) / np.linalg.norm(pairs[1]))
            assert found.certainty(layer)[name][1] == pytest.approx(cosine, abs=1e-4)
        assert found.metadata["accepted"][name] == [len(pole["+"]), len(pole["-"])]
    assert found.metadata["default_count"] == len(default)


def test_both_poles_answer_the_same_questions(run: tuple[Traits, ChatModel, Path, ByHash]) -> None:
    asked: dict[str, Counter[int]] = {}
    for line in lines_of(run_directory(run[2])):
        asked.setdefault(line["role"], Counter())[line["question"]] += 1
    assert len(asked.pop("default")) == 10 and len(asked) == 12
    assert all(questions == asked["bright + 1"] and set(questions.values()) == {1} for questions in asked.values())


def test_a_judge_is_shown_the_pole_that_was_asked_for(run: tuple[Traits, ChatModel, Path, ByHash]) -> None:
    shown = {(r.role, r.description, r.system) for r in run[3].shown}
    assert ("new - 2", TRAITS[1].opposite, TRAITS[1].negative[1]) in shown and len(shown) == 12


def test_the_file_states_what_was_asked(run: tuple[Traits, ChatModel, Path, ByHash]) -> None:
    back = Traits.load(run[2])
    about = back.metadata
    assert about["plan"] == {
        "traits": 3, "pairs": 2, "questions": 10, "default_samples": 1, "question_groups": 8,
        "folds": back.arrays["folds"].shape[1], "rollouts": 3 * 4 * 10 + 50, "batch_size": 16,
    }  # fmt: skip
    assert about["probes_sha256"] == as_roles(TRAITS, tiny.probes(questions=12), 2).fingerprint
    assert about["judge"] == "by hash" and about["weights_sha256"] == run[1].facts["weights_sha256"]
    assert about["sampling"]["max_new_tokens"] == 10


def test_traits_without_enough_replies_are_left_out_and_named(tmp_path: Path) -> None:
    class NoDark:
        name = "no dark"

        def score(self, rollouts: Sequence[Judged]) -> list[int]:
            return [0 if r.role == "bright - 2" else 3 for r in rollouts]

    found = extract_traits(tiny.chat(), tiny.probes(), TRAITS, SMALL, out=tmp_path / "t", judge=NoDark())
    assert found.names == ("new", "friendly") and found.arrays["folds"].shape[1] == 8
    assert list(found.metadata["traits_below"]) == ["bright"] and found.metadata["traits_below"]["bright"][1] > 3
    assert any("1 traits have no vector" in note for note in found.metadata["notes"])


def test_no_trait_with_enough_replies_is_told_at_the_end(tmp_path: Path) -> None:
    class NoNegative:
        name = "no negative"

        def score(self, rollouts: Sequence[Judged]) -> list[int]:
            return [0 if " - " in r.role else 3 for r in rollouts]

    with pytest.raises(ExtractionError, match="no trait has 3 accepted replies of each pole"):
        extract_traits(tiny.chat(), tiny.probes(), TRAITS, SMALL, out=tmp_path / "t", judge=NoNegative())


def test_a_plan_too_small_for_any_trait_is_told_before_anything_is_drawn(tmp_path: Path) -> None:
    """2 instructions x 8 questions are 16 replies a pole: 17 cannot be had, 16 can."""
    too_many = replace(SMALL, min_accepted=17)
    heard: list[events.Event] = []
    with pytest.raises(ExtractionError, match=r"min_accepted=17, but a pole .* only 16 replies .* to 16 or less"):
        extract_traits(tiny.chat(), tiny.probes(), TRAITS, too_many, out=tmp_path / "t", progress=heard.append)
    assert not heard and not list(tmp_path.iterdir())
    just = replace(SMALL, min_accepted=16)
    assert extract_traits(tiny.chat(), tiny.probes(), TRAITS[:1], just, out=tmp_path / "t").names == ("bright",)


def test_roles_are_not_counted_off(tmp_path: Path) -> None:
    with pytest.raises(ExtractionError, match="roles=4: traits are not counted off"):
        extract_traits(tiny.chat(), tiny.probes(), TRAITS, replace(SMALL, roles=4), out=tmp_path / "t")


def test_a_run_of_other_traits_is_not_gone_on_with(tmp_path: Path) -> None:
    extract_traits(tiny.chat(), tiny.probes(), TRAITS[:2], SMALL, out=tmp_path / "t")
    with pytest.raises(ExtractionError, match="holds a run with other settings: probes was"):
        extract_traits(tiny.chat(), tiny.probes(), TRAITS, SMALL, out=tmp_path / "t")


CHILD = """
import os, signal, sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
import traits_factory as t
left = [5]
def listen(event):
    left[0] -= isinstance(event, t.events.Progress)
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
t.extracted(sys.argv[1], listen)
"""


def test_killed_it_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    here, before = Path(__file__).parent, torch.get_num_threads()
    code = CHILD.format(paths=[str(here), str(here.parent)])
    command = [sys.executable, "-c", code, str(tmp_path / "t")]
    child = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert child.returncode == -signal.SIGKILL and not (tmp_path / "t").exists()
    heard: list[events.Event] = []
    torch.set_num_threads(1)
    try:
        extracted(tmp_path / "t", heard.append)
        extracted(tmp_path / "whole")
    finally:
        torch.set_num_threads(before)
    planned = heard[0]
    assert isinstance(planned, events.Planned) and 0 < planned.done < planned.rollouts
    logs = [(run_directory(tmp_path / name) / "rollouts.jsonl").read_bytes() for name in ("t", "whole")]
    assert logs[0] == logs[1]
    one, other = (read_safe(tmp_path / name) for name in ("t", "whole"))
    assert {k: a.tobytes() for k, a in one.arrays.items()} == {k: a.tobytes() for k, a in other.arrays.items()}
    assert {k for k in one.metadata if one.metadata[k] != other.metadata[k]} <= {"date"}


# The arithmetic of folds


def test_halves_are_all_of_them_and_agree_as_by_hand() -> None:
    folds = folds_of()[0, :, 0].astype(np.float64)
    cosines = []
    for half in combinations(range(8), 4):
        first, second = folds[list(half)].mean(axis=0), folds[[i for i in range(8) if i not in half]].mean(axis=0)
        cosines.append(first @ second / np.linalg.norm(first) / np.linalg.norm(second))
    assert folding.split_half(folds) == pytest.approx(np.mean(cosines), abs=1e-12)
    assert folding.split_half(np.array([[3.0, 4], [4, 3]])) == pytest.approx(24 / 25)
    three = np.array([[1.0, 0], [0, 1], [1, 1]])
    expected = np.mean([1 / 5**0.5, 1 / 5**0.5, 1.0])
    assert folding.split_half(three) == pytest.approx(expected)


def test_the_noise_floor_is_that_of_shuffled_signs() -> None:
    folds, toward = folds_of()[1, :, 0].astype(np.float64), np.random.default_rng(1).normal(size=16)
    unit = toward / np.linalg.norm(toward)
    shuffled = []
    for half in combinations(range(8), 4):
        signs = np.full(8, -1.0)
        signs[list(half)] = 1
        shuffled.append((signs[:, None] * folds).mean(axis=0) @ unit)
    expected = student.ppf(0.975, 7) * np.sqrt(np.mean(np.square(shuffled))) / np.linalg.norm(folds.mean(axis=0))
    assert folding.noise_floor(folds, toward) == pytest.approx(expected)


def test_where_there_is_no_trait_one_in_twenty_is_beyond_its_noise() -> None:
    rng = np.random.default_rng(0)
    toward = np.eye(12)[0]
    beyond = 0
    for _ in range(600):
        folds = rng.normal(size=(8, 12)) * np.where(toward, 4, 1)  # noise lies mostly along the axis, as in Troupe
        beyond += abs(folding.cosine_with(folds, toward).cosine) > folding.noise_floor(folds, toward)
    assert 0.02 < beyond / 600 < 0.09


def test_intervals_hold_the_true_cosine_and_are_the_jackknifes() -> None:
    rng = np.random.default_rng(0)
    toward, true = np.eye(10)[0], np.array([3.0, 4, *[0] * 8])
    inside = 0
    for _ in range(400):
        found = folding.cosine_with(true + rng.normal(size=(8, 10)), toward)
        inside += found.low <= 0.6 <= found.high
        assert -1 <= found.low <= found.cosine <= found.high <= 1
    assert 0.9 < inside / 400 <= 0.98
    folds = np.array([[3.0, 4], [4, 3], [5, 12]])
    left_out = [folds[[1, 2]].sum(axis=0), folds[[0, 2]].sum(axis=0), folds[[0, 1]].sum(axis=0)]
    z = np.arctanh([v[0] / np.linalg.norm(v) for v in left_out])
    reach = student.ppf(0.975, 2) * np.sqrt(2 / 3 * np.square(z - z.mean()).sum())
    centre = np.arctanh(12 / np.hypot(12, 19))
    expected = np.tanh([centre, centre - reach, centre + reach])
    assert folding.cosine_with(folds, np.array([2.0, 0])) == pytest.approx(expected)


def test_controls_are_what_one_in_twenty_random_directions_reach() -> None:
    rng = np.random.default_rng(3)
    drawn = rng.normal(size=(40_000, 20))
    cosines = np.abs(drawn[:, 0]) / np.linalg.norm(drawn, axis=1)
    assert folding.random_direction(20) == pytest.approx(np.quantile(cosines, 0.95), abs=0.01)
    roles = rng.normal(size=(50, 20)) * [6, *[1] * 19] + 5
    centred = roles - roles.mean(axis=0)
    mixed = rng.normal(size=(20_000, 50)) @ centred
    expected = np.quantile(np.abs(mixed[:, 0]) / np.linalg.norm(mixed, axis=1), 0.95)
    assert folding.random_mixture(roles, np.eye(20)[0]) == pytest.approx(expected, abs=0.01)
    assert expected > 2 * folding.random_direction(20)


# The file


def test_a_file_comes_back_as_it_was_and_is_written_the_same(tmp_path: Path) -> None:
    made = traits_of(folds_of())
    made.save(tmp_path / "a")
    back = Traits.load(tmp_path / "a")
    assert back.metadata == made.metadata and back.layers == (1, 2)
    assert all(np.array_equal(back.arrays[name], made.arrays[name]) for name in made.arrays)
    back.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def changed(name: str, at: Any, value: Any) -> Callable[[dict[str, Any], dict[str, str]], None]:
    def change(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
        tensors[name][at] = value

    return change


def stated(key: str, value: Any) -> Callable[[dict[str, Any], dict[str, str]], None]:
    def change(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
        metadata[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed("folds", (0, 0, 0, 0), float("nan")), "folds: holds NaN"),
        (changed("folds", (2, slice(None), 1), 0.0), "folds: trait 'trait 2' has no difference at layer 2"),
        (changed("direction", (1, 1), 0.25), "direction: trait 'trait 1' at layer 2 does not agree with its folds"),
        (changed("split_half", (2, 0), 0.1), "split_half: trait 'trait 2' at layer 1 does not agree"),
        (changed("places", (0, 1, 1), 9.0), "places: trait 'trait 0' at layer 2 does not agree"),
        (changed("wordings", (0, 0), 1.5), "wordings: cosines"),
        (changed("layers", 1, 1), "layers: expected rising"),
        (changed("layers", 1, 4), "layers: 1 to 4 are not all among the model's 4"),
        (lambda t, m: t.pop("places"), "places: this tensor is missing"),
        (lambda t, m: t.update(more=torch.zeros(1)), "more: a traits file holds no such tensor"),
        (lambda t, m: t.update(folds=t["folds"][:, :1].clone()), "folds: expected .* of 2 to 8 folds"),
        (lambda t, m: t.update(split_half=t["split_half"][:2].clone()), r"split_half: expected \[3, 2\]"),
        (lambda t, m: t.update(folds=t["folds"].bfloat16()), "folds: is bfloat16"),
        (lambda t, m: t.update(folds=t["folds"].double()), "folds: expected .* float32"),
        (stated("format", "persona-traits/9"), "format: expected 'persona-traits/1'"),
        (stated("conventions", '{"sign": "away"}'), "conventions: expected"),
        (stated("trait_names", '["a", "a", "b"]'), "trait_names: a name occurs twice"),
        (stated("trait_names", "a, b"), "trait_names: expected a list"),
        (stated("kinds", '["mood"]'), "kinds: 1 for 3 traits"),
        (stated("accepted", '{"trait 0": [1, 2]}'), "accepted: its traits are not"),
        (stated("hidden_size", "-1"), "hidden_size: expected a positive integer"),
        (lambda t, m: m.pop("judge"), "judge: missing"),
        (stated("weights_sha256", ""), "weights_sha256: is empty"),
        (stated("format", "persona-axis/1"), "format: expected .*; this is an axis file: .* makes a traits file"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, change: Any, said: str) -> None:
    path = tmp_path / "t"
    traits_of(folds_of()).save(path)
    file = read_safe(path)
    tensors, metadata = {name: torch.tensor(array) for name, array in file.arrays.items()}, dict(file.metadata)
    change(tensors, metadata)
    write_safe(path, tensors, metadata)
    with pytest.raises(AxisFileError, match=f"{path}: {said}"):
        Traits.load(path)


def test_a_cut_file_and_an_axis_loaded_as_the_other_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "t"
    traits_of(folds_of()).save(path)
    with pytest.raises(AxisFileError, match="format: expected 'persona-axis/1', found 'persona-traits/1'"):
        Axis.load(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(AxisFileError, match="truncated"):
        Traits.load(path)


# Beside an axis


def axis_of(direction: Sequence[float], layer: int = 2, **changes: Any) -> Axis:
    facts = {**FACTS, "recommended_layer": layer, **changes}
    return Axis.from_direction(np.array([direction]), layers=[layer], metadata=facts)


def test_cosines_by_hand_most_toward_the_assistant_first() -> None:
    along, away, across = np.zeros(16), np.zeros(16), np.zeros(16)
    along[:2], away[:2], across[1] = (3, 4), (-4, 3), 2
    spread = np.zeros((8, 16))
    spread[::2, 2], spread[1::2, 2] = 1, -1  # cancels in the mean
    folds = np.stack([np.stack([np.ones((8, 16)), v + spread], axis=1) for v in (away, across, along)])
    found = traits_of(folds.astype(np.float32)).cosines(axis_of([1.0] + [0.0] * 15))
    assert [one.trait for one in found] == ["trait 2", "trait 1", "trait 0"]
    assert [one.cosine for one in found] == pytest.approx([0.6, 0.0, -0.8])
    assert all(one.low <= one.cosine <= one.high and one.noise < 1e-6 for one in found)
    assert [one.told_apart for one in found] == [True, False, True]


def test_told_from_zero_only_beyond_noise_and_in_other_words_as_well() -> None:
    sure = TraitCosine("a", "mood", 0.5, 0.3, 0.6, 0.2, 0.9, 0.8)
    assert sure.told_apart
    assert not any(
        sure._replace(**change).told_apart for change in ({"noise": 0.6}, {"low": -0.1}, {"wordings": 0.4})
    )


def test_an_axis_of_another_model_or_layer_is_refused() -> None:
    traits, toward = traits_of(folds_of()), [1.0] + [0.0] * 15
    other = axis_of(toward, weights_sha256="d" * 64, chat_template_sha256=None)
    with pytest.raises(AxisMismatchError, match="traits and axis are of different models: weights fingerprint is aaa"):
        traits.cosines(other)
    assert len(traits.cosines(other, allow=["weights"])) == 3
    with pytest.raises(AxisMismatchError, match="hidden size is 16 in the file and 8 in the other"):
        traits.cosines(axis_of([1.0] + [0.0] * 7))
    with pytest.raises(AxisMismatchError, match="layer 3 is not in traits, which has layers 1 to 2"):
        traits.cosines(axis_of(toward, layer=3))
    with pytest.raises(AxisMismatchError, match="allow='weights'"):
        traits.cosines(other, allow="weights")
    assert controls(other, 2).mixture is None
    with pytest.raises(AxisFileError, match="holds no trait 'warm': there are trait 0, trait 1, trait 2"):
        traits.direction("warm")


def test_a_trait_can_be_capped(run: tuple[Traits, ChatModel, Path, ByHash]) -> None:
    found, chat, _, _ = run
    name, layer = found.names[0], 1
    direction = found.direction(name)[[found.row(layer)]]
    ids = torch.tensor([chat.encode([{"role": "user", "content": "how should i work ?"}])])

    def projections() -> Any:
        return chat.model(ids, output_hidden_states=True).hidden_states[layer + 1] @ direction[0]

    found.require(chat.model)
    with torch.no_grad():
        ceiling = float(projections().median())
        with Cap(direction, [layer], ceiling=ceiling).on(chat.model):
            held = projections()
        assert (projections() > ceiling + 1e-3).any() and (held <= ceiling + 1e-4).all()


# The figure


def test_the_figure_names_every_trait_in_order() -> None:
    names = [f"trait {i}" for i in range(64)]
    values = np.random.default_rng(0).uniform(-1, 1, 64)
    ends = np.column_stack([values - 0.1, values + 0.1])
    apart = values > 0
    figure = plots.trait_cosines(names, values, ends, np.full(64, 0.2), apart=apart, random=0.1, mixture=0.5, layer=3)
    figure.draw_without_rendering()
    ax = figure.axes[0]
    labels = [label for label in ax.get_yticklabels() if label.get_text()]
    assert [label.get_text() for label in labels] == [names[i] for i in np.argsort(-values, kind="stable")]
    boxes = [label.get_window_extent() for label in labels]
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in zip(boxes, boxes[1:], strict=False))
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in dots] == [int(apart.sum()), int((~apart).sum())]
    assert "64 traits and the axis, layer 3" in ax.get_title("left") and "toward the Assistant" in ax.get_xlabel()
    with pytest.raises(ValueError, match="64 names, 64 cosines, 64 intervals, 3 noises"):
        plots.trait_cosines(names, values, ends, [0.1] * 3)
