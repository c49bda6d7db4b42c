"""Which tokens are whose: templates with marks and without, that trim, strip thinking, and move the system prompt."""

from __future__ import annotations

import chat_factory as tiny
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from persona_axis.chat import ChatModel
from persona_axis.errors import ModelError
from persona_axis.model.turns import NOWHERE, narrowed, runs, token_ranges
from persona_axis.template import ChatTemplate

REPLACES = tiny.PLAIN.replace("{{ m['content'] }}", "{{ m['content'] | replace('rain', 'bread') }}")
MARKED_REPLACES = tiny.MARKED.replace("{{ m['content'] }}", "{{ m['content'] | replace('rain', 'bread') }}")

LOG = [
    ("system", "be old ."),
    ("user", "what is rain ?"),
    ("assistant", "old rain ."),
    ("user", "why ?"),
    ("user", "why ? why ?"),
    ("assistant", "no"),
    ("user", "bread ?"),
]
THOUGHT = [
    ("user", "what is rain ?"),
    ("assistant", "<think>\na b c\n</think>\n\nold rain ."),
    ("user", "why ?"),
    ("assistant", "<think>\n\n</think>\n\nno"),
    ("user", "bread ?"),
    ("assistant", "<think>\nd e\nf\n</think>\n\nyes yes ."),
]


def log(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in turns]


def words(chat: ChatModel, messages: list[dict[str, str]], *speakers: str) -> list[str]:
    """What the tokens of each message say, once the whole is known to be what the model is given."""
    ids, ranges = chat.encode_messages(messages, *([speakers] if speakers else []))
    assert ids == chat.encode(messages, generation_prompt=False)
    assert all(0 <= a <= b <= len(ids) for a, b in ranges) and len(ranges) == len(messages)
    return [chat.tokenizer.decode(ids[a:b]) for a, b in ranges]


TEMPLATES = {
    "marked": tiny.MARKED, "plain": tiny.PLAIN, "no system": tiny.NO_SYSTEM, "ignores system": tiny.IGNORES_SYSTEM,
    "trims": tiny.TRIMS, "injects": tiny.INJECTS, "dated": tiny.DATED, "thinks": tiny.THINKS, "strips": tiny.STRIPS,
    "marked strips": tiny.MARKED_STRIPS, "merges": tiny.MERGES,
}  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.filterwarnings("ignore:the chat template has no system role")
class TestEveryTemplate:
    def test_every_message_has_its_own_tokens(self, template: str) -> None:
        chat = tiny.chat(template)
        assert words(chat, log(LOG)) == [text for _, text in LOG]
        assert words(chat, log(LOG[1:])) == [text for _, text in LOG[1:]]
        ids, ranges = chat.encode_turns(log(LOG))
        assert [chat.tokenizer.decode(ids[a:b]) for a, b in ranges] == ["old rain .", "no"]

    def test_contents_that_are_alike_look_like_headers_or_are_blank(self, template: str) -> None:
        chat = tiny.chat(template)
        same = [("system", "yes"), *[("user", "yes"), ("assistant", "yes")] * 3, ("user", "assistant user")]
        assert words(chat, log(same)) == [text for _, text in same]
        blank = [("system", " "), ("user", ""), ("assistant", " \n"), ("user", "why ?"), ("assistant", "")]
        assert words(chat, log([*blank, ("user", "a")])) == ["", "", "", "why ?", "", "a"]

    def test_trimmed_or_not_the_words_are_found(self, template: str) -> None:
        messages = log(
            [("system", " be old ."), ("user", "\n what ? \n\n"), ("assistant", "  yes no \n"), ("user", "a ")]
        )
        assert words(tiny.chat(template), messages) == ["be old .", "what ?", "yes no", "a"]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["marked", "plain", "trims", "strips", "merges"]),
    st.lists(
        st.lists(st.sampled_from(["yes ", "no", " rain", "\n", " ", "a ."]), max_size=6).map("".join),
        min_size=2,
        max_size=9,
    ),
)
def test_any_contents(template: str, contents: list[str]) -> None:
    chat = _CHATS.setdefault(template, tiny.chat(TEMPLATES[template]))
    roles = ["system", *["user", "assistant"] * len(contents)]
    messages = log(list(zip(roles, ["be old .", *contents], strict=False)))
    plain = [chat.tokenizer.decode(chat.tokenizer(m["content"])["input_ids"]) for m in messages]
    assert words(chat, messages) == plain


_CHATS: dict[str, ChatModel] = {}


class TestThinking:
    @pytest.mark.parametrize("template", [tiny.STRIPS, tiny.MARKED_STRIPS], ids=["located", "marked"])
    def test_is_left_out_by_the_template_before_the_last_turn_and_never_part_of_a_reply(self, template: str) -> None:
        chat = tiny.chat(template)
        text = chat.template.render(log(THOUGHT))
        assert "a b c" not in text and "<think>\nd e\nf\n</think>\n\nyes yes ." in text
        assert words(chat, log(THOUGHT))[1::2] == ["old rain .", "no", "yes yes ."]
        assert words(chat, log(THOUGHT[:4]))[1::2] == ["old rain .", "no"]  # an empty block is written anew
        unopened = [*THOUGHT[:5], ("assistant", "d e</think>yes .")]
        assert words(chat, log(unopened))[-1] == "yes ."
        assert words(chat, log([*THOUGHT[:5], ("assistant", "<think>d e</think>\n")]))[-1] == ""

    def test_of_the_user_is_what_the_user_says(self) -> None:
        said = [("user", "why </think> a"), ("assistant", "no"), ("user", "b")]
        assert words(tiny.chat(tiny.STRIPS), log(said)) == ["why </think> a", "no", "b"]

    def test_belongs_to_the_reply_where_the_template_knows_nothing_of_it(self) -> None:
        assert words(tiny.chat(tiny.PLAIN), log(THOUGHT))[1] == "<think> a b c </think> old rain ."


