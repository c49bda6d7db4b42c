"""Prompts and replies told apart in a vLLM step, on schedules and runners that are shaped as vLLM's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from persona_axis.serving._vllm_kinds import Kinds


def step(
    new: dict[str, tuple[int, int, int]], cached: dict[str, tuple[int, int]], gone: Any = (), again: Any = ()
) -> Any:
    """New requests as (prompt, computed, now), known ones as (computed, now); who is gone, who was put off before."""
    known: dict[str, Any] = {"req_ids": list(cached), "num_computed_tokens": [done for done, _ in cached.values()]}
    known["resumed_req_ids"] = set(again)
    return SimpleNamespace(
        finished_req_ids=set(gone),
        scheduled_new_reqs=[
            SimpleNamespace(req_id=name, prompt_token_ids=[0] * size, prompt_embeds=None, num_computed_tokens=computed)
            for name, (size, computed, _) in new.items()
        ],
        scheduled_cached_reqs=SimpleNamespace(**known),
        num_scheduled_tokens={k: v[-1] for k, v in {**new, **cached}.items()},
    )


def first_runner(*order: str) -> Any:
    return SimpleNamespace(execute_model_state=None, input_batch=SimpleNamespace(req_ids=list(order)))


def second_runner(*order: str) -> Any:
    return SimpleNamespace(execute_model_state=SimpleNamespace(input_batch=SimpleNamespace(req_ids=list(order))))


def told(kinds: Kinds, scheduled: Any, runner: Any) -> dict[str, list[list[float]]]:
    kinds.note(scheduled)
    tokens = sum(scheduled.num_scheduled_tokens.values())
    seen = torch.arange(2.0 * tokens).view(2, tokens)
    return {kind: part.tolist() for kind, part in kinds.split(scheduled, runner, seen)}


def test_rows_go_by_the_runner_s_order_and_positions_by_the_scheduler() -> None:
    for runner in (first_runner, second_runner):
        kinds = Kinds()
        # Only prompts: b's is read in two pieces, the order does not matter.
        assert list(told(kinds, step({"a": (3, 0, 3), "b": (5, 0, 2)}, {}), None)) == ["prompt"]
        # a speaks, b's prompt goes on, c's was cached but for its last token; rows lie as c, a, b.
        found = told(kinds, step({"c": (4, 3, 1)}, {"a": (3, 1), "b": (2, 3)}), runner("c", "a", "b"))
        assert found == {"prompt": [[0, 2, 3, 4], [5, 7, 8, 9]], "reply": [[1], [6]]}
        assert list(told(kinds, step({}, {"a": (4, 1), "b": (5, 1), "c": (4, 1)}), None)) == ["reply"]
        # a was put off and is read again with what it had said: two of its tokens are a reply's.
        found = told(kinds, step({}, {"a": (0, 5), "b": (6, 1)}, "c", "a"), runner("b", "a"))
        assert found == {"prompt": [[1, 2, 3], [7, 8, 9]], "reply": [[0, 4, 5], [6, 10, 11]]}
        assert list(told(kinds, step({}, {"a": (5, 1), "b": (7, 1)}), None)) == ["reply"]


def test_a_name_that_comes_again_has_its_new_prompt() -> None:
    kinds = Kinds()
    told(kinds, step({"a": (2, 0, 2)}, {}), None)
    assert list(told(kinds, step({"a": (9, 2, 3)}, {}, ("a",)), None)) == ["prompt"]


def test_nothing_is_kept_of_requests_that_are_gone() -> None:
    kinds = Kinds()
    told(kinds, step({"a": (2, 0, 2), "b": (2, 0, 2)}, {}), None)
    kinds.note(step({}, {}, ("a", "b")))
    assert not kinds._prompts and not kinds._reading


def test_what_cannot_be_told_apart_is_counted_as_that() -> None:
    scheduled = step({"b": (4, 0, 4)}, {"a": (3, 1)})
    for runner in (SimpleNamespace(), first_runner("a"), first_runner("a", "c"), first_runner("a", "a")):
        kinds = Kinds()
        told(kinds, step({"a": (3, 0, 3)}, {}), None)
        assert told(kinds, scheduled, runner) == {"mixed": [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]}
    kinds = Kinds()
    told(kinds, step({"a": (9, 0, 2)}, {}), None)
    assert list(told(kinds, step({}, {"a": (2, 1), "unheard": (3, 1)}), first_runner("a", "unheard"))) == ["mixed"]
