"""An agent: what a lever makes of a model. It can be told otherwise, edited while it runs, and speak otherwise.

All ways to hold a persona have this one shape, so that whoever asks an agent for replies need not know which it is: a
cap edits, a rewritten persona is told, the imaginary listener speaks, trained weights edit or speak.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

from persona_axis._asked import require
from persona_axis.errors import BenchError
from persona_axis.levers import Levers, entered, listed

if TYPE_CHECKING:
    from torch import nn

    from persona_axis.chat import ChatModel
    from persona_axis.sampling import Sampling
    from persona_axis.template import Messages

    Speak: TypeAlias = Callable[[ChatModel, Sequence[Messages], Sampling, int], Sequence[str]]


@dataclass(frozen=True, eq=False)
class Agent:
    """One lever, by the three things that it may do; an agent that does none of them is the model as it is."""

    name: str
    """What tables call it."""
    lever: Levers = None
    """What acts on the model while it reads and speaks."""
    told: Callable[[Messages], Messages] | None = None
    """The conversation as the model is given it, from the conversation as it was held."""
    speak: Speak | None = None
    """Replies to conversations (as they are told), one each, with a sampling and a seed; None: `ChatModel.generate`."""
    hears: Callable[[Messages], Sequence[Messages]] | None = None
    """What a speaker reads beside a conversation (as it is told), such as a listener's other worlds: all must fit."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """All that it is made of, as JSON: results that are kept belong to a name with these facts. An agent that does
    something and states none is held anew by every bench."""

    def __post_init__(self) -> None:
        require("name", self.name, str)
        listed(self.lever)
        for name in ("told", "speak", "hears"):
            if getattr(self, name) is not None:
                require(name, getattr(self, name), Callable)  # type: ignore[arg-type]
        require("facts", self.facts, Mapping)

    @property
    def acts(self) -> bool:
        """Whether it does anything; if not it is the model as it is."""
        return bool(listed(self.lever)) or self.told is not None or self.speak is not None

    def replies(self, chat: ChatModel, chats: Sequence[Messages], sampling: Sampling, seed: int) -> list[str]:
        """One reply to each conversation, drawn as one batch.

        Raises `BenchError` for a conversation that is told longer than the model can read, and for a speaker that does
        not give one text for each; and what the lever raises.
        """
        self._require_room(chat, chats, sampling)
        read = [self.reads(messages) for messages in chats]
        with chat.under(self.lever):
            said = list((self.speak or _plainly)(chat, read, sampling, seed))
        if len(said) != len(read) or not all(isinstance(text, str) for text in said):
            raise BenchError(f"lever {self.name!r} gave {len(said)} replies to {len(read)} chats: one text each")
        return said

    def reads(self, messages: Messages) -> Messages:
        """The conversation as the model is given it."""
        return messages if self.told is None else self.told(messages)

    def fits(self, chat: ChatModel, chats: Sequence[Messages], sampling: Sampling) -> list[bool]:
        """Whether the model can read each conversation, as it is told, with the longest reply after it."""
        from persona_axis.model.windows import context_limit

        limit = context_limit(chat)
        return [limit is None or size + sampling.max_new_tokens <= limit for size in self._sizes(chat, chats)]

    def on(self, model: nn.Module, /, *, stack: str | None = None) -> AbstractContextManager[None]:
        """Its edits, for what knows nothing of agents. Raises `BenchError` where they are not all that it does."""
        if self.told or self.speak:
            raise BenchError(
                f"lever {self.name!r} does more than edit the model, and what it is used for here runs the model by "
                "itself: only what asks for replies by persona_axis.talks.asking.ask can take it"
            )
        return entered(self.lever, model, None, (), stack)

    def _sizes(self, chat: ChatModel, chats: Sequence[Messages]) -> list[int]:
        """Tokens of each conversation in the longest form in which it is read."""
        read = [self.reads(messages) for messages in chats]
        forms = [[own, *(self.hears(own) if self.hears else ())] for own in read]
        flat = [form for own in forms for form in own]
        lengths = iter([len(ids) for ids in chat.encode_batch(flat)] if flat else [])
        return [max(islice(lengths, len(own))) for own in forms]

    def _require_room(self, chat: ChatModel, chats: Sequence[Messages], sampling: Sampling) -> None:
        from persona_axis.model.windows import context_limit

        if not all(self.fits(chat, chats, sampling)):
            raise BenchError(
                f"lever {self.name!r}: a conversation of {max(self._sizes(chat, chats))} tokens, as it is told, and "
                f"{sampling.max_new_tokens} for the reply are more than the {context_limit(chat)} that the model can "
                "read: hold fewer turns, or allow shorter replies"
            )


def _plainly(chat: ChatModel, chats: Sequence[Messages], sampling: Sampling, seed: int) -> list[str]:
    return chat.generate(chats, sampling, seed).texts
