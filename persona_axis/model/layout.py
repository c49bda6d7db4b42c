"""Where a decoder-only model keeps its layers, found from its structure and never from its name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

from persona_axis._asked import shown
from persona_axis.errors import ResidualError

_NAME_IT = "name the list: --stack model.layers, in Python layers='model.layers' (stack= of Cap.on and its like)"


class Stack(NamedTuple):
    """The decoder layers of one model and where they live."""

    path: str
    """Dotted name of the list inside the model, e.g. `model.layers`."""
    layers: list[nn.Module]
    """The layers in the order they run; index = the layer's number."""


def find_stack(model: nn.Module, layers: str | None = None) -> Stack:
    """The list of decoder layers of `model`, with its path.

    A list counts when its items hold parameters, it lies in no other such list, its length is the number of
    layers the config gives (where there is a config, and more than one list), and its attention is not told to
    look ahead (unless the config says decoder). Of several, the one nearest to the token embeddings is meant: a
    vision tower lies further off. Wrappers are looked through. `layers` names the list instead
    (`"model.layers"`) and is trusted. Raises `ResidualError` for an encoder, an encoder-decoder, and a structure
    that shows none or several such lists: the text says what was seen.
    """
    _require_module(model)
    if layers is not None:
        return _named(model, layers)
    inner = unwrapped(model)
    config = text_config(model)
    if any(getattr(told, "is_encoder_decoder", False) for told in (getattr(inner, "config", None), config)):
        raise ResidualError(f"{_kind(inner)} is an encoder-decoder: this package reads decoder-only models")
    seen = list(_outermost_lists(model))
    count = getattr(config, "num_hidden_layers", None)
    # Some configs count parts of layers: a list that is the only one needs no counting.
    fitting = [s for s in seen if count is None or len(s.layers) == count] or (seen if len(seen) == 1 else [])
    decoder = getattr(config, "is_decoder", False) is True
    causal = [s for s in fitting if decoder or not _looks_ahead(s.layers)]
    nearest = _nearest(causal, _embeddings_path(model)) if len(causal) > 1 else causal
    if len(nearest) == 1:
        return nearest[0]
    if fitting and not causal:
        raise ResidualError(
            f"{_kind(inner)} looks ahead: the attention of {_told(fitting)} is not causal, as an encoder's, and what "
            f"is read there is no stream of generated tokens. If one of them decodes all the same, {_NAME_IT}"
        )
    wanted = "a list of decoder layers" if count is None else f"one list of {count} decoder layers"
    raise ResidualError(
        f"cannot tell where {_kind(inner)} keeps its residual stream: looked for {wanted}, saw "
        f"{_told(nearest or seen) or 'no list of layers'}; {_NAME_IT}"
    )


def decoder_layers(model: nn.Module, layers: str | None = None) -> list[nn.Module]:
    """The decoder layers of `model` in running order; `layers` names the list where structure is not enough.

    Raises `ResidualError` when there is no telling, or the model is an encoder.
    """
    return find_stack(model, layers).layers


def hidden_size(model: nn.Module) -> int:
    """Width of the residual stream: the text config's `hidden_size`, else the input embedding's width."""
    _require_module(model)
    size = getattr(text_config(model), "hidden_size", None)
    if isinstance(size, int):
        return size
    embed = _embeddings(model)
    if isinstance(embed, nn.Embedding):
        return embed.embedding_dim
    raise ResidualError(f"cannot tell the hidden size of {_kind(model)}: no config and no input embedding")


def text_config(model: nn.Module) -> Any:
    """The config of the part that generates text (a multimodal model has several), or None."""
    config = getattr(unwrapped(model), "config", None)
    text = getattr(config, "get_text_config", None)
    return config if text is None else text(decoder=True)


def unwrapped(model: nn.Module) -> nn.Module:
    """`model` without the wrappers around it: modules with no config of their own and one child that leads to one."""
    inner = model
    while getattr(inner, "config", None) is None:
        children = list(inner.children())
        if len(children) != 1:
            return model
        inner = children[0]
    return inner


def owners(model: nn.Module, path: str) -> list[nn.Module]:
    """`model` and every module on the way down to the list at `path`, outermost first."""
    parts = path.split(".")[:-1]
    return [model, *(model.get_submodule(".".join(parts[: i + 1])) for i in range(len(parts)))]


def _require_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ResidualError(
            f"model: expected a torch module, got {shown(model)} (of a ChatModel pass its .model; for nnsight and "
            "TransformerLens there is persona_axis.substrates)"
        )


def _named(model: nn.Module, path: str) -> Stack:
    if not isinstance(path, str):
        raise ResidualError(f"{path!r:.60} does not name the list of decoder layers: expected a text; {_NAME_IT}")
    try:
        found = model.get_submodule(path)
    except AttributeError as error:
        seen = _told(list(_outermost_lists(model))) or "no list of layers"
        raise ResidualError(f"{_kind(model)} has no list of layers at {path!r}: {error}; it has {seen}") from None
    if not isinstance(found, nn.ModuleList | nn.Sequential) or len(found) == 0:
        raise ResidualError(f"{path!r} of {_kind(model)} is a {_kind(found)}, not a list of layers")
    return Stack(path, list(found))


def _outermost_lists(model: nn.Module) -> Iterator[Stack]:
    inside: list[str] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(path.startswith(outer) for outer in inside):
            continue
        if len(module) and all(any(True for _ in item.parameters()) for item in module):
            inside.append(f"{path}.")
            yield Stack(path, list(module))


def _embeddings(model: nn.Module) -> nn.Module | None:
    try:
        found = unwrapped(model).get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):  # not every model has the method, nor every one that has it an answer
        return None
    return found if isinstance(found, nn.Module) else None


def _embeddings_path(model: nn.Module) -> list[str]:
    embed = _embeddings(model)
    return next((path.split(".") for path, module in model.named_modules() if module is embed), [])


def _nearest(stacks: list[Stack], to: list[str]) -> list[Stack]:
    """Those of `stacks` that share the longest way down with the module at `to`, and of them the least deep."""

    def place(stack: Stack) -> tuple[int, int]:
        parts = stack.path.split(".")
        shared = next((i for i, (a, b) in enumerate(zip(parts, to, strict=False)) if a != b), min(len(parts), len(to)))
        return -shared, len(parts)

    best = min(place(stack) for stack in stacks)
    return [stack for stack in stacks if to and place(stack) == best] or stacks


def _looks_ahead(layers: list[nn.Module]) -> bool:
    flags = [m.is_causal for layer in layers for m in layer.modules() if hasattr(m, "is_causal")]
    return bool(flags) and not any(flags)


def _told(stacks: list[Stack]) -> str:
    return ", ".join(f"{s.path} ({len(s.layers)} x {_kind(s.layers[0])})" for s in stacks)


def _kind(module: nn.Module) -> str:
    return type(module).__name__
