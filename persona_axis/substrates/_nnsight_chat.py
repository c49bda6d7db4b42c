"""A chat model that is run by nnsight: every pass is one of its traces, here or on a server.

`_nnsight_readings` says what `drift` and `extraction` read of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from transformers import LogitsProcessorList

from persona_axis._asked import require, shown, whole
from persona_axis.cap import Cap
from persona_axis.chat import ChatModel
from persona_axis.edits.acting import place_of
from persona_axis.errors import AxisMismatchError, CapError, CapMismatchError, ModelError
from persona_axis.fingerprint import fingerprint_of, require_same
from persona_axis.model.layout import find_stack, hidden_size, text_config
from persona_axis.organism import troupe_path
from persona_axis.sampling import Sampling, set_aside
from persona_axis.substrates._nnsight_inside import Gauge, Held, Layers, Means
from persona_axis.substrates._nnsight_travel import Packed

INSTALL = "this needs nnsight 0.8 or later: pip install 'persona-axis[nnsight]'"

# What a server's generation_config may hold that shapes a draw; ours is set aside instead (`sampling.set_aside`).
_NEUTRAL = {"min_new_tokens": 0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0}


class NNsightChat(ChatModel):
    """A nnsight `TransformersModel` as this package talks to models; made by `persona_axis.substrates.nnsight.chat`."""

    def __init__(self, sight: Any, *, remote: Any = False, layers: str | None = None) -> None:
        self.sight = checked(sight)
        self.remote = remote
        self.where = _where(remote)
        self.away = remote not in (False, "local")
        if not self.away:
            sight.dispatch()
        if sight.tokenizer is None:
            raise ModelError("the nnsight model has no tokenizer: pass tokenizer=... when you make it")
        named = str(sight.repo_id or type(sight._module).__name__)
        is_troupe = named == str(troupe_path())
        super().__init__(
            sight._module, sight.tokenizer, name="troupe" if is_troupe else named, revision=sight.revision,
            layers=layers, is_troupe=is_troupe, weights_sha256=self._fingerprint(layers) if self.away else None,
        )  # fmt: skip

    @property
    def device(self) -> torch.device:
        """Where token ids are made: nnsight brings them to where the model is."""
        return torch.device("cpu")

    def allowed(self, stated: Mapping[str, Any], allow: Collection[str]) -> Collection[str]:
        """`allow`, with the weights added where they are on the server and were compared there."""
        if not self.away or "weights" in allow:
            return allow
        if stated.get("weights_sha256") not in (None, self.facts["weights_sha256"]):
            raise AxisMismatchError(
                f"made for another model: the weights on the server have the fingerprint "
                f"{self.facts['weights_sha256'][:12]}..., the file states {stated['weights_sha256'][:12]}... (made for "
                f"{stated.get('model')}); a deliberate difference is passed as allow=('weights',)"
            )
        return (*allow, "weights")

    def generate_ids(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seed: int,
        *,
        watch: Any = None,
        extra_tokens: int = 0,
        memory: Any = None,
        processors: Any = None,
        end_loops: bool = False,
    ) -> list[list[int]]:
        """As `ChatModel.generate_ids`, without its `watch`, `memory` and `processors`; a loop is not ended early."""
        if watch is not None or memory is not None:
            raise ModelError("a model run by nnsight keeps no conversation in memory: ask a ChatModel instead")
        if processors is not None:
            raise ModelError("a model run by nnsight chooses its tokens by the sampling alone: ask a ChatModel instead")
        return self.drawn(prompts, sampling, seed, None, extra_tokens)[0]

    def drawn(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seed: int,
        inside: Held | Means | None,
        extra_tokens: int = 0,
    ) -> tuple[list[list[int]], Any, int]:
        """Replies to encoded prompts, what `inside` found, and how many passes the generation took."""
        require("sampling", sampling, Sampling)
        batch = self.pad_left(prompts)
        asked = {"input_ids": batch.ids, "attention_mask": batch.mask}
        config = sampling.config(self.stop_ids, self.pad_id, extra_tokens)
        for name, value in (_NEUTRAL if self.away else {}).items():
            setattr(config, name, value)
        processors = LogitsProcessorList([Packed(p) for p in sampling.processors(whole("seed", seed))])
        how = {"generation_config": config, "logits_processor": processors, **self.where}
        model = self.sight
        found = None
        from nnsight import save

        with torch.inference_mode(not self.away), nullcontext() if self.away else set_aside(self.model):
            if inside is None:
                with model.generate(asked, **how) as tracer:
                    ids = save(tracer.result)
            else:
                with model.generate(**how) as tracer:
                    with tracer.invoke(asked):
                        found = save(inside.throughout())
                    with tracer.invoke():
                        ids = save(tracer.result)
        new = ids[:, batch.ids.shape[1] :].cpu()
        return self.replies_in(new, sampling), found, new.shape[1]

    def read(self, gauge: Gauge, sequences: Sequence[Sequence[int]]) -> Any:
        """The tensor that `gauge` gives of one pass over the sequences, padded on the right."""
        batch = self.pad_right(sequences)
        asked = {"input_ids": batch.ids, "attention_mask": batch.mask}
        model = self.sight
        from nnsight import save

        with torch.inference_mode(not self.away), model.trace(asked, use_cache=False, **self.where) as tracer:
            found = save(gauge())
            tracer.stop()  # the head is not needed
        return found

    def _fingerprint(self, stack: str | None) -> str:
        model, fingerprint = self.sight, Packed(fingerprint_of)
        config, layers = text_config(model._module), list(envoys(model, stack).values())
        from nnsight import save

        with model.trace(torch.zeros(1, 1, dtype=torch.int64), **self.where) as tracer:
            parts = [layer._module for layer in layers]
            digest = save(fingerprint(config, model._module.get_input_embeddings(), parts))
            tracer.stop()
        return str(digest)


def checked(sight: Any) -> Any:
    """`sight`, if it is nnsight's; raises `ModelError` in one sentence otherwise."""
    try:
        from nnsight import TransformersModel
    except ImportError as error:
        raise ModelError(INSTALL) from error
    if not isinstance(sight, TransformersModel):
        raise ModelError(f"expected nnsight's TransformersModel, got {shown(sight)}")
    return sight


