"""Inside nnsight: the same numbers as the plain hooks, here and in a process that does not have this package."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chat_factory as tiny
import numpy as np
import pytest
import torch
from test_drift import TALK, axis_for

from persona_axis import Axis, AxisMismatchError, Cap, CapError, ChatModel, ModelError, drift
from persona_axis import extract as extraction
from persona_axis.errors import CapMismatchError, DriftError, ExtractionError
from persona_axis.residual import editing
from persona_axis.sampling import NucleusDraw, Sampling
from persona_axis.steer import add

pytest.importorskip("nnsight", reason="needs nnsight: pip install 'persona-axis[nnsight]'")

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from _family import built
from nnsight import CONFIG, TransformersModel
from nnsight.schema.request import RequestModel
from nnsight.tracing.tracer import save
from nnsight.tracing.util import push

from persona_axis.extraction.means import generate_with_means
from persona_axis.substrates import nnsight as substrate
from persona_axis.substrates._nnsight_inside import Held

FAMILIES = ["llama", "qwen3", "gemma2", "gemma3", "gpt_neox", "gpt2"]
SHRUNK = ["mistral", "olmo2", "phi3"]
CHATS = [[{"role": "user", "content": text}] for text in ("hello you .", "what is rain ? old rain", "no")]
GREEDY = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=8)
DRAWN = Sampling(temperature=1.2, top_p=0.9, max_new_tokens=8)
PROMPT = "what is rain ? old rain"


class Both:
    """One model as this package has it and as nnsight has it, an axis for it and a cap that acts on all it says."""

    def __init__(self, plain: ChatModel, axis: Axis, floor: Any = None) -> None:
        self.plain = plain
        self.sight = TransformersModel(plain.model, tokenizer=plain.tokenizer)
        self.chat = substrate.chat(self.sight)
        self.axis = axis
        top = {layer: self._highest(layer) for layer in axis.layers}
        self.cap = axis.cap(axis.layers, floor=[top[layer] + 1 for layer in axis.layers] if floor is None else floor)

    def _highest(self, layer: int) -> float:
        frame = drift.trajectory(self.plain, self.axis, TALK, layers=layer)
        return float(frame["projection"].max())

    def logits(self) -> torch.Tensor:
        ids = self.plain.tokenizer(PROMPT, return_tensors="pt")
        with torch.no_grad():
            return self.plain.model(ids["input_ids"], attention_mask=ids["attention_mask"]).logits


def both(model: Any, layers: tuple[int, ...] = (0, 2)) -> Both:
    plain = ChatModel.load(model, tokenizer=tiny.tokenizer())
    return Both(plain, axis_for(plain, layers))


@pytest.fixture(params=[*FAMILIES, *SHRUNK, "troupe"])
def any_pair(request: pytest.FixtureRequest, new_model: Callable[..., Any]) -> Both:
    if request.param == "troupe":
        plain = ChatModel.load("troupe")
        return Both(plain, axis_for(plain))
    return both(built(request.param) if request.param in SHRUNK else new_model(request.param))


@pytest.fixture(scope="module")
def pair() -> Both:
    """A Llama: not to be changed."""
    return both(tiny.llama())


def same(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(found.detach().float(), wanted.detach().float(), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_family_has_the_same_numbers(any_pair):
    it = any_pair
    frame = substrate.trajectory(it.chat, it.axis, TALK, lever=it.cap)
    plain = drift.trajectory(it.plain, it.axis, TALK, lever=it.cap)
    assert list(frame) == list(plain) and frame.drop(columns=["projection", "projection_before"]).equals(
        plain.drop(columns=["projection", "projection_before"])
    )
    for column in ("projection", "projection_before"):
        np.testing.assert_allclose(frame[column], plain[column], rtol=1e-5, atol=1e-6)
    assert (frame["projection"] > frame["projection_before"] + 0.5).any()  # the cap did something

    held = substrate.hold(it.sight, it.cap)
    with it.sight.trace(PROMPT):
        acted = held().save()
        logits = it.sight.output.logits.save()
    held.require(acted)
    with it.cap.on(it.plain.model):
        capped = it.logits()
        replies = it.plain.generate(CHATS, GREEDY)
    same(logits, capped)
    assert not torch.allclose(capped, it.logits(), atol=1e-3)

    found = substrate.generate(it.chat, CHATS, it.cap, GREEDY)
    assert found.ids == replies.ids and found.texts == replies.texts
    steps = max(len(ids) for ids in found.ids)
    assert set(found.acted) == set(it.cap.layers) and set(found.acted.values()) <= {steps, steps + 1}


def test_their_own_generate_loop(pair):
    """Steps are walked as nnsight's users walk them; the ids are those of transformers under the plain hooks."""
    held, model = substrate.hold(pair.sight, pair.cap), pair.sight
    with model.generate(PROMPT, max_new_tokens=5, min_new_tokens=5, do_sample=False) as tracer:
        for _ in tracer.iter[:5]:
            acted = held().save()
        ids = tracer.result.save()
    held.require(acted, runs=5)
    asked = pair.plain.tokenizer(PROMPT, return_tensors="pt")
    with pair.cap.on(pair.plain.model):
        wanted = pair.plain.model.generate(
            asked["input_ids"], attention_mask=asked["attention_mask"], max_new_tokens=5, min_new_tokens=5,
            do_sample=False,
        )  # fmt: skip
    assert ids.tolist() == wanted.tolist()


