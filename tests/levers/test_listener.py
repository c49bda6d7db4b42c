"""The pragmatic speaker is exact, against a plain float64 loop without a cache, and fails in sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import chat_factory as tiny
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from persona_axis import Cap, Listener, ListenerError
from persona_axis.chat import ChatModel
from persona_axis.levers.hearing import heard, posterior
from persona_axis.levers.listener import Prior, Speaker, generate, undecided
from persona_axis.levers.worlds import encode_worlds, history_worlds, persona_worlds
from persona_axis.sampling import Sampling

GREEDY = Sampling(temperature=0.0, max_new_tokens=10)
DRAWN = Sampling(temperature=1.0, top_p=0.95, max_new_tokens=10)
OTHERS = ("be pirate like rain .", "be tutor .")
PRIORS: tuple[Prior, ...] = ("posterior", "uniform", "last")


def asked(question: str = "how should i sleep ?", system: str = "be ghost .") -> list[dict[str, str]]:
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def several() -> list[list[Any]]:
    """Three conversations of different lengths in three worlds."""
    chats = [asked(), asked("why ?", "be word like bread ."), [*asked(), *asked("what about money ?")[1:]]]
    chats[2].insert(2, {"role": "assistant", "content": "hello ghost"})
    return [persona_worlds(chat, OTHERS) for chat in chats]


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return tiny.chat()


@pytest.fixture(scope="module")
def wide() -> ChatModel:
    return tiny.chat(model=tiny.llama().double())


def plainly(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], listener: Listener, steps: int, stop: int
) -> tuple[list[int], list[list[float]]]:
    """Greedy S1 by the definition: one token, one world, one word at a time; float64, no cache, no batch."""
    said: list[int] = []
    steps_taken: list[list[float]] = []
    prior = [1 / len(prompts)] * len(prompts)
    for _ in range(steps):
        s0 = []
        for prompt in prompts:
            with torch.no_grad():
                s0.append(model(torch.tensor([[*prompt, *said]])).logits[0, -1].softmax(-1).tolist())
        s1 = []
        for token in range(len(s0[0])):
            each = [s0[i][token] ** listener.beta * prior[i] for i in range(len(prompts))]
            s1.append(s0[0][token] * (each[0] / sum(each)) ** listener.alpha)
        steps_taken.append([math.log(value / sum(s1)) for value in s1])
        token = max(range(len(s1)), key=s1.__getitem__)
        if token == stop:
            break
        said.append(token)
        flat = [1 / len(prompts)] * len(prompts)
        before = {"posterior": prior, "last": flat, "uniform": flat}[listener.prior]
        each = [s0[i][token] ** listener.beta * before[i] for i in range(len(prompts))]
        prior = flat if listener.prior == "uniform" else [value / sum(each) for value in each]
    return said, steps_taken


class Seen(Speaker):
    """Keeps the log S1 of every step, [rows, vocabulary]."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        spoken = super().__call__(input_ids, scores)
        self.steps.append(spoken[:: self.worlds])
        return spoken


def spoken_by(chat: ChatModel, worlds: list[Any], listener: Listener) -> tuple[list[list[int]], list[Tensor]]:
    rows = encode_worlds(chat, worlds)
    speaker = Seen(listener, len(rows), len(rows[0]))
    ids = chat.generate_ids([p for row in rows for p in row], GREEDY, 0, processors=[speaker])
    return ids[:: len(rows[0])], speaker.steps


@pytest.mark.parametrize("prior", PRIORS)
def test_it_is_the_definition(wide: ChatModel, prior: Prior) -> None:
    listener = Listener(3.0, 0.7, prior)
    worlds = several()
    ids, steps = spoken_by(wide, worlds, listener)
    for row, prompts in enumerate(encode_worlds(wide, worlds)):
        said, expected = plainly(wide.model, prompts, listener, 10, wide.stop_ids[0])
        assert ids[row] == said and len(said) > 2
        for at, step in enumerate(expected):
            # generate turns logits into float32
            assert torch.allclose(steps[at][row].double(), torch.tensor(step, dtype=torch.float64), atol=1e-5)


