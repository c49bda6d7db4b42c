"""Files of torch.save put together by hand: a zip, and in it a pickle of which every opcode is chosen."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping

from _mutants_headers import CANARY

PROGRAM = "archive/data.pkl"
COMMAND = f"touch {CANARY}".encode()


def entries(raw: bytes) -> dict[str, bytes]:
    """Name and content of every entry, under the folder `archive`."""
    with zipfile.ZipFile(io.BytesIO(raw)) as held:
        return {"archive/" + name.partition("/")[2]: held.read(name) for name in held.namelist()}


def zipped(held: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as made:
        for name, content in held.items():
            made.writestr(zipfile.ZipInfo(name), content, method)
    return stream.getvalue()


def with_program(raw: bytes, program: bytes) -> bytes:
    return zipped(entries(raw) | {PROGRAM: program})


# A pickle, put together by hand.
def word(value: str | bytes) -> bytes:
    coded = value.encode() if isinstance(value, str) else value
    return b"X" + struct.pack("<I", len(coded)) + coded


def integer(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    coded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(coded)]) + coded


def named(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def many(values: list[bytes]) -> bytes:
    return b"(" + b"".join(values) + b"t"


def program(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


def storage(count: int, key: str = "0", kind: str = "torch.FloatStorage", where: str = "cpu") -> bytes:
    return many([word("storage"), named(kind), word(key), word(where), integer(count)]) + b"Q"


def strided(held: bytes, offset: int, sizes: list[int], strides: list[int]) -> bytes:
    ordered = named("collections.OrderedDict") + b")R"
    sides = [many([integer(n) for n in values]) for values in (sizes, strides)]
    return named("torch._utils._rebuild_tensor_v2") + many([held, integer(offset), *sides, b"\x89", ordered]) + b"R"


def plain(count: int = 128) -> bytes:
    return strided(storage(count), 0, [count // 32, 32], [32, 1])


def dictionary(pairs: list[tuple[bytes, bytes]]) -> bytes:
    return b"}(" + b"".join(key + value for key, value in pairs) + b"u"