def envoys(sight: Any, stack: str | None = None) -> Layers:
    """nnsight's name for each decoder layer, found as `persona_axis.residual.decoder_layers` finds the layer."""
    found = find_stack(checked(sight)._module, stack)
    listed = sight.get(found.path)
    return {layer: listed[layer] for layer in range(len(found.layers))}


def require_here(
    stated: Mapping[str, Any], asked: Any, allow: Collection[str], stack: str | None
) -> tuple[Any, Layers]:
    """The nnsight model and its layers' envoys, if it is the model that `stated` tells of.

    `asked` is a `TransformersModel` or a `NNsightChat`, which knows about weights that are elsewhere. Raises
    `AxisMismatchError`.
    """
    if isinstance(asked, NNsightChat):
        sight, template, allow = asked.sight, asked.template.source, asked.allowed(stated, allow)
        stack = asked.layers if stack is None else stack
    else:
        sight = checked(asked)
        template = sight.tokenizer
    try:
        require_same(stated, sight._module, template, allow, stack)
    except ModelError as error:
        raise AxisMismatchError(
            "cannot tell whether this was made for this model, whose weights are not here: load them "
            "(model.dispatch()), pass chat(model, remote=True), which asks the server for their fingerprint, or leave "
            "them out with allow=('weights',)"
        ) from error
    return sight, envoys(sight, stack)


def held(asked: Any, cap: Cap, allow: Collection[str], stack: str | None = None) -> Held:
    """A cap for one block, checked against the model as `Cap.on` checks it."""
    require("cap", cap, Cap)
    sight, layers = require_here(cap.facts, asked, allow, stack)
    model = sight._module
    if hidden_size(model) != cap.direction.shape[1]:
        width = f"the cap's direction has width {cap.direction.shape[1]}, the residual stream {hidden_size(model)}"
        raise CapMismatchError(width)
    if beyond := [layer for layer in cap.layers if layer not in layers]:
        raise CapError(f"layers {beyond} do not exist: the model has layers 0 to {len(layers) - 1}")
    edits = cap.edits({layer: place_of(layers[layer]._module) for layer in cap.layers})
    for edit in edits.values():
        edit.arm()
    return Held(layers, edits)


def _where(remote: Any) -> dict[str, Any]:
    """What a trace is told about where to run: False here, True or an address on a server, or a nnsight backend."""
    if not isinstance(remote, bool | str):
        if not callable(remote):
            raise ModelError(
                f"remote={shown(remote)}: expected True, False, 'local', an address or a backend of nnsight"
            )
        return {"backend": remote}
    if remote in (False, "local"):
        return {"remote": remote} if remote else {}
    from nnsight import CONFIG

    if not CONFIG.API.APIKEY:
        raise ModelError("remote=True needs a key of the NDIF service: set the environment variable NDIF_API_KEY")
    return {"remote": remote}
