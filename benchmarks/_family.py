"""What the package promises of a model, checked on one tiny random model of one type.

`examine` gives a `Verdict`: passed, refused by the package with its reason, not built (transformers could not make or
run the tiny model), no cache (all holds, but the type generates without a cache, so that half of a check is empty),
or failed. Whatever a model cannot do by itself, with no cap on it, is said in a remark and not held against the cap.
"""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _running import CLOSE, Failed, compare, forward, generated, off, rows_differ, same
from _shrink import shrunk
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from persona_axis import Cap
from persona_axis.edits.arithmetic import clamped
from persona_axis.errors import ResidualError
from persona_axis.model.layout import Stack, find_stack, hidden_size, text_config
from persona_axis.model.selftest import PROBE_TOKENS, self_test
from persona_axis.residual import reading

PASSED, NO_CACHE, REFUSED, NOT_BUILT, FAILED = "passed", "no cache", "refused", "not built", "failed"
MOST_PARAMETERS = 100_000_000
SEED = 0

PROMPTS = [[5, 9, 17, 23, 41, 8], [60, 61, 62, 63, 64, 65], [90, 11, 12, 33, 21, 7]]
UNEVEN = [prompt[: len(prompt) - 2 * row] for row, prompt in enumerate(PROMPTS)]


class Verdict(NamedTuple):
    """What became of one model type."""

    model_type: str
    status: str
    kind: str = ""
    """Class of the model."""
    stack: str = ""
    """Where its layers are: path, number and kinds of them."""
    reason: str = ""
    """Why it did not pass; where it did, what the model by itself cannot do."""


class NotBuilt(Exception):
    """transformers could not make or run the tiny model; the text says why."""


def examine(model_type: str) -> Verdict:
    """Build the tiny model of `model_type` and check everything; never raises for what the model does."""
    told = Verdict(model_type, NOT_BUILT)
    try:
        model = built(model_type)
    except NotBuilt as error:
        return told._replace(reason=str(error))
    told = told._replace(kind=type(model).__name__)
    try:
        stack = find_stack(model)
        told = told._replace(stack=described(model, stack))
        note = self_test(model, torch.tensor(PROMPTS[0][:PROBE_TOKENS]))
    except ResidualError as error:
        return told._replace(status=REFUSED, reason=str(error))
    try:
        if note:
            raise Failed(note)
        remarks = checked(model)
    except Exception as error:
        what = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
        return told._replace(status=FAILED, reason=what)
    return told._replace(status=NO_CACHE if UNCACHED in remarks else PASSED, reason="; ".join(remarks))


def described(model: nn.Module, stack: Stack) -> str:
    """Where the layers are, how many, of which classes and (where the config tells of several) kinds."""
    config = text_config(model)
    classes = ", ".join(sorted({type(layer).__name__ for layer in stack.layers}))
    lists = (getattr(config, name, None) or () for name in ("layer_types", "mlp_layer_types"))
    kinds = sorted({str(kind) for kinds in lists for kind in kinds})
    return f"{stack.path}, {len(stack.layers)} x {classes}" + (f" ({', '.join(kinds)})" if len(kinds) > 1 else "")


def built(model_type: str) -> nn.Module:
    """The tiny model, float32, in eval mode, having shown that it can run at all. Raises `NotBuilt`."""
    step = "config"
    try:
        config = shrunk(model_type)
        step = "model"
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if size > MOST_PARAMETERS:
            raise NotBuilt(f"its shrunk config still makes {size:,} parameters")
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        step = "forward pass"
        logits = forward(model, PROMPTS).logits
        if not logits.isfinite().all():
            raise NotBuilt("the logits of the random model are not finite")
    except NotBuilt:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).strip().split("\n") if line.strip()]
        raise NotBuilt(f"{step}: {type(error).__name__}: {' '.join(lines)[:200]}") from error
    return model


def checked(model: nn.Module) -> list[str]:
    """Every promise in turn; remarks about the model itself. Raises `Failed`."""
    layers = len(find_stack(model).layers)
    remarks = reads_the_reference(model, layers)
    cap = cap_for(model, layers)
    exact(model, cap)
    saved_and_applied_by_layer(model, cap)
    return [*remarks, *cached(model, cap), *batched(model, cap)]


def reads_the_reference(model: nn.Module, layers: int) -> list[str]:
    """What hooks read = what transformers itself returns; of the last layer it returns what the final norm made."""
    seen: dict[int, Tensor] = {}
    calls: list[tuple[list[Tensor], Tensor]] = []

    def note(_module: nn.Module, args: Any, output: Any) -> None:
        made = output[0] if isinstance(output, tuple) and output else output
        if isinstance(made, Tensor):
            calls.append(([given for given in args if isinstance(given, Tensor)], made))

    with reading(model, range(layers), lambda at, hidden: seen.update({at: hidden.clone()})):
        handle = nn.modules.module.register_module_forward_hook(note)
        try:
            states = forward(model, PROMPTS, output_hidden_states=True).hidden_states
        finally:
            handle.remove()
    if states is None or len(states) != layers + 1:
        raise Failed(f"transformers returned {len(states or ())} hidden states for {layers} layers")
    # Most types begin with the embeddings; some begin with the first layer's output, and both end after the last norm.
    first = 0 if same(seen[0], states[0]) else 1
    for layer in range(layers - first):
        if not same(seen[layer], states[layer + first]):
            apart = off(seen[layer], states[layer + first])
            raise Failed(f"what is read at layer {layer} is not hidden_states[{layer + first}]: {apart}")
    last, final = seen[layers - 1], states[layers]
    if same(last, final):
        return []
    takers = [out for given, out in calls if any(same(one, last) for one in given)]
    if any(same(out, final) for out in takers):
        return []
    if takers and any(same(out, final) for _, out in calls):
        return ["what the final norm takes is made of several layers' outputs, the last one among them"]
    raise Failed(f"no module takes what is read at layer {layers - 1} and gives the last hidden state")


