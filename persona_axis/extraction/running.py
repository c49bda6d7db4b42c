"""A run's plan, and its rounds: what is decided before the first batch and between batches."""

from __future__ import annotations

from persona_axis.chat import ChatModel
from persona_axis.extraction.differences import refuse_difference
from persona_axis.extraction.engines import Engine
from persona_axis.extraction.events import Listener, Note, Planned, Rounded
from persona_axis.extraction.plan import Plan, Round
from persona_axis.extraction.records import Recorded
from persona_axis.extraction.rolevectors import require_layers
from persona_axis.extraction.rolloutpca import KeptPca
from persona_axis.extraction.rollouts import draw, drawn_so_far
from persona_axis.extraction.rounds import chosen_layers, first_round, next_round, standing, why_not
from persona_axis.extraction.settings import settings, surroundings
from persona_axis.extraction.sources import Asked, Given
from persona_axis.extraction.store import RunStore
from persona_axis.extraction.trial import Trial
from persona_axis.judges import Judge


def planned(chat: ChatModel, source: Asked | Given, judge: Judge, store: RunStore, progress: Listener) -> Plan:
    """The plan of this run: the one on disk if it is the same, else a new one with a batch size that was
    tried out."""
    stored = store.records.read_plan()
    draft = source.plan(stored["batch_size"] if stored else source.options.batch_size or 1)
    require_layers(draft)
    KeptPca.of(draft, chat.hidden_size, store.path)
    wanted = settings(chat, draft, judge, source.drawn_by)
    if stored is not None:
        refuse_difference(store.path, stored["settings"], wanted)
        plan, trial = draft, Trial(**stored["trial"])
        if stored["surroundings"] != surroundings(source.drawn_by):
            progress(
                Note(
                    "this run began with other library versions or threads: "
                    "the last bits may differ from a run in one go"
                )
            )
    else:
        trial = source.try_out(draft)
        plan = source.plan(trial.batch_size)
    done = drawn_so_far(plan, store)
    store.cut_rollouts()
    first = first_round(plan)
    part = _begun(plan, store) or first
    whole = plan.until(plan.ceilings)

    def seconds(part: Round) -> float | None:
        share = max(0, sum(part.stop) - done) / max(1, part.rollouts)
        batches = plan.batches(part) * min(1.0, share)
        return None if trial.batch_seconds is None else batches * trial.batch_seconds + trial.calibration_seconds

    progress(
        Planned(
            roles=len(plan.roles),
            prompts=plan.prompts,
            questions=len(plan.questions),
            rollouts=plan.rollouts,
            default_rollouts=plan.default_rollouts,
            tokens=0 if source.given else (plan.rollouts - done) * plan.options.sampling.max_new_tokens,
            given=source.given,
            seconds=seconds(whole),
            batch_size=plan.batch_size,
            done=done,
            run_dir=str(store.path),
            precision=plan.options.precision,
            first_round=first.rollouts,
            round_seconds=seconds(part),
        )
    )
    if stored is None:
        record = {
            "settings": wanted,
            "batch_size": trial.batch_size,
            "trial": trial._asdict(),
            "surroundings": surroundings(source.drawn_by),
        }
        store.records.write_plan(record)
    return plan


def _begun(plan: Plan, store: RunStore) -> Round | None:
    """The round that a run is in; of one whose precision is not reached, all that is left to draw."""
    rounds = store.records.read_rounds(len(plan.roles))
    if not rounds:
        return None
    before = plan.until(rounds[-2].stop) if len(rounds) > 1 else None
    last = rounds[-1]
    if last.low is not None and last.low < plan.options.precision:
        return plan.until(plan.ceilings, plan.until(last.stop))
    return plan.until(last.stop, before)


def draw_rounds(
    chat: ChatModel, plan: Plan, judge: Judge, store: RunStore, engine: Engine, progress: Listener,
    pca: KeptPca | None = None,
) -> None:  # fmt: skip
    """Round after round, until the axis is as certain as asked for. A round is on record before it is drawn, so that a
    run goes on with what it was in, also where another precision is asked for now."""
    rounds = store.records.read_rounds(len(plan.roles))
    if not rounds:
        rounds.append(Recorded(first_round(plan).stop))
    part: Round | None = None
    number = 0
    while number < len(rounds):
        if number == len(rounds) - 1:
            store.records.write_rounds(rounds)
        part = plan.until(rounds[number].stop, part)
        draw(chat, plan, part, judge, store, engine, progress, pca)
        number += 1
        if number == len(rounds):
            _decide(plan, part, rounds, store, chat.n_layers, progress)
    store.records.write_rounds(rounds)


def _decide(
    plan: Plan, part: Round, rounds: list[Recorded], store: RunStore, num_layers: int, progress: Listener
) -> None:
    """Write down what the last round, `part`, reached, and the round that the precision asks for after it, if any."""
    if plan.options.precision >= 1:
        if part.stop != plan.ceilings:
            rounds.append(Recorded(plan.ceilings))
        return
    now = standing(plan, store, chosen_layers(plan, num_layers))
    rounds[-1] = Recorded(part.stop, now.expected, now.low)
    following = next_round(plan, part, now, rounds)
    if following is not None:
        rounds.append(Recorded(following.stop))
    more = following.rollouts if following else 0
    progress(Rounded(part.number + 1, int(now.drawn.sum()), now.expected, now.low, more))
    if following is None and now.low < plan.options.precision:
        progress(Note(f"a precision of {plan.options.precision:g} is not reached: {why_not(plan, part, now, rounds)}"))
