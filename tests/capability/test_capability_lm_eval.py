"""lm-evaluation-harness with and without a lever, on tasks written here and a tiny random model, off line."""

from __future__ import annotations

import copy
import json
import random
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import chat_factory as tiny
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import nn

from persona_axis import Cap
from persona_axis.capability.lm_eval import LmEvalRun, LmEvalTasks, _order, compared
from persona_axis.chat import ChatModel
from persona_axis.errors import CapabilityError, CapError
from persona_axis.residual import editing
from persona_axis.sampling import Sampling
from persona_axis.stats.intervals import paired_shares
from persona_axis.steer import ablate, add

WORDS = "rain bread money sleep work dark bright old new word".split()
ITEMS = 24
MOST = 6  # tokens of a reply


@pytest.fixture(autouse=True)
def off_line(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test may as much as try to reach a network; data that are made stay in the test's own folder."""
    import datasets.config
    import huggingface_hub.constants

    tried: list[Any] = []

    def refuse(*asked: Any, **_: Any) -> None:
        tried.append(asked)
        raise OSError("no network in tests")

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    for config in (huggingface_hub.constants, datasets.config):  # imported before this test, they look no more
        monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert tried == []


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    """Without a padding token, so that one has to be found; in float64, so that batches decide no near-tie."""
    return tiny.chat(pad=False, dtype=torch.float64)


def question(i: int) -> str:
    return f"what should i do about {WORDS[i % 10]} {WORDS[(3 * i + i // 10) % 10]} ?"


def write_task(folder: Path, name: str, docs: list[dict[str, Any]], **settings: Any) -> Path:
    """A task YAML with its data beside it."""
    folder.mkdir(exist_ok=True)
    data = folder / f"{name}.json"
    data.write_text("\n".join(json.dumps(doc) for doc in docs))
    config = {
        "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test", "doc_to_text": "{{question}}", **settings,
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def choice_task(folder: Path, golds: list[int], name: str = "tiny_choice") -> Path:
    docs = [{"question": question(i), "choices": [WORDS[i % 7], "yes", "no"], "gold": g} for i, g in enumerate(golds)]
    metrics = [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")]
    return write_task(
        folder, name, docs, output_type="multiple_choice", doc_to_choice="{{choices}}", doc_to_target="{{gold}}",
        metric_list=metrics,
    )  # fmt: skip


def reply_task(folder: Path, golds: list[str], name: str = "tiny_reply") -> Path:
    docs = [{"question": question(i), "gold": gold} for i, gold in enumerate(golds)]
    return write_task(
        folder, name, docs, output_type="generate_until", doc_to_target="{{gold}}",
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        generation_kwargs={"until": ["|"], "max_gen_toks": MOST, "do_sample": False},
    )  # fmt: skip


def answered(chat: ChatModel, lever: Any = None) -> list[str]:
    """What the model itself replies, one question at a time."""
    with chat.under(lever):
        asked = [[{"role": "user", "content": question(i)}] for i in range(ITEMS)]
        greedy = Sampling(temperature=0, max_new_tokens=MOST)
        return [chat.generate([one], greedy).texts[0] for one in asked]


def chosen(chat: ChatModel) -> list[int]:
    """The choice that the model itself finds likeliest, computed in float64 from its logits."""
    found = []
    for i in range(ITEMS):
        prompt = chat.encode([{"role": "user", "content": question(i)}])
        options = [WORDS[i % 7], "yes", "no"]
        ids = [chat.tokenizer(f" {o}", add_special_tokens=False)["input_ids"] for o in options]
        with torch.no_grad():
            logits = chat.model(torch.tensor([prompt])).logits[0, -1].double()
        found.append(int(np.argmax([float(logits[one[0]]) for one in ids])))
    return found


def pushes(chat: ChatModel, alpha: float) -> Any:
    rows = torch.randn(chat.n_layers, chat.hidden_size, generator=torch.Generator().manual_seed(1))
    return add(rows / rows.norm(dim=1, keepdim=True), range(chat.n_layers), alpha)


class Counting:
    """A lever that changes nothing and counts the runs of its layer; it may fail at one of them."""

    def __init__(self, layer: int = 1, fail_at: int | None = None) -> None:
        self.layer, self.fail_at, self.runs, self.entered = layer, fail_at, 0, 0

    def on(self, model: nn.Module, /, *, stack: str | None = None) -> AbstractContextManager[Any]:
        def edit(hidden: torch.Tensor) -> torch.Tensor:
            self.runs += 1
            if self.runs == self.fail_at:
                raise RuntimeError("the lever broke")
            return hidden

        self.entered += 1
        return editing(model, {self.layer: edit}, stack=stack)


def hooks(model: nn.Module) -> list[tuple[str, int]]:
    return [
        (name, len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._forward_hooks_always_called))
        for name, module in model.named_modules()
    ]


@pytest.fixture
def forwards(chat: ChatModel) -> Iterator[list[int]]:
    """Grows by one at each run of the model."""
    seen: list[int] = []
    handle = chat.model.register_forward_pre_hook(lambda *_: seen.append(1))
    yield seen
    handle.remove()


@pytest.fixture(scope="module")
def both(chat: ChatModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a multiple choice and a reply task; the model itself says what is right."""
    folder = tmp_path_factory.mktemp("tasks")
    choice_task(folder, chosen(chat))
    reply_task(folder, answered(chat))
    return folder


@pytest.fixture
def tasks(both: Path) -> LmEvalTasks:
    return LmEvalTasks(both)


def test_the_harness_sees_what_the_chat_model_sees(chat: ChatModel, tasks: LmEvalTasks) -> None:
    """What the model itself replies and prefers is what it is scored by: all right, hence the very same prompts, stop
    tokens and choices."""
    frame = tasks.run(chat, None, range(2 * ITEMS)).frame
    scores = frame.groupby(["task", "metric"])["score"].agg(["mean", "size"])
    for cell in (("tiny_choice", "acc,none"), ("tiny_reply", "exact_match,none")):
        assert scores.loc[cell, "mean"] == 1.0 and scores.loc[cell, "size"] == ITEMS


def test_no_lever_changes_exactly_nothing(chat: ChatModel, tasks: LmEvalTasks) -> None:
    report = tasks.compare(chat, None)
    assert (report.items["points_lost"] == 0).all() and (report.table["points_lost"] == 0).all()
    assert report.items["without"].equals(report.items["with_lever"].rename("without"))
    assert report.capability.points.value == 0 and report.capability.items == 2 * ITEMS
    # Nothing lost on a few items does not mean that nothing is ever lost.
    assert (report.table["low"] < 0).all() and (report.table["high"] > 0).all()
    assert list(report.table["metric"]) == ["acc,none", "acc_norm,none", "exact_match,none"]
    assert list(report.table["main"]) == [True, False, True]


def test_a_destructive_lever_loses_points(chat: ChatModel, tasks: LmEvalTasks) -> None:
    report = tasks.compare(chat, pushes(chat, 200.0))
    main = report.table[report.table["main"]]
    assert (main["without"] == 1.0).all() and (main["points_lost"] > 20).all() and (main["low"] > 0).all()
    assert report.capability.points.high < 0 and report.capability.loss == pytest.approx(main["points_lost"].mean())
    assert set(report.capability.parts) == {"tiny_choice", "tiny_reply"}


def test_taking_directions_out_is_scored_as_the_model_then_replies(chat: ChatModel, tasks: LmEvalTasks) -> None:
    lever = ablate(pushes(chat, 1.0).direction, range(chat.n_layers))
    right = [a == b for a, b in zip(answered(chat), answered(chat, lever), strict=True)]
    report = tasks.compare(chat, lever)
    pairs = report.items[report.items["task"] == "tiny_reply"].set_index("item")
    assert list(pairs["with_lever"].sort_index()) == [float(r) for r in right] and not all(right)


def test_intervals_are_paired(chat: ChatModel, tasks: LmEvalTasks) -> None:
    report = tasks.compare(chat, pushes(chat, 3.0))
    for _, row in report.table.iterrows():
        at = (report.items["task"] == row["task"]) & (report.items["metric"] == row["metric"])
        pairs = report.items[at]
        change = paired_shares(pairs["without"].tolist(), pairs["with_lever"].tolist())
        assert row[["points_lost", "low", "high"]].tolist() == pytest.approx(
            [-100 * change.value, -100 * change.high, -100 * change.low]
        )
        assert pairs["points_lost"].mean() == pytest.approx(row["points_lost"])
        assert row["items"] == ITEMS == len(pairs)


def test_the_lever_is_in_force_at_every_run(chat: ChatModel, tasks: LmEvalTasks, forwards: list[int]) -> None:
    before = hooks(chat.model)
    lever = Counting()
    tasks.run(chat, None, range(2 * ITEMS))
    assert lever.runs == 0
    alone = len(forwards)
    forwards.clear()
    tasks.run(chat, lever, range(2 * ITEMS))
    assert lever.runs == len(forwards) == alone > 2 * ITEMS / 8
    assert lever.entered == 2  # one kind of request each: likelihoods and replies
    assert hooks(chat.model) == before


def test_rolling_likelihoods_are_held_too(chat: ChatModel, tmp_path: Path, forwards: list[int]) -> None:
    docs = [{"question": question(i)} for i in range(3)]
    metrics = [{"metric": "word_perplexity"}]
    path = write_task(
        tmp_path, "tiny_text", docs, output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{question}}",
        metric_list=metrics,
    )  # fmt: skip
    lever, rolling = Counting(), LmEvalTasks(path, chat_template=False)
    run = rolling.run(chat, lever, range(3))
    assert lever.runs == len(forwards) > 0 and lever.entered == 1
    assert run.frame["score"].isna().all()
    with pytest.raises(CapabilityError, match=r"tiny_text has no score of single items between 0 and 1 .*perplexity"):
        rolling.compare(chat, None)


@pytest.mark.parametrize("fail_at", [1, 5])
def test_nothing_stays_behind_after_an_exception(chat: ChatModel, tasks: LmEvalTasks, fail_at: int) -> None:
    before, state = hooks(chat.model), torch.random.get_rng_state()
    with pytest.raises(RuntimeError, match="the lever broke"):
        tasks.run(chat, [pushes(chat, 1.0), Counting(fail_at=fail_at)], range(2 * ITEMS))
    assert hooks(chat.model) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (tasks.compare(chat, None).items["points_lost"] == 0).all()


def test_a_lever_that_does_not_fit_is_not_ignored(chat: ChatModel, tasks: LmEvalTasks) -> None:
    cap = Cap(torch.eye(chat.hidden_size)[:1], [chat.n_layers], floor=0.0)
    with pytest.raises(CapError, match="do not exist"):
        tasks.compare(chat, cap)


def test_model_tokenizer_and_random_states_are_left_as_they_were(chat: ChatModel, tasks: LmEvalTasks) -> None:
    weights = {name: tensor.clone() for name, tensor in chat.model.state_dict().items()}
    config, words = copy.deepcopy(chat.model.generation_config.to_dict()), len(chat.tokenizer)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state()  # noqa: NPY002
    tasks.run(chat, pushes(chat, 1.0), range(8))
    after = chat.model.state_dict()
    assert weights.keys() == after.keys() and all(torch.equal(weights[name], after[name]) for name in weights)
    assert chat.tokenizer.pad_token_id is None and len(chat.tokenizer) == words
    assert chat.model.generation_config.to_dict() == config
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), states[2])


def test_chat_template_on_and_off(chat: ChatModel, both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    generate = chat.model.generate

    def watched(input_ids: torch.Tensor, attention_mask: Any = None, **how: Any) -> torch.Tensor:
        seen.extend(row.tolist() for row in input_ids)
        assert set(chat.stop_ids) <= set(how["eos_token_id"])
        return generate(input_ids=input_ids, **how)

    monkeypatch.setattr(chat.model, "generate", watched)
    system = "you are a ghost ."
    path = both / "tiny_reply.yaml"
    LmEvalTasks(path, system=system, batch=1).run(chat, None, range(4))
    asked = [[{"role": "system", "content": system}, {"role": "user", "content": question(i)}] for i in range(ITEMS)]
    possible = chat.encode_batch(asked)
    assert len(seen) == 4 and all(ids in possible for ids in seen)
    seen.clear()
    LmEvalTasks(path, chat_template=False, batch=1).run(chat, None, range(4))
    plain = [chat.tokenizer(question(i))["input_ids"] for i in range(ITEMS)]
    assert len(seen) == 4 and all(ids in plain for ids in seen)


def test_a_folded_system_prompt_is_not_dropped(both: Path) -> None:
    """The harness itself would leave it out where the template takes none."""
    from persona_axis.capability.lm_eval_model import HeldModel

    model = HeldModel(tiny.chat(tiny.NO_SYSTEM), None, batch=1, chat_template=True)
    messages = [{"role": "system", "content": "be a ghost ."}, {"role": "user", "content": "hello"}]
    with pytest.warns(UserWarning, match="no system role"):
        assert "be a ghost ." in model.apply_chat_template(messages)
    begun = [*messages, {"role": "assistant", "content": "yes and"}]
    assert model.apply_chat_template(begun, add_generation_prompt=False).endswith("yes and")


def test_items_are_drawn_by_seed_and_task_by_task(chat: ChatModel, tasks: LmEvalTasks) -> None:
    first = tasks.run(chat, None, range(10), seed=3).frame
    assert first.groupby("task")["item"].nunique().to_dict() == {"tiny_choice": 5, "tiny_reply": 5}
    again = tasks.run(chat, None, range(10), seed=3).frame
    pd.testing.assert_frame_equal(first, again)
    more = tasks.run(chat, None, range(10, 2 * ITEMS), seed=3).frame
    whole = pd.concat([first, more]).groupby(["task", "metric"])["item"].apply(sorted)
    assert all(items == list(range(ITEMS)) for items in whole)
    other = tasks.run(chat, None, range(10), seed=4).frame
    assert set(zip(other["task"], other["item"], strict=True)) != set(zip(first["task"], first["item"], strict=True))


def test_it_is_a_capability_test(chat: ChatModel, tasks: LmEvalTasks) -> None:
    lever = pushes(chat, 3.0)
    pieces = tasks.scores(chat, lever, "train", range(9), 3).then(tasks.scores(chat, lever, "train", range(9, 20), 3))
    frame = tasks.run(chat, lever, range(20), seed=3, split="train").frame
    means = (frame["task"] + " " + frame["metric"]).pipe(frame["score"].groupby).mean()
    assert len(pieces.values) == 20
    assert pieces.parts[:2] == ("tiny_choice acc,none", "tiny_reply exact_match,none")
    for part in set(pieces.parts):
        of_part = [v for v, p in zip(pieces.values, pieces.parts, strict=True) if p == part]
        assert np.mean(of_part) == pytest.approx(means[part])
    facts = tasks.facts("train", range(9), 3)
    assert json.loads(json.dumps(facts)) == facts != tasks.facts("held_out", range(9), 3)
    assert facts != tasks.facts("train", range(9), 4) and facts != tasks.facts("train", range(8), 3)


def test_the_halves_share_no_item_and_are_all_there_is(chat: ChatModel, tasks: LmEvalTasks) -> None:
    halves = [tasks.run(chat, None, range(ITEMS), seed=3, split=split).frame for split in ("train", "held_out")]
    items = [set(zip(half["task"], half["item"], strict=True)) for half in halves]
    assert not items[0] & items[1] and len(items[0] | items[1]) == 2 * ITEMS
    with pytest.raises(CapabilityError, match=f"has {ITEMS} items in each half and was asked for"):
        tasks.run(chat, None, range(ITEMS + 1), seed=3, split="train")


def test_halves_of_an_odd_task_are_alike() -> None:
    halves = [_order((("odd", 5), ("even", 4)), 0, split) for split in ("train", "held_out")]
    assert [len(half) for half in halves] == [4, 4] and not set(halves[0]) & set(halves[1])


def test_facts_follow_the_data_and_the_settings(tmp_path: Path) -> None:
    def facts(folder: str, golds: list[int], **how: Any) -> dict[str, Any]:
        path = choice_task(tmp_path / folder, golds)
        return {**LmEvalTasks(path, **how).facts("train", range(3), 0), "test": None}

    golds = [0, 1, 2, 0, 1, 2]  # three in each half
    one, other = facts("a", golds), facts("a", [2, 0, 1, 2, 0, 1])
    assert one["tasks_sha256"] != other["tasks_sha256"] and one == facts("a", golds)
    for how in ({"num_fewshot": 2}, {"chat_template": False}, {"system": "be a ghost ."}, {"metric": "acc"}):
        assert facts("a", golds, **how) != one


def test_the_metric_can_be_named(chat: ChatModel, both: Path) -> None:
    path = both / "tiny_choice.yaml"
    for metric in ("acc_norm", "acc_norm,none"):
        report = LmEvalTasks(path, metric=metric).compare(chat, None, items=6)
        assert list(report.table.loc[report.table["main"], "metric"]) == ["acc_norm,none"]
    with pytest.raises(CapabilityError, match=r"tiny_choice has no 'f1' .*acc,none, acc_norm,none"):
        LmEvalTasks(path, metric="f1").compare(chat, None, items=6)


def table_of(scores: list[float], asked: str = "x", higher: bool = True, metric: str = "acc,none") -> LmEvalRun:
    columns = ["task", "metric", "item", "score", "higher_is_better", "asked"]
    rows = [("t", metric, i, score, higher, asked) for i, score in enumerate(scores)]
    return LmEvalRun(pd.DataFrame(rows, columns=columns), ())


def test_lower_can_be_better() -> None:
    old, new = [0.0, 0.25, 0.5, 0.0, 0.0, 0.0], [0.5, 0.25, 0.5, 1.0, 0.0, 0.0]
    report = compared(table_of(old, higher=False), table_of(new, higher=False))
    (row,) = report.table.to_dict("records")
    assert row["points_lost"] == pytest.approx(25.0) and row["low"] < 25 < row["high"]
    assert row["with_lever"] == pytest.approx(np.mean(new))
    assert report.capability.loss == pytest.approx(25.0)


def test_only_the_same_items_are_compared() -> None:
    same = table_of([1.0] * 6)
    for other in (table_of([1.0] * 5), table_of([1.0] * 6, asked="y"), table_of([1.0] * 6, metric="acc,other")):
        with pytest.raises(CapabilityError, match="not of the same items"):
            compared(same, other)
    with pytest.raises(CapabilityError, match=r"under the lever acc,none of item 5 is nan"):
        compared(same, table_of([1.0] * 5 + [float("nan")]))


def test_what_cannot_be_paired_is_left_out_and_said() -> None:
    def with_length(run: LmEvalRun) -> LmEvalRun:
        return LmEvalRun(pd.concat([table_of([3.0] * 6, metric="length,none").frame, run.frame], ignore_index=True), ())

    report = compared(with_length(table_of([1.0] * 6)), with_length(table_of([0.0] * 6)))
    assert list(report.table["metric"]) == ["acc,none"] and report.capability.loss == 100
    assert report.notes == ("t: length,none is left out: it does not score single items between 0 and 1",)


def test_warnings_of_the_harness_become_notes(
    chat: ChatModel, both: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    docs = [{"question": " ".join(WORDS * 30), "gold": "yes"} for _ in range(5)]
    path = write_task(
        tmp_path, "tiny_long", docs, output_type="generate_until", doc_to_target="{{gold}}",
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        generation_kwargs={"until": ["|"], "max_gen_toks": MOST, "do_sample": False},
    )  # fmt: skip
    report = LmEvalTasks(path, batch=1).compare(chat, None)
    assert sum("truncat" in note for note in report.notes) == 1
    assert not any("initialized" in note or "pretrained" in note for note in report.notes)
    assert "truncat" not in capfd.readouterr().err


def test_what_the_harness_refuses_is_one_line(chat: ChatModel, tmp_path: Path) -> None:
    docs = [{"question": question(i), "gold": "yes"} for i in range(5)]
    path = write_task(
        tmp_path, "tiny_wide", docs, output_type="generate_until", doc_to_target="{{gold}}",
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        generation_kwargs={"until": ["|"], "max_gen_toks": 4096},
    )  # fmt: skip
    with pytest.raises(CapabilityError, match=r"tiny_wide\.yaml stopped: .*4096.*maximum sequence length") as caught:
        LmEvalTasks(path).compare(chat, None)
    assert "\n" not in str(caught.value)


def without_data(folder: Path) -> Path:
    path = choice_task(folder, [0, 1, 2])
    (folder / "tiny_choice.json").unlink()
    return path


def without_test_data(folder: Path) -> Path:
    path = choice_task(folder, [0, 1, 2])
    path.write_text(path.read_text().replace("test_split: test", "training_split: test"))
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda _: [], "no task was named"),
        (lambda folder: folder / "none.yaml", "no such task file or directory"),
        (lambda folder: folder, "holds no task YAML"),
        (without_data, r"cannot load .*tiny_choice\.yaml: "),
        (without_test_data, r"cannot load .*tiny_choice\.yaml: "),
        (lambda folder: [choice_task(folder, [0]), choice_task(folder / "b", [1])], "tiny_choice was named twice"),
    ],
)
def test_bad_tasks(make: Callable[[Path], Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match=says) as caught:
        LmEvalTasks(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_an_unknown_name_says_what_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real index of thousands of tasks takes long to read; its names are what counts."""
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(TaskManager, "__init__", lambda self, **_: None)
    monkeypatch.setattr(TaskManager, "all_tasks", ["arc_easy", "gsm8k"], raising=False)
    with pytest.raises(CapabilityError, match="no task 'arc_esay'; near it: arc_easy"):
        LmEvalTasks("arc_esay")


def test_tasks_are_found_by_name(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.tasks import TaskManager

    made = TaskManager(include_defaults=False, include_path=str(both))
    monkeypatch.setattr("lm_eval.tasks.TaskManager", type("Stub", (), {"load": None, "__new__": lambda _: made}))
    assert LmEvalTasks(["tiny_reply"]).sizes == {"tiny_reply": ITEMS}


def test_too_many_items(tasks: LmEvalTasks, chat: ChatModel) -> None:
    for items in (2 * ITEMS + 1, 0):
        with pytest.raises(CapabilityError, match=f"has {2 * ITEMS} items and was asked for"):
            tasks.compare(chat, None, items=items)


def test_a_missing_harness_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, both: Path) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(CapabilityError) as caught:
        LmEvalTasks(both)
    assert str(caught.value) == 'lm-evaluation-harness is not installed: pip install "persona-axis[eval]"'


def test_an_old_harness_is_told(monkeypatch: pytest.MonkeyPatch, both: Path) -> None:
    monkeypatch.setattr("lm_eval.tasks.TaskManager", type("Old", (), {}))
    with pytest.raises(CapabilityError, match="older than 0.4.12: pip install"):
        LmEvalTasks(both)
