"""A model's facts from its configuration alone, where loading the weights of a large one would be a waste."""

from __future__ import annotations

from typing import Any

from persona_axis.errors import VectorsError
from persona_axis.model.loading import load_config
from persona_axis.organism import troupe_path
from persona_axis.vectors.found import Settled

LOADED = Settled("loaded", "said", "said with --model; its shape was compared with the loaded model, not its weights")
CONFIGURED = Settled(
    "configuration", "said",
    "said with --model; its shape was compared with the configuration alone, and no layers were located",
)  # fmt: skip


def config_facts(name: str, revision: str | None = None) -> dict[str, Any]:
    """`model`, `revision`, `architecture`, `hidden_size` and `num_layers` of the model at `name`.

    No fingerprint of the weights and no chat template: a file with these facts fits any model of the same shape.
    Raises `ModelError` for a model that cannot be read, `VectorsError` for a configuration that does not tell.
    """
    path = str(troupe_path()) if name == "troupe" else name
    config = load_config(path, revision)
    text = config.get_text_config(decoder=True)
    facts: dict[str, Any] = {
        "model": name,
        "revision": revision or getattr(config, "_commit_hash", None),
        "architecture": str(text.model_type),
        "hidden_size": getattr(text, "hidden_size", None),
        # A Bart-like decoder's configuration is one of both stacks, whose num_hidden_layers are the encoder's.
        "num_layers": getattr(text, "decoder_layers", getattr(text, "num_hidden_layers", None)),
    }
    for key in ("hidden_size", "num_layers"):
        if type(facts[key]) is not int or facts[key] <= 0:
            raise VectorsError(f"{name}: its configuration states no {key}: import without --config-only")
    return facts


