"""What the campaign of benchmarks/fuzz.py found, each as the smallest file that shows it, and what lies next to it.

Of the first 98 of these, 69 failed on the code that the campaign met, and two more never ended there.
"""

from __future__ import annotations

import io
import json
import random
import struct
import sys
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from _forms import axis, run_files, torch_bytes
from _mutants_headers import CANARY, KIND, gguf, npy, tensor
from _mutants_safe import joined, parts
from _mutants_zip import two_directories
from _pickles import dictionary, integer, many, named, plain, program, storage, strided, with_program, word
from _traits_used import traits_for
from vectors_factory import axis_rows, capping, saved

from persona_axis import Axis, Cap, PersonaAxisError
from persona_axis.calibration.units import Units
from persona_axis.display.tables import Output, show_axis
from persona_axis.display.traits import show_traits
from persona_axis.errors import LONGEST, AxisFileError, ExtractionError, VectorsError
from persona_axis.extraction.store import RunStore
from persona_axis.files.safefile import read_safe
from persona_axis.traits import Traits
from persona_axis.vectors.reading import read

ROWS = torch_bytes(axis_rows())


@pytest.fixture(autouse=True)
def quick_and_silent():
    """None of these may take a second, megabytes, or warn."""
    began = time.process_time()
    tracemalloc.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.process_time() - began < 3 and peak < 64 * 2**20, (time.process_time() - began, peak)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "file"


@pytest.fixture
def axis_file(tmp_path) -> bytes:
    axis(False).save(tmp_path / "axis")
    return (tmp_path / "axis").read_bytes()


def edited(raw: bytes, name: str, **changes) -> bytes:
    header, data = parts(raw)
    header[name] |= changes
    return joined(header, data)


def restated(raw: bytes, name: str, values: np.ndarray) -> bytes:
    header, data = parts(raw)
    start, end = header[name]["data_offsets"]
    assert len(values.tobytes()) == end - start
    return joined(header, data[:start] + values.tobytes() + data[end:])


class TestSafetensors:
    @pytest.mark.parametrize(
        "shape",
        [[1] * 70 + [4, 32], [10**4000] * 2000, [0, 2**63], [0, 2**62, 2**62], [2**31, 2**31, 0, 2**31], [1] * 200_000],
        ids=["70 sides", "a product of millions of digits", "0 of 2^63", "0 of 2^124", "0 last", "200,000 sides"],
    )
    def test_shapes_that_cannot_be(self, path, axis_file, shape):
        start = parts(axis_file)[0]["direction"]["data_offsets"][0]
        span = {"data_offsets": [start, start]} if 0 in shape else {}
        path.write_bytes(edited(axis_file, "direction", shape=shape, **span))
        with pytest.raises(AxisFileError, match="direction: malformed shape"):
            read_safe(path)

    @pytest.mark.parametrize("span", [[-(10**4299), 10**4299], [4, 0], [-4, 508], [0, 2**64]])
    def test_data_that_lie_nowhere(self, path, axis_file, span):
        path.write_bytes(edited(axis_file, "direction", data_offsets=span))
        with pytest.raises(AxisFileError, match="direction: malformed header entry"):
            read_safe(path)

    def test_layers_whose_differences_wrap(self, path, axis_file):
        """2, 2^62, -2^63 + 1, 0: each int64 difference is positive, and both ends are layers."""
        path.write_bytes(restated(axis_file, "layers", np.array([2, 2**62, 1 - 2**63, 0])))
        with pytest.raises(AxisFileError, match="indices must rise"):
            Axis.load(path)

    def test_layers_of_traits_whose_differences_wrap(self, path):
        traits_for(axis(False)).save(path)
        path.write_bytes(restated(path.read_bytes(), "layers", np.array([2, 2**62, 1 - 2**63, 0])))
        with pytest.raises(AxisFileError, match="layers: expected rising indices"):
            Traits.load(path)

    def test_quantiles_whose_differences_overflow(self, path, axis_file):
        table = np.repeat(np.array([[-3.3e38, 3.3e38]], np.float32), [50, 51], axis=1)
        path.write_bytes(restated(axis_file, "quantiles_roles", np.tile(table, (4, 1))))
        assert Axis.load(path).quantile("roles", 100).tolist() == [float(np.float32(3.3e38))] * 4
        path.write_bytes(restated(axis_file, "quantiles_roles", np.tile(table[:, ::-1], (4, 1))))
        with pytest.raises(AxisFileError, match="must not fall"):
            Axis.load(path)

    @pytest.mark.parametrize(
        "name", ["x" * 2_000_000, "\x1b[2J\x1b]0;title\x07", "a\nerror: none", "\u202edir", "\ud800"], ids=range(5)
    )
    def test_names_are_told_short_and_plain(self, path, axis_file, name):
        header, data = parts(axis_file)
        header[name] = header.pop("direction")
        path.write_bytes(joined(header, data))
        for load in (Axis.load, Cap.load):
            with pytest.raises(AxisFileError) as error:
                load(path)
            text = str(error.value)
            assert len(text) < LONGEST + 100 and text.isprintable() and text.startswith(str(path))

    @pytest.mark.parametrize("key", ["format", "provenance", "default_count", "recommended_layer", "hidden_size"])
    def test_values_are_told_short(self, path, axis_file, key):
        header, data = parts(axis_file)
        header["__metadata__"][key] = json.dumps("y" * 500_000)
        path.write_bytes(joined(header, data))
        with pytest.raises(AxisFileError, match=key) as error:
            Axis.load(path)
        assert len(str(error.value)) < LONGEST + 100


