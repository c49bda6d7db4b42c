"""What runs inside nnsight's blocks: a cap, a reading of projections, the sums over replies.

Everything here may run on a server that does not have this package (see `_nnsight_travel`): no decorators, no `super`,
and what is imported inside a function must exist there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from persona_axis.edits.acting import Edit
from persona_axis.edits.arithmetic import projected
from persona_axis.errors import CapError, DriftError, ResidualError
from persona_axis.extraction.means import Sums
from persona_axis.residual import hidden_in
from persona_axis.substrates._nnsight_travel import Travelling

Layers = Mapping[int, Any]
"""nnsight's envoy of each decoder layer, by the layer's number."""


class Held(Travelling):
    """A cap inside a block. Made by `persona_axis.substrates.nnsight.hold`."""

    _LIVE = ("layers", "acted")

    def __init__(self, layers: Layers, edits: Mapping[int, Edit]) -> None:
        self.layers = {layer: layers[layer] for layer in sorted(edits)}
        self.edits = dict(edits)
        self.acted = dict.fromkeys(self.layers, 0)

    def __call__(self) -> dict[int, int]:
        """Act at all layers of the cap, once. Gives how often it has acted at each: `.save()` it for `require`.

        Call it where no layer of the cap has run yet and once in each step; nnsight wants layers in the order they run.
        """
        for layer in self.layers:
            self.at(layer)
        return self.acted

    def at(self, layer: int) -> dict[int, int]:
        """Act at one layer, after whatever the block has done to it and before whatever it does next."""
        if layer not in list(self.edits):
            raise CapError(f"the cap has no layer {layer}, only {list(self.edits)}")
        output = _output(self.layers[layer])
        edited = self.edits[layer](hidden_in(output, layer))
        self.layers[layer].output = edited if isinstance(output, Tensor) else type(output)((edited, *output[1:]))
        self.acted[layer] += 1
        return self.acted

    def throughout(self) -> dict[int, int]:
        """Act in every step until the run ends, and prove it there. Nothing after this call sees the run.

        Raises `CapError` unless the cap acted each time one of its layers ran, and each ran.
        """
        self.acted = dict.fromkeys(self.layers, 0)
        _to_the_end(self)
        from nnsight.intervention.interleaver import Mediator

        block = Mediator.current("the cap")
        ran = {layer: block.occurrence(f"{envoy.path}.output") for layer, envoy in self.layers.items()}
        if self.acted != ran or not all(ran.values()):
            raise CapError(
                f"the cap acted {self.acted} times (by layer) where its layers ran {ran} times: "
                "a layer must run, and be asked for in the order the layers run"
            )
        return self.acted

    def require(self, acted: Mapping[int, int], runs: int = 1) -> None:
        """Prove from a saved `acted` that the cap acted at every layer in each of `runs` passes, and start anew.

        A generation of n new tokens is n passes. Raises `CapError` that names the layers.
        """
        if not isinstance(acted, Mapping):
            raise CapError(f"acted: expected what held() gave in the block, saved; got a {type(acted).__name__}")
        self.acted = dict.fromkeys(self.layers, 0)
        wrong = {layer: acted.get(layer, 0) for layer in self.layers if acted.get(layer, 0) != runs}
        if wrong:
            raise CapError(
                f"the cap on layers {list(self.layers)} did not act in each of {runs} passes: it acted {wrong} times, "
                "by layer. Call it once in every step, where none of its layers has run yet, and say by runs= how many "
                "passes there were: in a generation one for each new token, fewer if replies end early (min_new_tokens)"
            )


class Gauge(Travelling):
    """Projections inside a block. Made by `persona_axis.substrates.nnsight.gauge`."""

    _LIVE = ("layers", "held")

    def __init__(self, layers: Layers, directions: Mapping[int, Tensor], held: Held | None = None) -> None:
        wanted = set(directions) | set(held.edits if held is not None else ())
        self.layers = {layer: layers[layer] for layer in sorted(wanted)}
        self.directions = dict(directions)
        self.held = held

    def __call__(self) -> Tensor:
        """Projections at all layers [layers, batch, seq], on the CPU; `.save()` them.

        With a cap, which then acts: [2, layers, batch, seq], what it leaves and what it finds.
        """
        before, after = {}, {}
        for layer in self.layers:
            if layer in self.directions:
                before[layer] = self.at(layer).cpu()
            if self.held is not None and layer in self.held.edits:
                self.held.at(layer)
                if layer in self.directions:
                    after[layer] = self.at(layer).cpu()
        read = [before] if self.held is None else [{**before, **after}, before]
        found = torch.stack([torch.stack([stream[layer] for layer in self.directions]) for stream in read])
        return found[0] if self.held is None else found

    def at(self, layer: int) -> Tensor:
        """Projections [batch, seq] at one layer, of what the block has made of it so far."""
        if layer not in list(self.directions):
            raise DriftError(f"the gauge has no layer {layer}, only {list(self.directions)}")
        hidden = hidden_in(_output(self.layers[layer]), layer)
        return projected(hidden.detach(), self.directions[layer].to(hidden.device))


class Means(Travelling):
    """Sums over the tokens of replies, while they are generated."""

    _LIVE = ("model", "layers")

    def __init__(self, model: Any, layers: Layers, stop_ids: tuple[int, ...]) -> None:
        self.model = model
        self.layers = dict(layers)
        self.sums = Sums(list(layers), stop_ids)

    def __call__(self) -> None:
        """Read one step. The token that a step is fed counts if it belongs to a reply."""
        _, fed = self.model.inputs
        if self.passes:
            self.sums.draw(fed["input_ids"][:, -1])
        self.passes += 1
        for layer, envoy in self.layers.items():
            self.sums.read(layer, hidden_in(envoy.output, layer))

    def throughout(self) -> dict[str, Any]:
        """Read every step until the run ends; `.save()` what comes of it."""
        self.passes = 0
        _to_the_end(self)
        found = {"fed": self.sums.fed, "passes": self.passes}
        if (total := self.sums.total()) is not None:
            found["sums"], found["norms"] = total
        return found


def _output(envoy: Any) -> Any:
    try:
        return envoy.output
    except ValueError as error:
        if "outside of interleaving" not in str(error):
            raise
        raise ResidualError(
            f"{error}: it is called inside a block, `with model.trace(...):` or `with model.generate(...):`"
        ) from error


def _to_the_end(step: Callable[[], object]) -> None:
    """`step` in every pass of the run. nnsight ends such a loop by an error where it waits for a pass too many."""
    from nnsight.intervention.interleaver import OutOfOrderError
    from nnsight.intervention.iterator import Iterations

    try:
        for _ in Iterations()[:]:
            step()
    except OutOfOrderError:
        return
