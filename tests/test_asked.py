"""What newcomers pass by mistake: each call of the public names tells it in words, by an error of the family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import chat_factory as tiny
import numpy as np
import pytest
import torch
from test_drift import TALK, axis_for

from persona_axis import (
    Axis,
    AxisMismatchError,
    Cap,
    CapError,
    ChatModel,
    ModelError,
    PersonaAxisError,
    PersonaSpace,
    attach,
    calibrate,
    drift,
    extract,
    load_probes,
    simulate,
    steer,
)
from persona_axis._asked import layers_of, shown, whole
from persona_axis.conversations import read_conversations
from persona_axis.errors import (
    ArgumentError,
    AxisFileError,
    ConversationError,
    DriftError,
    ExtractionError,
    ResidualError,
)
from persona_axis.residual import reading
from persona_axis.sampling import Sampling

OK = [{"role": "user", "content": "how ?"}]
SHORT = Sampling(temperature=0, max_new_tokens=2)
OPTIONS = extract.Options(prompts=1, questions=4, min_accepted=1, batch_size=16, sampling=SHORT)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the calls of this module are made with."""
    chat = tiny.chat()
    axis = axis_for(chat, (0, 1, 2))
    return {
        "chat": chat, "model": chat.model, "tokenizer": chat.tokenizer, "axis": axis, "cap": axis.cap([1], floor=0.5),
        "probes": tiny.probes(), "out": tmp_path_factory.mktemp("out") / "axis.safetensors",
    }  # fmt: skip


@pytest.fixture(scope="module")
def sight(given: dict[str, Any]) -> Any:
    nnsight = pytest.importorskip("nnsight", reason="needs nnsight: pip install 'persona-axis[nnsight]'")
    return nnsight.TransformersModel(given["model"], tokenizer=given["tokenizer"])


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Any:
    lens = pytest.importorskip("transformer_lens.model_bridge", reason='pip install "persona-axis[lens]"')
    from transformers import AutoTokenizer

    words, model = tmp_path_factory.mktemp("words"), tiny.llama()
    tiny.tokenizer().save_pretrained(words)
    model.set_attn_implementation("eager")
    model.config.architectures = [type(model).__name__]
    tokenizer = AutoTokenizer.from_pretrained(words)
    return lens.TransformerBridge.boot_transformers(str(words), hf_model=model, tokenizer=tokenizer, device="cpu")


def held(lever: Any, *on: Any, **how: Any) -> None:
    with lever.on(*on, **how):
        raise AssertionError("it was entered")


