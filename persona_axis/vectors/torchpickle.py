"""The program in a file of torch.save, walked through without running it: plain values and strided tensors, or nothing.

Not torch's weights-only loader: that one calls what it knows with whatever arguments the file gives (a storage or a
bytearray of 10 GB), hashes keys that cost 2^60 steps, and unpacks by another zip reader than the one that checked the
file. Here nothing is ever called, a key is a text or a number, given once, and what tensors claim is counted.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from persona_axis.errors import VectorsError

PLAIN = "load it where you trust it, and save its tensors alone"
_STORAGES = {
    f"torch.{name}Storage": dtype
    for name, dtype in {
        "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
        "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
        "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
    }.items()
}  # fmt: skip
_DICTIONARY, _SIZE = "collections.OrderedDict", "torch.Size"
_TENSOR, _PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
_CALLED = (_DICTIONARY, _SIZE, _TENSOR, _PARAMETER)
_NUMPY = {
    f"numpy.{core}.multiarray.{name}": told
    for core in ("core", "_core")
    for name, told in {
        "scalar": ("number", "turn it into a plain one with .item()"),
        "_reconstruct": ("array", "turn it into a tensor with torch.from_numpy or leave it out"),
    }.items()
}
_SHARED = 4
"""How many times the file's size its tensors may claim together: views of one storage are common, thousands are not."""
_MOST_SIDES, _LARGEST = 8, 2**62


@dataclass(frozen=True, eq=False)
class Name:
    """What the program names: one of a few words, never the thing itself. No tuple: a file could spell one."""

    name: str


@dataclass(frozen=True, eq=False)
class _Storage:
    numbers: Tensor


