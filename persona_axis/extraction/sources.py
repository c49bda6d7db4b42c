"""Where the rollouts of a run come from: the model that is asked, or a file that holds them already."""

from __future__ import annotations

from pathlib import Path

from persona_axis.chat import ChatModel
from persona_axis.errors import ExtractionError
from persona_axis.extraction.choosing import ELSEWHERE
from persona_axis.extraction.engines import Engine, MakesEngine
from persona_axis.extraction.given import GivenJudge, Reader, require_judge, try_reading
from persona_axis.extraction.givenplan import GivenPlan, given_plan
from persona_axis.extraction.options import Options
from persona_axis.extraction.plan import Plan, make_plan
from persona_axis.extraction.responses import read_responses, run_beside
from persona_axis.extraction.store import RunStore
from persona_axis.extraction.trial import LARGEST, Trial, try_out
from persona_axis.judges import Judge
from persona_axis.probes import Probes


class Asked:
    """Rollouts that the model is asked for."""

    given = False
    notes: tuple[str, ...] = ()

    def __init__(self, chat: ChatModel, probes: Probes, options: Options, engine: MakesEngine) -> None:
        self.chat, self.probes, self.options, self.engine = chat, probes, options, engine
        self.drawn_by = engine.name

    def plan(self, batch_size: int) -> Plan:
        """The plan with batches of this size."""
        return make_plan(self.chat, self.probes, self.options, batch_size)

    def try_out(self, draft: Plan) -> Trial:
        """A batch size that fits, and how long it will take; nothing is tried for an engine that runs elsewhere."""
        if self.drawn_by in ELSEWHERE:
            return Trial(self.options.batch_size or LARGEST, None, 0.0)
        return try_out(self.chat, draft, self.options.batch_size)


class Given:
    """Rollouts that exist already."""

    given = True

    def __init__(self, chat: ChatModel, path: Path, probes: Probes, options: Options, judge: Judge | None) -> None:
        run = run_beside(path)
        if run is not None and run["probes"] != probes.fingerprint:
            raise ExtractionError(f"{path} was drawn with other probes: name them, its numbers mean nothing in these")
        self.chat, self.options, self._run = chat, options, run
        self.drawn_by = f"{Reader.name} ({run['engine']})" if run else Reader.name
        self.responses = read_responses(path, probes, probes.defaults_for(chat.display_name))
        require_judge(self.responses, judge)
        said = f"given ({run['judge']})" if run else "given"
        self.judge = GivenJudge(None if self.responses.unjudged is None else judge, said)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the results should know about where they are from."""
        unknown = self.responses.unknown
        if not unknown:
            return ()
        return (f"{len(unknown)} roles of {self.responses.path} are not among the probes, such as {unknown[0]!r}",)

    def plan(self, batch_size: int) -> GivenPlan:
        """The plan with batches of this size."""
        return given_plan(self.chat, self.responses, self.options, batch_size, self._run)

    def engine(self, chat: ChatModel, plan: Plan, store: RunStore) -> Engine:
        """What reads them."""
        return Reader(chat, plan, store, self.responses, self.judge)

    def try_out(self, draft: Plan) -> Trial:
        """A batch size that fits, and how long it will take."""
        return try_reading(self.chat, draft, self.responses, self.options.batch_size)