WORDS: list[tuple[str, Callable[[Any], Any], type[Exception], str]] = [
    ("no conversation", lambda g: g.chat.generate([]), ConversationError, "the list of conversations is empty"),
    ("no prompt", lambda g: g.chat.generate_ids([], SHORT, 0), ConversationError, "the batch is empty"),
    ("a text", lambda g: g.chat.generate("hi"), ConversationError, "expected a list of conversations, got 'hi'"),
    ("texts", lambda g: g.chat.generate([OK, "hi"]), ConversationError,
     r'^conversations\[1\]: a conversation is a list of messages, each a dict such as .*"role".* got \'hi\' for one'),
    ("one for many", lambda g: g.chat.generate(OK), ConversationError, "several are a list of such lists; got {'role'"),
    ("many for one", lambda g: g.chat.encode([OK]), ConversationError, r"^messages\[0\]: expected a dict such as"),
    ("no messages", lambda g: g.chat.generate([[]]), ConversationError, "conversation is empty: it needs a message"),
    ("no role", lambda g: g.chat.generate([[{"content": "hi"}]]), ConversationError, "role must be a text, and there"),
    ("no content", lambda g: g.chat.generate([[*OK, {"role": "user"}]]), ConversationError,
     r"conversations\[0\]: messages\[1\]: content must be a text, and there is none"),
    ("null content", lambda g: g.chat.encode_turns([{"role": "assistant", "content": None}]), ConversationError,
     "content must be a text, and it is None"),
    ("another role", lambda g: g.chat.generate([[{"role": "human", "content": "hi"}]]), ConversationError,
     "unknown role 'human'; the roles are system, user, assistant"),
    ("numbers for sampling", lambda g: g.chat.generate([OK], 0.7), ArgumentError, "a Sampling, such as .* got 0.7"),
    ("a seed in words", lambda g: g.chat.generate([OK], SHORT, "one"), ArgumentError, "seed must be a whole number"),
    ("one reply for many", lambda g: g.chat.decode([1, 2]), ArgumentError, r"lists of token ids, got \[1, 2\]"),
    ("an axis as lever", lambda g: g.chat.under(g.axis).__enter__(), ArgumentError,
     r"lever: expected a Cap, another lever or several \(Axis.cap gives a Cap\), got an Axis"),
    ("a chat model for a model", lambda g: held(g.cap, g.chat), ResidualError, "got a ChatModel .*pass its .model"),
    ("a tokenizer for a model", lambda g: held(g.cap, g.tokenizer), ResidualError, "got a TokenizersBackend"),
    ("a model as template", lambda g: held(g.cap, g.model, g.model), ArgumentError, "^template: expected a tokenizer"),
    ("allow=True", lambda g: held(g.cap, g.model, allow=True), AxisMismatchError, "allow=True: expected a collection"),
    ("attach, swapped", lambda g: attach(g.cap, g.model), ArgumentError, r"^cap: expected a Cap \(Axis.cap and"),
    ("attach an axis", lambda g: attach(g.model, g.axis), ArgumentError, "got an Axis$"),
    ("a tokenizer to load", lambda g: ChatModel.load(g.tokenizer), ModelError, "a model of transformers, its dir"),
    ("a path as tokenizer", lambda g: ChatModel.load(g.model, tokenizer="words"), ModelError, "tokenizer: .* 'words'"),
    ("an unknown dtype", lambda g: ChatModel.load("troupe", dtype="flot32"), ModelError, "flot32"),
    ("an axis for a path", lambda g: Axis.load(g.axis), ArgumentError, "expected the path of a file .* got an Axis"),
    ("a path for an axis", lambda g: drift.trajectory(g.chat, "axis.safetensors", TALK), ArgumentError,
     r"axis: expected an Axis \(Axis.load gives one\), got 'axis.safetensors'"),
    ("a model for a chat model", lambda g: drift.trajectory(g.model, g.axis, TALK), ArgumentError,
     r"chat: expected a ChatModel \(ChatModel.load gives one"),
    ("no list of conversations", lambda g: drift.trajectories(g.chat, g.axis, None), ArgumentError, "a list, got None"),
    ("speakers", lambda g: drift.trajectory(g.chat, g.axis, TALK, speakers=3), DriftError, "speakers=3: expected some"),
    ("a path for probes", lambda g: extract.extract(g.chat, "probes", out=g.out), ArgumentError, "load_probes gives"),
    ("a judge's name", lambda g: extract.extract(g.chat, g.probes, OPTIONS, out=g.out, judge="all"), ArgumentError,
     "persona_axis.judges has some.*got 'all'"),
    ("a judge's class", lambda g: extract.extract(g.chat, g.probes, OPTIONS, out=g.out, judge=extract.AcceptAll),
     ArgumentError, "got the class AcceptAll"),
    ("a directory", lambda g: extract.extract(g.chat, g.probes, OPTIONS, out=g.out.parent), ExtractionError, "a direc"),
    ("half a question", lambda g: extract.Options(questions=2.5), ExtractionError, "at least 2 and a whole number"),
    ("sampling in words", lambda g: Sampling(temperature="hot"), ModelError, "temperature must be .* got 'hot'"),
    ("half a token", lambda g: Sampling(max_new_tokens=1.5), ModelError, "must be at least 1 and a whole"),
    ("a percentile in words", lambda g: g.axis.quantile("default", "25"), CapError, "percentile '25' is no number"),
    ("NaN", lambda g: g.axis.cap(1, floor=float("nan")), CapError, "nothing can meet"),
    ("floor=True", lambda g: g.axis.cap(1, floor=True), CapError, "floor: expected numbers, got True"),
    ("facts", lambda g: Cap(g.axis.direction[[1]], [1], 0.0, facts=3), ArgumentError, "facts: expected a dict, got 3"),
    ("project, swapped", lambda g: g.axis.project(1, torch.zeros(32)), AxisMismatchError, "must be a whole number"),
    ("words for vectors", lambda g: PersonaSpace.fit("a", "b"), ArgumentError, "expected an array of numbers, got 'a'"),
    ("a direction of nothing", lambda g: Axis.from_direction(None, layers=0, metadata={"num_layers": 1}), AxisFileError,
     "hidden_size"),
]  # fmt: skip


