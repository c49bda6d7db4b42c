"""Damage to npy headers, which are Python literals, and to the counts and lengths of GGUF files."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

SHAPES = (
    "(2**40,)", "(1099511627776, 1)", "(0, 1180591620717411303424)", "(4, -32)", "(4, 32, 1)", "(" + "1," * 70 + ")",
    "(True, 128)", "(128.0,)", "(4, 32", "4", "()", "((4, 32),)", "[4, 32]", "(" + "9" * 3000 + "," + "9" * 3000 + ")",
    "(32, 4)", "(" * 300 + ")" * 300, "(4L, 32L)", "(0,)",
)  # fmt: skip
DESCRS = (
    "'<f8'", "'>f4'", "'<f2'", "'<f16'", "'|O'", "'<c8'", "'<i4'", "'|V4'", "'|S4'", "'<U1'", "'<M8[s]'", "'<f3'",
    "''", "[('a', '<f4')]", "[('a', '|O')]", "('<f4', (2,))", "'f4,f4'", "None", "'<f\\d'", "'" + "x" * 4000 + "'",
)  # fmt: skip
WHOLE = (
    "__import__('os').system('touch {canary}')", "{{'descr': '<f4', 'shape': (4, 32)}}", "1", "", "{{", "[]",
    "{{'descr': '<f4', 'fortran_order': False, 'shape': (4, 32), 'extra': 1}}", "{{" * 500, "'\\d\\q'",
    "{{'descr': '<f4', 'fortran_order': False, 'shape': (4, 32), 'shape': (1, 1)}}", "-" * 5000 + "1",
    "{{'descr': '<f4', 'fortran_order': (lambda: 1)(), 'shape': (4, 32)}}", "1 if 1 else 2", "\0" * 50, "\n" * 50,
)  # fmt: skip
CANARY = "persona_axis_canary"


def npy_parts(raw: bytes) -> tuple[str, bytes]:
    size = int.from_bytes(raw[8:10], "little")
    return raw[10 : 10 + size].decode("latin1"), raw[10 + size :]


def npy(header: str, data: bytes, version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode("latin1", "replace")
    size = len(text).to_bytes(2 if version[0] == 1 else 4, "little") if len(text) < 2**16 else b"\xff\xff"
    return b"\x93NUMPY" + bytes(version) + size + text + data


def npy_shape(raw: bytes, draw: random.Random) -> bytes:
    header, data = npy_parts(raw)
    at = header.index("'shape': ") + 9
    return npy(f"{header[:at]}{draw.choice(SHAPES)}, }}\n", data if draw.random() < 0.7 else b"")


def npy_descr(raw: bytes, draw: random.Random) -> bytes:
    """Another type; with as many bytes as it needs, if it is a float."""
    _, data = npy_parts(raw)
    descr = draw.choice(DESCRS)
    if descr == "'<f16'":
        data = draw.randbytes(4 * 32 * 16)
    if descr == "'<f8'":
        data = draw.randbytes(4 * 32 * 8)
    order = draw.choice(("True", "False", "False", "1", "None", "'yes'"))
    return npy(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': (4, 32), }}\n", data)


def npy_text(raw: bytes, draw: random.Random) -> bytes:
    """A header that is other Python, a call among it."""
    _, data = npy_parts(raw)
    return npy(draw.choice(WHOLE).format(canary=CANARY), data, draw.choice(((1, 0), (2, 0), (3, 0), (9, 9))))


def npy_length(raw: bytes, draw: random.Random) -> bytes:
    return raw[:8] + draw.choice((0, 1, 2, 0xFFFF, len(raw), 60)).to_bytes(2, "little", signed=False) + raw[10:]


def npy_pickle(raw: bytes, draw: random.Random) -> bytes:
    """An array of objects, whose data are a pickle that would call something."""
    program = f"cposix\nsystem\n(S'touch {CANARY}'\ntR.".encode()
    shape = draw.choice(("()", "(1,)", "(4, 32)"))
    return npy(f"{{'descr': '|O', 'fortran_order': False, 'shape': {shape}, }}\n", program)


def npy_values(raw: bytes, draw: random.Random) -> bytes:
    header, data = npy_parts(raw)
    made = bytearray(data)
    for _ in range(draw.choice((1, 5))):
        at = draw.randrange(len(made) // 4) * 4
        struct.pack_into("<I", made, at, draw.choice((0x7FC00000, 0x7FA00000, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 1)))
    return npy(header, bytes(made))


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def gguf(
    stated: list[bytes], tensors: list[bytes], data: bytes, version: int = 3, counts: tuple[int, int] | None = None
) -> bytes:
    claimed = counts or (len(tensors), len(stated))
    head = b"GGUF" + struct.pack("<IQQ", version, *claimed) + b"".join(stated) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data


KIND = text(b"general.architecture") + struct.pack("<I", 8) + text(b"controlvector")


def tensor(name: bytes, width: int = 32, offset: int = 0, kind: int = 0, rank: int = 1) -> bytes:
    sides = struct.pack(f"<{min(rank, 64)}Q", *([width] * min(rank, 64)))
    return text(name) + struct.pack("<I", rank) + sides + struct.pack("<IQ", kind, offset)


def floats(draw: random.Random, count: int) -> bytes:
    return struct.pack(f"<{count}f", *(draw.gauss(0, 1) for _ in range(count)))


def gguf_counts(raw: bytes, draw: random.Random) -> bytes:
    lies = (0, 1, 2, 3, 1000, 2**31, 2**40, 2**63, 2**64 - 1)
    return raw[:8] + struct.pack("<QQ", draw.choice(lies), draw.choice(lies)) + raw[24:]


def gguf_tensors(raw: bytes, draw: random.Random) -> bytes:
    """Widths, offsets, types, ranks and names that lie."""
    made = []
    for i in range(draw.choice((1, 2, 5))):
        name = draw.choice((b"direction.%d" % i,) * 4 + (b"../../x", b"direction.1", b"direction.01", b"x" * 100_000,
                           b"direction.\xd9\xa1", b"\xff", b"direction.999999", b""))  # fmt: skip
        made.append(tensor(
            name, draw.choice((32, 32, 0, 1, 2**31, 2**61, 2**62, 2**64 - 1)),
            draw.choice((0, 128, 4, 2**40, 2**63, 2**64 - 1, 256)), draw.choice((0, 0, 0, 1, 28, 2, 30, 2**32 - 1)),
            draw.choice((1, 1, 1, 1, 0, 2, 4, 5, 2**32 - 1)),
        ))  # fmt: skip
    return gguf([KIND], made, floats(draw, draw.choice((64, 32, 0))), draw.choice((3, 3, 2, 1, 2**24)))


def gguf_shared(raw: bytes, draw: random.Random) -> bytes:
    """Many tensors over the same bytes: a small file that claims a large one."""
    width, count = draw.choice(((4096, 300), (20_000, 1_500), (32, 5_000)))
    return gguf([KIND], [tensor(b"direction.%d" % i, width) for i in range(count)], floats(draw, width))


def gguf_metadata(raw: bytes, draw: random.Random) -> bytes:
    """Arrays, texts and types that lie about themselves, an alignment that cannot be, keys given twice."""
    value: bytes = draw.choice((
        struct.pack("<IIQ", 9, draw.choice((0, 7, 8, 9, 12, 99)), draw.choice((0, 3, 2**40, 2**64 - 1))),
        struct.pack("<IQ", 8, draw.choice((0, 5, 2**40, 2**64 - 1))), struct.pack("<I", draw.choice((13, 99, 2**31))),
        struct.pack("<IB", 7, 7), struct.pack("<Id", 12, float("nan")), struct.pack("<I", 8) + text(b"\xff" * 70_000),
        struct.pack("<I", 8) + text(b"x" * 60_000), struct.pack("<II", 4, draw.choice((0, 1, 2**31, 2**16))),
    ))  # fmt: skip
    key = draw.choice((b"general.alignment", b"general.architecture", b"persona_axis.conventions", b"n", b"k" * 70_000))
    extra = [text(b"key.%d" % i) + struct.pack("<IB", 0, 1) for i in range(draw.choice((0, 0, 20_000)))]
    tensors = [tensor(b"direction.1"), tensor(b"direction.2", offset=128)]
    order = draw.choice(([KIND, text(key) + value], [text(key) + value, KIND]))
    return gguf(order + extra, tensors, floats(draw, 64))


def gguf_values(raw: bytes, draw: random.Random) -> bytes:
    data = bytearray(floats(draw, 64))
    for _ in range(draw.choice((1, 3))):
        at = draw.randrange(64) * 4
        struct.pack_into("<I", data, at, draw.choice((0x7FC00000, 0x7FA00000, 0x7F800000, 0x7F7FFFFF, 1, 0)))
    return gguf([KIND], [tensor(b"direction.1"), tensor(b"direction.2", offset=128)], bytes(data))


NPY: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "declared shape": npy_shape, "dtype": npy_descr, "header is other Python": npy_text, "header length": npy_length,
    "object array": npy_pickle, "NaN and ends": npy_values,
}  # fmt: skip
GGUF: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "counts": gguf_counts, "tensor entries": gguf_tensors, "shared data": gguf_shared, "metadata": gguf_metadata,
    "NaN and ends": gguf_values,
}  # fmt: skip
