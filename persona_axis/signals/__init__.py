"""Scores of conversations, all of one shape: see `Signal`. No single one stands for consistency."""

from __future__ import annotations

from persona_axis.signals.asked import fact_consistency
from persona_axis.signals.counted import distinct, parroting, self_overlap
from persona_axis.signals.judged import adherence, answers, contradiction, self_consistency
from persona_axis.signals.measured import capability, projection, relevance
from persona_axis.signals.table import COLUMNS, Row, Signal, signal, summary, together

__all__ = [
    "COLUMNS", "Row", "Signal", "adherence", "answers", "capability", "contradiction", "distinct", "fact_consistency",
    "parroting", "projection", "relevance", "self_consistency", "self_overlap", "signal", "summary", "together",
]  # fmt: skip
