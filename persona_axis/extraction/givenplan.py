"""The plan of rollouts that exist already: what there is of each role, in the order of the file, in one round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from persona_axis.chat import ChatModel
from persona_axis.extraction.options import Options
from persona_axis.extraction.plan import DEFAULT, Item, Plan, Round, make_plan
from persona_axis.extraction.responses import Responses, by_role
from persona_axis.probes import Probes
from persona_axis.sampling import Sampling


@dataclass(frozen=True)
class GivenPlan(Plan):
    """The plan of what a file holds: `probes` are put together from its lines, and roles need not have as many."""

    responses: Responses
    stated: Mapping[str, Any]
    """What is known of how they were drawn."""

    @cached_property
    def _by_role(self) -> dict[int, list[Item]]:
        return by_role(self.responses.entries)

    @property
    def per_role(self) -> int:
        """Rollouts of the role that has most."""
        return max(len(items) for role, items in self._by_role.items() if role != DEFAULT)

    @property
    def default_rollouts(self) -> int:
        return len(self._by_role[DEFAULT])

    @property
    def ceilings(self) -> tuple[int, ...]:
        """How many there are of the default and of each role."""
        return tuple(len(self._by_role[role]) for role in (DEFAULT, *self.roles))

    def longest(self, count: int) -> list[Item]:
        """The `count` longest rollouts."""
        return sorted(self.responses.entries, key=lambda item: (-self._length(item), item))[:count]

    def _items(self, role: int, part: Round) -> list[Item]:
        place = self._places[role]
        return self._by_role[role][part.start[place] : part.stop[place]]

    def _length(self, item: Item) -> int:
        return self.responses.entries[item].size


def given_plan(
    chat: ChatModel, responses: Responses, options: Options, batch_size: int, run: Mapping[str, Any] | None
) -> GivenPlan:
    """The plan for a file; `run` are the settings of the run that wrote it, where they are known."""
    sampling: dict[str, Any] = dict(run["sampling"]) if run else {}
    known = {key: sampling[key] for key in ("temperature", "top_p", "max_new_tokens") if key in sampling}
    options = replace(
        options,
        roles=None,
        prompts=max(len(role.prompts) for role in responses.probes.roles),
        questions=len(responses.probes.questions),
        default_samples=1,
        precision=1,  # one round, of all there is
        # Nothing is drawn; without a stated length no reply can be told to have been cut.
        sampling=Sampling(**known) if known else Sampling(max_new_tokens=2**31 - 1),
    )
    base = make_plan(chat, _evened(responses), options, batch_size)
    stated = {**sampling, "responses_sha256": responses.sha256}
    return GivenPlan(
        responses.probes, options, batch_size, responses.probes.defaults, base.layers, base.block_bytes_per_role,
        responses, stated,
    )  # fmt: skip


def _evened(responses: Responses) -> Probes:
    """The probes with as many prompts for each role as the role with most has: plans are checked against the fewest."""
    most = max(len(role.prompts) for role in responses.probes.roles)
    full = [replace(role, prompts=(role.prompts * most)[:most]) for role in responses.probes.roles]
    return replace(responses.probes, roles=tuple(full))
