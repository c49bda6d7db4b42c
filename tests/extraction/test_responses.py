"""Rollouts that exist already: their file, line by line, and the axis that is read from them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import chat_factory as tiny
import numpy as np
import pytest
import torch
from command_line import command_in

from persona_axis import Axis, ExtractionError, JudgeError
from persona_axis.cli import app
from persona_axis.extract import Options, extract, extract_responses, run_directory
from persona_axis.extraction import given, responses
from persona_axis.extraction.events import Note, Planned
from persona_axis.extraction.rolloutpca import space_path
from persona_axis.files.spacefile import load_space
from persona_axis.judges import AcceptAll, Judged
from persona_axis.sampling import Sampling

OPTIONS = Options(prompts=2, questions=8, sampling=Sampling(max_new_tokens=12), batch_size=10, min_accepted=3)
ROLES = 6
WORDS = "rain bread money sleep work hello yes no dark bright old new".split()

CHILD = """
import os, signal, sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
import test_responses as t
from persona_axis.extraction import blocks
file, out, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
whole, calls = blocks.write_atomically, []
def torn(path, content):
    if path.parent.name == "blocks":
        calls.append(path)
        if len(calls) > count:
            os.kill(os.getpid(), signal.SIGKILL)
    whole(path, content)
blocks.write_atomically = torn
t.read(file, out)
"""


def read(file: Path | str, out: Path | str, options: Options = OPTIONS, **more) -> Axis:
    return extract_responses(tiny.chat(), file, tiny.probes(ROLES), options, out=out, **more).axis


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """The axis of a run that generated."""
    out = tmp_path_factory.mktemp("drawn") / "axis"
    extract(tiny.chat(), tiny.probes(ROLES), replace(OPTIONS, default_samples=2, rollout_pca=1), out=out)
    return out


def lines(scores=True, seed=0) -> list[dict]:
    """Responses in words of the tokenizer, by roles that the probes know and one that they do not."""
    rng = np.random.default_rng(seed)
    probes = tiny.probes(ROLES)
    roles = [(role.name, role.prompts[:2]) for role in probes.roles[:3]] + [("own", ("be old .",)), ("default", ("",))]
    found = []
    for name, prompts in roles:
        for prompt in prompts:
            for question in probes.questions[:5]:
                said = " ".join(rng.choice(WORDS, size=int(rng.integers(2, 9))))
                line = {"role": name, "prompt": prompt, "question": str(question), "response": said}
                if scores and name != "default":
                    line["score"] = 3 if rng.random() < 0.8 else 1
                found.append(line)
    rng.shuffle(found)
    return found


def written(path: Path, told: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in told))
    return path


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_axis_of_a_run_is_found_again_in_its_rollouts(tmp_path, drawn, batch_size):
    options = replace(OPTIONS, batch_size=batch_size, rollout_pca=1)
    found = read(run_directory(drawn), tmp_path / "axis", options)
    wanted = Axis.load(drawn)
    assert found.role_names == wanted.role_names and found.metadata["accepted"] == wanted.metadata["accepted"]
    assert set(found.arrays) == set(wanted.arrays)
    for name, array in wanted.arrays.items():
        np.testing.assert_allclose(found.arrays[name], array, rtol=1e-4, atol=1e-5, err_msg=name)
    for key in ("tallies", "default_count", "recommended_layer", "calibration"):
        assert found.metadata[key] == wanted.metadata[key], key
    assert found.metadata["judge"] == "given (all)" and found.metadata["sampling"]["max_new_tokens"] == 12
    one, other = (load_space(space_path(path)).space for path in (tmp_path / "axis", drawn))
    np.testing.assert_allclose(one.projections, other.projections, rtol=1e-4)


def test_texts_are_read_as_the_model_would_have_them(tmp_path):
    told = lines()
    chat = tiny.chat()
    found = read(written(tmp_path / "r.jsonl", told), tmp_path / "axis", replace(OPTIONS, min_accepted=1))
    means: dict[str, list[torch.Tensor]] = {}
    for line in told:
        if line["role"] != "default" and line["score"] != 3:
            continue
        system = [{"role": "system", "content": line["prompt"]}] if line["prompt"] else []
        prompt = chat.encode([*system, {"role": "user", "content": line["question"]}])
        reply = chat.tokenizer(line["response"], add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            states = chat.model(torch.tensor([prompt + reply]), output_hidden_states=True).hidden_states
        means.setdefault(line["role"], []).append(states[2][0, len(prompt) :].double().mean(0))
    assert set(found.role_names) == set(means) - {"default"} and "own" in found.role_names
    for name, vector in zip(found.role_names, found.roles_at(1), strict=True):
        expected = torch.stack(means[name]).mean(0).numpy()
        np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.arrays["default"][1], torch.stack(means["default"]).mean(0), rtol=1e-4, atol=1e-5)
    assert found.metadata["accepted"] == {name: len(means[name]) for name in found.role_names}
    assert found.metadata["judge"] == "given" and "temperature" not in found.metadata["sampling"]


def test_long_ones_are_read_together_and_few_at_a_time_where_memory_is_short(tmp_path, monkeypatch):
    file = written(tmp_path / "r.jsonl", lines())
    options = replace(OPTIONS, min_accepted=1, batch_size=8)
    wanted = read(file, tmp_path / "a", options)
    sizes, whole = [], given.read_sums

    def narrow(chat, layers, prompts, replies):
        if len(prompts) > 3:
            raise MemoryError
        sizes.append([len(p) + len(r) for p, r in zip(prompts, replies, strict=True)])
        return whole(chat, layers, prompts, replies)

    monkeypatch.setattr(given, "read_sums", narrow)
    found = read(file, tmp_path / "b", options)
    assert max(map(len, sizes)) == 2 and json.loads((run_directory(tmp_path / "b") / "plan.json").read_text())[
        "batch_size"
    ] == 2
    for name, array in wanted.arrays.items():
        np.testing.assert_allclose(found.arrays[name], array, rtol=1e-4, atol=1e-5)
    waste = sum(max(batch) * len(batch) - sum(batch) for batch in sizes[1:]) / sum(map(sum, sizes[1:]))
    assert waste < 0.2  # neighbours are alike


def test_killed_or_not_makes_no_difference(tmp_path, drawn):
    file, here = run_directory(drawn) / "rollouts.jsonl", Path(__file__).parents[1]
    wanted = read(file, tmp_path / "through")
    code = CHILD.format(paths=[str(here / "extraction"), str(here), str(here.parent)])
    command = [sys.executable, "-c", code, str(file), str(tmp_path / "axis"), "9"]
    ended = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert ended.returncode == -signal.SIGKILL
    heard = []
    found = read(file, tmp_path / "axis", progress=heard.append)
    (planned,) = (event for event in heard if isinstance(event, Planned))
    assert 80 <= planned.done <= 90 and planned.given
    for name, array in wanted.arrays.items():
        assert np.array_equal(found.arrays[name], array), name
    logs = [(run_directory(tmp_path / name) / "rollouts.jsonl").read_bytes() for name in ("axis", "through")]
    assert logs[0] == logs[1]


class TestScores:
    def test_what_has_none_needs_a_judge_who_is_asked_for_these_only(self, tmp_path):
        told = lines()
        bare = [i for i, line in enumerate(told) if line.pop("score", None) == 1]
        for i, line in enumerate(told):
            if i not in bare and line["role"] != "default":
                line["score"] = 1 if i % 5 == 0 else 3
        file = written(tmp_path / "r.jsonl", told)
        with pytest.raises(ExtractionError, match=f"line {bare[0] + 1}: has no score: name a judge"):
            read(file, tmp_path / "axis")
        asked = []

        class Strict:
            name = "strict"

            def score(self, rollouts):
                asked.extend(r.reply for r in rollouts)
                assert all(r.system and r.question for r in rollouts)
                return [0] * len(rollouts)

        found = read(file, tmp_path / "axis", replace(OPTIONS, min_accepted=1), judge=Strict())
        assert sorted(asked) == sorted(told[i]["response"] for i in bare)
        assert found.metadata["judge"] == "given, else strict" and found.metadata["tallies"]["score0"] == len(bare)
        good = sum(line.get("score") == 3 for line in told)
        assert sum(found.metadata["accepted"].values()) + sum(found.metadata["roles_below"].values()) == good

    def test_an_empty_response_needs_none_and_a_verdict_that_could_not_be_read_is_one(self, tmp_path):
        told = [line if line["role"] == "default" else {**line, "score": 3} for line in lines()]
        of_roles = [line for line in told if line["role"] == "role 1"]
        of_roles[0] |= {"response": " "}
        of_roles[0].pop("score")
        of_roles[1] |= {"score": None, "accepted": False}
        found = read(written(tmp_path / "r.jsonl", told), tmp_path / "axis", replace(OPTIONS, min_accepted=1))
        assert found.metadata["tallies"]["empty"] == 1 and found.metadata["tallies"]["unparsable"] == 1
        assert found.metadata["accepted"]["role 1"] == len(of_roles) - 2

    def test_the_file_s_judge_knows_nothing_else(self):
        shown = Judged("ghost", "", "be a ghost", "what ?", "yes")
        judge = given.GivenJudge(None, "given")
        for _ in range(2):
            judge.hear([(shown, responses.Response(1, "yes", None, 3, True))])
            assert judge.score([shown]) == [3]
        with pytest.raises(JudgeError, match="knows the rollouts of its file only, not 'yes'"):
            judge.score([shown])

    def test_the_same_words_may_be_scored_twice_and_otherwise(self, tmp_path):
        told = [{**line, "sample": n} for n in range(2) for line in lines()]
        for line in told:
            if line["role"] != "default":
                line["score"] = 3 if line["sample"] else 1
        found = read(written(tmp_path / "r.jsonl", told), tmp_path / "axis", replace(OPTIONS, min_accepted=1))
        tallies = found.metadata["tallies"]
        assert tallies["score3"] == tallies["score1"] == len([line for line in told if line["role"] != "default"]) / 2


GOOD = '{"role": "role 1", "prompt": "be a .", "question": "what ?", "response": "yes", "score": 3}'


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("{", "is not JSON"),
            ("\xff", "is not JSON"),
            ("[1]", r"expected an object with role, prompt, question and response, found \[1\]"),
            ('{"prompt": "", "question": "q", "response": "r"}', "has no 'role'"),
            (GOOD.replace('"role 1"', "7"), "role: expected a text, found 7"),
            (GOOD.replace('"role 1"', '" "'), "role: is empty"),
            (GOOD.replace('"prompt": "be a .", ', ""), "has no 'prompt'"),
            (GOOD.replace('"be a ."', "1.5"), "prompt: expected a whole number from 0, found 1.5"),
            (GOOD.replace('"be a ."', "5"), "prompt 5: role 'role 1' has 5 in the probes"),
            (GOOD.replace('"role 1"', '"strange"').replace('"be a ."', "0"), "role 'strange' is not among the probes"),
            (GOOD.replace('"what ?"', "8"), "question 8: the probes have 8"),
            (GOOD.replace('"what ?"', '""'), "question: is empty"),
            (GOOD.replace('"question": "what ?", ', ""), "has no 'question'"),
            (GOOD.replace('"response": "yes"', '"reply": "yes"'), "has no 'response' and no 'text'"),
            (GOOD.replace('"yes"', "null"), "response: expected a text, found null"),
            (GOOD.replace("3", "4"), "score: expected 0, 1, 2 or 3, or null for none, found 4"),
            (GOOD.replace("3", "true"), "score: expected 0, 1, 2 or 3"),
            (GOOD.replace("3}", '3, "sample": -1}'), "sample: expected a whole number from 0, found -1"),
            (GOOD.replace("3}", '3, "ids": [1, "a"]}'), "ids: expected a list of token ids"),
            (GOOD, "line 1 answers the same prompt and question of role 'role 1', sample 0: number repeated answers"),
        ],
    )
    def test_with_the_line(self, tmp_path, line, said):
        file = tmp_path / "r.jsonl"
        file.write_bytes(f"{GOOD}\n\n{line}\n".encode("latin-1"))
        with pytest.raises(ExtractionError, match=f"r.jsonl, line 3: .*{said}"):
            read(file, tmp_path / "axis")
        assert not (tmp_path / "axis").exists()

    def test_repeated_answers_are_told_apart_by_their_sample(self, tmp_path):
        told = [{**line, "sample": n} for n in range(2) for line in lines()]
        found = read(written(tmp_path / "r.jsonl", told), tmp_path / "axis", replace(OPTIONS, min_accepted=1))
        assert found.metadata["default_count"] == 10

    @pytest.mark.parametrize(
        ("kept", "said"),
        [
            (lambda line: line["role"] != "default", "no line has the role 'default'"),
            (lambda line: line["role"] in ("default", "own"), "1 roles beside the default, at least 2"),
            (lambda line: False, "no line has the role 'default'"),
        ],
    )
    def test_files_without_what_an_axis_needs(self, tmp_path, kept, said):
        with pytest.raises(ExtractionError, match=said):
            read(written(tmp_path / "r.jsonl", list(filter(kept, lines()))), tmp_path / "axis")

    def test_tokens_of_another_tokenizer(self, tmp_path):
        for ids in ([99999], [1, 2]):
            told = lines()
            told[4]["ids"] = ids
            with pytest.raises(ExtractionError, match=r"line 5: its ids are not the tokens of its text here"):
                read(written(tmp_path / "r.jsonl", told), tmp_path / f"axis {ids}")

    def test_another_file_in_the_place_of_the_one_a_run_began_with(self, tmp_path):
        options = replace(OPTIONS, min_accepted=1)
        read(written(tmp_path / "r.jsonl", lines()), tmp_path / "axis", options)
        with pytest.raises(ExtractionError, match="sampling.responses_sha256 was"):
            read(written(tmp_path / "r.jsonl", lines(seed=1)), tmp_path / "axis", options)

    def test_a_run_with_other_probes_and_its_own_directory(self, tmp_path, drawn):
        with pytest.raises(ExtractionError, match="drawn with other probes"):
            extract_responses(tiny.chat(), run_directory(drawn), tiny.probes(5), OPTIONS, out=tmp_path / "axis")
        with pytest.raises(ExtractionError, match="lies in this run's own directory"):
            read(run_directory(drawn), drawn)
        with pytest.raises(ExtractionError, match="cannot be read: No such file"):
            read(tmp_path / "none.jsonl", tmp_path / "axis")
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ExtractionError, match="cannot be read: it is a pipe"):
            read(tmp_path / "pipe", tmp_path / "axis")
        (tmp_path / "plan.json").write_text("{}")
        with pytest.raises(ExtractionError, match="plan.json is damaged"):
            responses.run_beside(tmp_path)


def test_unknown_roles_are_noted(tmp_path):
    heard = []
    read(
        written(tmp_path / "r.jsonl", lines()), tmp_path / "axis", replace(OPTIONS, min_accepted=1),
        judge=AcceptAll(), progress=heard.append,
    )  # fmt: skip
    assert any(isinstance(event, Note) and "such as 'own'" in event.text for event in heard)


def test_on_the_command_line(tmp_path, capsys, monkeypatch):
    command = command_in(tmp_path, app, capsys, monkeypatch)
    written(tmp_path / "r.jsonl", lines())
    said = ["extract", "--responses", "r.jsonl", "--out", "a.safetensors", "--min-accepted", "1", "--yes"]
    made = command(*said)
    assert made.code == 0 and "reading 40 rollouts that exist already" in made.err and "given" in made.out
    assert "saved a.safetensors" in made.err
    drawing = (["--roles", "3"], ["--max-new-tokens", "5"], ["--precision", "0.9"], ["--ray", "local"])
    for more in (*drawing, ["--workers", "2"], ["--worker-gpus", "0"], ["--full"], ["--traits"]):
        refused = command(*said, *more)
        assert refused.code == 2 and f"{more[0]} says what is drawn: with --responses nothing is" in refused.err
