"""Troupe, the model organism that ships with the package: its world, its training, its parser.

A small chat model whose persona can be read off its replies by a parser, so that the axis, the cap and the drift
can be measured for real on a machine without a GPU or a model hub. See docs/troupe.md.
"""

from __future__ import annotations

from pathlib import Path

TROUPE_VERSION = "3"


def troupe_path(stage: str = "chat") -> Path:
    """Directory of a shipped Troupe checkpoint in Hugging Face format; `stage` is "chat" or "base"."""
    if stage not in ("chat", "base"):
        raise ValueError(f"Troupe has the stages 'chat' and 'base', not {stage!r}")
    return Path(__file__).parent / "weights" / stage
