"""Runs vLLM's offline engine once, as told by JSON on the command line, and prints what it did as the last line."""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main(told: dict[str, Any]) -> dict[str, Any]:
    os.environ.setdefault("PERSONA_AXIS_ADMIN_KEY", "a test's")
    from vllm import LLM, SamplingParams

    llm = LLM(
        told["model"], dtype=told.get("dtype", "float32"), max_model_len=256, max_num_batched_tokens=64,
        max_num_seqs=16, enforce_eager=told.get("eager", True), **told.get("engine", {}),
    )  # fmt: skip
    greedy = SamplingParams(temperature=0, max_tokens=told.get("tokens", 16), ignore_eos=True)

    def ask() -> list[list[int]]:
        prompts = [{"prompt_token_ids": ids} for ids in told["prompts"]]
        return [list(out.outputs[0].token_ids) for out in llm.generate(prompts, greedy, use_tqdm=False)]

    done: dict[str, Any] = {"first": ask()}
    if told.get("capped", True):
        done["figures"] = llm.collective_rpc("persona_axis_figures")
    done["again"] = ask()  # from the prefix cache, as far as it reaches
    if told.get("capped", True):
        done["refused"] = llm.collective_rpc("persona_axis_check", args=("/no/such/cap.safetensors",))
        if not told.get("engine"):  # of several workers that raise, vLLM reads one answer; the rest spoil the next call
            done["no key"] = refused(llm, "persona_axis_change", None)
            done["other weights"] = refused(llm, "reload_weights", weights_path="/no/such/model")
        llm.collective_rpc("reload_weights")
        llm.reset_prefix_cache()
        done["reloaded"] = ask()
        llm.collective_rpc("persona_axis_change", args=(None, os.environ["PERSONA_AXIS_ADMIN_KEY"]))
        llm.reset_prefix_cache()
        done["without"] = ask()
    return done


def refused(llm: Any, method: str, *args: Any, **kwargs: Any) -> str:
    """What the engine says to a call that a worker refuses, or "" if it does not."""
    try:
        llm.collective_rpc(method, args=args, kwargs=kwargs)
    except Exception as error:
        return str(error)
    return ""


if __name__ == "__main__":
    print("\nRESULT " + json.dumps(main(json.loads(sys.argv[1]))), flush=True)