def test_draws_are_the_same_draws(pair):
    for cap in (None, pair.cap):
        with pair.plain.under(cap):
            wanted = pair.plain.generate(CHATS, DRAWN, seed=3)
        state = torch.get_rng_state()
        found = substrate.generate(pair.chat, CHATS, cap, DRAWN, seed=3)
        assert found.ids == wanted.ids
        assert torch.equal(torch.get_rng_state(), state)
    assert substrate.generate(pair.chat, CHATS, None, DRAWN, seed=4).ids != wanted.ids


def test_a_draw_of_its_own_state_draws_the_same():
    scores = torch.randn(50, 200)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        wanted = [draw(None, scores) for draw in [NucleusDraw(1.0, 0.9)] * 2]
    own = NucleusDraw(1.0, 0.9, seed=7)
    assert all(torch.equal(own(None, scores), one) for one in wanted)


def test_the_means_of_replies_are_the_same(pair):
    prompts = pair.plain.encode_batch(CHATS)
    wanted = generate_with_means(pair.plain, prompts, DRAWN, 5, [0, 2])
    found = generate_with_means(pair.chat, prompts, DRAWN, 5, [0, 2])
    assert found.ids == wanted.ids and torch.equal(found.sums, wanted.sums) and torch.equal(found.norms, wanted.norms)


def test_it_composes_with_their_own_interventions(pair):
    """Before the cap at its layer: capped. After it: not. At another layer: as it stands. All equal nested hooks."""
    model, cap = pair.sight, pair.axis.cap([0, 2], floor=100.0)
    first, second, third = (torch.randn(32, generator=torch.Generator().manual_seed(i)) for i in range(3))
    held = substrate.hold(model, cap)
    meter = substrate.gauge(model, pair.axis)
    layers = model.model.layers
    with model.trace(PROMPT):
        layers[0].output = layers[0].output + first
        held.at(0)
        at_the_bound = meter.at(0).save()
        layers[1].output = layers[1].output + second
        held.at(2)
        layers[2].output = layers[2].output + third
        moved = meter.at(2).save()
        acted = held.acted.save()
        logits = model.output.logits.save()
    held.require(acted)
    plain = pair.plain.model
    with (
        editing(plain, {0: lambda h: h + first, 1: lambda h: h + second}),
        cap.on(plain),
        editing(plain, {2: lambda h: h + third}),
    ):
        assert torch.equal(logits, pair.logits())
    same(at_the_bound, torch.full_like(at_the_bound, float(cap.floor[0])))
    same(moved, torch.full_like(moved, float(cap.floor[1] + third @ cap.direction[1])))


