"""A `forward` of a module's own, which graphs are guarded on."""

from __future__ import annotations

import copy
import gc
import weakref
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from persona_axis.serving._marks import mark, unmark


def own(module: nn.Module) -> Any:
    return vars(module).get("forward")


@pytest.fixture
def linear() -> nn.Linear:
    return nn.Linear(3, 3)


def test_it_computes_the_same_and_leaves_nothing(linear: nn.Linear) -> None:
    x = torch.ones(3)
    wanted = linear(x)
    mark([linear])
    assert torch.equal(linear(x), wanted) and own(linear) is not None
    unmark([linear])
    assert own(linear) is None and vars(linear).keys() == vars(nn.Linear(3, 3)).keys()


def test_each_mark_is_another_and_none_wraps_one(linear: nn.Linear) -> None:
    seen = []
    mark([linear])
    for _ in range(4):  # a new one comes before the old one goes
        mark([linear])
        unmark([linear])
        seen.append(own(linear))
    assert len({id(one) for one in seen}) == 4
    assert all(type(one) is partial and one.func.__func__ is nn.Linear.forward for one in seen)
    unmark([linear])
    assert own(linear) is None


def test_a_forward_that_was_there_comes_back(linear: nn.Linear) -> None:
    linear.forward = theirs = lambda x: x + 1
    mark([linear])
    assert torch.equal(linear(torch.ones(3)), torch.full((3,), 2.0)) and own(linear) is not theirs
    unmark([linear])
    assert own(linear) is theirs


def test_one_that_came_after_it_stays(linear: nn.Linear) -> None:
    mark([linear])
    linear.forward = theirs = partial(lambda inside, x: inside(x) + 1, linear.forward)
    mark([linear])
    assert own(linear) is not theirs
    unmark([linear])
    unmark([linear])
    assert own(linear) is theirs and linear(torch.zeros(3)).shape == (3,)


def test_a_copy_runs_its_own_weights(linear: nn.Linear) -> None:
    mark([linear])
    other = copy.deepcopy(linear)
    with torch.no_grad():
        other.weight.zero_()
        other.bias.zero_()
    assert not other(torch.ones(3)).any() and linear(torch.ones(3)).any()
    unmark([linear])


@pytest.mark.parametrize("undone", [True, False])
def test_it_keeps_no_model_alive(undone: bool) -> None:
    linear = nn.Linear(3, 3)
    seen = weakref.ref(linear)
    mark([linear])
    if undone:
        unmark([linear])
    del linear
    gc.collect()
    assert seen() is None
