"""Every published form is read for what it holds, and what is no such form is refused by name."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from traits_factory import folds_of, traits_of
from vectors_factory import (
    HIDDEN,
    LAYERS,
    axis_rows,
    capping,
    gguf_file,
    means,
    roles_directory,
    saved,
    torch_bytes,
)

from persona_axis import Axis, Cap
from persona_axis.errors import VectorsError
from persona_axis.vectors.found import Clamps, Found
from persona_axis.vectors.gguffile import found_in_gguf
from persona_axis.vectors.reading import read, sha256_of


def found(path: Path, default: Path | None = None) -> Found:
    held = read(path, default)
    assert isinstance(held, Found)
    return held


class TestForms:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
    def test_torch_tensor(self, tmp_path, dtype):
        rows = axis_rows().to(dtype)
        held = found(saved(tmp_path / "axis.pt", rows))
        np.testing.assert_array_equal(held.rows, rows.double().numpy())
        assert held.index == (0, 1, 2, 3) and held.sign is None and held.layout == "torch tensor"

    def test_parameter_and_one_vector(self, tmp_path):
        assert found(saved(tmp_path / "a.pt", torch.nn.Parameter(axis_rows()))).rows.shape == (LAYERS, HIDDEN)
        one = found(saved(tmp_path / "b.pt", axis_rows()[0]))
        assert one.rows.shape == (1, HIDDEN) and one.index is None

    def test_axis_dictionary(self, tmp_path):
        metadata = {"model": "x", "layers": 4, "deep": {"left": "out"}, "long": "y" * 9999, "dims": [1, 2]}
        held = found(saved(tmp_path / "a.pt", OrderedDict(axis=axis_rows(), metadata=metadata)))
        assert held.about == {"model": "x", "layers": 4, "dims": [1, 2]} and held.reference is None

    def test_axis_dictionary_with_means(self, tmp_path):
        default, roles = means()
        held = {"axis": axis_rows(), "default_mean": default, "role_mean": roles.mean(0), "n_default": 1, "n_roles": 5}
        read_back = found(saved(tmp_path / "a.pt", held))
        np.testing.assert_allclose(read_back.reference, axis_rows().numpy(), atol=1e-6)
        assert read_back.about == {"n_default": 1, "n_roles": 5}

    @pytest.mark.parametrize("bare", [False, True])
    def test_directory_of_roles(self, tmp_path, bare):
        held = found(roles_directory(tmp_path / "vectors", bare=bare))
        np.testing.assert_allclose(held.rows, axis_rows().numpy(), atol=1e-6)
        assert held.role_names == tuple(f"role{i}" for i in range(5)) and held.roles.shape == (5, LAYERS, HIDDEN)
        assert held.sign.by == "proven" and held.sign.value == "toward"

    def test_directory_with_the_default_elsewhere(self, tmp_path):
        folder = roles_directory(tmp_path / "vectors", default=False)
        with pytest.raises(VectorsError, match="no default vector .* --default"):
            read(folder)
        np.save(tmp_path / "default.npy", means()[0].numpy())
        for path in (saved(tmp_path / "default_vector.pt", means()[0]), tmp_path / "default.npy"):
            np.testing.assert_allclose(found(folder, path).rows, axis_rows().numpy(), atol=1e-6)
        saved(folder / "default.pt", {"vector": means()[0], "type": "mean", "role": "default"})
        with pytest.raises(VectorsError, match="default vector of its own"):
            read(folder, tmp_path / "default.npy")
        with pytest.raises(VectorsError, match="goes with a directory"):
            read(tmp_path / "default.npy", tmp_path / "default.npy")

    def test_the_default_that_is_named_is_no_role(self, tmp_path):
        folder = roles_directory(tmp_path / "vectors", default=False)
        own = saved(folder / "default_vector.pt", means()[0])
        (tmp_path / "link").symlink_to(folder)
        for path in (own, tmp_path / "link" / "default_vector.pt", folder / ".." / "vectors" / "default_vector.pt"):
            held = found(folder, path)
            assert held.role_names == tuple(f"role{i}" for i in range(5))
            np.testing.assert_allclose(held.rows, axis_rows().numpy(), atol=1e-6)
        whole = roles_directory(tmp_path / "whole")
        assert found(whole, whole / "default.pt").about == {"default_vectors": 1, "role_vectors": 5}
        (folder / "zz.pt").symlink_to("zz.pt")
        with pytest.raises(VectorsError, match="zz.pt: cannot be read"):
            read(folder, own)
        only = tmp_path / "only"
        only.mkdir()
        with pytest.raises(VectorsError, match="holds no role vectors, only the default"):
            read(only, saved(only / "default.pt", means()[0]))

    @pytest.mark.parametrize("bare", [False, True])
    def test_bare_tensors_that_may_be_no_roles(self, tmp_path, bare):
        """As published: the axis and the default lie beside the roles."""
        folder = roles_directory(tmp_path / "vectors", default=False, bare=bare)
        own = saved(folder / "default_vector.pt", means()[0])
        saved(folder / "assistant_axis.pt", axis_rows())
        why = "named as published" if bare else "beside dictionaries of roles"
        with pytest.raises(VectorsError, match=f"assistant_axis.pt, default_vector.pt: a bare tensor {why}.* move it"):
            read(folder)
        with pytest.raises(VectorsError, match=f"vectors: assistant_axis.pt: a bare tensor {why}"):
            read(folder, own)
        (folder / "assistant_axis.pt").unlink()
        assert len(found(folder, own).role_names) == 5

    def test_a_bare_default_beside_dictionaries(self, tmp_path):
        folder = roles_directory(tmp_path / "vectors", default=False)
        saved(folder / "default.pt", means()[0])
        np.testing.assert_allclose(found(folder).rows, axis_rows().numpy(), atol=1e-6)

    def test_several_defaults_are_averaged_as_published(self, tmp_path):
        folder = roles_directory(tmp_path / "vectors")
        default, roles = means()
        saved(folder / "helper.pt", {"vector": default + 1, "type": "mean", "role": "helper"})
        expected = default + 0.5 - roles.mean(0)
        np.testing.assert_allclose(found(folder).rows, expected.numpy(), atol=1e-6)

    def test_capping_configuration(self, tmp_path):
        held = read(saved(tmp_path / "c.pt", capping()))
        assert isinstance(held, Clamps) and list(held.experiments) == ["layers_1:3-p0.25"]
        first, second = held.experiments["layers_1:3-p0.25"]
        assert (first.layer, first.cap, second.layer, second.cap) == (1, 0.5, 2, 0.25)

    def test_capping_interventions_that_name_their_layers(self, tmp_path):
        """Bare vectors: one row for every layer, or the same vector at each of them; one cap or one a layer."""
        held = {"vectors": {"v": axis_rows()[1:3], "w": axis_rows()[3]}, "experiments": [
            {"id": "a", "interventions": [{"vector": "v", "layers": [1, 2], "cap": [0.1, 0.2]}]},
            {"id": "b", "interventions": [{"vector": "w", "layers": [0, 3], "cap": 1}, {"vector": "v", "x": 1}]},
        ]}  # fmt: skip
        read_back = read(saved(tmp_path / "c.pt", held))
        a, b = read_back.experiments.values()
        assert [(c.layer, c.cap) for c in a] == [(1, 0.1), (2, 0.2)]
        assert [(c.layer, c.cap) for c in b] == [(0, 1), (3, 1)]
        np.testing.assert_array_equal(a[1].vector, axis_rows()[2].double().numpy())
        assert read_back.others == {"a": 0, "b": 1}

    def test_gguf_as_the_public_package_writes_it(self, tmp_path):
        rows = axis_rows().numpy()
        held = found(gguf_file(tmp_path / "v.gguf", {1: rows[1], 3: rows[3].astype(np.float16), 2: rows[2]}))
        assert held.index == (1, 2, 3) and held.named and held.sign is None
        np.testing.assert_array_equal(held.rows[1], rows[2].astype(np.float64))
        assert held.about["controlvector.model_hint"] == "llama" and held.about["controlvector.layer_count"] == 3

    @pytest.mark.parametrize("dtype", ["<f4", "<f8", "<f2", ">f4"])
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_npy(self, tmp_path, dtype, order):
        rows = np.asarray(axis_rows().numpy().astype(dtype), order=order)
        np.save(tmp_path / "v.npy", rows)
        np.testing.assert_array_equal(found(tmp_path / "v.npy").rows, rows.astype(np.float64))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
    def test_safetensors(self, tmp_path, dtype):
        rows = axis_rows().to(dtype)
        save_file({"anything": rows}, tmp_path / "v")
        np.testing.assert_array_equal(found(tmp_path / "v").rows, rows.double().numpy())
        save_file({f"layer.{i}": rows[i].contiguous() for i in (1, 3)}, tmp_path / "w")
        held = found(tmp_path / "w")
        assert held.index == (1, 3) and held.named
        np.testing.assert_array_equal(held.rows, rows[[1, 3]].double().numpy())
        for name in ("layer_12", "layers.12", "layer12", "model.layers.12", "Layer-12"):
            save_file({name: rows[0].contiguous()}, tmp_path / "x")
            assert found(tmp_path / "x").index == (12,)
        for name in ("vector", "v12", "evil_v2", "bf16", "v1", "player12", "layer_12_v2"):
            save_file({name: rows[0].contiguous()}, tmp_path / "x")
            assert found(tmp_path / "x").index is None

    def test_the_record_tells_files_apart(self, tmp_path):
        first, second = roles_directory(tmp_path / "a"), roles_directory(tmp_path / "b", seed=1)
        assert sha256_of(first) == sha256_of(first) != sha256_of(second)
        assert len(sha256_of(first / "default.pt")) == 64


class Wants:
    """A pickle that would call os.system."""

    def __reduce__(self):
        return (os.system, ("exit 1",))


class TestPickles:
    def test_a_global_is_named_and_never_called(self, tmp_path):
        for name, held in {"reduce": Wants(), "inside": {"axis": axis_rows(), "metadata": {"x": Wants()}}}.items():
            path = saved(tmp_path / f"{name}.pt", held)
            with pytest.raises(VectorsError, match=r"wants posix\.system.* more than tensors|posix\.system"):
                read(path)
        with pytest.raises(VectorsError, match=r"wants torch\.nn\.modules\.linear\.Linear"):
            read(saved(tmp_path / "module.pt", torch.nn.Linear(2, 2)))

    @pytest.mark.parametrize(
        ("held", "says"),
        [
            ({"axis": axis_rows(), "metadata": {"x": np.float64(1)}}, "'x' holds a numpy number"),
            ({"axis": axis_rows(), "metadata": {"a": {}, "b": "c", "x": np.int64(1), "d": 1}}, "'x' holds a numpy nu"),
            ({"axis": axis_rows(), "metadata": {"x": ["y", {}, np.float32(1)], "d": 1}}, "'x' holds a numpy number"),
            ({"axis": axis_rows(), "metadata": {"x": [np.float32(1)]}}, "'x' holds a numpy number"),
            ({"axis": axis_rows(), "metadata": {"x": (1, 2, "y", np.float32(1))}}, "'x' holds a numpy number"),
            ({"axis": axis_rows(), "metadata": {7: {"y": 1}, 8: np.float32(1)}}, "'8' holds a numpy number"),
            ({"axis": axis_rows().numpy()}, "'axis' holds a numpy array, .* torch.from_numpy"),
            ({"axis": axis_rows(), "metadata": {"x": Path("y")}}, "'x' wants pathlib"),
            (np.float64(1), "it holds a numpy number, .* with .item"),
            ([Path("y")], r"list\.pt: wants pathlib"),
        ],
    )
    def test_the_key_is_named_that_holds_an_object(self, tmp_path, held, says):
        with pytest.raises(VectorsError, match=says):
            read(saved(tmp_path / "list.pt", held))

    @pytest.mark.parametrize("protocol", [3, 4, 5])
    def test_other_protocols_are_named(self, tmp_path, protocol):
        path = saved(tmp_path / "p.pt", axis_rows(), pickle_protocol=protocol)
        with pytest.raises(VectorsError, match=f"saved with pickle protocol {protocol}; only 2 is read"):
            read(path)

    @pytest.mark.parametrize("protocol", [2, 4])
    def test_bare_pickles_are_named_and_not_read(self, tmp_path, protocol):
        (tmp_path / "p").write_bytes(pickle.dumps(Wants(), protocol))
        with pytest.raises(VectorsError, match=r"bare pickle that wants posix\.system"):
            read(tmp_path / "p")
        saved(tmp_path / "old.pt", axis_rows(), _use_new_zipfile_serialization=False)
        with pytest.raises(VectorsError, match="saved by torch before 1.6"):
            read(tmp_path / "old.pt")

    def test_a_file_with_objects_in_npy(self, tmp_path):
        np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
        with pytest.raises(VectorsError, match="holds Python objects, which are pickles"):
            read(tmp_path / "o.npy")

    def test_what_is_larger_than_the_file(self, tmp_path):
        with pytest.raises(VectorsError, match="claims more numbers than the file holds"):
            read(saved(tmp_path / "a.pt", torch.zeros(1).expand(10**6, 10**6)))
        source = zipfile.ZipFile(io.BytesIO(torch_bytes(axis_rows())))
        with zipfile.ZipFile(tmp_path / "z.pt", "w", zipfile.ZIP_DEFLATED) as packed:
            for entry in source.infolist():
                packed.writestr(entry.filename, source.read(entry))
        with pytest.raises(VectorsError, match="compressed or overlapping"):
            read(tmp_path / "z.pt")

    def test_archives_of_something_else(self, tmp_path):
        for save in (np.savez, np.savez_compressed):
            save(tmp_path / "a.npz", rows=axis_rows().numpy(), more=np.ones(3))
            with pytest.raises(VectorsError, match=r"is an .npz archive of 2 arrays, rows.npy, more.npy: save the one"):
                read(tmp_path / "a.npz")
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("notes", b"text")
        with pytest.raises(VectorsError, match="damaged, or not written by torch.save"):
            read(tmp_path / "a.zip")


NOT_VECTORS = {
    "rank 3": (torch.zeros(2, 3, 4), r"shape \[2, 3, 4\]; expected \[hidden\] or \[layers, hidden\]"),
    "scalar": (torch.zeros(()), r"shape \[\]"),
    "empty": (torch.zeros(0, 4), r"shape \[0, 4\]"),
    "integers": (torch.ones(2, 4, dtype=torch.int64), "torch.int64"),
    "complex": (torch.ones(2, 4, dtype=torch.complex64), "complex64"),
    "sparse": (torch.eye(4).to_sparse(), "sparse"),
    "NaN": (torch.tensor([[1.0, 2.0], [torch.nan, 1.0]]), "NaN, infinite or absurdly large values, first in row 1"),
    "infinite": (torch.tensor([[torch.inf, 2.0]]), "NaN, infinite"),
    "huge": (torch.tensor([[1e200, 2.0]], dtype=torch.float64), "absurdly large"),
    "list": ([torch.ones(4)], "holds a list; known are"),
    "text": ("text", "holds a str"),
    "nothing": ({}, "no keys"),
    "other keys": ({"direction": torch.ones(4)}, "'direction' is no layout that is known"),
    "unknown key": ({"axis": torch.ones(2, 4), "extra": 1}, "unknown key 'extra'; this layout holds axis, metadata"),
    "axis is text": ({"axis": "x"}, "axis is a str; expected a tensor"),
    "axis of rank 1": ({"axis": torch.ones(4)}, r"axis has shape \[4\]; expected \[layers, hidden\]"),
    "metadata": ({"axis": torch.ones(2, 4), "metadata": 3}, "metadata is a int; expected a dictionary"),
    "means": ({"axis": torch.ones(2, 4), "default_mean": torch.ones(3, 4), "role_mean": torch.ones(2, 4)}, "not fit"),
    "one role": ({"vector": torch.ones(2, 4), "type": "pos_3", "role": "x"}, "name the directory that holds all"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_VECTORS)
def test_torch_files_that_are_no_vectors(tmp_path, case):
    held, says = NOT_VECTORS[case]
    with pytest.raises(VectorsError, match=says):
        read(saved(tmp_path / "x.pt", held))


def broken_capping(**changes):
    held = capping()
    held.update(changes)
    return held


def intervention(**changes):
    held = capping()
    held["experiments"][0]["interventions"][0].update(changes)
    return held


BAD_CAPPING = {
    "unknown key": (broken_capping(more=1), "unknown key 'more'"),
    "no experiments": (broken_capping(experiments=[]), "a list 'experiments'"),
    "vectors": (broken_capping(vectors=[]), "a dictionary 'vectors'"),
    "no id": (broken_capping(experiments=[{"interventions": []}]), "experiment 0: expected a dictionary with an 'id'"),
    "twice": (broken_capping(experiments=[{"id": "a", "interventions": []}] * 2), "its id occurs twice"),
    "not listed": (broken_capping(experiments=[{"id": "a"}]), "lists no interventions"),
    "text": (broken_capping(experiments=[{"id": "a", "interventions": ["x"]}]), "an intervention is a str"),
    "vector unknown": (intervention(vector="other"), "names the vector 'other', which 'vectors' does not hold"),
    "cap NaN": (intervention(cap=float("nan")), "cap: 'nan' is no finite number"),
    "cap text": (intervention(cap="low"), "cap: 'low' is no finite number"),
    "cap tensor": (intervention(cap=torch.ones(1)), "is no finite number"),
    "positions": (intervention(positions="last"), "0.25': an intervention has the unknown key 'positions'; caps hold"),
    "cap beyond floats": (intervention(cap=10**400), "cap: a int is no finite number"),
    "no cap": (intervention(cap=[]), "cap: is empty"),
    "layer": (intervention(layers=[3]), "is of layer 1 and is used at layers"),
    "negative": (intervention(layers=[-1]), "layers: '-1' is no layer"),
    "lengths": (intervention(cap=[1.0, 2.0]), "1 layers, 2 caps and 1 rows do not go together"),
    "vector field": (broken_capping(vectors={"layer_1/contrast": {"layer": 1}}), "expected 'vector'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CAPPING)
def test_capping_configurations_that_cannot_be(tmp_path, case):
    held, says = BAD_CAPPING[case]
    with pytest.raises(VectorsError, match=says):
        read(saved(tmp_path / "x.pt", held))


def test_directories_that_cannot_be(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(VectorsError, match="holds no .pt files"):
        read(tmp_path / "empty")
    cases = {
        "twice": ({"vector": means()[0], "type": "pos_3", "role": "role0"}, "role 'role0' occurs twice"),
        "shape": ({"vector": torch.ones(2, 3), "type": "pos_3", "role": "new"}, "differs from the others"),
        "key": ({"vector": means()[0], "score": 3}, "unknown key 'score'; this layout holds vector, type, role"),
        "no vector": ({"type": "pos_3"}, "expected a dictionary with 'vector', 'type' and 'role', found a dictionary"),
        "a list": ([1], "found a list"),
        "role": ({"vector": means()[0], "role": 3}, "role and type must be texts"),
        "rank": ({"vector": torch.ones(HIDDEN)}, r"expected \[layers, hidden\]"),
    }
    for name, (held, says) in cases.items():
        folder = roles_directory(tmp_path / name)
        saved(folder / "zz.pt", held)
        with pytest.raises(VectorsError, match=says) as error:
            read(folder)
        assert "zz.pt" in str(error.value)
    only = tmp_path / "only"
    only.mkdir()
    saved(only / "default.pt", {"vector": means()[0], "type": "mean", "role": "default"})
    with pytest.raises(VectorsError, match="holds no role vectors"):
        read(only)


def every_form(folder: Path) -> dict[str, Path]:
    rows = axis_rows()
    np.save(folder / "v.npy", rows.numpy())
    save_file({"v": rows}, folder / "v.safetensors")
    return {
        "tensor": saved(folder / "t.pt", rows),
        "dictionary": saved(folder / "d.pt", {"axis": rows, "metadata": {"model": "x"}}),
        "capping": saved(folder / "c.pt", capping()),
        "npy": folder / "v.npy",
        "safetensors": folder / "v.safetensors",
        "gguf": gguf_file(folder / "v.gguf", {i: rows[i].numpy() for i in (1, 2)}),
    }


@pytest.mark.parametrize("form", ["tensor", "dictionary", "capping", "npy", "safetensors", "gguf"])
def test_truncated_anywhere(tmp_path, form):
    whole = every_form(tmp_path)[form].read_bytes()
    for keep in (0, 1, 7, 9, 20, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:keep])
        with pytest.raises(VectorsError, match="cut: "):
            read(tmp_path / "cut")


def test_files_of_ours_and_of_nobody(tmp_path):
    rows = torch.nn.functional.normalize(axis_rows(), dim=1)
    Axis.from_direction(rows, layers=range(4), metadata={"num_layers": 4}).save(tmp_path / "axis")
    Cap(rows[:1], [0], 1.0).save(tmp_path / "cap")
    traits_of(folds_of()).save(tmp_path / "traits")
    for name in ("axis", "cap", "traits"):
        with pytest.raises(VectorsError, match=f"is a persona-{name} file already"):
            read(tmp_path / name)
    (tmp_path / "notes").write_text("these are notes, and no vectors at all")
    with pytest.raises(VectorsError, match="known forms are a torch .pt file"):
        read(tmp_path / "notes")
    with pytest.raises(VectorsError, match="nowhere: cannot be read"):
        read(tmp_path / "nowhere")


def test_safetensors_that_are_no_vectors(tmp_path):
    for tensors, says in (
        ({"a": torch.ones(2, 3), "b": torch.ones(2, 3)}, "holds 'a', 'b'; expected one tensor"),
        ({"a.1": torch.ones(3), "b.2": torch.ones(3)}, "names differ by a layer number"),
        ({"a.1": torch.ones(3), "a.2": torch.ones(4)}, "differ in width"),
        ({"a.1": torch.ones(3), "a.01": torch.ones(3)}, "two tensors have the same number"),
        ({"a": torch.ones(3, dtype=torch.int64)}, "is int64"),
        ({"a": torch.ones(3, dtype=torch.int8)}, "dtype I8 is not among"),
        ({}, "holds no tensors"),
    ):
        save_file(tensors, tmp_path / "x")
        with pytest.raises(VectorsError, match=says):
            read(tmp_path / "x")


def test_npy_that_are_no_vectors(tmp_path):
    for values, says in (
        (np.ones((2, 3), np.int32), "is int32"),
        (np.ones((2, 3, 4)), r"shape \[2, 3, 4\]"),
        (np.array([["a"]]), "is <U1"),
        (np.full((1, 3), np.nan), "NaN"),
    ):
        np.save(tmp_path / "x.npy", values)
        with pytest.raises(VectorsError, match=says):
            read(tmp_path / "x.npy")
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }".ljust(117) + b"\n"
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 64)
    with pytest.raises(VectorsError, match="needs 4000000000000 bytes, 64 are there"):
        read(tmp_path / "x.npy")


class TestGguf:
    def test_what_is_no_control_vector(self, tmp_path):
        row = axis_rows()[1].numpy()
        for made, says in (
            ({"architecture": "llama"}, "is a GGUF file of 'llama'; expected 'controlvector'"),
            ({"name": "blk.{}.weight"}, "unknown tensor 'blk.1.weight'"),
        ):
            with pytest.raises(VectorsError, match=says):
                read(gguf_file(tmp_path / "v.gguf", {1: row}, **made))
        for rows, says in (
            ({1: np.ones((2, 3), np.float32)}, "has 2 dimensions"),
            ({1: np.ones(4, np.int32)}, "is quantised or no float"),
            ({1: row, 2: row[:5]}, "directions differ in width"),
            ({1: np.full(4, np.nan, np.float32)}, "direction.1 holds NaN"),
            ({}, "holds no direction"),
        ):
            with pytest.raises(VectorsError, match=says):
                read(gguf_file(tmp_path / "v.gguf", rows))

    def test_counts_beyond_the_file_end_at_once(self):
        """The public reader would walk such a count item by item."""
        header, huge = b"GGUF" + struct.pack("<I", 3), 2**60
        array = struct.pack("<QQQ", 0, 1, 1) + b"k" + struct.pack("<I", 9)
        for content in (
            struct.pack("<QQ", 0, huge),
            struct.pack("<QQ", huge, 0),
            array + struct.pack("<IQ", 4, huge),
            array + struct.pack("<IQ", 8, huge),
        ):
            with pytest.raises(VectorsError, match="truncated|controlvector"):
                found_in_gguf("v", header + content + b"\0" * 64)

    def test_other_versions(self):
        with pytest.raises(VectorsError, match="version 1 is not read"):
            found_in_gguf("v", b"GGUF" + (1).to_bytes(4, "little") + b"\0" * 64)
        with pytest.raises(VectorsError, match="little-endian"):
            found_in_gguf("v", b"GGUF" + (3).to_bytes(4, "big") + b"\0" * 64)


def test_reading_plain_forms_needs_no_torch(tmp_path):
    np.save(tmp_path / "v.npy", axis_rows().numpy())
    code = f"import sys; from persona_axis.vectors.reading import read; read({json.dumps(str(tmp_path / 'v.npy'))})"
    code += "; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


def test_a_negated_view_is_not_read_as_what_it_is_stored_as(tmp_path):
    torch.save(torch._neg_view(torch.ones(2, 3)), tmp_path / "neg.pt")
    with pytest.raises(VectorsError, match="negated or conjugated"):
        read(tmp_path / "neg.pt")