def test_an_edited_copy_caps_everything_on_it(pair):
    model = substrate.capped(pair.sight, pair.cap)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with model.trace(PROMPT):
            model.model.layers[2].output = model.model.layers[2].output * 1.5
            logits = model.output.logits.save()
        with model.generate(PROMPT, max_new_tokens=4, do_sample=False) as tracer:
            ids = tracer.result.save()
    with pair.sight.trace(PROMPT):
        free = pair.sight.output.logits.save()
    plain = pair.plain.model
    with pair.cap.on(plain), editing(plain, {2: lambda h: h * 1.5}):
        assert torch.equal(logits, pair.logits())
    assert torch.equal(free, pair.logits())
    with pair.cap.on(plain):
        asked = pair.plain.tokenizer(PROMPT, return_tensors="pt")
        wanted = plain.generate(
            asked["input_ids"], attention_mask=asked["attention_mask"], max_new_tokens=4, do_sample=False
        )
    assert ids.tolist() == wanted.tolist()


def test_their_standing_edits_are_seen_by_a_trajectory(pair):
    """Unlike a pass of the plain model: whoever edits a model in nnsight asks about the edited one."""
    push = torch.ones(32)
    with pair.sight.edit() as (_, edited):
        edited.model.layers[1].output = edited.model.layers[1].output + push
    found = substrate.trajectory(edited, pair.axis, TALK)
    wanted = drift.trajectory(pair.plain, pair.axis, TALK, lever=add(push, [1]))
    np.testing.assert_allclose(found["projection"], wanted["projection"], rtol=1e-5)


def test_a_block_of_one_row_and_bounds_of_its_own(pair):
    model = pair.sight
    held = substrate.hold(model, Cap(pair.cap.direction, pair.cap.layers, floor=[[9.0, 20.0]] * 2))
    meter = substrate.gauge(model, pair.axis, held=held)
    with model.trace([PROMPT, PROMPT]):
        found = meter().save()
    same(found[0], torch.tensor([9.0, 20.0]).view(1, 2, 1).expand_as(found[0]))
    one = substrate.hold(model, pair.cap)
    with model.trace() as tracer:
        with tracer.invoke(PROMPT):
            acted = one().save()
            capped = model.output.logits.save()
        with tracer.invoke(PROMPT):
            free = model.output.logits.save()
    one.require(acted)
    same(free, pair.logits())
    with pair.cap.on(pair.plain.model):
        same(capped, pair.logits())


def test_layers_that_return_tuples(pair):
    """As those of older transformers do: what comes after the hidden states is left alone."""
    hidden, rest = torch.randn(1, 3, 32), object()
    layers = {layer: SimpleNamespace(output=(hidden, rest)) for layer in (0, 2)}
    edits = substrate.hold(pair.sight, pair.cap).edits
    acted = Held(layers, edits)()
    assert acted == {0: 1, 2: 1}
    for layer, edit in edits.items():
        out = layers[layer].output
        assert type(out) is tuple and out[1] is rest and torch.equal(out[0], edit(hidden))


def options(**changes: Any) -> extraction.Options:
    plan = extraction.Options(roles=3, prompts=1, questions=4, sampling=replace(DRAWN, temperature=0.9), batch_size=4)
    return replace(plan, min_accepted=1, calibration=20, **changes)


class Stop(Exception):
    pass