def test_half_a_character_in_the_metadata(path, axis_file):
    """JSON can spell it, and nothing can print or save it."""
    header, data = parts(axis_file)
    stated = header["__metadata__"]
    for key in ("role_names", "accepted"):
        stated[key] = stated[key].replace("ghost", "\\ud800")
    path.write_bytes(joined(header, data))
    with pytest.raises(AxisFileError, match="role_names: not valid JSON|accepted: not valid JSON"):
        Axis.load(path)
    for key in ("role_names", "accepted"):
        stated[key] = stated[key].replace("\\ud800", "\\ud83d\\ude00")
    path.write_bytes(joined(header, data))
    assert Axis.load(path).role_names[0] == "\U0001f600"
    axis(False).cap(2, floor=0.0).save(path)
    header, data = parts(path.read_bytes())
    header["__metadata__"]["provenance"] = '{"notes": ["\\uD800"]}'
    path.write_bytes(joined(header, data))
    with pytest.raises(AxisFileError, match="provenance: expected a JSON object"):
        Cap.load(path)


def test_names_that_would_steer_a_terminal(path, axis_file):
    header, data = parts(axis_file)
    stated = header["__metadata__"]
    stated |= {key: stated[key].replace("ghost", "\\u001b[2Jgh[red]\\u202eost") for key in ("role_names", "accepted")}
    stated["model"] = "\x1b]0;title\x07tiny"
    path.write_bytes(joined(header, data))
    output = Output(file=io.StringIO(), force_terminal=False, width=120)
    show_axis(output, Axis.load(path))
    shown = output.file.getvalue()
    assert "[2Jgh[red]ost" in shown and "]0;titletiny" in shown
    assert shown.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "stated",
    [{"notes": json.dumps([[]] * 30_000)}, {"notes": json.dumps(["x" * 3_000_000])}, {"model": "y " * 2_000_000}],
    ids=["30,000 notes", "a long note", "a long name"],
)
def test_what_is_too_much_for_a_terminal_is_cut(path, stated):
    """A table of 30,000 notes took 3 s each time it was drawn; all of these load."""
    output = Output(file=io.StringIO(), force_terminal=False, width=120)
    for made, show in ((axis(False), lambda: show_axis(output, Axis.load(path))),
                       (traits_for(axis(False)), lambda: show_traits(output, Traits.load(path)))):  # fmt: skip
        made.save(path)
        header, data = parts(path.read_bytes())
        header["__metadata__"] |= stated
        path.write_bytes(joined(header, data))
        show()
    shown = " ".join(output.file.getvalue().split())
    assert len(shown) < 100_000 and shown.count("(29,950 more)") + shown.count("more characters)") == 2


def test_an_error_keeps_both_ends_of_its_text():
    text = str(PersonaAxisError("a" * 1500 + "b" * 50_000 + "c" * 500))
    assert text.startswith("a" * 1500) and text.endswith("c" * 500) and "50000 characters left out" in text
    assert str(PersonaAxisError("as it is, ü")) == "as it is, ü" and str(PersonaAxisError()) == ""
    assert str(PersonaAxisError("a\nb\x1b")) == r"a\nb\x1b"
    assert len(str(PersonaAxisError("\U000e0001" * LONGEST))) < LONGEST + 100


