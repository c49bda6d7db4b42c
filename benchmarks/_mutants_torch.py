"""Damage to the pickle in a file of torch.save: calls, lies about storages, large things in few bytes.

Every program that would run something would make the file `CANARY`, which must never appear.
"""

from __future__ import annotations

import io
import random
import warnings
import zipfile
from collections.abc import Callable

import torch
from _mutants_headers import CANARY
from _mutants_json import spots
from _mutants_safe import VALUES
from _mutants_zip import ZIP
from _pickles import (
    COMMAND,
    PROGRAM,
    dictionary,
    entries,
    integer,
    many,
    named,
    plain,
    program,
    storage,
    strided,
    with_program,
    word,
    zipped,
)  # fmt: skip

CODES = b"(.012FINKMSTUVXQRabcdegijlopqrstu})]\x80\x81\x82\x85\x86\x87\x88\x8a\x8b\x8f\x93\x94\x95"


def called(raw: bytes, draw: random.Random) -> bytes:
    """Programs that call something, by every opcode that can, alone or inside what looks like an axis."""
    system = draw.choice(("posix.system", "os.system", "builtins.eval", "builtins.exec", "subprocess.call", "nt.system",
                          "torch.serialization.load", "torch.hub.load", "numpy.load", "builtins.__import__",
                          "torch.storage._load_from_bytes", "torch.jit.load", "functools.partial"))  # fmt: skip
    code = word(f"__import__('os').system('touch {CANARY}')") if "builtins" in system else word(COMMAND)
    module, _, attribute = system.rpartition(".")
    call: bytes = draw.choice((
        named(system) + b"(" + code + b"tR",
        word(module) + word(attribute) + b"\x93(" + code + b"tR",
        b"(" + code + f"i{module}\n{attribute}\n".encode(),
        b"(" + named(system) + code + b"o",
        named(system) + code + b"\x85\x81",
        named("collections.OrderedDict") + b")R" + dictionary([(word("__reduce__"), named(system))]) + b"b",
        b"\x82\x01" + b"(" + code + b"tR",
        named("torch._utils._rebuild_tensor_v2") + many([named(system), code]) + b"R",
        named("torch._utils._rebuild_parameter") + many([plain(), b"\x88", named(system)]) + b"R",
        named("torch.FloatStorage") + code + b"\x85R" + code + b"b",
        word(COMMAND) + b"Q",
        named("torch.Tensor") + b")R" + many([named(system), code]) + b"b",
    ))  # fmt: skip
    inside = dictionary([(word("axis"), plain()), (word("metadata"), call)])
    made = program(draw.choice((call, inside)))
    return made if draw.random() < 0.1 else with_program(raw, made)


def storages(raw: bytes, draw: random.Random) -> bytes:
    """Storages that say another size, type, name or place than they have."""
    kinds = ("Float", "Double", "Half", "BFloat16", "Long", "Byte", "Bool", "ComplexFloat", "QInt8", "Untyped", "Nope")
    held = storage(
        draw.choice((128, 0, 127, 129, 4096, 2**31, 2**40, 2**62, 2**64, -1)),
        draw.choice(("0",) * 4 + ("1", "../../../x", "", "0/../0", "a\0b")),
        draw.choice(("torch.FloatStorage", f"torch.{draw.choice(kinds)}Storage", "torch.storage.UntypedStorage")),
        draw.choice(("cpu", "cpu", "cuda:0", "meta", "../x", "mps")),
    )
    return with_program(raw, program(strided(held, 0, [4, 32], [32, 1])))


def strides(raw: bytes, draw: random.Random) -> bytes:
    """Sizes, strides and offsets that leave the storage, or make it look like more."""
    lies = (0, 1, 4, 32, 33, 127, 128, 2**31, 2**62, 2**63, 2**64, -1, -32, 10**30)
    rank = draw.choice((1, 2, 2, 2, 3, 70))
    sizes, steps = ([draw.choice(lies) for _ in range(rank)] for _ in range(2))
    if draw.random() < 0.5:
        sizes, steps = [4, 32], draw.choice(([0, 0], [1, 1], [0, 1], [32, 1], [1, 4]))
    return with_program(raw, program(strided(storage(128), draw.choice((0, 0, 0, *lies)), sizes, steps)))


def allocating(raw: bytes, draw: random.Random) -> bytes:
    """Harmless types that are asked for gigabytes."""
    size = integer(draw.choice((10**9, 10**10, 2**40)))
    call: bytes = draw.choice((
        named("builtins.bytearray") + size + b"\x85R", named("torch.FloatStorage") + size + b"\x85R",
        named("torch.FloatTensor") + size + b"\x85R", named("torch.storage.UntypedStorage") + size + b"\x85R",
        named("torch.Tensor") + size + b"\x85R", named("torch.Tensor") + size + b"\x85\x81",
        named("torch._utils._rebuild_meta_tensor_no_storage")
        + many([named("torch.float32"), many([size]), many([size]), b"\x89"]) + b"R",
        named("torch.Size") + many([many([size] * 100)]) + b"R", b"\x8b\xff\xff\xff\x7f",
        word(b"x")[:1] + b"\xff\xff\xff\xff",
    ))  # fmt: skip
    return with_program(raw, program(draw.choice((call, dictionary([(word("axis"), plain()), (word("x"), call)])))))


def experiment(vectors: bytes, cap: bytes, vector: bytes) -> list[tuple[bytes, bytes]]:
    """A capping configuration of one intervention."""
    intervention = dictionary([(word("cap"), cap), (word("vector"), vector)])
    one = dictionary([(word("id"), word("a")), (word("interventions"), b"]" + intervention + b"a")])
    return [(word("vectors"), vectors), (word("experiments"), b"]" + one + b"a")]