def test_extract_makes_the_same_axis_and_resumes(pair, tmp_path):
    wanted = extraction.extract(pair.plain, tiny.probes(), options(), out=tmp_path / "plain.safetensors").axis
    seen = []

    def impatient(event: Any) -> None:
        seen.append(event)
        if sum(isinstance(e, extraction.Progress) for e in seen) == 2:
            raise Stop

    ask = {"out": tmp_path / "sight.safetensors"}
    with pytest.raises(Stop):
        substrate.extract(pair.chat, tiny.probes(), options(), **ask, progress=impatient)
    events: list[Any] = []
    found = substrate.extract(pair.chat, tiny.probes(), options(), **ask, progress=events.append).axis
    assert next(e for e in events if isinstance(e, extraction.Planned)).done == 8
    assert found.role_names == wanted.role_names and found.facts == wanted.facts
    for name, array in wanted.arrays.items():
        exact = not name.startswith("quantiles")
        np.testing.assert_allclose(found.arrays[name], array, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-5)


def test_a_cap_that_did_not_act_in_every_step_is_an_error(pair):
    model, held = pair.sight, substrate.hold(pair.sight, pair.cap)
    with model.trace(PROMPT):
        acted = held.acted.save()
        model.output.save()
    with pytest.raises(CapError, match=r"did not act in each of 1 passes: it acted \{0: 0, 2: 0\}"):
        held.require(acted)
    with model.generate(PROMPT, max_new_tokens=4, min_new_tokens=4, do_sample=False) as tracer:
        for step in tracer.iter[:4]:
            if step != 2:
                acted = held().save()
    with pytest.raises(CapError, match=r"each of 4 passes: it acted \{0: 3, 2: 3\}"):
        held.require(acted, runs=4)
    with model.trace(PROMPT):
        held.at(0)
        acted = held.at(0).save()
        held.at(2)
    with pytest.raises(CapError, match=r"\{0: 2\}"):
        held.require(acted)
    with model.trace(PROMPT):
        acted = held().save()
    held.require(acted)  # each call of require begins anew


@pytest.mark.filterwarnings("ignore:.*was never reached")
def test_out_of_order_in_a_loop_is_found_out(pair):
    """nnsight waits for the layer's next visit then, so that the cap would act in every other step only."""
    model, held = pair.sight, substrate.hold(pair.sight, pair.cap)
    with model.generate(PROMPT, max_new_tokens=4, min_new_tokens=4, do_sample=False) as tracer:
        for step in tracer.iter[:4]:
            if step:
                model.model.layers[2].output.save()
            acted = held().save()
    with pytest.raises(CapError, match="each of 4 passes"):
        held.require(acted, runs=4)


def test_a_layer_that_does_not_run_under_a_capped_model_is_an_error(pair, monkeypatch):
    model = substrate.capped(pair.sight, pair.cap)
    monkeypatch.setattr(pair.plain.model.config, "num_hidden_layers", 2)
    told = r"acted \{0: 1, 2: 0\} times \(by layer\) where its layers ran \{0: 1, 2: 0\} times"
    with pytest.raises(CapError, match=told), model.trace(PROMPT):
        model.output.save()
    with pytest.raises(CapError, match="where its layers ran"):
        substrate.generate(pair.chat, CHATS, pair.cap, GREEDY)


def test_a_layer_that_they_skip_is_capped_all_the_same(pair):
    model, meter = substrate.capped(pair.sight, pair.cap), substrate.gauge(pair.sight, pair.axis)
    with model.trace(PROMPT):
        model.model.layers[2].skip(model.model.layers[1].output)
        left = meter.at(2).save()
    assert (left >= float(pair.cap.floor[1]) - 1e-4).all()


