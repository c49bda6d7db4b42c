"""What makes two runs the same run: everything that shapes the result, as JSON, to be kept and compared."""

from __future__ import annotations

import json
import platform
from importlib.metadata import packages_distributions, version
from typing import Any

import torch

from persona_axis.chat import ChatModel
from persona_axis.extraction.givenplan import GivenPlan
from persona_axis.extraction.plan import Plan
from persona_axis.judges import Judge
from persona_axis.template import TEMPLATE_DATE

FORMAT = "persona-axis-run/1"
_DECIDING = ("architecture", "hidden_size", "num_layers", "dtype", "weights_sha256", "chat_template_sha256")


def settings(chat: ChatModel, plan: Plan, judge: Judge, engine: str) -> dict[str, Any]:
    """What a run must share with the one it goes on from.

    The model's name and path are not among it, nor what is decided after the last rollout is drawn (how many
    accepted ones a role needs, how many are read for calibration): that may change without drawing anything
    again.
    """
    options = plan.options
    found = {
        "format": FORMAT,
        "model": deciding_facts(chat),
        "layers": list(plan.layers),
        "probes": plan.probes.fingerprint,
        "defaults": list(plan.defaults),
        "judge": judge.name,
        "engine": engine,
        "sampling": sampling_facts(chat, plan),
        "seed": options.seed,
        "roles": len(plan.roles),
        "prompts": plan.prompts,
        "questions": len(plan.questions),
        "default_samples": options.default_samples,
        "accept": list(options.accept),
        "batch_size": options.batch_size,
        "device": chat.device.type,
    }
    as_stored: dict[str, Any] = json.loads(json.dumps(found))
    return as_stored


def deciding_facts(chat: ChatModel) -> dict[str, Any]:
    """What makes two models the same model."""
    return {key: chat.facts[key] for key in _DECIDING}


def sampling_facts(chat: ChatModel, plan: Plan) -> dict[str, Any]:
    """The effective sampling, and what was pinned in the template; of given rollouts, what is known of it."""
    pinned: dict[str, Any] = {"template_date": TEMPLATE_DATE.date().isoformat(), **chat.template.variables}
    if isinstance(plan, GivenPlan):
        return {**plan.stated, "template": pinned}
    return {
        **plan.options.sampling.describe(chat.stop_ids, chat.pad_id),
        "thinking": False,
        "template": pinned,
    }


def surroundings(engine: str) -> dict[str, Any]:
    """What may change the last bits of a result without being a setting."""
    packages = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
    if engine == "vllm":  # whose builds for other machines have names of their own
        packages["vllm"] = version(packages_distributions()["vllm"][0])
    return {**packages, "python": platform.python_version(), "threads": torch.get_num_threads()}
