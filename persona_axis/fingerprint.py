"""What a model is, in a form that a file can carry and a later load can compare.

Names, paths and revisions are told to people and never decide anything: a local copy of a model is that
model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypedDict

from persona_axis._asked import shown
from persona_axis.errors import ArgumentError, AxisMismatchError, ModelError

if TYPE_CHECKING:  # `show` compares nothing and must not pay for torch
    from torch import Tensor, nn

_SAMPLES = 64  # values taken of each tensor
_EMBEDDING_ROWS = 256  # of the embedding's first rows only: later tokens may be added to a vocabulary

_SHAPE_KEYS = ("num_attention_heads", "num_key_value_heads", "num_experts_per_tok", "rms_norm_eps")

EXCEPTIONS = ("architecture", "num_layers", "chat_template", "weights")
"""What a caller may deliberately let differ. The hidden size is not among them: nothing would fit."""

LET_DIFFER = "a deliberate difference is passed as allow=(...), --allow on the command line"

_COMPARED = {  # what `allow` calls it, the key in a file's metadata, what an error calls it
    "architecture": ("architecture", "architecture"),
    "hidden_size": ("hidden_size", "hidden size"),
    "num_layers": ("num_layers", "number of layers"),
    "chat_template": ("chat_template_sha256", "chat template"),
    "weights": ("weights_sha256", "weights fingerprint"),
}


class ModelFacts(TypedDict):
    """What `model_facts` tells; the last four decide whether a file fits."""

    model: str
    revision: str | None
    dtype: str
    architecture: str
    hidden_size: int
    num_layers: int
    weights_sha256: str


def model_facts(model: nn.Module, stack: str | None = None, weights_sha256: str | None = None) -> ModelFacts:
    """The facts of `model` that an axis file states; `stack` names the layer list where structure cannot.

    `weights_sha256` is the weights' fingerprint if it is known, as where the weights themselves are elsewhere.
    `architecture` is the `model_type` of the part that generates text (the same with and without a head or a
    vision tower). Raises `ResidualError` for a model whose layers cannot be found.
    """
    from persona_axis.model.layout import find_stack, hidden_size, text_config

    config = text_config(model)
    top = getattr(model, "config", None)
    layers = find_stack(model, stack).layers
    return ModelFacts(
        model=str(getattr(top, "_name_or_path", "") or type(model).__name__),
        revision=getattr(top, "_commit_hash", None),
        dtype=str(next(layers[0].parameters()).dtype).removeprefix("torch."),
        architecture=str(getattr(config, "model_type", None) or type(model).__name__),
        hidden_size=hidden_size(model),
        num_layers=len(layers),
        weights_sha256=weights_sha256 or weights_fingerprint(model, stack),
    )


def weights_fingerprint(model: nn.Module, stack: str | None = None) -> str:
    """sha256 over the shapes and sampled values of the embedding and the first, middle and last layer.

    Values are rounded to bfloat16 first, so the same checkpoint has one fingerprint in float32 and in
    bfloat16, on any device, before and after saving, under any wrapper that keeps the layers' own parameter
    names, and inside a TransformerLens bridge. Tokens added to the vocabulary do not change it; other weights at these
    places, a quantised copy, and an adapter (PEFT's) at any layer or before the first token do. Weights changed at
    another layer only, or behind the last one, are not seen. A float16 copy may differ (values below 6e-5 lose bits
    there). Raises `ModelError` for weights that cannot be read.
    """
    from persona_axis.model.layout import find_stack, text_config

    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    found = fingerprint_of(text_config(model), embedding, find_stack(model, stack).layers)
    prompt = getattr(model, "prompt_encoder", None)  # PEFT's, of prompts and prefixes that are learned
    if prompt is None:
        return found
    return hashlib.sha256(found.encode() + _told(sorted(_own_parameters(prompt).values()))).hexdigest()


def fingerprint_of(config: Any, embedding: Any, layers: Sequence[nn.Module]) -> str:
    """`weights_fingerprint` of the parts; needs nothing else of this package, so that it can be sent to the weights."""
    digest = hashlib.sha256()
    digest.update(json.dumps({key: getattr(config, key, None) for key in _SHAPE_KEYS}).encode())
    if embedding is not None:
        with _present(embedding):
            rows = embedding.weight[:_EMBEDDING_ROWS]
            digest.update(f"embedding {list(embedding.weight.shape[1:])}".encode() + _sampled([rows]))
    for index in sorted({0, len(layers) // 2, len(layers) - 1}):
        with _present(layers[index]):
            digest.update(f"{index} ".encode() + _told(sorted(_own_parameters(layers[index]).values())))
    for index, layer in enumerate(layers):
        with ExitStack() as present:
            for part in (adapters := _adapters(layer)):
                present.enter_context(_present(part))
            for part in adapters:
                added = {name: p for name, p in _own_parameters(part).values() if not name.startswith("base_layer.")}
                digest.update(f"adapter {index} ".encode() + _told(sorted(added.items())))
    return digest.hexdigest()


def template_sha256(source: Any) -> str | None:
    """sha256 of a chat template: of a tokenizer's (anything with `.chat_template`) or of the text itself.

    None where there is no template. A tokenizer that holds several by name is hashed as all of them.
    """
    template = source if isinstance(source, str) else getattr(source, "chat_template", None)
    if template is None:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def require_same(
    stated: Mapping[str, Any],
    model: nn.Module,
    template: Any = None,
    allow: Collection[str] = (),
    stack: str | None = None,
) -> None:
    """Raise `AxisMismatchError` unless `model` (and its chat template) is what `stated` says.

    `stated` holds any of the keys of `ModelFacts` and `chat_template_sha256`; what it does not state is not
    checked, nor is the template when none is given. `allow` names the differences that are deliberate.
    """
    _check_allowed(allow)
    here: dict[str, Any] = dict(_facts_to_compare(stated, model, allow, stack))
    if template is not None:
        if not isinstance(template, str) and not hasattr(template, "chat_template"):
            raise ArgumentError(f"template: expected a tokenizer or a chat template's text, got {shown(template)}")
        here["chat_template_sha256"] = template_sha256(template)
    own_name = getattr(getattr(model, "config", None), "_name_or_path", None) or type(model).__name__
    require_facts(stated, here, own_name, allow)


def require_facts(
    stated: Mapping[str, Any], here: Mapping[str, Any], own_name: str, allow: Collection[str] = ()
) -> None:
    """Raise `AxisMismatchError` unless the facts `here`, of what is called `own_name`, are what `stated` says."""
    _check_allowed(allow)
    if differences := list(_differences(stated, here, allow)):
        raise AxisMismatchError(
            f"made for another model: {'; '.join(differences)} (made for {stated.get('model') or 'an unnamed model'}, "
            f"used on {own_name}); {LET_DIFFER}"
        )


def require_same_files(
    name: str, stated: Mapping[str, Any], other_name: str, other: Mapping[str, Any], allow: Collection[str] = ()
) -> None:
    """Raise `AxisMismatchError` unless two files state the same model, as far as both state it; `allow` as above."""
    _check_allowed(allow)
    if differences := list(_differences(stated, other, allow, "in the other")):
        raise AxisMismatchError(
            f"{name} and {other_name} are of different models: {'; '.join(differences)}; {LET_DIFFER}"
        )


def _check_allowed(allow: Collection[str]) -> None:
    if isinstance(allow, str) or not isinstance(allow, Collection) or any(name not in EXCEPTIONS for name in allow):
        raise AxisMismatchError(f"allow={allow!r}: expected a collection of {', '.join(EXCEPTIONS)}")


def _facts_to_compare(
    stated: Mapping[str, Any], model: nn.Module, allow: Collection[str], stack: str | None
) -> Iterator[tuple[str, Any]]:
    """The model's side of the comparison; the weights are read only when they can decide."""
    from persona_axis.model.layout import find_stack, hidden_size, text_config

    yield "hidden_size", hidden_size(model)
    yield "num_layers", len(find_stack(model, stack).layers)
    yield "architecture", getattr(text_config(model), "model_type", None) or type(model).__name__
    if stated.get("weights_sha256") is not None and "weights" not in allow:
        yield "weights_sha256", weights_fingerprint(model, stack)


def _differences(
    stated: Mapping[str, Any], here: Mapping[str, Any], allow: Collection[str], place: str = "here"
) -> Iterator[str]:
    for name, (key, said) in _COMPARED.items():
        if name in allow or key not in here or stated.get(key) is None or stated[key] == here[key]:
            continue
        yield f"{said} is {_short(stated[key])} in the file and {_short(here[key])} {place}"


def _own_parameters(module: nn.Module, prefix: str = "") -> dict[int, tuple[str, Tensor]]:
    """Each parameter by its identity, named as in the model itself: torch.compile and TransformerLens stand around
    modules, and the latter adds split copies of fused weights beside the module that it stands around."""
    for inside in ("_orig_mod", "_original_component"):
        if inside in module._modules:
            return _own_parameters(module.get_submodule(inside), prefix)
    own = module.named_parameters(recurse=False)
    found: dict[int, tuple[str, Tensor]] = {id(parameter): (prefix + name, parameter) for name, parameter in own}
    if "_packed_params" in module._modules:  # torch's dynamically quantised layers keep their weights in no parameter
        found[id(module)] = (f"{prefix}weight", module.weight().dequantize())  # type: ignore[operator]
    for name, child in module.named_children():
        found = _own_parameters(child, f"{prefix}{name}.") | found
    return found


def _adapters(layer: nn.Module) -> list[nn.Module]:
    """The modules of a layer that stand around one of the model's own and add to it, as PEFT's do."""
    return [module for module in layer.modules() if "base_layer" in module._modules]


def _told(named: Sequence[tuple[str, Tensor]]) -> bytes:
    """Names, shapes and sampled values."""
    shapes = str([(name, list(parameter.shape)) for name, parameter in named])
    return shapes.encode() + _sampled([parameter for _, parameter in named])


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else text


def _sampled(tensors: list[Tensor]) -> bytes:
    """Evenly spaced values of each tensor; bfloat16 bits of floats, int64 of packed integers."""
    import torch

    taken: list[Tensor] = []
    for tensor in tensors:
        if tensor.is_meta:
            raise ModelError("weights on the meta device cannot be read: load the model first")
        flat = _flat(tensor.detach())
        # Integer arithmetic, because a float linspace rounds differently from one device to another.
        count = min(_SAMPLES, flat.numel())
        at = torch.arange(count, device=flat.device) * flat.numel() // max(count, 1)
        values = flat[at]
        taken.append(values.to(torch.bfloat16).view(torch.int16) if values.is_floating_point() else values)
    return b"".join(values.to(device="cpu", dtype=torch.int64).numpy().tobytes() for values in taken)


def _flat(tensor: Tensor) -> Tensor:
    """The values in a row; of torchao's quantised tensors, which have no view of them, what they stand for."""
    try:
        return tensor.reshape(-1)
    except NotImplementedError:
        return tensor.dequantize().reshape(-1)


def _present(module: nn.Module) -> ExitStack:
    """Bring weights that accelerate keeps off their device (`device_map` offloading) into reach."""
    present = ExitStack()
    away = [part for part in module.modules() if any(p.is_meta for p in part.parameters(recurse=False))]
    if away:
        from accelerate.utils import align_module_device  # type: ignore[import-untyped]

        for part in away:
            present.enter_context(align_module_device(part))
    return present
