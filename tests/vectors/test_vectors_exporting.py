"""An axis or a cap in other tools' forms, and back again."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from vectors_factory import HIDDEN, LAYERS, axis_rows, origin, published_clamp, unit

from persona_axis import Axis, AxisFileError, AxisMismatchError, Cap
from persona_axis.cap import clamped
from persona_axis.errors import VectorsError
from persona_axis.files.axisfile import CONVENTIONS
from persona_axis.vectors import exporting
from persona_axis.vectors.making import made_axis, made_cap
from persona_axis.vectors.pushes import mean_pushes
from persona_axis.vectors.reading import read
from persona_axis.vectors.telling import Said

NAMES = ["a", "b", "c"]


def axis(layers=range(LAYERS), spread: float = 1.0) -> Axis:
    """An axis with role vectors and percentiles: tokens of roles lie evenly from -2 to 2 at every layer."""
    layers = list(layers)
    random = np.random.default_rng(1)
    default, roles = random.normal(size=(len(layers), HIDDEN)) + 1, random.normal(size=(3, len(layers), HIDDEN))
    table = np.tile(np.linspace(-2, 2, 101) * spread, (len(layers), 1))
    return Axis.from_means(
        default, roles, layers=layers, mean_norm=np.arange(len(layers)) + 5.0, quantiles=dict.fromkeys(
            ("default", "roles", "default_tokens", "roles_tokens"), table),
        metadata={"provenance": "imported", "num_layers": LAYERS, "role_names": NAMES, "architecture": "llama"},
    )  # fmt: skip


class TestAxis:
    def test_dictionary_and_back(self, tmp_path):
        made = axis()
        assert exporting.axis_to_dict(made, tmp_path / "a.pt") == []
        held = torch.load(tmp_path / "a.pt", weights_only=True)
        assert torch.equal(held["axis"], made.direction) and held["metadata"]["layers"] == [0, 1, 2, 3]
        torch.testing.assert_close(held["default_mean"] - held["role_mean"], made.default - made.roles.mean(0))
        back = made_axis(read(tmp_path / "a.pt"), Said(), origin())
        assert torch.equal(back.direction, made.direction) and back.layers == made.layers
        assert back.metadata["imported"]["sign"]["by"] == "proven"

    def test_dictionary_of_some_layers(self, tmp_path):
        made = axis([1, 3])
        (note,) = exporting.axis_to_dict(made, tmp_path / "a.pt")
        assert "layers 1, 3 of 4; the other rows are zeros" in note
        held = torch.load(tmp_path / "a.pt", weights_only=True)["axis"]
        assert torch.equal(held[3], made.direction[1]) and not held[[0, 2]].any()
        back = made_axis(read(tmp_path / "a.pt"), Said(), origin())
        assert back.layers == (1, 3) and torch.equal(back.direction, made.direction)

    def test_dictionary_of_directions_alone_still_says_its_sign(self, tmp_path):
        made = Axis.from_direction(unit(axis_rows()), layers=range(4), metadata={"num_layers": 4})
        exporting.axis_to_dict(made, tmp_path / "a.pt")
        back = made_axis(read(tmp_path / "a.pt"), Said(), origin())
        assert back.metadata["imported"]["sign"]["by"] == "file" and torch.equal(back.direction, made.direction)
        with pytest.raises(VectorsError, match="contradicted"):
            made_axis(read(tmp_path / "a.pt"), Said("away"), origin())

    def test_a_dictionary_whose_layers_cannot_be(self, tmp_path):
        made = axis()
        exporting.axis_to_dict(made, tmp_path / "a.pt")
        held = torch.load(tmp_path / "a.pt", weights_only=True)
        for layers in ([], [0, 9], [2, 1], ["a"], 3, None):
            held["metadata"]["layers"] = layers
            torch.save(held, tmp_path / "b.pt")
            with pytest.raises(VectorsError, match="metadata: layers: expected rising row indices below 4"):
                read(tmp_path / "b.pt")

    def test_npy_and_back(self, tmp_path):
        made = axis()
        (note,) = exporting.axis_to_npy(made, tmp_path / "a.npy")
        assert "says nothing about itself" in note
        assert np.array_equal(np.load(tmp_path / "a.npy", allow_pickle=False), made.direction.numpy())
        assert torch.equal(made_axis(read(tmp_path / "a.npy"), Said("toward"), origin()).direction, made.direction)
        assert len(exporting.axis_to_npy(axis([1]), tmp_path / "a.npy")) == 2

    def test_gguf_and_back(self, tmp_path):
        made = axis()
        notes = "\n".join(exporting.axis_to_gguf(made, tmp_path / "a.gguf"))
        assert "layer 0 cannot be steered, and is left out" in notes and "6 to 8" in notes and "add up" in notes
        back = made_axis(read(tmp_path / "a.gguf"), Said(), origin())
        assert back.layers == (1, 2, 3) and torch.equal(back.direction, made.direction[1:])
        assert back.metadata["imported"]["sign"]["by"] == "file"
        some = exporting.axis_to_gguf(made, tmp_path / "b.gguf", [2])
        assert "left out" not in some[0] and "add up" not in "".join(some)
        assert made_axis(read(tmp_path / "b.gguf"), Said(), origin()).layers == (2,)

    def test_gguf_as_the_public_package_reads_it(self, tmp_path):
        import gguf

        made = axis()
        exporting.axis_to_gguf(made, tmp_path / "a.gguf")
        reader = gguf.GGUFReader(tmp_path / "a.gguf")
        assert reader.get_field("general.architecture").contents() == "controlvector"
        assert reader.get_field("controlvector.model_hint").contents() == "llama"
        assert reader.get_field("controlvector.layer_count").contents() == 3
        rows = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
        assert list(rows) == ["direction.1", "direction.2", "direction.3"]
        assert np.array_equal(rows["direction.2"], made.direction[2].numpy())
        assert {row.dtype for row in rows.values()} == {np.dtype(np.float32)}

    def test_gguf_that_cannot_be(self, tmp_path, monkeypatch):
        with pytest.raises(VectorsError, match="layer 0 cannot be steered, and no other layer is there"):
            exporting.axis_to_gguf(axis([0]), tmp_path / "a.gguf")
        with pytest.raises(AxisMismatchError, match="layer 9 is not in this axis"):
            exporting.axis_to_gguf(axis(), tmp_path / "a.gguf", [9])
        monkeypatch.setitem(sys.modules, "gguf", None)
        with pytest.raises(VectorsError, match=r"pip install 'persona-axis\[gguf\]'"):
            exporting.axis_to_gguf(axis(), tmp_path / "a.gguf")

    def test_what_cannot_be_written_leaves_nothing(self, tmp_path):
        for write in (exporting.axis_to_npy, exporting.axis_to_dict, exporting.axis_to_gguf):
            with pytest.raises(VectorsError, match="no/a: could not be written"):
                write(axis(), tmp_path / "no" / "a")
        assert not list(tmp_path.iterdir())


CAPS = {
    "floor": {"floor": 0.1},
    "ceiling": {"ceiling": [1.0, 2.0]},
    "both": {"floor": [-0.3, 0.1], "ceiling": [0.5, np.inf]},
    "one layer": {"floor": [-np.inf, 0.7]},
    "each another": {"floor": [-0.3, -np.inf], "ceiling": [np.inf, 0.7]},
    "one point": {"floor": 0.25, "ceiling": 0.25},
}


class TestCap:
    @pytest.mark.parametrize("case", CAPS)
    def test_dictionary_and_back(self, tmp_path, case):
        cap = Cap(unit(axis_rows())[1:3], [1, 2], **CAPS[case])
        notes = exporting.cap_to_dict(cap, tmp_path / "c.pt")
        assert ["nothing is bounded at layers 1, which are left out" in note for note in notes] == (
            [True, False] if case == "one layer" else [False]
        )
        held = torch.load(tmp_path / "c.pt", weights_only=True)
        hidden = torch.randn(4, 9, HIDDEN, generator=torch.Generator().manual_seed(0)) * 2
        for i, layer in enumerate(cap.layers):  # the published code, run on what was written
            theirs = hidden
            for entry in held["experiments"][0]["interventions"]:
                if held["vectors"][entry["vector"]]["layer"] == layer:
                    theirs = published_clamp(theirs, held["vectors"][entry["vector"]]["vector"], entry["cap"])
            bounds = [None if b is None else b[i] for b in (cap.floor, cap.ceiling)]
            torch.testing.assert_close(clamped(hidden, cap.direction[i], *bounds), theirs, rtol=1e-4, atol=1e-5)
        back = made_cap(read(tmp_path / "c.pt"), None, Said(), origin())
        assert back.provenance["imported"]["sign"]["by"] == "file"
        kept = [i for i, layer in enumerate(cap.layers) if layer in back.layers]
        assert torch.equal(back.direction, cap.direction[kept])
        for ours, theirs in ((back.floor, cap.floor), (back.ceiling, cap.ceiling)):
            assert (ours is None and theirs is None) or torch.equal(ours, theirs[kept])

    def test_what_was_exported_needs_nothing_said(self, tmp_path):
        cap = Cap(unit(axis_rows())[1:3], [1, 2], ceiling=0.5)
        exporting.cap_to_dict(cap, tmp_path / "c.pt")
        found = read(tmp_path / "c.pt")
        for said in (Said("toward"), Said("away"), Said(rows="embeddings-first")):
            with pytest.raises(VectorsError, match="was exported from a cap.* leave out --sign and --rows"):
                made_cap(found, None, said, origin())
        for turn, value in ((1, "toward"), (-1, "away")):
            checked = made_cap(found, None, Said(), origin(), dict(enumerate(turn * axis_rows().double().numpy())))
            assert torch.equal(checked.direction, cap.direction) and torch.equal(checked.ceiling, cap.ceiling)
            sign = checked.provenance["imported"]["sign"]
            assert (sign["value"], sign["by"]) == (value, "proven")

    def test_names_of_which_some_are_not_ours_say_nothing(self, tmp_path):
        exporting.cap_to_dict(Cap(unit(axis_rows())[1:3], [1, 2], ceiling=0.5), tmp_path / "c.pt")
        held = torch.load(tmp_path / "c.pt", weights_only=True)
        for name in ("layer_2/contrast", "layer_3/ceiling"):
            other = {"vectors": dict(held["vectors"]), "experiments": [{"id": "x", "interventions": [
                {"vector": "layer_1/ceiling", "cap": 0.5}, {"vector": name, "cap": 0.5}]}]}  # fmt: skip
            other["vectors"][name] = other["vectors"].pop("layer_2/ceiling")
            torch.save(other, tmp_path / "d.pt")
            back = made_cap(read(tmp_path / "d.pt"), None, Said(), origin())
            assert back.ceiling is None and torch.equal(back.direction, -unit(axis_rows())[1:3])

    def test_the_id_says_the_layers(self, tmp_path):
        for layers, name in (([2, 1], "layers_1:3"), ([3, 0], "layers-0-3")):
            (note,) = exporting.cap_to_dict(Cap(unit(axis_rows())[:2], layers, 0.1), tmp_path / "c.pt")
            assert repr(name) in note
            assert made_cap(read(tmp_path / "c.pt"), None, Said(), origin()).layers == tuple(sorted(layers))

    def test_pushes_are_the_mean_of_what_the_cap_moves(self):
        ruler = axis()
        low = mean_pushes(ruler.cap([1, 2], floor=[0.0, -2.0]), ruler)
        np.testing.assert_allclose(low, [0.5, 0.0], atol=1e-3)  # uniform on [-2, 2]: half of it, by 1 on average
        np.testing.assert_allclose(mean_pushes(ruler.cap([1], ceiling=0.0), ruler), [-0.5], atol=1e-3)
        everything = mean_pushes(ruler.cap([1], floor=3.0, ceiling=3.0), ruler)
        np.testing.assert_allclose(everything, [3.0], atol=1e-6)

    def test_gguf_is_an_addition_and_says_so(self, tmp_path):
        ruler = axis()
        notes = "\n".join(exporting.cap_to_gguf(ruler.cap([0, 1, 2], floor=0.0), tmp_path / "c.gguf", ruler))
        assert "a cap cannot be expressed" in notes and "strength 0.5 stands nearest" in notes and "left out" in notes
        found = read(tmp_path / "c.gguf")
        assert found.index == (1, 2)
        np.testing.assert_allclose(found.rows, 0.5 * ruler.direction[1:3].numpy(), atol=1e-3)
        alone = exporting.cap_to_gguf(ruler.cap([1], ceiling=0.0), tmp_path / "c.gguf")
        assert "--axis" in "".join(alone)
        np.testing.assert_allclose(read(tmp_path / "c.gguf").rows, ruler.direction[1:2].numpy(), atol=1e-6)

    def test_the_strength_counts_the_layers_that_are_written(self, tmp_path):
        ruler = axis()
        cap = ruler.cap([0, 1, 2, 3], floor=[0.0, 0.0, -9.0, 0.5])
        notes = "\n".join(exporting.cap_to_gguf(cap, tmp_path / "c.gguf", ruler))
        found = read(tmp_path / "c.gguf")
        assert found.index == (1, 3) and "strength 0.5 stands nearest" in notes
        with pytest.raises(VectorsError, match="moves no token"):
            exporting.cap_to_gguf(ruler.cap([0, 2], floor=[0.0, -9.0]), tmp_path / "d.gguf", ruler)

    def test_a_ceiling_pushes_down(self, tmp_path):
        ruler = axis()
        exporting.cap_to_gguf(ruler.cap([1], ceiling=0.0), tmp_path / "c.gguf", ruler)
        np.testing.assert_allclose(read(tmp_path / "c.gguf").rows, -0.5 * ruler.direction[1:2].numpy(), atol=1e-3)

    def test_gguf_says_its_sign_only_where_it_is_known(self, tmp_path):
        ruler = axis()
        trait = Cap(-ruler.direction[[3]], [3], ceiling=4.0)
        for cap, own, note in (
            (ruler.cap([2, 3], ceiling=0.0), ruler, "does not say where its rows point"),
            (ruler.cap([1, 2, 3], floor=[0.0, -9, -9], ceiling=[9.0, 9, 0]), ruler, "some point toward it and some aw"),
            (ruler.cap([2], floor=0.0), None, "does not say where its rows point"),
            (trait, None, "does not say where its rows point"),
        ):
            assert note in "".join(exporting.cap_to_gguf(cap, tmp_path / "c.gguf", own))
            found = read(tmp_path / "c.gguf")
            with pytest.raises(VectorsError, match="does not say whether its directions point"):
                made_axis(found, Said(), origin())
            back = made_axis(found, Said("away"), origin())
            assert back.metadata["imported"]["rows"]["by"] == "file"
            assert back.metadata["imported"]["sign"]["by"] == "said"
        exporting.cap_to_gguf(ruler.cap([2, 3], ceiling=0.0), tmp_path / "c.gguf", ruler)
        back = made_axis(read(tmp_path / "c.gguf"), Said("away"), origin())
        torch.testing.assert_close(back.direction, ruler.direction[2:4])
        assert "does not say" not in "".join(exporting.cap_to_gguf(ruler.cap([2], floor=0.0), tmp_path / "c", ruler))
        back = made_axis(read(tmp_path / "c"), Said(), origin())
        torch.testing.assert_close(back.direction, ruler.direction[2:3])
        assert back.metadata["imported"]["sign"] == {
            "value": "toward", "by": "file", "how": f"the file says that {CONVENTIONS['sign']}",
        }  # fmt: skip

    def test_what_cannot_be_exported(self, tmp_path):
        ruler = axis()
        rows = Cap(unit(axis_rows())[:1], [1], floor=torch.zeros(1, 3))
        for write in (exporting.cap_to_dict, exporting.cap_to_gguf):
            with pytest.raises(VectorsError, match="floor differs from row to row of a batch"):
                write(rows, tmp_path / "c")
        with pytest.raises(VectorsError, match="moves no token of roles_tokens"):
            exporting.cap_to_gguf(ruler.cap([1], floor=-9.0), tmp_path / "c", ruler)
        with pytest.raises(VectorsError, match="not the cap's axis"):
            exporting.cap_to_gguf(Cap(unit(axis_rows())[1:2], [1], 0.0), tmp_path / "c", ruler)
        with pytest.raises(VectorsError, match="has no layer 2 of this cap's width"):
            exporting.cap_to_gguf(ruler.cap([2], floor=0.0), tmp_path / "c", axis([1]))
        bare = Axis.from_direction(ruler.direction, layers=range(4), metadata={"num_layers": 4})
        with pytest.raises(AxisFileError, match="holds no 'quantiles_roles_tokens'"):
            exporting.cap_to_gguf(ruler.cap([1], floor=0.0), tmp_path / "c", bare)