class Walk:
    """One walk through a program. `storage` gives the bytes under a key; `size` is that of the file."""

    def __init__(self, where: str, storage: Callable[[str], bytes], size: int) -> None:
        self.where = where
        self._storage = storage
        self._room = _SHARED * size
        self._storages: dict[str, _Storage] = {}
        self._memo: dict[int, Any] = {}
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []

    def value(self, program: bytes) -> Any:
        """What the program makes. Raises `VectorsError` for what it may not want, and anything where it is damaged."""
        for operation, argument, _ in pickletools.genops(program):
            if operation.name == "STOP":
                (value,) = self._stack
                return value
            self._step(operation.name, argument)
        raise ValueError("the program does not end")

    def _step(self, operation: str, argument: Any) -> None:
        stack = self._stack
        match operation:
            case "PROTO":
                if argument > 2:
                    raise VectorsError(
                        f"{self.where}: was saved with pickle protocol {argument}; only 2 is read, which torch.save "
                        "takes unless told otherwise: load it where you trust it, and save it again without "
                        "pickle_protocol"
                    )
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE":
                argument.encode()  # raises for half a character
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[operation])
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                made: Any = {"EMPTY_TUPLE": (), "EMPTY_LIST": [], "EMPTY_DICT": {}}[operation]
                stack.append(made)
            case "MARK":
                self._marked.append(stack)
                self._stack = []
            case "TUPLE":
                items = tuple(self._taken())
                self._stack.append(items)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(operation[-1])
                items = tuple(self._pop() for _ in range(count))[::-1]
                stack.append(items)
            case "APPEND":
                self._append([self._pop()])
            case "APPENDS":
                self._append(self._taken())
            case "SETITEM":
                value = self._pop()
                self._set([self._pop(), value])
            case "SETITEMS":
                self._set(self._taken())
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "GLOBAL":
                stack.append(self._named(str(argument).replace(" ", ".")))
            case "BINPERSID":
                stack.append(self._stored(self._pop()))
            case "REDUCE":
                arguments = self._pop()
                stack.append(self._made(self._pop(), arguments))
            case _:
                raise ValueError(f"{operation} is no operation that torch.save writes for tensors, numbers and texts")

    def _pop(self) -> Any:
        return self._stack.pop()

    def _taken(self) -> list[Any]:
        """Everything since the last mark."""
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _append(self, items: list[Any]) -> None:
        held = self._stack[-1]
        if type(held) is not list:
            raise ValueError("appends to what is no list")
        held.extend(items)

    def _set(self, items: list[Any]) -> None:
        held = self._stack[-1]
        if type(held) is not dict:
            raise ValueError("sets a key of what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise ValueError(f"a key is a {type(key).__name__}, not a text or a number")
            if key in held:
                raise ValueError(f"the key {str(key)[:60]!r} is given twice")
            held[key] = value

    def _named(self, name: str) -> Name:
        dtype = name.startswith("torch.") and isinstance(getattr(torch, name[6:], None), torch.dtype)
        if dtype or name in _STORAGES or name in _CALLED:
            return Name(name)
        at = self._key()
        if name in _NUMPY:
            what, instead = _NUMPY[name]
            raise VectorsError(
                f"{self.where}: {at or 'it'} holds a numpy {what}, which only running the file's program would make: "
                f"load it where you trust it, {instead}, and save it again"
            )
        raise VectorsError(
            f"{self.where}: {at and f'{at} '}wants {name[:200]}, which is more than tensors, numbers and texts: it is "
            f"not read, since that could run anything; {PLAIN}"
        )

    def _stored(self, told: Any) -> _Storage:
        """The storage that a tuple ("storage", type, key, device, count) stands for."""
        _, kind, key, _, count = told
        dtype = _STORAGES[kind.name]
        if key not in self._storages:
            raw = self._storage(key)
            numbers = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
            self._storages[key] = _Storage(numbers)
        held = self._storages[key].numbers
        if held.dtype != dtype or held.numel() != count:
            raise ValueError(f"storage {key[:60]!r} holds {held.numel()} {held.dtype}, not {count} {dtype}"[:200])
        return self._storages[key]

    def _key(self) -> str:
        """The key whose value is being made, quoted; "" where there is none."""
        levels = [[], *self._marked, self._stack]
        for before, level in zip(levels[-2::-1], levels[:0:-1], strict=True):
            if before and type(before[-1]) is not dict:  # items of a list or of a tuple, which lies under a key itself
                continue
            key = next((item for item in reversed(level) if type(item) is not list), None)
            if type(key) in (str, int):
                return repr(str(key)[:60])
        return ""

    def _made(self, name: Any, arguments: Any) -> Any:
        match name, arguments:
            case Name(name="collections.OrderedDict"), ():
                return {}
            case Name(name="torch.Size"), (tuple() as sides,):
                return sides
            case Name(name="torch._utils._rebuild_parameter"), (Tensor() as tensor, bool(), dict()):
                return tensor
            case Name(name="torch._utils._rebuild_tensor_v2"), (
                _Storage(numbers=numbers), offset, tuple() as sides, tuple() as steps, bool(), dict(), *more
            ):  # fmt: skip
                if any(more):  # torch says here that the numbers are the negatives or conjugates of what is stored
                    raise VectorsError(f"{self.where}: holds a negated or conjugated view: save a clone of it")
                return self._strided(numbers, offset, sides, steps)
        raise ValueError("calls what can't be called, or not so")

    def _strided(self, numbers: Tensor, offset: Any, sides: tuple[Any, ...], steps: tuple[Any, ...]) -> Tensor:
        """A view of a storage, once it is known to lie inside, and all of them not to claim too much."""
        whole = all(type(n) is int and 0 <= n < _LARGEST for n in (offset, *sides, *steps))
        if not whole or len(sides) != len(steps) or len(sides) > _MOST_SIDES:
            raise ValueError("a tensor's shape or strides cannot be")
        count = math.prod(sides)
        self._room -= count * numbers.element_size()
        if self._room < 0:
            raise VectorsError(f"{self.where}: a tensor {list(sides)} claims more numbers than the file holds")
        if count and offset + sum((n - 1) * step for n, step in zip(sides, steps, strict=True)) >= numbers.numel():
            raise ValueError("a tensor reaches past the end of its storage")
        return numbers.as_strided(sides, steps, offset) if count else numbers[:0].reshape(sides)