class Named:
    """`g.chat` for `given["chat"]`."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        vars(self).update(given)


@pytest.mark.parametrize(("call", "error", "words"), [w[1:] for w in WORDS], ids=[w[0] for w in WORDS])
def test_a_mistake_is_told_in_words(given: Any, call: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words) as told:
        call(Named(given))
    assert isinstance(told.value, PersonaAxisError) and type(told.value) is error
    assert not given["out"].exists()


LAYERS = {
    "an axis' cap": (lambda g, at: g.axis.cap(at, floor=0.0), CapError),
    "a cap": (lambda g, at: Cap(g.axis.direction[[1]], at, 0.0), CapError),
    "an addition": (lambda g, at: steer.add(torch.ones(1, 32), at), CapError),
    "a trajectory": (lambda g, at: drift.trajectory(g.chat, g.axis, TALK, layers=at), DriftError),
    "a reading": (lambda g, at: reading(g.model, at, lambda *_: None).__enter__(), ResidualError),
    "options": (lambda g, at: extract.Options(layers=at), ExtractionError),
    "an axis": (lambda g, at: Axis.from_direction(g.axis.direction[[1]], layers=at, metadata={"num_layers": 3}),
                AxisFileError),
}  # fmt: skip
NO_LAYERS: dict[str, Any] = {
    "none": [], "float": 1.0, "floats": [1.0], "text": "1", "texts": ["1"], "nested": [[1]], "truth": True,
    "slice": slice(2), "tensor": torch.tensor([1.0]),
}  # fmt: skip


@pytest.mark.parametrize("wrong", list(NO_LAYERS))
@pytest.mark.parametrize("at", list(LAYERS))
def test_what_is_no_layer(given: Any, at: str, wrong: str) -> None:
    call, error = LAYERS[at]
    if (at, wrong) == ("a reading", "none"):
        pytest.skip("a reading of nothing is one")
    with pytest.raises(error, match=r"^layers=.*: expected a layer's number or a list of one or more of them"):
        call(Named(given), NO_LAYERS[wrong])


@pytest.mark.parametrize("beyond", [-1, [-1], 99, [99]])
@pytest.mark.parametrize("at", ["an axis' cap", "a trajectory", "a reading", "an axis"])
def test_layers_that_do_not_exist(given: Any, at: str, beyond: Any) -> None:
    with pytest.raises(PersonaAxisError, match=r"-1|99"):
        LAYERS[at][0](Named(given), beyond)


@pytest.mark.parametrize(
    "one", [1, [1], (1,), np.int64(1), np.array([1]), torch.tensor(1), torch.tensor([1]), range(1, 2)]
)
def test_one_layer_in_any_form(given: Any, one: Any) -> None:
    assert layers_of(one, CapError) == (1,) and type(layers_of(one, CapError)[0]) is int
    assert given["axis"].cap(one, floor=0.0).layers == (1,)
    assert set(drift.trajectory(given["chat"], given["axis"], TALK, layers=one)["layer"]) == {1}


def test_helpers() -> None:
    assert whole("n", np.int32(3)) == 3 and layers_of((at for at in (2, 0)), CapError) == (2, 0)
    for wrong in (True, 2.0, "2", None, 1):
        with pytest.raises(DriftError, match="n must be at least 2 and a whole number"):
            whole("n", wrong, DriftError, least=2)
    assert shown("x" * 99)[-3:] == "xxx" and len(shown("x" * 99)) == 60
    assert [shown(v) for v in ([1, 2], list(range(99)), Axis, None)] == ["[1, 2]", "a list", "the class Axis", "None"]
    assert issubclass(ArgumentError, TypeError)


# Every place of an argument, and everything that it is not: whatever is raised is of the family.
PLACES: dict[str, tuple[Callable[[Any, Any], Any], tuple[str, ...]]] = {
    "ChatModel.load": (lambda g, x: ChatModel.load(x, tokenizer=g.tokenizer), ("model", "None", "text")),
    "tokenizer": (lambda g, x: ChatModel.load(g.model, tokenizer=x), ("tokenizer",)),
    "generate": (lambda g, x: g.chat.generate(x), ()),
    "generate, one": (lambda g, x: g.chat.generate([x]), ()),
    "generate, a message": (lambda g, x: g.chat.generate([[x]]), ()),
    "encode_messages": (lambda g, x: g.chat.encode_messages(x), ()),
    "reply_mask": (lambda g, x: g.chat.reply_mask(x), ()),
    "sampling": (lambda g, x: g.chat.generate_ids([[1]], x, 0), ()),
    "under": (lambda g, x: g.chat.under(x).__enter__(), ("cap", "None", "nothing", "nothing by name")),
    "Axis.load": (lambda g, x: Axis.load(x), ()),
    "Cap.load": (lambda g, x: Cap.load(x), ()),
    "Axis.save": (lambda g, x: g.axis.save(x), ("text",)),
    "load_probes": (lambda g, x: load_probes(x), ("None",)),
    "read_conversations": (lambda g, x: read_conversations(x), ()),
    "axis.cap": (lambda g, x: g.axis.cap(x, floor=0.0), ("None",)),
    "floor": (lambda g, x: g.axis.cap(1, floor=x), ("number", "half")),
    "axis.row": (lambda g, x: g.axis.row(x), ()),
    "axis.space": (lambda g, x: g.axis.space(x), ()),
    "axis.project": (lambda g, x: g.axis.project(x, 1), ()),
    "axis.require": (lambda g, x: g.axis.require(x), ("model",)),
    "Cap": (lambda g, x: Cap(x, [1], 0.0), ()),
    "cap.on": (lambda g, x: held(g.cap, x), ("model",)),
    "a hand-made cap.on": (lambda g, x: held(Cap(g.axis.direction[[1]], [1], 0.0), x), ("model",)),
    "cap.on, template": (lambda g, x: held(g.cap, g.model, x), ("tokenizer", "None")),
    "cap.on, allow": (lambda g, x: held(g.cap, g.model, allow=x), ("nothing", "nothing by name")),
    "cap.on, stack": (lambda g, x: held(g.cap, g.model, stack=x), ("None",)),
    "attach": (lambda g, x: attach(x, g.cap), ("model",)),
    "attach, cap": (lambda g, x: attach(g.model, x), ("cap",)),
    "PersonaSpace.fit": (lambda g, x: PersonaSpace.fit(x, x), ()),
    "from_means": (lambda g, x: Axis.from_means(x, x, layers=[0], metadata={}), ()),
    "from_direction": (lambda g, x: Axis.from_direction(x, layers=[0], metadata={"num_layers": 1}), ()),
    "metadata": (lambda g, x: Axis.from_direction(g.axis.direction, layers=[0, 1, 2], metadata=x), ()),
    "trajectory, chat": (lambda g, x: drift.trajectory(x, g.axis, TALK), ("chat",)),
    "trajectory, axis": (lambda g, x: drift.trajectory(g.chat, x, TALK), ("axis",)),
    "trajectory": (lambda g, x: drift.trajectory(g.chat, g.axis, x), ()),
    "trajectory, lever": (lambda g, x: drift.trajectory(g.chat, g.axis, TALK, lever=x),
                          ("cap", "None", "nothing", "nothing by name")),
    "calibrate": (lambda g, x: calibrate.calibrate(x, g.axis, out=g.out), ("chat",)),
    "calibrate, axis": (lambda g, x: calibrate.calibrate(g.chat, x, out=g.out), ("axis",)),
    "simulate": (lambda g, x: simulate.simulate(x, []), ("chat",)),
    "simulate, axis": (lambda g, x: simulate.simulate(g.chat, [], axis=x), ("axis", "None")),
    "extract": (lambda g, x: extract.extract(x, g.probes, OPTIONS, out=g.out), ("chat",)),
    "extract, probes": (lambda g, x: extract.extract(g.chat, x, OPTIONS, out=g.out), ()),
    "extract, options": (lambda g, x: extract.extract(g.chat, g.probes, x, out=g.out), ("None",)),
    "extract, out": (lambda g, x: extract.extract(g.chat, g.probes, OPTIONS, out=x), ("text",)),
}  # fmt: skip
NNSIGHT: dict[str, tuple[Callable[[Any, Any], Any], tuple[str, ...]]] = {
    "chat": (lambda g, x: g.inside.chat(x), ()),
    "chat, remote": (lambda g, x: g.inside.chat(g.sight, remote=x), ("text", "tokenizer", "model", "a class")),
    "hold": (lambda g, x: g.inside.hold(x, g.cap), ()),
    "hold, cap": (lambda g, x: g.inside.hold(g.sight, x), ("cap",)),
    "capped": (lambda g, x: g.inside.capped(g.sight, x), ("cap",)),
    "gauge": (lambda g, x: g.inside.gauge(x, g.axis), ()),
    "gauge, axis": (lambda g, x: g.inside.gauge(g.sight, x), ("axis",)),
    "gauge, layers": (lambda g, x: g.inside.gauge(g.sight, g.axis, x), ("None",)),
    "gauge, held": (lambda g, x: g.inside.gauge(g.sight, g.axis, held=x), ("None",)),
    "trajectory": (lambda g, x: g.inside.trajectory(x, g.axis, TALK), ()),
    "trajectory, axis": (lambda g, x: g.inside.trajectory(g.sight, x, TALK), ("axis",)),
    "trajectory, talk": (lambda g, x: g.inside.trajectory(g.sight, g.axis, x), ()),
    "generate": (lambda g, x: g.inside.generate(g.sight, x), ()),
    "generate, cap": (lambda g, x: g.inside.generate(g.sight, [OK], x, SHORT), ("cap", "None")),
    "extract": (lambda g, x: g.inside.extract(x, g.probes, OPTIONS, out=g.out), ()),
    "require": (lambda g, x: g.inside.hold(g.sight, g.cap).require(x), ()),
    "at": (lambda g, x: g.inside.hold(g.sight, g.cap).at(x), ()),
}
LENS: dict[str, tuple[Callable[[Any, Any], Any], tuple[str, ...]]] = {
    "chat_model": (lambda g, x: g.lens.chat_model(x), ()),
    "capping": (lambda g, x: g.lens.capping(x, g.cap), ()),
    "capping, cap": (lambda g, x: g.lens.capping(g.bridge, x), ("cap",)),
    "cap_hooks": (lambda g, x: g.lens.cap_hooks(x, g.bridge), ("cap",)),
    "cap_hooks, bridge": (lambda g, x: g.lens.cap_hooks(g.cap, x), ()),
    "projections": (lambda g, x: g.lens.projections(x, g.axis), ()),
    "projections, axis": (lambda g, x: g.lens.projections(g.cache, x), ("axis",)),
    "projections, layers": (lambda g, x: g.lens.projections(g.cache, g.axis, x), ("None",)),
}


def everything(given: Mapping[str, Any]) -> dict[str, Any]:
    things = {"None": None, "number": 77, "half": 1.5, "text": "no such thing", "bytes": b"x", "nothing": [],
              "nothing by name": {}, "numbers": [77, 77], "texts": ["hi", "ho"], "a class": Axis}  # fmt: skip
    return things | {name: given[name] for name in ("tokenizer", "model", "chat", "axis", "cap")}


def each_is_told(call: Callable[[Any, Any], Any], right: tuple[str, ...], given: Mapping[str, Any]) -> None:
    raw = {}
    for name, thing in everything(given).items():
        if name in right:
            continue
        try:
            raw[name] = call(Named(given), thing)
        except PersonaAxisError as error:
            if not str(error):
                raw[name] = error
        except Exception as error:
            raw[name] = error
    assert not raw


@pytest.mark.parametrize("place", list(PLACES))
def test_everything_else_is_of_the_family(place: str, given: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    each_is_told(*PLACES[place], given)
    assert not list(tmp_path.iterdir()) and not given["model"].model.layers[1]._forward_hooks


@pytest.mark.parametrize("place", list(NNSIGHT))
def test_inside_nnsight(place: str, given: Any, sight: Any) -> None:
    from persona_axis.substrates import nnsight as inside

    each_is_told(*NNSIGHT[place], {**given, "sight": sight, "inside": inside})


@pytest.mark.parametrize("place", list(LENS))
def test_inside_transformer_lens(place: str, given: Any, bridge: Any) -> None:
    from persona_axis.substrates import transformer_lens as lens

    _, cache = bridge.run_with_cache(torch.tensor([[1, 9, 17]]))
    each_is_told(*LENS[place], {**given, "bridge": bridge, "cache": cache, "lens": lens})


def test_words_of_nnsight(given: Any, sight: Any) -> None:
    from persona_axis.substrates import nnsight as inside

    axis, cap = given["axis"], given["cap"]
    with pytest.raises(ArgumentError, match=r"^cap: expected a Cap \(Axis.cap and Cap.load give one\), got an Axis"):
        inside.hold(sight, axis)
    with pytest.raises(ArgumentError, match="held: expected what hold"):
        inside.gauge(sight, axis, held=cap)
    assert list(inside.gauge(sight, axis, 1).directions) == [1]
    with pytest.raises(DriftError, match=r"^layers=\[\]: expected a layer's number"):
        inside.gauge(sight, axis, [])
    with pytest.raises(AxisMismatchError, match="layer 3 is not in this axis, which has layers 0 to 2"):
        inside.gauge(sight, axis, 3)
    with pytest.raises(ConversationError, match="the list of conversations is empty"):
        inside.generate(sight, [])
    with pytest.raises(ModelError, match="remote=3: expected True, False, 'local', an address or a backend of nnsight"):
        inside.chat(sight, remote=3)
    meter, acting = inside.gauge(sight, axis, [1]), inside.hold(sight, cap)
    for outside in (meter, acting, lambda: meter.at(1), lambda: acting.at(1)):
        with pytest.raises(ResidualError, match=r"it is called inside a block, `with model.trace\(...\):`"):
            outside()
    with pytest.raises(CapError, match=r"did not act in each of 3 passes: it acted {1: 2} times.*say by runs="):
        acting.require({1: 2}, runs=3)
    with pytest.raises(DriftError, match=r"the gauge has no layer 2, only \[1\]"):
        meter.at(2)


def test_words_of_transformer_lens(given: Any, bridge: Any) -> None:
    from persona_axis.substrates import transformer_lens as lens

    axis, cap = given["axis"], given["cap"]
    seen = bridge.run_with_cache(torch.tensor([[1, 9, 17]]))
    for first in (axis, bridge):
        with pytest.raises(ArgumentError, match=r"^cap: expected a Cap .*, got an? (Axis|TransformerBridge)"):
            lens.cap_hooks(first, bridge)
    with pytest.raises(ArgumentError, match="expected the second thing that run_with_cache gives, got a tuple"):
        lens.projections(seen, axis)
    with pytest.raises(ArgumentError, match=r"axis: expected an Axis \(Axis.load gives one\), got an ActivationCache"):
        lens.projections(axis, seen[1])
    with pytest.raises(DriftError, match=r"^layers=\[\]: expected a layer's number"):
        lens.projections(seen[1], axis, [])
    assert list(lens.projections(seen[1], axis, 2)) == [2]
    with pytest.raises(ModelError, match="expected a TransformerBridge, got a Cap"):
        lens.capping(cap, cap)