def test_refusals_say_what_to_do(pair, monkeypatch, tmp_path):
    other = both(tiny.llama(seed=1))
    for refused in (substrate.hold, substrate.capped):
        with pytest.raises(AxisMismatchError, match="made for another model: weights fingerprint"):
            refused(other.sight, pair.cap)
    with pytest.raises(AxisMismatchError, match="weights fingerprint"):
        substrate.gauge(other.sight, pair.axis)
    with pytest.raises(AxisMismatchError, match="weights fingerprint"):
        substrate.trajectory(other.chat, pair.axis, TALK)
    substrate.hold(other.sight, pair.cap, allow=("weights",))
    with pytest.raises(CapError, match=r"layers \[7\] do not exist: the model has layers 0 to 2"):
        substrate.hold(pair.sight, Cap(torch.eye(32)[:1], [7], floor=0.0))
    with pytest.raises(CapMismatchError, match="width 8, the residual stream 32"):
        substrate.hold(pair.sight, Cap(torch.eye(8)[:1], [0], floor=0.0))
    with pytest.raises(CapError, match=r"the cap has no layer 1, only \[0, 2\]"):
        substrate.hold(pair.sight, pair.cap).at(1)
    with pytest.raises(ModelError, match="expected nnsight's TransformersModel, got a LlamaForCausalLM"):
        substrate.chat(pair.plain.model)
    with pytest.raises(DriftError, match="one cap, or none"):
        substrate.trajectory(pair.chat, pair.axis, TALK, lever=add(torch.ones(32), [1]))
    monkeypatch.setattr(CONFIG.API, "APIKEY", None)
    with pytest.raises(ModelError, match="needs a key of the NDIF service: set the environment variable NDIF_API_KEY"):
        substrate.trajectory(pair.sight, pair.axis, TALK, remote=True)
    monkeypatch.setitem(sys.modules, "nnsight", None)
    with pytest.raises(ModelError, match=r"pip install 'persona-axis\[nnsight\]'"):
        substrate.chat(pair.sight)


@pytest.mark.parametrize(
    "call",
    [
        lambda it, **where: substrate.trajectory(it.chat, it.axis, TALK, **where),
        lambda it, **where: substrate.generate(it.chat, CHATS, it.cap, GREEDY, **where),
        lambda it, **where: substrate.extract(it.chat, tiny.probes(), options(), out="axis.safetensors", **where),
    ],
)
def test_where_it_runs_is_said_once(pair, monkeypatch, tmp_path, call):
    monkeypatch.chdir(tmp_path)
    for where in (True, "local", object()):
        with pytest.raises(ModelError, match=r"remote=.* beside a chat that was made with remote=False: .*chat"):
            call(pair, remote=where)
    assert not list(tmp_path.iterdir())
    rehearsed = substrate.chat(pair.sight, remote="local", check=False)
    with pytest.raises(ModelError, match="remote=True beside a chat that was made with remote='local'"):
        substrate.trajectory(rehearsed, pair.axis, TALK, remote=True)
    assert len(substrate.trajectory(rehearsed, pair.axis, TALK, remote="local"))  # saying it again is no harm


def test_lost_steps_are_no_means(pair, monkeypatch):
    drawn = pair.chat.drawn

    def forgetful(*args: Any, **kwargs: Any) -> Any:
        ids, found, passes = drawn(*args, **kwargs)
        return ids, found, passes + 1

    monkeypatch.setattr(pair.chat, "drawn", forgetful)
    with pytest.raises(ExtractionError, match="nnsight lost some"):
        generate_with_means(pair.chat, pair.plain.encode_batch(CHATS), GREEDY, 0, [0])