class TestTheSystemPrompt:
    def test_is_found_inside_the_users_first_turn_where_the_template_merges_it(self) -> None:
        chat = tiny.chat(tiny.MERGES)
        assert chat.template.has_system
        assert chat.template.render(log(LOG)).startswith("<|user|><|system|>be old . . . what is rain ? <|end|>")
        ids, ranges = chat.encode_messages(log(LOG))
        assert ranges[0][1] < ranges[1][0] and chat.tokenizer.decode(ids[slice(*ranges[1])]) == "what is rain ?"

    @pytest.mark.filterwarnings("ignore:the chat template has no system role")
    def test_stands_before_the_users_words_where_it_was_folded(self) -> None:
        ids, ranges = tiny.chat(tiny.NO_SYSTEM).encode_messages(log(LOG))
        assert ranges[0][1] == ranges[1][0]
        alone = log([("system", "be old ."), ("assistant", "no")])
        assert words(tiny.chat(tiny.NO_SYSTEM), alone) == ["be old .", "no"]

    def test_moved_behind_earlier_turns(self) -> None:
        moved = (
            "{% for m in messages if m['role'] != 'system' %}<|{{ m['role'] }}|>"
            "{% if loop.last %}{{ messages[0]['content'] }} . {% endif %}{{ m['content'] }}<|end|>{% endfor %}"
        )
        assert words(tiny.chat(moved), log(LOG)) == [text for _, text in LOG]


class TestRefused:
    def test_words_that_the_template_changes(self) -> None:
        with pytest.raises(ModelError, match=r"changes what was said.*'what is rain \?'"):
            tiny.chat(REPLACES).encode_messages(log(LOG))
        marked = tiny.chat(MARKED_REPLACES)
        with pytest.raises(ModelError, match="changes what was said"):
            marked.encode_messages(log(LOG))
        # Generation marks still tell the assistant's.
        assert words(marked, log(LOG), "assistant")[2] == "old bread ."
        upper = tiny.chat(tiny.MARKED.replace("{{ m['content'] }}", "{{ m['content'] | replace('q', 'k') }}"))
        assert words(upper, log(LOG), "assistant")[5] == "no"

    def test_words_that_the_template_leaves_out_or_writes_twice(self) -> None:
        forgets = (
            "{% for m in messages %}{% if loop.revindex < 4 %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endif %}"
            "{% endfor %}"
        )
        with pytest.raises(ModelError, match=r"leaves out messages\[0\], the system's: 'be old \.'"):
            tiny.chat(forgets).encode_messages(log(LOG))
        twice = tiny.PLAIN.replace("{{ m['content'] }}", "{{ m['content'] }}{{ m['content'] }}")
        with pytest.raises(ModelError, match="changes what was said"):
            tiny.chat(twice).encode_messages(log(LOG))
        again = tiny.PLAIN.replace("{% endfor %}", "{% endfor %}<|system|>{{ messages[0]['content'] }}")
        with pytest.raises(ModelError, match="whose tokens are whose"):
            tiny.chat(again).encode_messages(log(LOG))

    def test_messages_of_nobody_who_is_asked_for_may_be_left_out(self) -> None:
        forgets = (
            "{% for m in messages %}{% if loop.revindex < 6 %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endif %}"
            "{% endfor %}"
        )
        ids, ranges = tiny.chat(forgets).encode_messages(log(LOG), ("assistant",))
        assert ranges[:2] == [NOWHERE, NOWHERE] and all(b > a for a, b in ranges[2:])


def subwords() -> PreTrainedTokenizerFast:
    """Subwords with spaces in them, and characters of several tokens."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    said = ["user: how are you today?\nassistant: I am well, thank you.\n", "what a lovely day today is"] * 9
    special = ["<bos>", "<|end|>"]
    inner.train_from_iterator(
        said,
        trainers.BpeTrainer(
            vocab_size=340, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    made = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", eos_token="<|end|>")
    made.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% if m['role'] == 'assistant' %}<|end|>"
        "{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    return made


def test_a_token_that_touches_the_words_is_theirs() -> None:
    tokenizer = subwords()
    said = ["how are you?", "I am well, thank you.", "día lovely \U0001f327\ufe0f", "\u00e9\u00e9 what", "day "]
    messages = log(list(zip(["user", "assistant"] * 3, said, strict=False)))
    ids, ranges = ChatTemplate(tokenizer).encode_messages(messages)
    found = [tokenizer.decode(ids[a:b]) for a, b in ranges]
    assert [text.strip() for text in found] == [text.strip() for text in said]
    assert any(text.startswith(" ") for text in found)  # the space before a word is in its token
    inside = {i for a, b in ranges for i in range(a, b)}
    assert not {i for i, token in enumerate(ids) if token == tokenizer.eos_token_id} & inside


def test_arithmetic_of_ranges() -> None:
    assert runs([0, 1, 1, 0, 1]) == [(1, 3), (4, 5)] and runs([1, 1]) == [(0, 2)] and runs([]) == [] == runs([0])
    assert narrowed((2, 9), (4, 7)) == (4, 7) and narrowed((2, 9), (12, 14)) == (2, 9)
    offsets = [(0, 0), (0, 3), (3, 4), (4, 4), (4, 6), (4, 6), (6, 9)]
    assert token_ranges(offsets, [(0, 2), (4, 5), (3, 3), (5, 9), (20, 30)]) == [
        (1, 2),
        (4, 6),
        NOWHERE,
        (4, 7),
        NOWHERE,
    ]
    assert token_ranges([], [(0, 2)]) == [NOWHERE]
