"""Extraction: the plan, means against a float64 reference, judging, calibration, certainty, and what is
refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import chat_factory as tiny
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from persona_axis import Axis
from persona_axis.chat import ChatModel
from persona_axis.errors import ArgumentError, ExtractionError, JudgeError
from persona_axis.extract import Extraction, Interrupted, Options, extract, run_directory
from persona_axis.extraction import events, means, quantiles, trial
from persona_axis.extraction.certainty import split_half
from persona_axis.extraction.plan import DEFAULT, Item, make_plan
from persona_axis.extraction.quantiles import weighted_quantiles
from persona_axis.extraction.report import recommend
from persona_axis.extraction.rollouts import item_of
from persona_axis.extraction.store import RunStore
from persona_axis.judges import AcceptAll, Judged
from persona_axis.residual import decoder_layers
from persona_axis.sampling import Sampling, loops

# What float32 sums of float32 activations, read one token at a time with a cache, may differ from the same
# tokens read at once in float64, relative to the size of the mean. Measured: below 1e-6.
TOLERANCE = 1e-5

SHORT = Sampling(max_new_tokens=10)
SMALL = Options(
    prompts=2, questions=8, default_samples=2, sampling=SHORT, batch_size=16, min_accepted=3, calibration=1000,
    precision=1,
)  # fmt: skip


def full_activations(
    model: PreTrainedModel, prompt: Sequence[int], reply: Sequence[int]
) -> NDArray[np.float64]:
    """[layers, reply tokens, hidden]: every layer's output at the reply's own positions, in one float64
    pass."""
    exact = copy.deepcopy(model).double()
    seen: list[Tensor] = []
    for layer in decoder_layers(exact):
        layer.register_forward_hook(
            lambda _m, _a, out: seen.append(out if isinstance(out, Tensor) else out[0])
        )
    with torch.no_grad():
        exact(input_ids=torch.tensor([[*prompt, *reply]]), use_cache=False)
    return torch.stack([s[0, len(prompt) :] for s in seen]).numpy()


def relative(found: Any, expected: Any) -> float:
    found, expected = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]


class ByHash:
    """A judge that scores 0-3 or None by the reply alone."""

    name = "by hash"

    def score(self, rollouts: Sequence[Judged]) -> list[int | None]:
        return [(None, 0, 1, 2, 3, 3, 3, 3)[len(r.reply + r.role) % 8] for r in rollouts]


# Means while generating


def prompts_for(chat: ChatModel) -> list[list[int]]:
    probes = tiny.probes(6, 4)
    return [
        chat.encode([{"role": "system", "content": p}, {"role": "user", "content": str(q)}])[i % 3 :]
        for i, (p, q) in enumerate((r.prompts[0], q) for r in probes.roles for q in probes.questions)
    ]


def test_sums_equal_a_float64_reference_in_every_family(any_model: PreTrainedModel) -> None:
    chat = ChatModel.load(any_model, tokenizer=tiny.tokenizer())
    prompts = prompts_for(chat)
    found = means.generate_with_means(chat, prompts, Sampling(1.0, 1.0, 6), 1, range(chat.n_layers))
    assert {0 < len(ids) < 6 for ids in found.ids} | {len(ids) == 6 for ids in found.ids} == {True, False}
    for i, (prompt, ids) in enumerate(zip(prompts, found.ids, strict=True)):
        if ids:
            exact = full_activations(any_model, prompt, ids)
            assert relative(found.sums[i], exact.sum(axis=1)) < TOLERANCE
            assert relative(found.norms[i], np.linalg.norm(exact, axis=-1).sum(axis=1)) < TOLERANCE
        else:
            assert not found.sums[i].any() and not found.norms[i].any()


@pytest.mark.parametrize("pad", ["its own", "a stop token", "a word"])
def test_only_reply_tokens_count_whatever_pads_and_however_many_tokens_stop(pad: str) -> None:
    model = tiny.llama()
    model.generation_config.eos_token_id = [2, 20, 31, 40]
    chat = ChatModel.load(model, tokenizer=tiny.tokenizer())
    chat.pad_id = {"its own": 0, "a stop token": 20, "a word": 33}[pad]
    prompts = prompts_for(chat)
    found = means.generate_with_means(chat, prompts, Sampling(1.5, 1.0, 12), 1, (0, 2))
    lengths = {len(ids) for ids in found.ids}
    assert 12 in lengths and len(lengths) > 4
    for i, (prompt, ids) in enumerate(zip(prompts, found.ids, strict=True)):
        if ids:
            exact = full_activations(model, prompt, ids)[[0, 2]]
            assert relative(found.sums[i], exact.sum(axis=1)) < TOLERANCE


def test_half_precision_is_summed_in_float32() -> None:
    model = tiny.llama(dtype=torch.bfloat16)
    chat = ChatModel.load(model, tokenizer=tiny.tokenizer())
    last: list[Tensor] = []
    hook = decoder_layers(model)[2].register_forward_hook(
        lambda _m, _a, out: last.append(out[:, -1].double())
    )
    found = means.generate_with_means(chat, prompts_for(chat), Sampling(max_new_tokens=60), 0, (2,))
    hook.remove()
    steps = torch.stack(last[1:], dim=1)  # what the steps put out, in the precision they had
    longest = max(range(len(found.ids)), key=lambda i: len(found.ids[i]))
    for i in {0, 5, longest}:
        exact = steps[i, : len(found.ids[i])].sum(dim=0)
        assert relative(found.sums[i, 0], exact) < 1e-6
    in_bfloat16 = steps[longest, : len(found.ids[longest])].bfloat16()
    poor = torch.zeros_like(in_bfloat16[0])
    for step in in_bfloat16:
        poor += step
    assert (
        relative(poor.double(), steps[longest].sum(dim=0)) > 1e-3
    )  # which is what would show if it were not so


def test_what_follows_the_end_of_a_reply_may_be_anything() -> None:
    sums = means.Sums([0], [2])
    sums.read(0, torch.full((2, 5, 3), torch.nan))  # the prompt
    sums.draw(torch.tensor([7, 2]))
    sums.read(0, torch.tensor([[[9.0, 9, 9], [1, 2, 3]], [[9, 9, 9], [torch.inf, torch.nan, 0]]]))
    sums.draw(torch.tensor([2, 7]))
    sums.read(0, torch.full((2, 1, 3), torch.nan))
    sums.draw(torch.tensor([7, 7]))
    sums.read(
        0, torch.full((2, 9, 3), torch.nan)
    )  # a model without a cache is fed everything: the last place counts
    total = sums.total()
    assert total is not None
    assert total[0].tolist() == [[[1, 2, 3]], [[0, 0, 0]]]
    assert total[1][:, 0].tolist() == pytest.approx([14**0.5, 0])


def test_a_compiled_model_that_ignores_late_hooks_is_an_error() -> None:
    torch._dynamo.reset()
    model = tiny.llama(layers=2)
    chat = ChatModel.load(model, tokenizer=tiny.tokenizer())
    model.compile(backend="eager", dynamic=True)
    chat.generate_ids(prompts_for(chat)[:3], SHORT, 0)
    with pytest.raises(ExtractionError, match="compiled"):
        means.generate_with_means(chat, prompts_for(chat)[:3], SHORT, 0, (0, 1))


# The whole of it


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Extraction, ChatModel, list[events.Event]]:
    chat, heard = tiny.chat(), []
    out = tmp_path_factory.mktemp("run") / "axis.safetensors"
    return extract(chat, tiny.probes(), SMALL, out=out, judge=ByHash(), progress=heard.append), chat, heard


def test_vectors_are_those_of_the_rollouts_in_float64(run: tuple[Extraction, ChatModel, Any]) -> None:
    found, chat, _ = run
    probes, axis = tiny.probes(), found.axis
    lines = lines_of(run_directory(found.path))
    assert len(lines) == 6 * 2 * 8 + 5 * 8 * 2 == found.counts.rollouts
    defaults = probes.defaults_for(chat.display_name)
    vectors: dict[str, list[NDArray[np.float64]]] = {}
    norms: list[NDArray[np.float64]] = []
    for line in lines:
        if not line["accepted"]:
            continue
        role = next((r for r in probes.roles if r.name == line["role"]), None)
        system = (role.prompts if role else defaults)[line["prompt"]]
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": str(probes.questions[line["question"]])})
        exact = full_activations(chat.model, chat.encode(messages), line["ids"])
        vectors.setdefault(line["role"], []).append(exact.mean(axis=1))
        norms += [] if role else [np.linalg.norm(exact, axis=-1)]
    default = np.mean(vectors.pop("default"), axis=0)
    roles = np.stack([np.mean(vectors[name], axis=0) for name in axis.role_names])
    assert relative(axis.arrays["default"], default) < TOLERANCE
    assert relative(axis.arrays["roles"], roles) < TOLERANCE
    assert relative(axis.arrays["mean_norm"], np.concatenate(norms, axis=1).mean(axis=1)) < TOLERANCE
    direction = default - roles.mean(axis=0)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    assert relative(axis.arrays["direction"], direction) < 10 * TOLERANCE


def test_quantiles_are_those_of_the_rollouts_projections(run: tuple[Extraction, ChatModel, Any]) -> None:
    found, chat, _ = run
    axis, probes = found.axis, tiny.probes()
    tokens, by_rollout = [], []
    for line in lines_of(run_directory(found.path)):
        if line["accepted"] and line["role"] == "default":
            system = probes.defaults_for(chat.display_name)[line["prompt"]]
            messages = [{"role": "system", "content": system}] if system else []
            messages.append({"role": "user", "content": str(probes.questions[line["question"]])})
            exact = full_activations(chat.model, chat.encode(messages), line["ids"])
            projected = np.einsum("lth,lh->lt", exact, axis.arrays["direction"].astype(np.float64))
            tokens.append(projected)
            by_rollout.append(projected.mean(axis=1))
    percent = np.arange(101)
    expected = np.percentile(np.concatenate(tokens, axis=1), percent, axis=1).T
    assert relative(axis.arrays["quantiles_default_tokens"], expected) < TOLERANCE
    expected = np.percentile(np.array(by_rollout), percent, axis=0).T
    assert relative(axis.arrays["quantiles_default"], expected) < TOLERANCE
    assert found.calibration == {"default": len(by_rollout), "roles": sum(found.kept.values())}
    # The mean of role rollouts' projections, roles weighing the same, is the projection of the mean role
    # vector.
    for row, layer in enumerate(axis.layers):
        of_roles = axis.project(axis.arrays["roles"][:, row].mean(axis=0), layer)
        assert (
            abs(axis.arrays["quantiles_roles"][row].mean() - of_roles)
            < 0.1 * axis.arrays["quantiles_roles"][row].std()
        )


def test_the_file_states_what_was_done(run: tuple[Extraction, ChatModel, Any]) -> None:
    found, chat, heard = run
    axis = Axis.load(found.path)
    axis.require(chat.model, chat.template.source)
    stated = axis.metadata
    assert stated["judge"] == "by hash" and stated["seed"] == 0 and stated["provenance"] == "extracted"
    assert stated["sampling"]["temperature"] == 0.7 and stated["sampling"]["top_k"] == 0
    assert (
        stated["sampling"]["stop_ids"] == [2]
        and stated["sampling"]["template"]["template_date"] == "2026-01-01"
    )
    assert stated["accepted"] == dict(found.kept) and stated["calibration"] == dict(found.calibration)
    assert stated["probes_sha256"] == tiny.probes().fingerprint
    lines = lines_of(run_directory(found.path))
    for name, count in found.kept.items():
        assert count == sum(line["accepted"] for line in lines if line["role"] == name)
    assert found.counts.unparsable == sum(
        x["score"] is None and x["role"] != "default" and "empty" not in x for x in lines
    )
    assert found.counts.scores == {s: sum(x["score"] == s for x in lines) for s in range(4)}
    assert found.counts.unparsable and any("no verdict" in note for note in found.notes)
    assert all(x["accepted"] == (x["score"] == 3) for x in lines if x["role"] != "default")
    planned, *between, calibrated, saved = heard
    assert isinstance(planned, events.Planned) and planned.rollouts == len(lines) and planned.seconds > 0
    assert planned.tokens == 10 * len(lines) and planned.done == 0
    assert [e.rollouts for e in between if isinstance(e, events.Progress)][-1] == len(lines)
    assert isinstance(calibrated, events.Calibrating) and isinstance(saved, events.Saved)


def test_the_report(run: tuple[Extraction, ChatModel, Any]) -> None:
    found, *_ = run
    assert [f.layer for f in found.layers] == [0, 1, 2]
    for figures in found.layers:
        space = found.axis.space(figures.layer)
        assert figures.pc1_share == pytest.approx(space.explained_variance_ratio[0])
        assert figures.components == tuple(space.n_components_for(share) for share in (0.7, 0.8, 0.9))
        assert figures.cosine_axis_pc1 == pytest.approx(abs(space.cosine_axis_pc1))
        assert figures.split_half.low <= figures.split_half.cosine <= figures.split_half.high
    assert found.nearest(2) == found.ranking[:2] and found.farthest(1) == [found.ranking[-1]]
    assert {name for name, _ in found.ranking} == set(found.kept)
    assert found.default_above == np.mean([value < found.default_projection for _, value in found.ranking])


def test_some_layers_only_and_roles_that_have_too_few(tmp_path: Path) -> None:
    class OnlySome(ByHash):
        def score(self, rollouts: Sequence[Judged]) -> list[int | None]:
            return [2 if r.role == "role 3" else 3 for r in rollouts]

    options = replace(SMALL, layers=(0, 2))
    found = extract(tiny.chat(), tiny.probes(), options, out=tmp_path / "a", judge=OnlySome())
    assert found.axis.layers == (0, 2) and found.axis.arrays["default"].shape == (2, 32)
    assert found.below == {"role 3": 0} and "role 3" not in found.axis.role_names and len(found.kept) == 5
    assert Axis.load(found.path).metadata["roles_below"] == {"role 3": 0}
    assert any("1 roles had fewer than 3" in note for note in found.notes)
    accepting = extract(
        tiny.chat(), tiny.probes(), replace(options, accept=(2, 3)), out=tmp_path / "b", judge=OnlySome()
    )
    assert "role 3" in accepting.kept


def test_too_few_accepted_anywhere_says_so_and_can_be_mended_without_drawing_again(tmp_path: Path) -> None:
    options, judge = replace(SMALL, min_accepted=16), ByHash()
    with pytest.raises(ExtractionError, match="0 of 6 roles have 16 accepted.* of 16. The judge 'by hash' decides"):
        extract(tiny.chat(), tiny.probes(), options, out=tmp_path / "a", judge=judge)
    heard: list[events.Event] = []
    extract(tiny.chat(), tiny.probes(), SMALL, out=tmp_path / "a", judge=judge, progress=heard.append)
    assert not any(isinstance(event, events.Progress) for event in heard)


def test_empty_replies_are_counted_and_left_out(tmp_path: Path) -> None:
    model = tiny.llama()
    model.lm_head.weight.data[2] *= 3  # the stop token comes often, also first
    chat = ChatModel.load(model, tokenizer=tiny.tokenizer())
    found = extract(
        chat, tiny.probes(), replace(SMALL, min_accepted=1), out=tmp_path / "a", judge=AcceptAll()
    )
    lines = lines_of(run_directory(tmp_path / "a"))
    empty = [line for line in lines if not line["text"].strip()]
    assert found.counts.empty == len(empty) > 5
    assert all(x["empty"] and not x["accepted"] and x["score"] is None for x in empty)
    assert found.counts.tokens == sum(len(line["ids"]) for line in lines if line["text"].strip())
    assert any("empty" in note for note in found.notes)
    model.lm_head.weight.data.zero_()
    model.lm_head.bias = torch.nn.Parameter(
        torch.nn.functional.one_hot(torch.tensor(2), len(chat.tokenizer)) * 50.0
    )
    with pytest.raises(ExtractionError, match="every reply of the default was empty"):
        silent = ChatModel.load(model, tokenizer=tiny.tokenizer(), check=False)  # its logits ignore the stream
        extract(silent, tiny.probes(), SMALL, out=tmp_path / "b")


def test_thinking_and_injected_prompts_are_reported(tmp_path: Path) -> None:
    model = tiny.llama()
    found = extract(tiny.chat(tiny.INJECTS, model), tiny.probes(), SMALL, out=tmp_path / "a")
    assert any("made by nobody" in note for note in found.axis.metadata["notes"])
    think = [6, 7]
    thinking = [x for x in lines_of(run_directory(tmp_path / "a")) if set(think) & set(x["ids"])]
    assert found.counts.thinking == len(thinking) > 0 and all(line["thinking"] for line in thinking)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_activations_that_are_not_finite_name_layer_and_rollout_and_save_nothing(
    value: float, tmp_path: Path
) -> None:
    model, probes = tiny.llama(), tiny.probes()
    word = tiny.tokenizer().convert_tokens_to_ids("pirate")
    roles = [
        replace(r, prompts=("be pirate .",) if i == 4 else r.prompts) for i, r in enumerate(probes.roles)
    ]
    probes = replace(probes, roles=tuple(roles))
    assert "pirate" not in " ".join(
        [*probes.questions, *(p for r in roles if r is not roles[4] for p in r.prompts)]
    )
    chat = ChatModel.load(model, tokenizer=tiny.tokenizer())
    asked: list[Tensor] = []

    def watch(_module: object, _args: object, kwargs: dict[str, Tensor]) -> None:
        if kwargs["input_ids"].shape[1] > 1:
            asked[:] = [(kwargs["input_ids"] == word).any(dim=1)[:, None, None]]

    model.register_forward_pre_hook(watch, with_kwargs=True)
    layer = decoder_layers(model)[1]
    layer.register_forward_hook(lambda _m, _a, out: torch.where(asked[0], value, out))
    with pytest.raises(ExtractionError, match=r"layer 1 in the rollout of role 'role 4', prompt 0, question"):
        extract(chat, probes, replace(SMALL, prompts=1, min_accepted=1), out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


# The plan


def test_every_rollout_is_planned_once_and_only_depends_on_the_options() -> None:
    chat, probes = tiny.chat(), tiny.probes(7, 11)
    options = Options(roles=5, prompts=3, questions=9, default_samples=2, sampling=SHORT)
    plan, again = make_plan(chat, probes, options, 16), make_plan(chat, probes, options, 16)
    everything = plan.until(plan.ceilings)
    blocks = [plan.block(i, everything) for i in range(plan.n_blocks)]
    assert blocks == [again.block(i, everything) for i in range(plan.n_blocks)]
    items = [item for block in blocks for batch in block.batches for item in batch.items]
    roles, asked = (0, 1, 2, 4, 5), tuple(i * 11 // 9 for i in range(9))
    expected = {Item(r, p, q, 0) for r in roles for p in range(3) for q in asked}
    expected |= {Item(DEFAULT, p, q, s) for p in range(5) for q in asked for s in range(2)}
    assert len(items) == len(set(items)) == plan.rollouts and set(items) == expected
    sizes = [len(batch.items) for block in blocks for batch in block.batches]
    assert max(sizes) <= 16
    for block in blocks:
        assert max(len(b.items) for b in block.batches) - min(len(b.items) for b in block.batches) <= 1
    seeds = [batch.seed for block in blocks for batch in block.batches]
    assert len(set(seeds)) == len(seeds)
    other = make_plan(chat, probes, replace(options, seed=1), 16)
    assert not set(seeds) & {batch.seed for i in range(plan.n_blocks) for batch in other.block(i, everything).batches}
    assert blocks[0].batches[0].part_seed(0, 5) != blocks[0].batches[0].part_seed(5, 10) != seeds[0]


def test_there_are_eight_question_groups_if_there_can_be() -> None:
    chat = tiny.chat()
    groups = {n: make_plan(chat, tiny.probes(3, n), Options(questions=n), 8).groups for n in (2, 8, 15, 40)}
    assert groups == {2: 2, 8: 8, 15: 8, 40: 8}
    plan = make_plan(chat, tiny.probes(3, 40), Options(questions=40), 8)
    assert [list(plan.group_of.values()).count(g) for g in range(8)] == [5] * 8


def test_memory_and_disk_do_not_grow_with_the_number_of_rollouts(tmp_path: Path) -> None:
    sizes = []
    for samples in (1, 4):
        options = replace(SMALL, default_samples=samples)
        extract(tiny.chat(), tiny.probes(), options, out=tmp_path / f"{samples}")
        sizes.append((run_directory(tmp_path / f"{samples}") / "blocks" / "00000.safetensors").stat().st_size)
    assert abs(sizes[0] - sizes[1]) < 64
    options = Options(prompts=5, questions=40, sampling=SHORT)
    plan = make_plan(tiny.chat(), tiny.probes(40, 40), options, 64)
    assert plan.n_blocks == 3  # what is in memory at a time is a few roles, however many there are


def test_presets() -> None:
    chat = tiny.chat()
    modest = Options.preset(chat)
    assert (modest.roles, modest.sampling.max_new_tokens) == (100, 128)
    full = Options.preset(chat, full=True, seed=3, top_p=None, temperature=0.5)
    assert (full.roles, full.seed, full.sampling) == (None, 3, Sampling(0.5, 0.9, 512))
    chat.is_troupe = True
    assert Options.preset(chat, questions=7).questions == 7 and Options.preset(chat).roles is None


def test_a_plan_asks_all_prompts_and_questions_that_the_probes_have() -> None:
    chat, probes = tiny.chat(), tiny.probes()
    plan = make_plan(chat, probes, Options.preset(chat, probes), 8)
    fewest, asked = min(len(role.prompts) for role in probes.roles), len(probes.questions)
    assert (len(plan.roles), plan.prompts, len(plan.questions)) == (len(probes.roles), fewest, asked)
    assert plan.per_role == fewest * asked
    uneven = replace(probes, roles=(replace(probes.roles[0], prompts=probes.roles[0].prompts[:1]), *probes.roles[1:]))
    assert make_plan(chat, uneven, Options(), 8).prompts == 1


def test_the_longest_prompt_may_be_the_defaults() -> None:
    probes = replace(tiny.probes(), defaults=("", "you are a helper . " * 40))
    plan = make_plan(tiny.chat(), probes, Options(), 8)
    assert plan.longest(3)[0].role == DEFAULT and plan.longest(3)[0].prompt == 1


def test_one_role_is_no_axis_and_a_plan_too_small_is_told_before_anything_is_drawn(tmp_path: Path) -> None:
    one = replace(tiny.probes(), roles=tiny.probes().roles[:1])
    with pytest.raises(ExtractionError, match="the probes have 1 role"):
        extract(tiny.chat(), one, out=tmp_path / "a")
    with pytest.raises(ExtractionError, match=r"gets at most 4 replies.*--min-accepted\) to 4 or less"):
        extract(tiny.chat(), tiny.probes(), replace(SMALL, prompts=1, questions=4, min_accepted=5), out=tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_what_makes_no_engine(tmp_path: Path) -> None:
    for wrong in ("vllm", None, lambda *_: None):
        with pytest.raises(ArgumentError, match="makes no engine: take one by its name"):
            extract(tiny.chat(), tiny.probes(), SMALL, out=tmp_path / "a", engine=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"roles": 1}, "roles must be at least 2"),
        ({"prompts": 0}, "prompts must be at least 1"),
        ({"questions": 1}, "questions must be at least 2"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"accept": (4,)}, "accept must name scores"),
        ({"roles": 7}, "7 roles asked for, the probes have 6"),
        ({"questions": 9}, "9 questions asked for"),
        ({"prompts": 6}, "6 prompts asked for"),
        ({"layers": (3,)}, r"layers must be increasing indices from 0 to 2"),
        ({"layers": (1, 0)}, "increasing"),
        ({"layers": ()}, "expected a layer's number or a list of one or more"),
    ],
)
def test_plans_that_cannot_be(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ExtractionError, match=match):
        extract(tiny.chat(), tiny.probes(), replace(SMALL, **changes), out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_listener_can_call_the_run_off_before_anything_is_drawn(tmp_path: Path) -> None:
    def no(event: events.Event) -> None:
        raise LookupError("too long for me")

    with pytest.raises(LookupError):
        extract(tiny.chat(), tiny.probes(), SMALL, out=tmp_path / "a", progress=no)
    assert not (run_directory(tmp_path / "a") / "rollouts.jsonl").exists()
    with pytest.raises(ExtractionError, match="no directory"):
        extract(tiny.chat(), tiny.probes(), SMALL, out=tmp_path / "nowhere" / "a")


# Memory that does not suffice


def scarce(
    chat: ChatModel, monkeypatch: pytest.MonkeyPatch, most: int, error: Callable[[], Exception]
) -> list[int]:
    """Let generation fail for more than `most` rows; gives the list of batch sizes that were tried."""
    generate, tried, seeds = chat.generate_ids, [], set()

    def limited(
        prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int, **how: Any
    ) -> list[list[int]]:
        tried.append(len(prompts))
        if len(prompts) > most:
            raise error()
        assert seed == 0 or seed not in seeds, "a part must have a seed of its own"
        seeds.add(seed)
        return generate(prompts, sampling, seed, **how)

    monkeypatch.setattr(chat, "generate_ids", limited)
    return tried


OUT_OF_MEMORY = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    MemoryError,
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_the_batch_size_is_halved_until_it_fits(
    error: Callable[[], Exception], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chat = tiny.chat()
    tried = scarce(chat, monkeypatch, 20, error)
    plan = make_plan(chat, tiny.probes(), SMALL, 1)
    assert trial.try_out(chat, plan, 64).batch_size == 16
    assert {n for n in tried if n > 1} == {64, 32, 16}
    scarce(chat, monkeypatch, 0, error)
    with pytest.raises(ExtractionError, match="not even one rollout fits"):
        trial.try_out(chat, plan, 64)


def test_running_out_of_memory_splits_a_batch_into_recorded_parts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn = []
    for run in ("a", "b"):
        chat = tiny.chat()
        heard: list[events.Event] = []

        def listen(
            event: events.Event, chat: ChatModel = chat, heard: list[events.Event] = heard, run: str = run
        ) -> None:
            heard.append(event)
            progress = [e for e in heard if isinstance(e, events.Progress)]
            if len(progress) == 2 and len(heard) == 3:  # memory becomes scarce during the run
                scarce(chat, monkeypatch, 5, OUT_OF_MEMORY[0])
            if run == "b" and len(progress) == 4:
                raise KeyboardInterrupt

        try:
            found = extract(chat, tiny.probes(), SMALL, out=tmp_path / run, progress=listen)
        except Interrupted:
            found = extract(
                tiny.chat(), tiny.probes(), SMALL, out=tmp_path / run
            )  # there is memory again: same parts
        drawn.append(found)
        splits = json.loads((run_directory(tmp_path / run) / "splits.json").read_text())
        assert splits == [[0, 0, 2, 8], [0, 0, 2, 4]]
    first, second = drawn
    for name, array in first.axis.arrays.items():
        assert np.array_equal(array, second.axis.arrays[name]), name
    unsplit = extract(tiny.chat(), tiny.probes(), SMALL, out=tmp_path / "c")
    assert not np.array_equal(unsplit.axis.arrays["default"], first.axis.arrays["default"])


def test_another_error_is_not_taken_for_a_lack_of_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chat = tiny.chat()
    scarce(chat, monkeypatch, 0, lambda: RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        extract(chat, tiny.probes(), SMALL, out=tmp_path / "a")


# Judges that fail


@pytest.mark.parametrize(
    ("verdict", "match"),
    [
        (lambda rollouts: [3], "gave 1 verdicts on"),
        (lambda rollouts: [4] * len(rollouts), "gave 4: a verdict is"),
        (lambda rollouts: [True] * len(rollouts), "gave True"),
        (lambda rollouts: 1 / 0, "failed: ZeroDivisionError"),
    ],
)
def test_a_judge_that_cannot_be_used(verdict: Callable[..., Any], match: str, tmp_path: Path) -> None:
    class Bad:
        name = "bad"
        score = staticmethod(verdict)

    with pytest.raises(JudgeError, match=f"judge 'bad' {match}"):
        extract(tiny.chat(), tiny.probes(), SMALL, out=tmp_path / "a", judge=Bad())


# Arithmetic


def test_weighted_quantiles() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 57))
    expected = np.percentile(values, np.arange(101), axis=1).T
    assert np.allclose(weighted_quantiles(values), expected)
    assert np.allclose(weighted_quantiles(values, np.full(57, 0.3)), expected)
    values, often = rng.normal(size=(2, 4000)), rng.integers(1, 4, size=4000)
    found = weighted_quantiles(values, often / 7)
    expected = np.percentile(np.repeat(values, often, axis=1), np.arange(101), axis=1).T
    assert np.abs(found - expected)[:, 2:-2].max() < 0.01 and np.allclose(
        found[:, [0, -1]], expected[:, [0, -1]]
    )
    assert np.abs(weighted_quantiles(values, 1.0 + 5 * (values[0] > 1)) - expected).max() > 0.5
    assert (weighted_quantiles(np.array([[2.0]])) == 2).all()
    assert (np.diff(weighted_quantiles(rng.normal(size=(2, 900)), rng.random(900))) >= 0).all()


def test_roles_weigh_the_same_in_the_tables_however_many_of_their_rollouts_are_read(
    run: tuple[Extraction, ChatModel, Any],
) -> None:
    found, chat, _ = run
    plan = make_plan(chat, tiny.probes(), SMALL, 16)
    of_two: dict[int, list[quantiles.Sampled]] = {DEFAULT: [], 1: [], 4: []}
    names = {"default": DEFAULT, "role 1": 1, "role 4": 4}
    for line in lines_of(run_directory(found.path)):
        if line["role"] in names and line["ids"]:
            role = names[line["role"]]
            of_two[role].append(quantiles.Sampled(item_of(line, role), line["ids"]))
    of_two[1] = of_two[1][:2]
    direction = torch.nn.functional.normalize(torch.randn(3, 32), dim=-1)
    table = quantiles.tables(chat, plan, direction, of_two, events.silent)
    alone = [
        quantiles.tables(chat, plan, direction, {DEFAULT: of_two[DEFAULT], r: of_two[r]}, events.silent)
        for r in (1, 4)
    ]
    for kind in ("roles", "roles_tokens"):
        together, *each = (getattr(t, kind).mean(axis=1) for t in (table, *alone))
        middle, apart = (each[0] + each[1]) / 2, np.abs(each[0] - each[1])
        assert apart.max() > 0.1 and (np.abs(together - middle) < 0.2 * apart + 0.02).all()
    assert table.sample == {"default": len(of_two[DEFAULT]), "roles": 2 + len(of_two[4])}


def test_the_sample_is_bounded_seeded_and_even() -> None:
    chat = tiny.chat()
    plan = make_plan(chat, tiny.probes(), replace(SMALL, calibration=10), 16)
    lines = [
        {"role": name, "prompt": 0, "question": q % 8, "sample": 0, "ids": [q], "accepted": q % 5 != 0}
        for q in range(200)
        for name in ("default", "role 0", "role 1", "role 2", "role 5")
    ]
    taken = quantiles.sample(lines, plan, [0, 1, 2])
    assert {role: len(rollouts) for role, rollouts in taken.items()} == {DEFAULT: 10, 0: 4, 1: 3, 2: 3}
    assert all(rollout.ids[0] % 5 for rollouts in taken.values() for rollout in rollouts)
    assert taken == quantiles.sample(iter(lines), plan, [0, 1, 2])
    other = make_plan(chat, tiny.probes(), replace(SMALL, calibration=10, seed=1), 16)
    assert taken != quantiles.sample(lines, other, [0, 1, 2])
    everywhere = [r.ids[0] for seed in range(60) for r in quantiles.sample(
        lines, make_plan(chat, tiny.probes(), replace(SMALL, calibration=10, seed=seed), 16), [0, 1, 2]
    )[DEFAULT]]  # fmt: skip
    assert 85 < np.mean(everywhere) < 115


def test_split_half_tells_noise_from_signal() -> None:
    rng = np.random.default_rng(0)
    axis, roles = rng.normal(size=64), rng.normal(size=(40, 1, 64))
    counts, default_counts = np.full((40, 8), 4), np.full(8, 20)

    def halves(noise: float) -> tuple[float, float, float]:
        sums = (roles - axis + noise * rng.normal(size=(40, 8, 64))) * 4
        return split_half(sums, counts, (axis + noise * rng.normal(size=(8, 64))) * 20, default_counts, 0)

    clean, middling, noisy = halves(0.0), halves(0.7), halves(20.0)
    assert clean[0] == pytest.approx(1) and noisy[0] < 0.5
    assert clean[0] > middling[0] > noisy[0]
    for cosine, low, high in (clean, middling, noisy):
        assert -1 <= low <= cosine <= high <= 1
    assert middling[2] - middling[1] > 0.01
    direct = []  # the cosine is what its definition says
    sums, default = (roles - axis + rng.normal(size=(40, 2, 64))) * 3, (axis + rng.normal(size=(2, 64))) * 5
    for half in (0, 1):
        vector = default[half] / 5 - (sums[:, half] / 3).mean(axis=0)
        direct.append(vector / np.linalg.norm(vector))
    found = split_half(sums, np.full((40, 2), 3), default, np.full(2, 5), 0)
    assert found.cosine == pytest.approx(direct[0] @ direct[1])


def test_split_half_with_roles_that_miss_a_group() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 2, size=(30, 8))
    counts[:, 0] = 1
    counts[0] = [5, 0, 0, 0, 0, 0, 0, 0]
    sums = counts[:, :, None] * (rng.normal(size=(30, 1, 16)) - 3)
    found = split_half(sums, counts, np.full((8, 16), 8.0), np.full(8, 4), 0)
    assert 0.9 < found.low <= found.cosine <= found.high <= 1


def test_the_recommended_layer_is_the_middle_one_that_separates_best() -> None:
    spread = np.linspace(-1, 1, 101)
    roles = np.tile(spread, (8, 1))
    default = roles + np.array([9, 9, 1, 2, 4, 3, 9, 9])[:, None]
    assert recommend(range(8), 8, default, roles) == 4
    assert recommend((1, 7), 8, default[[1, 7]], roles[[1, 7]] * [[1], [2]]) == 1


# The run directory


def test_a_run_directory_is_for_one_run(tmp_path: Path) -> None:
    chat, out = tiny.chat(), tmp_path / "a"
    extract(chat, tiny.probes(), SMALL, out=out)
    changed = replace(SMALL, seed=4, sampling=replace(SHORT, temperature=0.9))
    with pytest.raises(
        ExtractionError, match=r"sampling.temperature was 0.7, is now 0.9; seed was 0, is now 4"
    ):
        extract(chat, tiny.probes(), changed, out=out)
    with pytest.raises(ExtractionError, match="weights_sha256 was"):
        extract(tiny.chat(seed=1), tiny.probes(), SMALL, out=out)
    with pytest.raises(ExtractionError, match='judge was "all", is now "by hash"'):
        extract(chat, tiny.probes(), SMALL, out=out, judge=ByHash())
    with pytest.raises(ExtractionError, match="probes was"):
        extract(chat, tiny.probes(6, 9), SMALL, out=out)
    chat.facts["model"] = "another name"  # names decide nothing
    extract(chat, tiny.probes(), SMALL, out=out)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis.txt").write_text("x")
    with pytest.raises(ExtractionError, match="not a run's directory .*thesis.txt"):
        extract(chat, tiny.probes(), SMALL, out=out, run_dir=elsewhere)
    with pytest.raises(ExtractionError, match="cannot use"):
        extract(chat, tiny.probes(), SMALL, out=out, run_dir=elsewhere / "thesis.txt")
    with RunStore.open(run_directory(out)), pytest.raises(ExtractionError, match="another process"):
        extract(chat, tiny.probes(), SMALL, out=out)


def test_a_damaged_run_is_told_from_a_new_one(tmp_path: Path) -> None:
    chat, out = tiny.chat(), tmp_path / "a"
    extract(chat, tiny.probes(), SMALL, out=out)
    run = run_directory(out)
    lines, block, plan = run / "rollouts.jsonl", run / "blocks" / "00001.safetensors", run / "plan.json"
    whole = lines.read_bytes()
    lines.write_bytes(whole[:-40])
    with pytest.raises(ExtractionError, match="lost lines"):
        extract(chat, tiny.probes(), SMALL, out=out)
    lines.write_bytes(whole)
    stored = block.read_bytes()
    block.write_bytes(stored[:200])
    with pytest.raises(ExtractionError, match="00001.safetensors is damaged"):
        extract(chat, tiny.probes(), SMALL, out=out)
    block.write_bytes(stored)
    plan.write_text("{")
    with pytest.raises(ExtractionError, match="plan.json is damaged"):
        extract(chat, tiny.probes(), SMALL, out=out)


# Replies that go round in a loop


def test_loops_are_the_same_few_tokens_at_the_end() -> None:
    phrase, other = [5, 6, 7, 8, 9], list(range(10, 70))
    looping = [phrase * 12, [*other[:30], *phrase * 10], [4] * 60, list(range(12)) * 5]
    fine = [other, [*phrase * 9, *other[:30]], list(range(13)) * 5, [*phrase * 9, 5, 6]]
    for rows, expected in ((looping, True), (fine, False)):
        for row in rows:
            assert loops(torch.tensor([row])).tolist() == [expected], row
    assert loops(torch.tensor([[4] * 47])).tolist() == [False]


def test_a_reply_that_loops_is_ended_and_counts_for_nothing(tmp_path: Path) -> None:
    model = tiny.llama()
    model.lm_head.weight.data.zero_()
    model.lm_head.bias = torch.nn.Parameter(torch.nn.functional.one_hot(torch.tensor(30), len(tiny.tokenizer())) * 50.0)
    chat = ChatModel.load(model, tokenizer=tiny.tokenizer(), check=False)  # its logits ignore the stream
    prompts = prompts_for(chat)[:3]
    long = Sampling(max_new_tokens=200)
    assert {len(ids) for ids in chat.generate_ids(prompts, long, 0)} == {200}
    found = means.generate_with_means(chat, prompts, long, 0, [0, 2])
    assert {len(ids) for ids in found.ids} == {48}  # that is where it shows
    for prompt, ids, sums in zip(prompts, found.ids, found.sums, strict=True):
        assert relative(sums, full_activations(model, prompt, ids)[[0, 2]].sum(axis=1)) < TOLERANCE
    options = replace(SMALL, sampling=long)
    with pytest.raises(ExtractionError, match="every reply of the default was empty or went round in a loop"):
        extract(chat, tiny.probes(), options, out=tmp_path / "a")
    line = lines_of(run_directory(tmp_path / "a"))[0]
    assert line["looping"] and not line["accepted"] and len(line["ids"]) == 48