class Away:
    """A nnsight backend: writes the request as it would be sent, and has it answered by `nnsight_server.py`."""

    def __init__(self, path: Path) -> None:
        self.path, self.sizes = path, [0]
        self.answer_bytes = 0
        server = Path(__file__).parents[1].joinpath("nnsight_server.py")
        self.process = subprocess.Popen(
            [sys.executable, str(server), str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout.readline() == "ready\n"

    def __call__(self, tracer: Any) -> None:
        request, answer = self.path / "request", self.path / "answer"
        request.write_bytes(RequestModel.serialize(tracer))
        self.sizes.append(request.stat().st_size)
        print(request, answer, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "done\n"
        self.answer_bytes = answer.stat().st_size
        found = torch.load(answer, weights_only=False)
        if "__error__" in found:
            raise RuntimeError(found["__error__"])
        for value in found.values():
            save(value)
        push(tracer.info.frame, found)


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Away]:
    path = tmp_path_factory.mktemp("server")
    tiny.llama().save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    backend = Away(path)
    yield backend
    backend.process.stdin.close()
    backend.process.wait(20)


@pytest.fixture
def afar(away: Away) -> TransformersModel:
    """The model as one who goes remote has it: its structure only."""
    return TransformersModel(str(away.path), task="text-generation", tokenizer=tiny.tokenizer())


def test_requests_are_answered_where_this_package_is_not(pair, away, afar, tmp_path):
    chat = substrate.chat(afar, remote=away)
    told = {key: pair.plain.facts[key] for key in pair.plain.facts if key not in ("model", "revision")}
    assert {key: chat.facts[key] for key in told} == told  # the fingerprint of weights that are not here included

    found = substrate.trajectory(chat, pair.axis, TALK, lever=pair.cap)
    wanted = drift.trajectory(pair.plain, pair.axis, TALK, lever=pair.cap)
    assert away.answer_bytes < 4096  # scalars only: the activations of so many tokens would be more
    np.testing.assert_allclose(found["projection"], wanted["projection"], rtol=1e-6)
    np.testing.assert_allclose(found["projection_before"], wanted["projection_before"], rtol=1e-6)

    with pair.cap.on(pair.plain.model):
        replies = pair.plain.generate(CHATS, DRAWN, seed=3)
    drawn = substrate.generate(chat, CHATS, pair.cap, DRAWN, seed=3)
    assert drawn.ids == replies.ids and len(set(drawn.acted.values())) == 1

    model = substrate.capped(chat, pair.cap)
    with model.trace(PROMPT, backend=away):
        logits = model.output.logits.save()
    with pair.cap.on(pair.plain.model):
        same(logits, pair.logits())
    held = substrate.hold(chat, pair.cap)
    with afar.trace(PROMPT, backend=away):
        acted = held().save()
    held.require(acted)
    assert not afar.dispatched and max(away.sizes) < 100_000


def test_extract_remotely_sends_back_sums_only(pair, away, afar, tmp_path):
    plain = ChatModel.load(away.path)  # by the same name, which one of the default's prompts tells the model
    wanted = extraction.extract(plain, tiny.probes(), options(), out=tmp_path / "plain.safetensors").axis
    found = substrate.extract(afar, tiny.probes(), options(), out=tmp_path / "away.safetensors", remote=away).axis
    assert np.array_equal(found.arrays["direction"], wanted.arrays["direction"])
    assert {**found.facts, "model": "", "revision": ""} == {**wanted.facts, "model": "", "revision": ""}
    found.require(pair.plain.model, pair.plain.tokenizer)  # made there, used here
    assert "batch_size" in found.metadata["plan"] and not afar.dispatched


def test_an_error_over_there_is_an_error_here(pair, away, afar):
    chat = substrate.chat(afar, remote=away)
    model = substrate.capped(chat, Cap(pair.cap.direction, pair.cap.layers, floor=[[1.0, 2.0, 3.0]] * 2))
    told = "CapError: bounds for 3 rows do not fit"
    with pytest.raises(RuntimeError, match=told), model.trace(PROMPT, backend=away):
        model.output.logits.save()


def test_weights_that_are_elsewhere_are_asked_about_or_left_out(pair, away, afar):
    with pytest.raises(AxisMismatchError, match="whose weights are not here: load them .*, pass chat"):
        substrate.hold(afar, pair.cap)
    assert substrate.hold(afar, pair.cap, allow=("weights",)).edits
    other = both(tiny.llama(seed=1))
    with pytest.raises(AxisMismatchError, match="the weights on the server have the fingerprint"):
        substrate.hold(substrate.chat(afar, remote=away), other.cap)


def test_rehearsal(pair):
    """nnsight's own rehearsal of a remote run, which hides whatever is not installed."""
    found = substrate.trajectory(substrate.chat(pair.sight, remote="local"), pair.axis, TALK)
    wanted = drift.trajectory(pair.plain, pair.axis, TALK)
    np.testing.assert_allclose(found["projection"], wanted["projection"], rtol=1e-6)
