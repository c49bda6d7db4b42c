"""The one family of errors: everything this package raises on purpose is a `PersonaAxisError`."""

from __future__ import annotations

LONGEST = 2000
"""Characters of an error's text. A file may hold a name of megabytes; telling it would help nobody."""


class PersonaAxisError(Exception):
    """Base of every error raised on purpose; its text is one line a user can act on.

    Texts quote what files hold, so characters that would move a terminal's cursor are told as escapes, and the middle
    of a very long text is left out.
    """

    def __str__(self) -> str:
        text = Exception.__str__(self)  # a bare super() would not survive the journey to a nnsight server
        if not text.isprintable():
            text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        if len(text) > LONGEST:
            text = f"{text[: LONGEST - 500]} ... ({len(text) - LONGEST} characters left out) ... {text[-500:]}"
        return text


class ArgumentError(PersonaAxisError, TypeError):
    """A call was given something of another kind than it takes: which argument, what it takes, what it got."""


class AxisFileError(PersonaAxisError):
    """An axis or cap file cannot be trusted, read or written; the text names the file and the field."""


class AxisMismatchError(PersonaAxisError):
    """An axis or cap was made for something else than what it is used on; the text says what differs."""


class CapError(PersonaAxisError):
    """A cap that is ill-formed, does not fit the batch, or could not be shown to act."""


class CapMismatchError(CapError, AxisMismatchError):
    """A hand-made cap does not fit the shape of the model it is used on."""


class VectorsError(PersonaAxisError):
    """Vectors made elsewhere cannot be read, do not tell enough, or cannot take the form asked for."""


class ResidualError(PersonaAxisError):
    """The residual stream could not be found, read or edited."""


class ProbeError(PersonaAxisError):
    """Probe data is malformed; the text names the file and the line."""


class ExtractionError(PersonaAxisError):
    """An extraction run cannot start, continue or be saved."""


class JudgeError(PersonaAxisError):
    """A judge could not be made or its verdict could not be used."""


class ModelError(PersonaAxisError):
    """A model or tokenizer is missing, incomplete or unfit."""


class ConversationError(PersonaAxisError, ValueError):
    """A conversation cannot be read: which one, at which turn, and what is wrong with it."""


class DriftError(PersonaAxisError):
    """A trajectory cannot be measured or simulated: the conversation, the turn, and what to do about it."""


class CapabilityError(PersonaAxisError):
    """What a lever costs cannot be measured: the task, and what to do about it."""


class CalibrationError(PersonaAxisError):
    """A calibration cannot be set up, or found no setting that keeps its bound."""


class ServeError(PersonaAxisError):
    """A server cannot start, or cannot go on: which setting or part, and what to do about it."""