def laughing(raw: bytes, draw: random.Random) -> bytes:
    """Small programs for large things: lists or tuples that hold the one before twice, as value, key or name."""
    depth = draw.choice((25, 60))
    step = draw.choice((b"h\0\x86q\0", b"](h\0e\x86q\0"))  # (x, x), or (x, [x]), which is no key
    laugh = word("ha") + b"q\0" + step * depth
    pairs = draw.choice((
        [(laugh, b"N")], [(word("axis"), laugh)], [(word("axis"), plain()), (word("metadata"), laugh)],
        [(word("axis"), plain()), (word("metadata"), dictionary([(laugh, b"N")]))],
        experiment(dictionary([]), laugh, laugh), experiment(dictionary([(word("v"), plain())]), laugh, word("v")),
    ))  # fmt: skip
    return with_program(raw, program(dictionary(pairs)))


def sharing(raw: bytes, draw: random.Random) -> bytes:
    """Many vectors over one storage, or many experiments with one list of interventions."""
    if draw.random() < 0.5:
        width, count = draw.choice(((4096, 500), (30_000, 2_000)))
        first = strided(storage(width) + b"q\2", 0, [width], [1])
        view = draw.choice((strided(b"h\2", 0, [width], [1]), first[:-1] + b"Rq\3"))
        again = view if view != first[:-1] + b"Rq\3" else b"h\3"  # the storage again, or the tensor itself
        begin = first if again is view else view
        vectors = dictionary([(word(f"v{i}"), again if i else begin) for i in range(count)])
        listed = [dictionary([(word("vector"), word(f"v{i}")), (word("cap"), b"K\1"), (word("layer"), b"K\1")])
                  for i in range(count)]  # fmt: skip
        one = dictionary([(word("id"), word("a")), (word("interventions"), b"](" + b"".join(listed) + b"e")])
        made = program(dictionary([(word("vectors"), vectors), (word("experiments"), b"]" + one + b"a")]))
        return zipped(entries(raw) | {PROGRAM: made, "archive/data/0": draw.randbytes(2) * 2 * width})
    count = draw.choice((300, 3_000))
    layers = b"](" + b"K\1" * count + b"eq\1"
    one = dictionary([(word("vector"), word("v")), (word("cap"), b"K\1"), (word("layers"), layers)]) + b"q\3"
    listed_many = b"](" + one + b"h\3" * count + b"eq\4"
    first = dictionary([(word("id"), word("0")), (word("interventions"), listed_many)])
    rest = [dictionary([(word("id"), word(str(i))), (word("interventions"), b"h\4")]) for i in range(1, 50)]
    experiments = b"](" + first + b"".join(rest) + b"e"
    vectors = dictionary([(word("v"), strided(storage(128), 0, [32], [1]))])
    return with_program(raw, program(dictionary([(word("vectors"), vectors), (word("experiments"), experiments)])))


def opcodes(raw: bytes, draw: random.Random) -> bytes:
    """Bytes of the program replaced by opcodes, dropped or doubled."""
    made = bytearray(entries(raw)[PROGRAM])
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(made))
        match draw.randrange(3):
            case 0:
                made[at] = draw.choice(CODES)
            case 1:
                del made[at]
            case _:
                made[at:at] = made[at : at + draw.choice((1, 2, 8))]
    return with_program(raw, bytes(made))


def values(raw: bytes, draw: random.Random) -> bytes:
    """Another value somewhere in what the file holds, written by torch.save itself."""
    held = torch.load(io.BytesIO(raw), weights_only=True)
    found = spots(held)
    tensors = (torch.zeros(4, 32, dtype=torch.int64), torch.full((4, 32), torch.nan), torch.ones(3), torch.zeros(0, 32),
               torch.eye(32).to_sparse(), torch.ones(4, 32, dtype=torch.complex64), torch.ones(()), torch.ones(2, 2, 2),
               torch.zeros(4, 32), torch.full((4, 32), 1e38), torch.ones(4, 32).half())  # fmt: skip
    value = draw.choice((*VALUES, *tensors, (1, 2), {1: 2}, (1,) * 100_000, b"x", 1j, {1}, held))
    if found:
        box, key = draw.choice(found)
        if draw.random() < 0.8 or not isinstance(box, dict):
            box[key] = value
        else:
            box[draw.choice((3, None, 1.5, True, "../../x", "k" * 2_000_000, "\x1b[2J"))] = box.pop(key)
    stream = io.BytesIO()
    torch.save(held if found else value, stream, pickle_protocol=draw.choice((2, 2, 2, 4)))
    return stream.getvalue()


def twice(raw: bytes, draw: random.Random) -> bytes:
    """A dictionary with one key twice, an entry of the zip twice."""
    if draw.random() < 0.5:
        again = b"N" if draw.random() < 0.5 else plain()
        return with_program(raw, program(dictionary([(word("axis"), plain()), (word("axis"), again)])))
    stream = io.BytesIO()
    held = entries(raw)
    with zipfile.ZipFile(stream, "w") as made, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile minds, and does it
        for name, content in [*held.items(), (draw.choice(sorted(held)), program(plain()))]:
            made.writestr(zipfile.ZipInfo(name), content)
    return stream.getvalue()


TORCH: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "calls": called, "storage lies": storages, "strides lie": strides, "allocations": allocating,
    "nested references": laughing, "shared data": sharing, "opcodes": opcodes, "other values": values,
    "duplicate keys": twice, **ZIP,
}  # fmt: skip
