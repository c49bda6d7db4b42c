"""Loading a model and its tokenizer from a directory or a hub, with one clear sentence for each way it can
fail."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from persona_axis.errors import ModelError

_DECODER_CLASSES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_OTHER_CLASSES = (
    "ForMaskedLM",
    "ForPreTraining",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
)
FAILURES = (OSError, ValueError, KeyError, RuntimeError, SafetensorError, ImportError, TypeError, AttributeError)


class Loaded(NamedTuple):
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load(
    name: str, *, tokenizer: Any, revision: str | None, dtype: str | torch.dtype, device_map: Any
) -> Loaded:
    """Load a causal language model and its tokenizer; every failure is a `ModelError` of one sentence."""
    load_config(name, revision)
    # Asked for before the weights: without a tokenizer, gigabytes would be read for nothing.
    tokens = load_tokenizer(name, revision) if tokenizer is None else tokenizer
    options = {"revision": revision, "dtype": dtype, "output_loading_info": True}
    if device_map is not None:
        options["device_map"] = device_map
    with _quiet():
        model, info = _attempt(
            f"cannot load the weights of {name!r}", AutoModelForCausalLM.from_pretrained, name, **options
        )
    if missing := sorted(info["missing_keys"]):
        # transformers fills what is missing with random numbers and goes on.
        raise ModelError(
            f"{name!r} is incomplete: {len(missing)} weights are missing ({missing[0]}, ...); "
            "was the download cut short?"
        )
    if device_map is None and torch.cuda.is_available():
        model = model.to("cuda")
    return Loaded(model.eval(), tokens)


def load_config(name: str, revision: str | None = None) -> PretrainedConfig:
    """The configuration of a model that has this stream; another kind of model is a `ModelError`."""
    check_directory(name)
    config: PretrainedConfig = _attempt(
        f"cannot read the configuration of {name!r}", AutoConfig.from_pretrained, name, revision=revision
    )
    _check_kind(name, config)
    return config


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside a model."""
    loaded: PreTrainedTokenizerBase = _attempt(
        f"cannot load the tokenizer of {name!r}", AutoTokenizer.from_pretrained, name, revision=revision
    )
    return loaded


def check_directory(name: str) -> None:
    """Raises `ModelError` for what is meant as a model's directory and is none."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{name!r} holds no config.json: it is not a model, or only half of one was downloaded"
            )
    elif path.exists():
        raise ModelError(f"{name!r} is a file: name the directory of the model")
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"no such model directory: {name!r}")


def _check_kind(name: str, config: Any) -> None:
    classes = tuple(getattr(config, "architectures", None) or ())
    decoder = any(c.endswith(_DECODER_CLASSES) for c in classes)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{name!r} is an encoder-decoder model ({config.model_type}): "
            "only decoder-only models have this stream"
        )
    masked = any(c.endswith(_OTHER_CLASSES) for c in classes) or getattr(config, "is_decoder", True) is False
    if not decoder and masked:
        raise ModelError(
            f"{name!r} is not a decoder-only language model ({', '.join(classes) or config.model_type})"
        )


def _attempt(what: str, load: Any, name: str, **options: Any) -> Any:
    try:
        return load(str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name, **options)
    except FAILURES as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ModelError(f"{what}: {reason}") from error


class _quiet:
    """Keep transformers' table of missing weights out of the terminal: it is turned into an error."""

    def __enter__(self) -> None:
        self.logger = logging.getLogger("transformers")
        self.level = self.logger.level
        self.logger.setLevel(logging.ERROR)

    def __exit__(self, *exc: object) -> None:
        self.logger.setLevel(self.level)
