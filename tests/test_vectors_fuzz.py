"""Mutated bytes of every form: a valid value or the documented error, quickly, and never anything else."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from vectors_factory import axis_rows, capping, gguf_file, origin, saved

from persona_axis import Axis, Cap, PersonaAxisError
from persona_axis.vectors.found import Clamps
from persona_axis.vectors.making import made_axis, made_cap
from persona_axis.vectors.reading import read
from persona_axis.vectors.telling import Said

FORMS = ("tensor", "dictionary", "capping", "npy", "safetensors", "numbered", "gguf")
MAGICS = (b"", b"GGUF\x03\0\0\0", b"\x93NUMPY\x01\0", b"PK\x03\x04", b"\x80\x02")
COUNTS = (0, 1, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1)
EXAMPLES = 150
MEMORY = 8 * 2**20  # Python's own allocations while a file of some kB is read


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    folder: Path = tmp_path_factory.mktemp("forms")
    rows = axis_rows()
    np.save(folder / "v.npy", rows.numpy())
    save_file({"v": rows}, folder / "v.safetensors")
    save_file({f"layer.{i}": rows[i].contiguous() for i in (1, 2)}, folder / "n.safetensors")
    made = {
        "tensor": saved(folder / "t.pt", rows),
        "dictionary": saved(folder / "d.pt", {"axis": rows, "metadata": {"model": "x", "n": [1, 2]}}),
        "capping": saved(folder / "c.pt", capping()),
        "npy": folder / "v.npy",
        "safetensors": folder / "v.safetensors",
        "numbered": folder / "n.safetensors",
        "gguf": gguf_file(folder / "v.gguf", {i: rows[i].numpy() for i in (1, 2)}),
    }
    return {form: path.read_bytes() for form, path in made.items()}


@st.composite
def mutations(draw):
    """What is done to the bytes: flips, overwrites with numbers that matter, cuts, repeats. Headers above all."""
    steps = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["flip", "number", "cut", "insert", "repeat"]))
        place = draw(st.one_of(st.integers(0, 200), st.integers(0, 2**16), st.integers(-1500, -1)))
        value = draw(
            st.one_of(
                st.binary(min_size=1, max_size=9),
                st.sampled_from(COUNTS).map(lambda n: n.to_bytes(8, "little")),
            )
        )
        steps.append((kind, place, value))
    return steps


def mutated(raw: bytes, steps) -> bytes:
    for kind, place, value in steps:
        at = place % max(1, len(raw))
        if kind == "flip":
            raw = raw[:at] + bytes([raw[at] ^ (value[0] or 1)]) + raw[at + 1 :] if raw else value
        elif kind == "number":
            raw = raw[:at] + value + raw[at + len(value) :]
        elif kind == "cut":
            raw = raw[:at]
        elif kind == "insert":
            raw = raw[:at] + value + raw[at:]
        else:
            raw = raw[:at] + raw[at : at + 64] + raw[at:]
    return raw


@pytest.mark.parametrize("form", FORMS)
def test_mutated_files(files, tmp_path_factory, form):
    path = tmp_path_factory.mktemp("fuzz") / "mutant"
    outcomes = {"value": 0, "refused": 0}

    @given(mutations())
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
    def check(steps) -> None:
        path.write_bytes(mutated(files[form], steps))
        tracemalloc.start()
        try:
            found = read(path)
            if isinstance(found, Clamps):
                made = made_cap(found, None, Said(), origin())
                assert isinstance(made, Cap) and torch.isfinite(made.direction).all()
            else:
                made = made_axis(found, Said("toward"), origin())
                assert isinstance(made, Axis) and torch.isfinite(made.direction).all()
            outcomes["value"] += 1
        except PersonaAxisError as error:
            assert str(error) and "\n" not in str(error)
            outcomes["refused"] += 1
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < MEMORY

    check()
    assert outcomes["refused"] and outcomes["value"], outcomes
    assert path.parent.is_dir() and [file.name for file in path.parent.iterdir()] == ["mutant"]


@given(st.binary(max_size=300), st.sampled_from(MAGICS))
@settings(max_examples=200, deadline=None)
def test_noise_behind_every_magic(tmp_path_factory, noise, magic):
    path = tmp_path_factory.mktemp("noise") / "file"
    path.write_bytes(magic + noise)
    with pytest.raises(PersonaAxisError):
        read(path)
