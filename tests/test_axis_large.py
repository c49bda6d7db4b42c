"""Axis files whose role vectors stay on disk: what is read, when it is checked, what it costs."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save
from test_axis import LAYER_INDICES, NAMES, ROLES, ROWS, WIDTH, arrays, make, metadata

from persona_axis import Axis, AxisFileError, AxisMismatchError, axis
from persona_axis.calibration.settings import axis_sha256
from persona_axis.display.pictures import save_pictures
from persona_axis.display.tables import show_axis
from persona_axis.files.blocks import Block, unread
from persona_axis.files.safefile import write_safe
from persona_axis.vectors.exporting import axis_to_dict


@pytest.fixture
def on_disk(monkeypatch):
    """Every file is a large one."""
    monkeypatch.setattr(axis, "READ_AT_ONCE", 0)


def partial(bfloat16_roles=False, role_layers=(4, 7), **changes) -> Axis:
    """An axis that holds role vectors at some of its layers."""
    held = arrays()
    roles = held.pop("roles")
    rows = [LAYER_INDICES.index(layer) for layer in role_layers]
    return Axis.from_means(
        held.pop("default"), roles[:, rows], layers=LAYER_INDICES, metadata=metadata(**changes),
        bfloat16_roles=bfloat16_roles, roles_mean=roles.mean(axis=0), role_layers=role_layers, **held,
    )  # fmt: skip


def spoilt(path: Path, name: str, at: tuple[int, ...], flip: int = 1) -> None:
    """Flip a bit of one number of a tensor in the file."""
    raw = bytearray(path.read_bytes())
    first = 8 + int.from_bytes(raw[:8], "little")
    entry = json.loads(raw[8:first])[name]
    size = {"F32": 4, "BF16": 2}[entry["dtype"]]
    place = first + entry["data_offsets"][0] + int(np.ravel_multi_index(at, entry["shape"])) * size
    raw[place] ^= flip
    path.write_bytes(raw)


class TestLazily:
    @pytest.mark.parametrize("bfloat16_roles", [False, True])
    @pytest.mark.parametrize("some", [False, True])
    def test_what_is_read_a_layer_at_a_time_is_what_was_read_at_once(
        self, tmp_path, monkeypatch, bfloat16_roles, some
    ):
        made = partial(bfloat16_roles) if some else make(bfloat16_roles=bfloat16_roles)
        made.save(tmp_path / "a")
        whole = Axis.load(tmp_path / "a")
        monkeypatch.setattr(axis, "READ_AT_ONCE", 0)
        lazy = Axis.load(tmp_path / "a")
        assert isinstance(unread(lazy.arrays)["roles"], Block) and not isinstance(whole.arrays["roles"], Block)
        assert set(lazy.arrays) == set(whole.arrays) and len(lazy.arrays) == len(whole.arrays)
        for name in whole.arrays:
            np.testing.assert_array_equal(lazy.arrays[name], whole.arrays[name])
            np.testing.assert_array_equal(made.arrays[name], whole.arrays[name])
        for layer in whole.role_layers:
            np.testing.assert_array_equal(lazy.roles_at(layer), whole.roles_at(layer))
            np.testing.assert_array_equal(lazy.space(layer).components, whole.space(layer).components)
        np.testing.assert_array_equal(lazy.roles_mean, whole.roles_mean)
        assert torch.equal(lazy.roles, whole.roles) and lazy.metadata == whole.metadata
        assert lazy.verify() == len(whole.role_layers) == (2 if some else 3)
        assert axis_sha256(lazy) == axis_sha256(whole)
        lazy.save(tmp_path / "b")
        assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
        for other in (pickle.loads(pickle.dumps(lazy)), copy.deepcopy(lazy)):
            np.testing.assert_array_equal(other.roles_at(4), whole.roles_at(4))

    def test_nothing_of_the_role_vectors_is_read_before_they_are_asked_for(self, tmp_path, on_disk, monkeypatch):
        make().save(tmp_path / "a")
        rows = []
        at = Block.at
        monkeypatch.setattr(Block, "at", lambda self, row: (rows.append(row), at(self, row))[1])
        lazy = Axis.load(tmp_path / "a")
        lazy.project(np.ones(WIDTH), 4), lazy.cap(4, floor="default:p25"), lazy.quantile("roles", 5)
        assert rows == []
        lazy.space(7)
        assert rows == [2]

    @pytest.mark.parametrize(("layer", "row"), [(2, 0), (4, 1), (7, 2)])
    def test_a_damaged_layer_is_found_when_it_is_read_and_by_verify(self, tmp_path, on_disk, layer, row):
        made = partial(role_layers=LAYER_INDICES)
        made.save(tmp_path / "a")
        spoilt(tmp_path / "a", "roles", (3, row, 5))  # the lowest bit of one number: no sum could tell
        lazy = Axis.load(tmp_path / "a")
        for other in set(LAYER_INDICES) - {layer}:
            lazy.space(other)
        for call in (lambda: lazy.space(layer), lazy.verify, lambda: lazy.roles, lambda: lazy.save(tmp_path / "b")):
            with pytest.raises(AxisFileError, match=f"a: roles: those of layer {layer} are damaged"):
                call()
        assert not (tmp_path / "b").exists()

    def test_in_files_without_digests_what_contradicts_the_direction_is_found(self, tmp_path, on_disk):
        made = make()
        assert "roles_sha256" not in made.metadata
        tensors = {name: torch.tensor(array) for name, array in made.arrays.items()}
        for value, said in ((float("nan"), "roles: holds NaN"), (40.0, "direction: the row of layer 4 is not default")):
            made.save(tmp_path / "a")
            spoilt_roles = tensors["roles"].clone()
            spoilt_roles[1, 1, 1] = value
            held = load_file(tmp_path / "a") | {"roles": spoilt_roles}
            with open(tmp_path / "a", "rb") as file:
                kept = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
            write_safe(tmp_path / "a", held, kept)
            lazy = Axis.load(tmp_path / "a")
            lazy.space(2)
            with pytest.raises(AxisFileError, match=said):
                lazy.space(4)

    def test_a_file_that_changes_under_it_is_told(self, tmp_path, on_disk):
        path = tmp_path / "a"
        make().save(path)
        lazy = Axis.load(path)
        make(seed=1).save(path)
        with pytest.raises(AxisFileError, match="changed since it was loaded: load it again"):
            lazy.space(4)
        lazy = Axis.load(path)
        os.truncate(path, path.stat().st_size - 100)
        with pytest.raises(AxisFileError, match="changed since it was loaded"):
            lazy.space(4)
        path.unlink()
        with pytest.raises(AxisFileError, match="cannot be read: No such file"):
            lazy.roles_at(4)

    @pytest.mark.parametrize("cut", [7, 8, 100, 5000])
    def test_a_file_cut_short_is_refused_when_it_is_loaded(self, tmp_path, on_disk, cut):
        make().save(tmp_path / "a")
        (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:cut])
        with pytest.raises(AxisFileError, match="truncated|not a safetensors"):
            Axis.load(tmp_path / "a")


class TestSomeLayers:
    def test_every_layer_has_its_direction_and_the_others_say_where_role_vectors_are(self, tmp_path):
        partial().save(tmp_path / "a")
        back, whole = Axis.load(tmp_path / "a"), make()
        assert back.layers == (2, 4, 7) and back.role_layers == (4, 7) and back.roles.shape == (ROLES, 2, WIDTH)
        np.testing.assert_allclose(back.arrays["direction"], whole.arrays["direction"], atol=1e-6)
        np.testing.assert_array_equal(back.roles_at(7), whole.roles_at(7))
        np.testing.assert_allclose(back.roles_mean, whole.roles_mean, atol=1e-6)
        with pytest.raises(AxisFileError, match="role vectors of layers 4, 7, none of layer 2.*--role-layers all"):
            back.space(2)
        with pytest.raises(AxisMismatchError, match="layer 3 is not in this axis"):
            back.roles_at(3)

    def test_rounding_to_bfloat16_does_not_touch_the_direction(self):
        rounded, exact = partial(bfloat16_roles=True), partial()
        np.testing.assert_array_equal(rounded.arrays["direction"], exact.arrays["direction"])
        apart = np.abs(rounded.roles_at(4) - exact.roles_at(4))
        assert 0 < apart.max() <= np.abs(exact.roles_at(4)).max() * 2**-8

    @pytest.mark.parametrize(
        ("changed", "said"),
        [
            ({"role_layers": np.array([4, 5])}, "role_layers: must be rising layers of the file"),
            ({"role_layers": np.array([7, 4])}, "role_layers: must be rising"),
            ({"role_layers": np.array([4])}, r"roles_sha256: expected a digest for each of the 1"),
            ({"role_layers": None}, "role_layers: this tensor is missing beside roles_mean"),
            ({"roles_mean": None}, "roles_mean: this tensor is missing beside role_layers"),
            ({"roles_mean": np.zeros((ROWS, WIDTH), np.float32)}, "direction: the row of layer 2 is not default - r"),
            ({"roles_mean": np.zeros((2, WIDTH), np.float32)}, r"roles_mean: expected \[3, 16\]"),
        ],
    )
    def test_fields_that_do_not_agree_are_named(self, changed, said):
        made = partial()
        held = {name: array for name, array in {**made.arrays, **changed}.items() if array is not None}
        with pytest.raises(AxisFileError, match=said):
            Axis(held, made.metadata)

    def test_a_mean_that_is_not_that_of_the_vectors_is_found_without_digests(self):
        made = partial()
        about = {key: value for key, value in made.metadata.items() if key != "roles_sha256"}
        shifted = made.arrays["roles"] + np.float32(0.1)
        with pytest.raises(AxisFileError, match="roles: the mean of those of layer 4 is not that of roles_mean"):
            Axis({**made.arrays, "roles": shifted}, about)

    def test_one_without_the_other_is_refused(self):
        held = arrays()
        with pytest.raises(AxisFileError, match="role_layers and roles_mean go together"):
            Axis.from_means(held["default"], held["roles"], layers=LAYER_INDICES, metadata=metadata(),
                            role_layers=LAYER_INDICES)  # fmt: skip

    def test_show_and_export_take_what_there_is(self, tmp_path):
        made = partial(bfloat16_roles=True)
        console = Console(width=120, record=True, file=io.StringIO())
        show_axis(console, made, 2)
        told = console.export_text()
        assert "of layers 4, 7 only, in bfloat16" in told and "no role vectors of layer 2" in told
        drawn = [path.name for path in save_pictures(made, tmp_path, None)]
        assert drawn == ["roles.png", "variance.png", "ranking.png", "layers.png", "distributions.png"]
        assert [path.name for path in save_pictures(made, tmp_path, 2)] == ["distributions.png"]
        axis_to_dict(made, tmp_path / "x.pt")
        held = torch.load(tmp_path / "x.pt", weights_only=True)
        np.testing.assert_allclose(held["role_mean"][7], arrays()["roles"].mean(axis=0)[2], rtol=1e-5)
        assert held["n_roles"] == len(NAMES)


def test_files_are_written_as_safetensors_itself_orders_them(tmp_path):
    tensors = {
        "b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([1, 2]), "half": torch.ones(3, 1, dtype=torch.bfloat16),
        "wide": torch.zeros(2, dtype=torch.float64), "none": torch.zeros(0, 4),
        "turned": torch.arange(6.0).reshape(2, 3).T,
    }  # fmt: skip
    write_safe(tmp_path / "a", tensors, {"k": "v", "a": "ä"})
    raw = (tmp_path / "a").read_bytes()
    theirs = save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"k": "v", "a": "ä"})
    first, second = (8 + int.from_bytes(content[:8], "little") for content in (raw, theirs))
    assert raw[first:] == theirs[second:] and first % 8 == 0
    assert json.loads(raw[8:first]) == json.loads(theirs[8:second])


CHILD = """
import json, sys
import numpy as np
from persona_axis import Axis
def facts():
    io = dict(line.split(": ") for line in open("/proc/self/io").read().splitlines())
    peak = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())["VmHWM"]
    return int(io["rchar"]), int(peak.split()[0]) * 1024  # getrusage begins with the peak of the parent
before = facts()
axis = Axis.load(sys.argv[1])
loaded = facts()
roles = axis.roles_at(axis.layers[30])
read = facts()
print(json.dumps([b - a for a, b in zip(before + loaded, loaded + read)] + [roles.nbytes]))
"""


@pytest.mark.slow
def test_a_file_of_a_gigabyte_costs_what_is_asked_of_it(tmp_path):
    path = tmp_path / "large.safetensors"
    sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
    import large_data

    large_data.write_axis(path, layers=64, hidden=8192, roles=512)
    assert path.stat().st_size > 2**30
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    told = subprocess.run(
        [sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, env=environment, check=True
    ).stdout
    load_bytes, load_memory, read_bytes, read_memory, size = json.loads(told)
    assert load_bytes < 20 * 2**20 and load_memory < 80 * 2**20  # the directions, means and tables; and numpy's work
    assert size <= read_bytes < size * 1.01 and read_memory < 6 * size  # float64 sums while it is checked