def cap_for(model: nn.Module, layers: int) -> Cap:
    """A cap on two layers whose bounds some of the prompts' tokens lie inside of, some below and some above."""
    at = sorted({layers // 2 - 1, layers - 2} & set(range(layers))) or [0]
    generator = torch.Generator().manual_seed(SEED + 1)
    rows = nn.functional.normalize(torch.randn(len(at), hidden_size(model), generator=generator), dim=1)
    spread: dict[int, Tensor] = {}
    with reading(model, at, lambda layer, hidden: spread.update({layer: hidden @ rows[at.index(layer)]})):
        forward(model, PROMPTS)
    low, high = ([spread[layer].quantile(q).item() for layer in at] for q in (0.4, 0.8))
    return Cap(rows, at, floor=low, ceiling=high)


def exact(model: nn.Module, cap: Cap) -> None:
    """Inside the bounds elementwise nothing; outside the projection lands on the bound and the rest stays."""
    assert cap.floor is not None and cap.ceiling is not None
    plain = forward(model, PROMPTS).logits
    with Cap(cap.direction, cap.layers, floor=-1e9, ceiling=1e9).on(model):
        if not torch.equal(forward(model, PROMPTS).logits, plain):
            raise Failed("a cap that nothing lies outside of changed the logits")
    before: dict[int, Tensor] = {}
    after: dict[int, Tensor] = {}
    with (
        reading(model, cap.layers, lambda at, hidden: before.update({at: hidden.clone()})),
        cap.on(model),
        reading(model, cap.layers, lambda at, hidden: after.update({at: hidden.clone()})),
    ):
        capped = forward(model, PROMPTS).logits
    if torch.equal(capped, plain):
        raise Failed("the cap changed no logits")
    for i, layer in enumerate(cap.layers):
        v, old, new = cap.direction[i].double(), before[layer].double(), after[layer].double()
        p, low, high = old @ v, cap.floor[i], cap.ceiling[i]
        inside, slack = (p > low + 1e-4) & (p < high - 1e-4), CLOSE / 100 * old.abs().max()
        moved = ((new @ v) - p.clamp(low, high)).abs().max()
        rest = ((new - (new @ v)[..., None] * v) - (old - p[..., None] * v)).abs().max()
        if not inside.any() or inside.all():
            raise Failed(f"the prompts do not try both sides of the bounds at layer {layer}")
        if not torch.equal(new[inside], old[inside]) or max(moved, rest) > slack:
            raise Failed(f"the cap at layer {layer} is off its bound by {moved:.1e} and moved the rest by {rest:.1e}")
        if not torch.equal(clamped(before[layer], cap.direction[i], low.item(), high.item()), after[layer]):
            raise Failed(f"what the model went on with at layer {layer} is not what the cap's arithmetic gives")


def saved_and_applied_by_layer(model: nn.Module, cap: Cap) -> None:
    """A cap from its file does what it did in memory, and each of its layers does something alone."""
    with tempfile.TemporaryDirectory() as folder:
        cap.save(Path(folder, "cap.safetensors"))
        loaded = Cap.load(Path(folder, "cap.safetensors"))
    plain = forward(model, PROMPTS).logits
    with cap.on(model):
        expected = forward(model, PROMPTS).logits
    with loaded.on(model):
        if not torch.equal(forward(model, PROMPTS).logits, expected):
            raise Failed("a cap that was saved and loaded gives other logits")
    assert loaded.floor is not None and loaded.ceiling is not None
    for i, layer in enumerate(loaded.layers):
        one = Cap(loaded.direction[i : i + 1], [layer], loaded.floor[i : i + 1], loaded.ceiling[i : i + 1])
        with one.on(model):
            if torch.equal(forward(model, PROMPTS).logits, plain):
                raise Failed(f"the loaded cap's layer {layer} alone changes no logits")


UNCACHED = "generates without a cache: every step feeds the whole text"


def cached(model: nn.Module, cap: Cap) -> list[str]:
    """Generating with a cache = without, the cap on, and without a cap on, and bounds that hold at every step."""
    prompt = PROMPTS[:1]  # what batches do is looked at apart
    bare = compare(generated(model, prompt), generated(model, prompt, use_cache=False))
    fails: list[str] = []
    with cap.on(model):
        first, second = (generated(model, prompt, cap=cap, use_cache=use) for use in (True, False))
        differ = compare(first, second)
    remarks = []
    if first.fed[1:] == second.fed[1:]:
        remarks.append(UNCACHED)
    elif set(first.fed[1:]) != {1}:
        fails.append(f"a step with a cache fed {first.fed} tokens")
    if differ and bare:
        remarks.append(f"with and without a cache it gives other logits by itself, uncapped ({bare})")
    elif differ:
        fails.append(f"with and without a cache: {differ}")
    if fails:
        raise Failed("; ".join(fails))
    return remarks


def batched(model: nn.Module, cap: Cap) -> list[str]:
    """A batch = each of its rows alone: rows of one length, and rows padded on the left."""
    remarks = []
    for prompts, what in ((PROMPTS, "a batch of equal lengths"), (UNEVEN, "a batch padded on the left")):
        bare = rows_differ(model, prompts, nullcontext)
        capped = rows_differ(model, prompts, lambda: cap.on(model))
        if capped and not bare:
            raise Failed(f"{what}: {capped}")
        if bare:
            remarks.append(f"{what} is not read as its rows alone by the model itself, uncapped ({bare})")
    return remarks