class TestNpy:
    @pytest.mark.parametrize(
        ("shape", "says"),
        [
            ("(" + "1," * 70 + ")", "shape"), ("(0, 1180591620717411303424)", "shape"),
            ("(" + "9" * 3000 + "," + "9" * 3000 + ")", "shape"), ("(4L, 33L)", "needs 528 bytes"),
        ],
    )  # fmt: skip
    def test_shapes(self, path, shape, says):
        data = b"" if shape.startswith("(0") else bytes(512)
        path.write_bytes(npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n", data))
        with pytest.raises(VectorsError, match=says):
            read(path)

    def test_numbers_larger_than_float64(self, path):
        np.save(path.with_suffix(".npy"), np.full((2, 4), np.longdouble("1e4000")))
        with pytest.raises(VectorsError, match="absurdly large"):
            read(path.with_suffix(".npy"))

    def test_odd_escapes(self, path):
        path.write_bytes(npy("{'descr': '<f\\d', 'fortran_order': False, 'shape': (4, 32), }\n", bytes(512)))
        with pytest.raises(VectorsError, match="not a valid npy file"):
            read(path)


def test_gguf_tensors_over_the_same_bytes(path):
    width = 20_000
    path.write_bytes(gguf([KIND], [tensor(b"direction.%d" % i, width) for i in range(1500)], bytes(4 * width)))
    with pytest.raises(VectorsError, match="1500 tensors claim more numbers than the file holds"):
        read(path)


def laugh(depth: int, step: bytes = b"h\0\x86q\0") -> bytes:
    """A value that holds the one before twice, `depth` times over: as a text it has 2^depth parts."""
    return word("ha") + b"q\0" + step * depth


def experiment(interventions: bytes) -> bytes:
    one = dictionary([(word("id"), word("a")), (word("interventions"), interventions)])
    return dictionary([
        (word("vectors"), dictionary([(word("v"), strided(storage(128), 0, [32], [1]))])),
        (word("experiments"), b"]" + one + b"a"),
    ])  # fmt: skip


class TestTorch:
    """torch's weights-only loader took minutes, gigabytes, or another archive than was checked for some of these."""

    @pytest.mark.parametrize(
        ("value", "says"),
        [
            (dictionary([(laugh(60), b"N")]), "a key is a tuple"),
            (dictionary([(word("axis"), laugh(60, b"](h\0e\x86q\0"))]), "axis is a tuple"),
            (experiment(b"]" + dictionary([(word("cap"), laugh(60)), (word("vector"), word("v"))]) + b"a"),
             "layers: 'None' is no layer"),
            (experiment(b"]" + dictionary([(word("cap"), laugh(60)), (word("vector"), word("v")),
                                           (word("layer"), b"K\1")]) + b"a"), "cap: a tuple is no finite number"),
            (experiment(b"]" + dictionary([(word("cap"), b"K\1"), (word("vector"), laugh(60))]) + b"a"),
             "names the vector a tuple"),
            (named("builtins.bytearray") + integer(10**10) + b"\x85R", r"wants builtins\.bytearray"),
            (named("torch.FloatTensor") + integer(10**10) + b"\x85R", r"wants torch\.FloatTensor"),
            (named("torch.FloatStorage") + integer(10**10) + b"\x85R", "calls what can't be called"),
            (named("torch.Size") + b"K\1\x85R", "calls what can't be called"),
            (strided(storage(4096), 0, [4, 32], [32, 1]), "holds 128 torch.float32, not 4096"),
            (strided(storage(128, kind="torch.DoubleStorage"), 0, [4, 32], [32, 1]), "holds 64 torch.float64"),
            (strided(storage(128, key="../../../x"), 0, [4, 32], [32, 1]), "no item named"),
            (strided(storage(128), 1, [4, 32], [32, 1]), "past the end"),
            (strided(storage(128), 0, [4, 32], [32, -1]), "cannot be"),
            (strided(storage(128), 0, [1] * 70, [1] * 70), "cannot be"),
            (strided(storage(128), 0, [0, 2**62], [1, 1]), "cannot be"),
            (strided(storage(128), 0, [2**30, 2**30], [0, 0]), "claims more numbers than the file holds"),
            (dictionary([(word("axis"), plain()), (word("axis"), plain())]), "'axis' is given twice"),
            (dictionary([(word(b"\xed\xa0\x80"), plain())]), "damaged"),
            (b"h\5", "damaged"), (b"(N", "damaged"), (b"", "damaged"), (b"NN", "damaged"),
        ],
    )  # fmt: skip
    def test_programs(self, path, value, says):
        path.write_bytes(with_program(ROWS, program(value)))
        with pytest.raises(VectorsError, match=says):
            read(path)

    @pytest.mark.parametrize("call", [
        named("posix.system") + b"(" + word(f"touch {CANARY}") + b"tR",
        word("posix") + word("system") + b"\x93(" + word(f"touch {CANARY}") + b"tR",
        b"(" + word(f"touch {CANARY}") + b"iposix\nsystem\n",
        named("torch._utils._rebuild_tensor_v2") + many([named("posix.system"), word(f"touch {CANARY}")]) + b"R",
        named("torch._utils._rebuild_parameter") + many([plain(), b"\x88", named("builtins.exec")]) + b"R",
        named("torch.Size") + b")R" + dictionary([(word("__setstate__"), b"N")]) + b"b",
        word("x") + b"Q",
    ], ids=range(7))  # fmt: skip
    def test_calls(self, path, monkeypatch, call):
        monkeypatch.chdir(path.parent)
        path.write_bytes(with_program(ROWS, program(dictionary([(word("axis"), plain()), (word("metadata"), call)]))))
        with pytest.raises(VectorsError):
            read(path)
        assert [file.name for file in path.parent.iterdir()] == [path.name]

    def test_many_vectors_over_one_storage(self, path):
        view = strided(storage(20_000), 0, [20_000], [1])
        vectors = dictionary([(word(f"v{i}"), view) for i in range(1000)])
        held = dictionary([(word("vectors"), vectors), (word("experiments"), b"]")])
        raw = torch_bytes(torch.zeros(20_000))
        path.write_bytes(with_program(raw, program(held)))
        with pytest.raises(VectorsError, match="claims more numbers than the file holds"):
            read(path)

    def test_one_list_of_interventions_many_times(self, path):
        layers = b"](" + b"K\1" * 3000 + b"e"
        one = dictionary([(word("vector"), word("v")), (word("cap"), b"K\1"), (word("layers"), layers)])
        path.write_bytes(with_program(ROWS, program(experiment(b"](" + one + b"q\3" + b"h\3" * 3000 + b"e"))))
        with pytest.raises(VectorsError, match="lists more interventions than a file of [0-9]+ bytes can hold"):
            read(path)

    def test_a_vector_of_two_layers(self, path):
        held = capping()
        held["vectors"]["layer_1/contrast"]["layer"] = [1, 2]
        with pytest.raises(VectorsError, match="layer: a list is no layer"):
            read(saved(path, held))

    def test_two_directories(self, path):
        """zipfile takes the directory before the end record, torch the one that it points to: 64 MB."""
        path.write_bytes(two_directories(ROWS, random.Random(0)))
        tracemalloc.reset_peak()
        np.testing.assert_array_equal(read(path).rows, axis_rows().double().numpy())

    def test_what_is_honest_is_read(self, path):
        """A view in every direction, a Parameter, a shared tensor, plain values of every kind."""
        table = axis_rows()
        held = {
            "axis": torch.nn.Parameter(table.T.contiguous().T), "default_mean": table + 1,
            "role_mean": table[:1].expand(4, 32),
            "metadata": {"size": torch.Size([4, 32]), "dtype": torch.bfloat16, "none": None, "n": -(2**80), "x": [[1]]},
        }  # fmt: skip
        saved(path, held)
        np.testing.assert_array_equal(read(path).rows, table.double().numpy())
        assert read(path).about == {"none": None, "size": [4, 32]}
        saved(path, table[::2, ::2])
        np.testing.assert_array_equal(read(path).rows, table[::2, ::2].double().numpy())
        shared = capping()
        (first, second) = shared["vectors"]
        shared["vectors"][second]["vector"] = shared["vectors"][first]["vector"]
        (clamps,) = read(saved(path, shared)).experiments.values()
        np.testing.assert_array_equal(clamps[0].vector, clamps[1].vector)


class TestRuns:
    """A run directory that something else has written in."""

    def laid(self, folder: Path, name: str, content: bytes) -> Path:
        for key, other in {**run_files(), name: content}.items():
            (folder / key).parent.mkdir(exist_ok=True, parents=True)
            (folder / key).write_bytes(other)
        return folder

    @pytest.mark.parametrize(
        "content", [b"", b"[[0, 1, 2]]", b"[[0, 0, 1, 0]]", b'[["a", 0, 1, 2]]', b"1", b"\xff", b"[" * 9], ids=range(7)
    )
    def test_splits(self, tmp_path, content):
        with (
            RunStore.open(self.laid(tmp_path / "run", "splits.json", content)) as store,
            pytest.raises(ExtractionError, match=r"splits.json is damaged .*: delete .* and start again"),
        ):
            store.records.read_splits()

    @pytest.mark.parametrize("content", [b"[]", b"{}", b"null", b"\xff", b"[" * 9999, b'{"settings": 1}'])
    def test_plan(self, tmp_path, content):
        with (
            RunStore.open(self.laid(tmp_path / "run", "plan.json", content)) as store,
            pytest.raises(ExtractionError, match=r"plan.json is damaged"),
        ):
            store.records.read_plan()

    @pytest.mark.parametrize("content", [b"{}\n{", b"{}\n[]\n", b"{}\n\xff\n", b"{}\n" + b"[" * 9999])
    def test_rollouts(self, tmp_path, content):
        with (
            RunStore.open(self.laid(tmp_path / "run", "rollouts.jsonl", content)) as store,
            pytest.raises(ExtractionError, match=r"rollouts.jsonl is damaged \(line 2: "),
        ):
            list(store.rollouts())

    @pytest.mark.parametrize("change", [
        {"sums": torch.zeros(2, 2, 8)}, {"counts": torch.zeros(2, 3, dtype=torch.int64)}, {"norms": torch.zeros(3)},
        {"norms": torch.zeros(4, dtype=torch.float64)}, {"tallies": torch.zeros(2, 3, dtype=torch.int64)},
    ], ids=range(5))  # fmt: skip
    def test_blocks_of_other_shapes(self, tmp_path, change):
        content = run_files()["blocks/00000.safetensors"]
        from safetensors.torch import load

        state = parts(content)[0]["__metadata__"]
        folder = self.laid(tmp_path / "run", "blocks/00000.safetensors", save(load(content) | change, state))
        with RunStore.open(folder) as store, pytest.raises(ExtractionError, match="00000.safetensors is damaged"):
            store.blocks.load(0)

    @pytest.mark.parametrize("state", [
        '{"round": 0, "done": 1, "of": 4, "rollouts_end": "9"}', '{"round": 0, "done": 5, "of": 4, "rollouts_end": 9}',
        '{"round": 0, "done": true, "of": 4, "rollouts_end": 9}',
        '{"round": 0, "done": 1, "of": 4, "rollouts_end": -1}',
        '{"round": -1, "done": 1, "of": 4, "rollouts_end": 9}', "[]", "[" * 9999, "{}",
    ], ids=range(8))  # fmt: skip
    def test_blocks_that_miscount(self, tmp_path, state):
        header, data = parts(run_files()["blocks/00000.safetensors"])
        header["__metadata__"]["state"] = state
        folder = self.laid(tmp_path / "run", "blocks/00000.safetensors", joined(header, data))
        with RunStore.open(folder) as store, pytest.raises(ExtractionError, match="00000.safetensors is damaged"):
            store.blocks.done(0)


@pytest.mark.parametrize("damage", [lambda text: "[" * 9999, lambda text: text.replace('"value"', '"valve"')])
def test_a_damaged_unit_is_measured_again(tmp_path, damage):
    notes: list[str] = []
    with Units.open(tmp_path, notes.append) as units:
        units.get("floor", {}, lambda: 1)
        (file,) = (tmp_path / "units").iterdir()
        file.write_text(damage(file.read_text()))
        assert units.get("floor", {}, lambda: 2) == 2
    assert notes == [f"{file} is damaged: it is measured again"]


def test_a_header_that_is_the_whole_file(path):
    path.write_bytes(struct.pack("<Q", 2) + b"{}")
    assert read_safe(path).arrays == {}
    with pytest.raises(AxisFileError, match="format"):
        Axis.load(path)
