"""How our code gets into a request to a server that has torch and nnsight, but not this package.

nnsight's pickler writes a function as its source if the module that it comes from is registered, else as a name that
the server would have to import. Ours is registered only while one object is written: whoever else uses cloudpickle in
this process (Ray, for one) goes on finding our classes by their names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

_PACKAGE = "persona_axis"


class Packed:
    """Something callable that is itself again after the journey: `content`, with all the code that it needs."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def __call__(self, *args: Any) -> Any:
        return self.content(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        from nnsight.intervention.serialization import dumps, loads

        with _by_value():
            return loads, (dumps(self.content),)


class Travelling:
    """An object that is used inside nnsight's blocks, here or on a server.

    Attributes in `_LIVE` hold parts of the nnsight model, which is never sent: nnsight writes their names.
    """

    _LIVE: ClassVar[tuple[str, ...]] = ()

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = {k: v if k in self._LIVE else Packed(v) for k, v in vars(self).items()}
        if not state:
            return object.__reduce_ex__(self, protocol)
        return (*Packed(object.__new__(type(self))).__reduce__(), state)


@contextmanager
def _by_value() -> Iterator[None]:
    from cloudpickle.cloudpickle import _PICKLE_BY_VALUE_MODULES

    mine = _PACKAGE not in _PICKLE_BY_VALUE_MODULES
    _PICKLE_BY_VALUE_MODULES.add(_PACKAGE)
    try:
        yield
    finally:
        if mine:
            _PICKLE_BY_VALUE_MODULES.discard(_PACKAGE)
