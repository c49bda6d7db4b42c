"""The engine on continuous batching: its sums, its random streams, and that every token is read once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import chat_factory as tiny
import numpy as np
import pytest
import torch
from test_extract import TOLERANCE, full_activations, relative

from persona_axis.chat import ChatModel
from persona_axis.errors import ExtractionError
from persona_axis.extract import Options, extract, run_directory
from persona_axis.extraction.continuous import Continuous, _Tables
from persona_axis.extraction.engines import Job, Local
from persona_axis.extraction.means import Replies
from persona_axis.extraction.plan import Plan, make_plan
from persona_axis.extraction.store import RunStore
from persona_axis.judges import ListenerJudge
from persona_axis.sampling import Sampling

OPTIONS = Options(
    roles=4, prompts=2, questions=8, default_samples=1, sampling=Sampling(1.0, 0.95, 9), batch_size=8, min_accepted=2,
    calibration=40, precision=1,
)  # fmt: skip


def ends_early() -> ChatModel:
    model = tiny.llama()
    model.generation_config.eos_token_id = [2, 20, 31, 40]
    return ChatModel.load(model, tokenizer=tiny.tokenizer())


def jobs_of(chat: ChatModel, plan: Plan) -> Iterator[Job]:
    part = plan.until(plan.ceilings)
    for index in range(plan.n_blocks):
        for batch in plan.block(index, part).batches:
            yield Job(0, index, batch, chat.encode_batch(plan.messages(item) for item in batch.items))


def drawn(chat: ChatModel, batch_size: int, folder: Path) -> dict[object, tuple[list[int], torch.Tensor]]:
    """Every rollout's ids and sums, by what it was drawn for."""
    plan = make_plan(chat, tiny.probes(), OPTIONS, batch_size)
    found: dict[object, tuple[list[int], torch.Tensor]] = {}
    with RunStore.open(folder) as store:
        jobs = list(jobs_of(chat, plan))
        for job, replies in zip(jobs, Continuous(chat, plan, store).draw(jobs), strict=True):
            for item, ids, sums, norms in zip(job.batch.items, replies.ids, replies.sums, replies.norms, strict=True):
                assert item not in found
                assert bool(sums.any()) == bool(norms.any()) == bool(ids)
                found[item] = ids, sums
    return found


def test_sums_equal_a_float64_reference(tmp_path: Path) -> None:
    chat = ends_early()
    plan = make_plan(chat, tiny.probes(), OPTIONS, 8)
    found = drawn(chat, 8, tmp_path / "run")
    lengths = {len(ids) for ids, _ in found.values()}
    assert len(found) == plan.rollouts and 9 in lengths and len(lengths) > 4
    for item, (ids, sums) in list(found.items())[::3]:
        if ids:
            exact = full_activations(chat.model, chat.encode(plan.messages(item)), ids)  # type: ignore[arg-type]
            assert relative(sums, exact.sum(axis=1)) < TOLERANCE


def test_a_rollout_is_the_same_in_any_company(tmp_path: Path) -> None:
    few, many = drawn(ends_early(), 3, tmp_path / "few"), drawn(ends_early(), 16, tmp_path / "many")
    assert few.keys() == many.keys()
    same = [few[item][0] == many[item][0] for item in few]
    assert np.mean(same) > 0.95  # rounding may tip a draw that lies on an edge
    for item in few:
        if few[item][0] == many[item][0]:
            torch.testing.assert_close(few[item][1], many[item][1], rtol=1e-4, atol=1e-4)
    streams = {tuple(ids) for ids, _ in few.values() if len(ids) > 4}
    assert len(streams) > 10


def test_extract_with_it_counts_each_rollout_once(tmp_path: Path) -> None:
    found = extract(ends_early(), tiny.probes(), OPTIONS, out=tmp_path / "a", engine=Continuous)
    assert found.counts.rollouts == 4 * 16 + 5 * 8
    assert len((run_directory(tmp_path / "a") / "rollouts.jsonl").read_text().splitlines()) == 104
    greedy = replace(OPTIONS, sampling=Sampling(temperature=0, max_new_tokens=9))
    axes = [
        extract(ends_early(), tiny.probes(), greedy, out=tmp_path / engine.name, engine=engine).axis
        for engine in (Local, Continuous)
    ]
    torch.testing.assert_close(axes[0].direction, axes[1].direction, rtol=1e-4, atol=1e-4)


def test_a_token_that_was_not_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _Tables.read

    def forgets(self: _Tables, layer: int, hidden: torch.Tensor) -> None:
        if layer != 1:
            whole(self, layer, hidden)

    monkeypatch.setattr(_Tables, "read", forgets)
    with pytest.raises(ExtractionError, match=r"a reply has \d+ tokens and its layers were read \[\d+, 0, \d+\] times"):
        drawn(ends_early(), 8, tmp_path / "run")


def test_a_reply_that_the_manager_gives_up_is_an_error(tmp_path: Path) -> None:
    chat = ends_early()
    plan = make_plan(chat, tiny.probes(), OPTIONS, 8)
    jobs = [job._replace(prompts=[[5] * 4000, *job.prompts[1:]]) for job in jobs_of(chat, plan)][:1]
    with RunStore.open(tmp_path / "run") as store, pytest.raises(ExtractionError, match="continuous batching gave"):
        list(Continuous(chat, plan, store).draw(jobs))


def test_no_jobs_start_nothing(tmp_path: Path) -> None:
    chat = ends_early()
    plan = make_plan(chat, tiny.probes(), OPTIONS, 8)
    with RunStore.open(tmp_path / "run") as store:
        empty: list[Replies] = list(Continuous(chat, plan, store).draw([]))
    assert empty == []


def test_a_judge_that_reads_with_the_model_is_refused(tmp_path: Path) -> None:
    chat, other = ends_early(), tiny.chat()
    judge = ListenerJudge.of(chat, tiny.probes())
    with pytest.raises(ExtractionError, match=r"reads with the model that the engine continuous .*--engine t"):
        extract(chat, tiny.probes(), OPTIONS, out=tmp_path / "a", engine=Continuous, judge=judge)
    assert not list(tmp_path.iterdir())
    elsewhere, anything = ListenerJudge.of(other, tiny.probes()), replace(OPTIONS, accept=(1, 2, 3))
    assert extract(chat, tiny.probes(), anything, out=tmp_path / "b", engine=Continuous, judge=elsewhere).axis
