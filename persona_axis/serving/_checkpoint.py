"""Whether a cap was made for the checkpoint that an engine serves, told from its files.

An engine fuses, shards and quantises what it loads, so its own weights cannot be compared. The model is built here
without weights, and only those that the fingerprint samples are read from the files.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from persona_axis.cap import Cap
from persona_axis.errors import CapMismatchError, ModelError
from persona_axis.fingerprint import require_facts, template_sha256, weights_fingerprint
from persona_axis.model.layout import find_stack, hidden_size, text_config

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


class Checkpoint(NamedTuple):
    """What a checkpoint is, read once: an engine may change transformers' classes when it loads its own model."""

    name: str
    facts: dict[str, Any]
    """Those that a cap states of its model, but the weights where they cannot be compared."""
    problem: str
    """Why the weights cannot be compared, or ""."""
    folder: Path
    hull: nn.Module
    """The model without weights."""

    @classmethod
    def read(cls, name: str, revision: str | None = None) -> Checkpoint:
        """The checkpoint at a local path or in the hub's cache. Raises `ModelError` where there is none to be read."""
        folder = _folder(name, revision)
        model, tokenizer = _without_weights(folder)
        facts: dict[str, Any] = {
            "architecture": text_config(model).model_type, "hidden_size": hidden_size(model),
            "num_layers": len(find_stack(model).layers), "chat_template_sha256": template_sha256(tokenizer),
        }  # fmt: skip
        return cls(name, facts, "", folder, model).again()

    def again(self) -> Checkpoint:
        """The checkpoint with what its files hold now. The hull is kept for this: the engine's own model may have
        changed transformers' class so that another cannot be made beside it."""
        model = copy.deepcopy(self.hull)
        try:
            _bring(model, self.folder)
        except ModelError as error:
            known = {name: fact for name, fact in self.facts.items() if name != "weights_sha256"}
            return self._replace(facts=known, problem=str(error))
        return self._replace(facts=self.facts | {"weights_sha256": weights_fingerprint(model)}, problem="")

    def require(self, cap: Cap, allow: Collection[str] = ()) -> None:
        """Raise `AxisMismatchError` unless this is the checkpoint that `cap` was made for; a hand-made cap states
        nothing, and only its width is compared.

        `allow` names deliberate differences, as in `Cap.on`. Raises `ModelError` where the weights cannot be compared.
        """
        width, own = cap.direction.shape[1], self.facts["hidden_size"]
        if width != own:
            raise CapMismatchError(f"the cap's direction has width {width}, the residual stream of {self.name} {own}")
        if cap.facts.get("weights_sha256") is not None and self.problem and "weights" not in allow:
            raise ModelError(self.problem)
        require_facts(cap.facts, self.facts, self.name, allow)


def _folder(name: str, revision: str | None) -> Path:
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError) as error:
        raise ModelError(f"{name}: neither a folder nor in the hub's local cache, so no cap can be compared") from error


def _without_weights(folder: Path) -> tuple[nn.Module, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        return model, AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{folder}: transformers cannot build this model, so no cap can be compared: {error}"
        ) from error


def _bring(model: nn.Module, folder: Path) -> None:
    """Read the tensors that the fingerprint samples into `model`."""
    stack = find_stack(model)
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    chosen = {id(stack.layers[i]) for i in (0, len(stack.layers) // 2, len(stack.layers) - 1)} | {id(embedding)}
    wanted = [
        f"{path}.{name}"
        for path, module in model.named_modules()
        if id(module) in chosen
        for name, _ in module.named_parameters()
    ]
    held = dict(_tensors(folder, wanted, getattr(model, "base_model_prefix", "")))
    missing = sorted(set(wanted) - set(held))
    if missing:
        raise ModelError(
            f"{folder}: the weights of this checkpoint cannot be compared with the cap's: its files hold nothing named "
            f"{missing[0]} ({len(missing)} missing); a cap that is known to fit is served with 'weights' allowed"
        )
    model.load_state_dict(held, strict=False, assign=True)


def _tensors(folder: Path, wanted: list[str], prefix: str) -> Iterator[tuple[str, Tensor]]:
    files = _files(folder)
    for name in wanted:
        # A checkpoint of the bare decoder leaves its prefix out; one made of a larger model may have one more.
        spellings = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
        found = next((spelling for spelling in spellings if spelling in files), None)
        if found is not None:
            with safe_open(folder / files[found], "pt") as file:
                yield name, file.get_tensor(found)


def _files(folder: Path) -> Mapping[str, str]:
    """The file that holds each tensor of a checkpoint."""
    if (folder / _INDEX).is_file():
        index: dict[str, str] = json.loads((folder / _INDEX).read_text("utf-8"))["weight_map"]
        return index
    if not (folder / _SINGLE).is_file():
        raise ModelError(f"{folder}: no {_SINGLE} and no {_INDEX}: only safetensors can be compared with a cap")
    with safe_open(folder / _SINGLE, "pt") as file:
        return dict.fromkeys(file.keys(), _SINGLE)