def test_float32_agrees(chat: ChatModel, wide: ChatModel) -> None:
    worlds, listener = several(), Listener(2.0)
    narrow, steps = spoken_by(chat, worlds, listener)
    exact, expected = spoken_by(wide, worlds, listener)
    assert narrow == exact
    assert torch.allclose(steps[0], expected[0], atol=1e-4)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN])
def test_without_alpha_it_is_the_model(chat: ChatModel, prior: Prior, sampling: Sampling) -> None:
    worlds = several()
    said = generate(chat, worlds, Listener(0.0, 1.0, prior), sampling, seed=5)
    assert said == chat.generate([row[0] for row in worlds], sampling, seed=5)


def test_without_alpha_log_probabilities_are_the_models(chat: ChatModel) -> None:
    worlds = several()
    ids, steps = spoken_by(chat, worlds, Listener(0.0))
    prompts = chat.encode_batch(row[0] for row in worlds)
    for row, prompt in enumerate(prompts):
        with torch.no_grad():
            logits = chat.model(torch.tensor([[*prompt, *ids[row]]])).logits[0]
        for at in range(len(ids[row])):
            base = logits[len(prompt) - 1 + at].log_softmax(-1)
            assert torch.allclose(steps[at][row], base, atol=1e-5)


def test_a_batch_is_each_alone_and_seeds_hold(chat: ChatModel) -> None:
    worlds = several()
    together = generate(chat, worlds, Listener(3.0), GREEDY)
    assert together.ids == [generate(chat, [row], Listener(3.0), GREEDY).ids[0] for row in worlds]
    drawn = [generate(chat, worlds, Listener(3.0), DRAWN, seed).ids for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert together.ids != chat.generate([row[0] for row in worlds], GREEDY).ids


@pytest.mark.parametrize("template", [tiny.PLAIN, tiny.NO_SYSTEM, tiny.THINKS])
def test_any_template_and_family(template: str) -> None:
    for model in (None, tiny.gpt2()):
        talker = tiny.chat(template, model)
        worlds = persona_worlds(asked(), OTHERS)
        ids, steps = spoken_by(talker, [worlds], Listener(2.0))
        said, expected = plainly(talker.model, encode_worlds(talker, [worlds])[0], Listener(2.0), 3, talker.stop_ids[0])
        assert ids[0][: len(said)] == said
        assert torch.allclose(steps[1][0].double(), torch.tensor(expected[1], dtype=torch.float64), atol=1e-4)


def test_worlds_of_a_row_share_its_bounds(chat: ChatModel) -> None:
    direction = torch.nn.functional.normalize(torch.ones(1, chat.hidden_size), dim=-1)
    worlds = several()
    bounds = torch.tensor([[-50.0, 4.0, 9.0]])
    with chat.under(Cap(direction, [1], floor=bounds)):
        together = generate(chat, worlds, Listener(2.0), GREEDY)
    alone = []
    for row, bound in zip(worlds, bounds[0].tolist(), strict=True):
        with chat.under(Cap(direction, [1], floor=bound)):
            alone += generate(chat, [row], Listener(2.0), GREEDY).ids
    assert together.ids == alone
    uncapped = generate(chat, worlds, Listener(2.0), GREEDY).ids
    assert together.ids[0] == uncapped[0] and together.ids[2] != uncapped[2]


class TestImpossibleTokens:
    """-inf in all worlds, in the true one, in the others: no NaN, and the limit of small numbers."""

    LOGITS = torch.tensor([[0.5, 0.0, -torch.inf, -torch.inf], [0.1, -torch.inf, 0.3, -torch.inf]]).log_softmax(-1)

    def test_the_speaker(self) -> None:
        prior = undecided(self.LOGITS[:, 0])
        for alpha in (0.0, 2.0):
            spoken = Listener(alpha).speak(self.LOGITS, prior)
            assert not spoken.isnan().any() and spoken.exp().sum() == pytest.approx(1)
            assert spoken[2:].isneginf().all() and spoken[:2].isfinite().all()
        s0 = self.LOGITS.exp()
        heard_first = s0[0, 0] / (s0[0, 0] + s0[1, 0])
        expected = torch.tensor([s0[0, 0] * heard_first**2, s0[0, 1]])
        assert torch.allclose(Listener(2.0).speak(self.LOGITS, prior)[:2].exp(), expected / expected.sum())
        assert torch.equal(Listener(2.0, 0.0).speak(self.LOGITS, prior)[2:].isneginf(), torch.tensor([True, True]))

    def test_the_prior(self) -> None:
        listener, prior = Listener(), undecided(self.LOGITS[:, 0])
        assert torch.equal(listener.after(self.LOGITS[:, 3], prior), prior)
        ruled_out = listener.after(self.LOGITS[:, 2], prior)
        assert ruled_out.tolist() == [-math.inf, 0.0]
        assert torch.allclose(listener.speak(self.LOGITS, ruled_out), self.LOGITS[0])

    @pytest.mark.parametrize("prior", PRIORS)
    def test_a_whole_generation(self, chat: ChatModel, prior: Prior) -> None:
        class Forbids(Speaker):
            def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
                scores = scores.clone()
                scores[:, 10:20] = -torch.inf
                scores[1::3, 20:30] = -torch.inf
                scores[0::3, 30:40] = -torch.inf
                return super().__call__(input_ids, scores)

        rows = encode_worlds(chat, several())
        flat = [p for row in rows for p in row]
        speaker = Forbids(Listener(8.0, 1.0, prior), 3, 3, DRAWN.processors())
        ids = chat.generate_ids(flat, DRAWN, 3, processors=[speaker])
        assert all(not set(reply) & {*range(10, 20), *range(30, 40)} for reply in ids)
        assert ids[0] == ids[1] == ids[2]


class TestPosterior:
    @pytest.mark.parametrize("prior", PRIORS)
    def test_it_is_the_recursion(self, wide: ChatModel, prior: Prior) -> None:
        worlds = several()
        replies = ["hello ghost rain", "no", "bread money old word"]
        each_heard = posterior(wide, worlds, replies, Listener(1.0, 0.5, prior), batch=4)
        for row, found in zip(worlds, each_heard, strict=True):
            flat = [1 / 3] * 3
            before = flat
            assert found.ids
            for at, token in enumerate(found.ids):
                s0 = []
                for prompt in encode_worlds(wide, [row])[0]:
                    with torch.no_grad():
                        logits = wide.model(torch.tensor([[*prompt, *found.ids[:at]]])).logits[0, -1]
                    s0.append(float(logits.softmax(-1)[token]) ** 0.5)
                each = [a * b for a, b in zip(s0, before, strict=True)]
                now = [value / sum(each) for value in each]
                assert found.log_posterior[at].exp().tolist() == pytest.approx(now, abs=1e-9)
                alone = [value / sum(s0) for value in s0]
                before = {"posterior": now, "uniform": flat, "last": alone}[prior]
            assert found.true == pytest.approx(now[0])
            assert found.log_odds == pytest.approx(math.log(now[0] / (1 - now[0])))

    def test_the_speaker_is_believed(self, chat: ChatModel) -> None:
        worlds = several()
        said = {alpha: generate(chat, worlds, Listener(alpha), GREEDY).ids for alpha in (0.0, 8.0)}
        odds = {a: sum(h.log_odds for h in posterior(chat, worlds, ids)) for a, ids in said.items()}
        assert odds[8.0] > odds[0.0] + 3

    def test_an_empty_reply_tells_nothing(self, chat: ChatModel) -> None:
        (found,) = posterior(chat, several()[:1], [""])
        assert found.true == pytest.approx(1 / 3) and found.log_posterior.shape == (0, 3)

    def test_other_histories(self, chat: ChatModel) -> None:
        histories = [[*asked("no ?"), {"role": "assistant", "content": "yes"}], []]
        worlds = history_worlds(several()[2][0], histories)
        assert [m["content"] for m in worlds[1]] == ["be ghost .", "no ?", "yes", "what about money ?"]
        assert [m["content"] for m in worlds[2]] == ["be ghost .", "what about money ?"]
        assert generate(chat, [worlds], Listener(8.0), GREEDY).ids

    def test_a_long_reply_in_float64(self) -> None:
        log_s0 = torch.tensor([[-1.0, -3.0, -2.0]], dtype=torch.float64).repeat(3000, 1)
        assert float(heard(Listener(), log_s0)[-1, 1]) == pytest.approx(-6000)


BAD: dict[str, tuple[Callable[[ChatModel], object], str]] = {
    "alpha": (lambda c: Listener(-1.0), r"alpha must be a number from 0 to 1e\+06, got -1.0"),
    "huge": (lambda c: Listener(beta=1e40), r"beta must be a number from 0 to 1e\+06, got 1e\+40"),
    "beta": (lambda c: Listener(1.0, math.nan), "beta must be .* got nan"),
    "prior": (lambda c: Listener(1.0, 1.0, "first"), "one of posterior, uniform, last, got 'first'"),  # type: ignore[arg-type]
    "persona": (lambda c: persona_worlds(asked(), ["Be  ghost ."]), "distractor 0 is the persona itself"),
    "no distractor": (lambda c: persona_worlds(asked(), []), "no distractor: a listener needs at least one"),
    "bare text": (lambda c: persona_worlds(asked(), "be tutor ."), "distractors: expected a list, each a text, got"),
    "one world": (lambda c: generate(c, [[asked()]]), "conversation 0 has 1 world"),
    "no conversation": (lambda c: generate(c, []), "no conversations"),
    "uneven": (lambda c: generate(c, [several()[0], several()[1][:2]]), "conversation 1 has 2"),
    "same": (lambda c: generate(c, [[asked(), asked()]]), "world 1 of conversation 0 reads exactly as"),
    "too long": (
        lambda c: generate(c, [persona_worlds(asked(), ["be " * 230])], sampling=Sampling(max_new_tokens=40)),
        "world 1 of conversation 0 is 2.. tokens long, and with 40 more",
    ),
    "replies": (lambda c: posterior(c, several(), ["no"]), "1 replies to 3 conversations"),
    "history": (lambda c: history_worlds(asked(), [asked("no ?")]), "history 0 ends with the user"),
    "own history": (lambda c: history_worlds(asked(), [[]]), "history 0 is the conversation's own"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_sentence(chat: ChatModel, case: str) -> None:
    call, text = BAD[case]
    with pytest.raises(ListenerError, match=text):
        call(chat)


def test_templates_that_leave_personas_out_are_refused() -> None:
    talker = tiny.chat(tiny.IGNORES_SYSTEM)
    talker.template.has_system = True
    with pytest.raises(ListenerError, match="leave personas out"):
        generate(talker, [persona_worlds(asked(), OTHERS)])


class TestPlainTransformers:
    """The processor in a user's own call of `generate`."""

    def call(self, chat: ChatModel, speaker: Speaker, **how: Any) -> Tensor:
        batch = chat.pad_left(encode_worlds(chat, several()[:1])[0])
        return chat.model.generate(  # type: ignore[operator, no-any-return]
            batch.ids, attention_mask=batch.mask, logits_processor=[speaker], max_new_tokens=8, pad_token_id=0, **how
        )

    def test_greedy_is_ours(self, chat: ChatModel) -> None:
        out = self.call(chat, Speaker(Listener(3.0), 1, 3), do_sample=False)
        ours = generate(chat, several()[:1], Listener(3.0), Sampling(0.0, max_new_tokens=8)).ids[0]
        assert out[0, -8:].tolist()[: len(ours)] == ours

    def test_beams_are_refused(self, chat: ChatModel) -> None:
        with pytest.raises(ListenerError, match="beam search"):
            self.call(chat, Speaker(Listener(), 1, 3), num_beams=2, do_sample=False)

    def test_sampling_by_generate_is_refused(self, chat: ChatModel) -> None:
        torch.manual_seed(0)
        with pytest.raises(ListenerError, match="fed different tokens"):
            self.call(chat, Speaker(Listener(0.0), 1, 3), do_sample=True, top_k=0, temperature=3.0)

    def test_a_second_call_is_refused(self, chat: ChatModel) -> None:
        speaker = Speaker(Listener(), 1, 3)
        self.call(chat, speaker, do_sample=False)
        with pytest.raises(ListenerError, match="make a new one for each call"):
            self.call(chat, speaker, do_sample=False)
        fresh = Speaker(Listener(), 1, 3)
        ids, scores = torch.tensor([[5, 6], [7, 6], [8, 6]]), torch.randn(3, 40)
        fresh(ids, scores)
        with pytest.raises(ListenerError, match="are not those and one more"):  # another prompt, a token longer
            fresh(torch.tensor([[5, 9, 9], [7, 9, 9], [8, 9, 9]]), scores)
