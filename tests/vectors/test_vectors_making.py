"""From published vectors to an axis or a cap: what must be said, what is proven, and that the meaning stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from vectors_factory import (
    HIDDEN,
    LAYERS,
    axis_rows,
    capping,
    gguf_file,
    means,
    origin,
    published_clamp,
    roles_directory,
    saved,
    smooth_rows,
    unit,
)

from persona_axis import Axis, Cap
from persona_axis.cap import clamped
from persona_axis.errors import VectorsError
from persona_axis.residual import reading
from persona_axis.vectors import exporting
from persona_axis.vectors.clamps import bounds_of
from persona_axis.vectors.found import Clamp
from persona_axis.vectors.making import check_of, made_axis, made_cap
from persona_axis.vectors.reading import read
from persona_axis.vectors.telling import Said
from persona_axis.vectors.units import cosines, lengths
from persona_axis.vectors.units import unit as unit_rows

TOWARD = Said(sign="toward")


def tensor(tmp_path, rows=None):
    return read(saved(tmp_path / "axis.pt", axis_rows() if rows is None else rows))


class TestAxis:
    def test_rows_are_normalised_and_their_lengths_kept(self, tmp_path):
        axis = made_axis(tensor(tmp_path), TOWARD, origin())
        torch.testing.assert_close(axis.direction, unit(axis_rows()))
        assert axis.layers == (0, 1, 2, 3) and axis.metadata["provenance"] == "imported"
        imported = axis.metadata["imported"]
        np.testing.assert_allclose(imported["norms"], axis_rows().double().norm(dim=1).numpy())
        assert imported["sign"] == {"value": "toward", "by": "said", "how": "said with --sign"}
        assert imported["rows"]["by"] == "assumed" and "as many rows" in imported["rows"]["how"]
        assert imported["sha256"] == "0" * 64 and imported["model"]["by"] == "said"
        axis.save(tmp_path / "a")
        assert Axis.load(tmp_path / "a").metadata["imported"] == imported
        assert axis.facts["model"] == "tiny" and any("sign said" in note for note in axis.metadata["notes"])

    def test_unit_rows_are_kept_bit_for_bit(self, tmp_path):
        rows = unit(axis_rows())
        assert torch.equal(made_axis(tensor(tmp_path, rows), TOWARD, origin()).direction, rows)

    def test_a_vector_that_points_away_is_turned(self, tmp_path):
        axis = made_axis(tensor(tmp_path, -axis_rows()), Said(sign="away"), origin())
        torch.testing.assert_close(axis.direction, unit(axis_rows()))
        assert axis.metadata["imported"]["sign"]["value"] == "away"

    def test_a_sign_that_nobody_says_is_asked_for(self, tmp_path):
        with pytest.raises(VectorsError, match="--sign toward or --sign away, or prove it with --check or --try-roles"):
            made_axis(tensor(tmp_path), Said(), origin())

    def test_role_vectors_prove_it_and_stay(self, tmp_path):
        axis = made_axis(read(roles_directory(tmp_path / "roles")), Said(), origin())
        default, roles = means()
        torch.testing.assert_close(axis.direction, unit(axis_rows()))
        torch.testing.assert_close(axis.default, default)
        torch.testing.assert_close(axis.roles, roles)
        assert axis.role_names == tuple(f"role{i}" for i in range(5)) and axis.space(2).ranking()
        assert axis.metadata["imported"]["sign"]["by"] == "proven"
        some = made_axis(read(tmp_path / "roles"), Said(layers=(1, 3)), origin())
        assert some.layers == (1, 3) and torch.equal(some.roles, roles[:, [1, 3]])

    def test_means_in_the_file_prove_it(self, tmp_path):
        default, roles = means()
        for turn, value in ((1, "toward"), (-1, "away")):
            held = {"axis": turn * axis_rows(), "default_mean": default, "role_mean": roles.mean(0)}
            found = read(saved(tmp_path / "a.pt", held))
            axis = made_axis(found, Said(), origin())
            torch.testing.assert_close(axis.direction, unit(axis_rows()))
            sign = axis.metadata["imported"]["sign"]
            assert (sign["value"], sign["by"]) == (value, "proven") and "cosine" in sign["how"]
            wrong = Said(sign="away" if turn > 0 else "toward")
            with pytest.raises(VectorsError, match=r"contradicted: \w+ \(said with --sign\); \w+ \(cosine"):
                made_axis(found, wrong, origin())


class TestCheck:
    def test_by_an_axis_by_roles_and_by_means(self, tmp_path):
        own = Axis.from_direction(unit(axis_rows()), layers=range(4), metadata={"num_layers": 4})
        for held in (own, read(roles_directory(tmp_path / "roles"))):
            toward = check_of(held, None, LAYERS)
            for turn in (1, -1):
                axis = made_axis(tensor(tmp_path, turn * axis_rows()), Said(), origin(), toward)
                torch.testing.assert_close(axis.direction, unit(axis_rows()))
                assert axis.metadata["imported"]["sign"]["by"] == "proven"
                rows = axis.metadata["imported"]["rows"]
                assert rows["by"] == "proven" and "mean cosine with the check 1.000" in rows["how"]

    def test_rows_that_fit_a_neighbouring_layer_better(self, tmp_path):
        layers = 6
        stream = smooth_rows(layers + 1)  # 0 is the embeddings, each the neighbour of the next: cosines of about .7
        toward = dict(enumerate(stream[1:].double().numpy()))
        late = read(gguf_file(tmp_path / "v", {n: stream[n].numpy() for n in range(1, layers)}))  # llama.cpp's numbers
        with pytest.raises(VectorsError, match=r"do not fit .* check 0\.\d+, one layer lower 1\.000, .* --rows"):
            made_axis(late, Said("toward", "layers"), origin(layers), toward)
        axis = made_axis(late, Said("toward", "embeddings-first"), origin(layers), toward)
        assert axis.layers == (0, 1, 2, 3, 4) and axis.metadata["imported"]["rows"]["by"] == "proven"
        cut = tensor(tmp_path, stream[:layers])  # embeddings and all layers but the last: as many rows as layers
        with pytest.raises(VectorsError, match="one layer lower 1.000"):
            made_axis(cut, Said(), origin(layers), toward)
        assert made_axis(cut, Said(None, "embeddings-first"), origin(layers), toward).layers == (0, 1, 2, 3, 4)
        held = capping(range(2, 4))
        for name, entry in held["vectors"].items():
            held["vectors"][name] = entry | {"vector": -stream[entry["layer"]]}
        configured = read(saved(tmp_path / "c.pt", held))
        with pytest.raises(VectorsError, match="do not fit the layers"):
            made_cap(configured, None, Said(), origin(layers), toward)
        right = made_cap(configured, None, Said(rows="embeddings-first"), origin(layers), toward)
        assert right.layers == (1, 2) and right.provenance["imported"]["rows"]["by"] == "proven"

    def test_layers_alike_prove_nothing(self, tmp_path):
        one = axis_rows()[0].repeat(LAYERS, 1) + 0.001 * axis_rows()
        toward = dict(enumerate(one.double().numpy()))
        axis = made_axis(tensor(tmp_path, one), Said(), origin(), toward)
        assert axis.metadata["imported"]["sign"]["by"] == "proven"
        assert axis.metadata["imported"]["rows"]["by"] == "assumed"

    def test_the_rows_of_the_check_are_its_own(self, tmp_path):
        directory = roles_directory(tmp_path / "roles")  # 4 rows: of a model of 3 layers, if the embeddings are first
        held = read(directory)
        with pytest.raises(VectorsError, match=r"--check: .* has 4 rows, the model 3 layers: .*--check-rows"):
            check_of(held, None, 3)
        toward = check_of(held, "embeddings-first", 3)
        found = tensor(tmp_path, axis_rows()[1:])
        axis = made_axis(found, Said(), origin(3), toward)
        assert "from 1.000 to 1.000" in axis.metadata["imported"]["sign"]["how"]
        with pytest.raises(VectorsError, match="--check-rows goes with role vectors"):
            check_of(axis, "layers", 3)

    def test_what_proves_nothing(self, tmp_path):
        with pytest.raises(VectorsError, match="proves no sign: it holds no default vector"):
            check_of(tensor(tmp_path), None, LAYERS)
        with pytest.raises(VectorsError, match="proves no sign"):
            check_of(read(saved(tmp_path / "c.pt", capping())), None, LAYERS)
        toward = dict(enumerate(axis_rows().double().numpy()))
        orthogonal = axis_rows().clone()
        orthogonal[2] -= (orthogonal[2] @ unit(axis_rows())[2]) * unit(axis_rows())[2]
        orthogonal[2, 0] += 0.01
        with pytest.raises(VectorsError, match=r"not proven: cosine .* at layer 2; another layer convention"):
            made_axis(tensor(tmp_path, orthogonal), Said(), origin(), toward)
        mixed = axis_rows() * torch.tensor([1, 1, -1, 1])[:, None]
        with pytest.raises(VectorsError, match="not proven: .* below 0 at layers 2"):
            made_axis(tensor(tmp_path, mixed), Said(), origin(), toward)
        with pytest.raises(VectorsError, match="no layer in common"):
            made_axis(tensor(tmp_path), Said(), origin(), {9: np.ones(HIDDEN)})
        with pytest.raises(VectorsError, match="hidden size 32, that of .* is 5"):
            made_axis(tensor(tmp_path), Said(), origin(), {1: np.ones(5)})


class TestRows:
    def test_one_row_more_than_layers_is_asked_about(self, tmp_path):
        rows = axis_rows(layers=LAYERS + 1)
        with pytest.raises(VectorsError, match="has 5 rows, the model 4 layers: .* --rows embeddings-first"):
            made_axis(tensor(tmp_path, rows), TOWARD, origin())
        with pytest.raises(VectorsError, match="has 5 rows, the model 4 layers: the vectors are of another model"):
            made_axis(tensor(tmp_path, rows), Said("toward", "layers"), origin())
        axis = made_axis(tensor(tmp_path, rows), Said("toward", "embeddings-first"), origin())
        torch.testing.assert_close(axis.direction, unit(rows[1:4]))
        assert axis.metadata["imported"]["rows"]["value"] == "embeddings-first"
        assert axis.metadata["imported"]["rows"]["by"] == "said"

    def test_the_row_after_the_final_norm_is_taken_where_it_is_asked_for(self, tmp_path):
        rows = axis_rows(layers=LAYERS + 1)
        save_file({f"layers.{i}": row.clone() for i, row in enumerate(rows)}, tmp_path / "named")
        for found in (tensor(tmp_path, rows), read(tmp_path / "named")):
            axis = made_axis(found, Said("toward", "embeddings-first"), origin())
            assert axis.layers == (0, 1, 2)
            assert "layer 3 is left out, since output_hidden_states" in "".join(axis.metadata["notes"])
            whole = made_axis(found, Said("toward", "embeddings-first", (0, 3)), origin())
            torch.testing.assert_close(whole.direction, unit(rows[[1, 4]]))
            assert "layer 3 was asked for; output_hidden_states" in "".join(whole.metadata["notes"])
            some = made_axis(found, Said("toward", "embeddings-first", (0, 1)), origin())
            assert "output_hidden_states" not in "".join(some.metadata["notes"])
        late = read(gguf_file(tmp_path / "v", {n: rows[n].numpy() for n in range(1, LAYERS + 1)}))
        assert made_axis(late, Said("toward", "embeddings-first"), origin()).layers == (0, 1, 2, 3)
        save_file({"layers.4": rows[4].clone()}, tmp_path / "named")
        with pytest.raises(VectorsError, match="holds the last layer alone, .* say --layers 3"):
            made_axis(read(tmp_path / "named"), Said("toward", "embeddings-first"), origin())

    def test_the_row_left_out_is_no_output_of_a_layer(self, tmp_path, new_model):
        """What persona vectors are made of, read from a model whose final norm is not uniform."""
        model = new_model("llama")
        with torch.no_grad():
            model.model.norm.weight.copy_(torch.linspace(0.1, 3, HIDDEN))
        seen = {}
        tokens = torch.arange(24).view(2, 12)
        with torch.no_grad(), reading(model, range(LAYERS), lambda layer, h: seen.update({layer: h.clone()})):
            given = model(tokens, output_hidden_states=True).hidden_states
        rows = torch.stack([h[0].mean(0) - h[1].mean(0) for h in given])
        axis = made_axis(tensor(tmp_path, rows), Said("toward", "embeddings-first"), origin())
        read_off = unit(torch.stack([seen[layer][0].mean(0) - seen[layer][1].mean(0) for layer in range(LAYERS)]))
        assert axis.layers == tuple(range(LAYERS - 1))
        torch.testing.assert_close(axis.direction, read_off[:-1])
        assert float(unit(rows[-1:])[0] @ read_off[-1]) < 0.99

    def test_as_many_rows_as_layers_with_the_embeddings_first(self, tmp_path):
        axis = made_axis(tensor(tmp_path), Said("toward", "embeddings-first"), origin())
        assert axis.layers == (0, 1, 2) and torch.equal(axis.direction[0], unit(axis_rows())[1])

    def test_row_zero_of_the_embeddings_may_be_zero(self, tmp_path):
        rows = axis_rows(layers=LAYERS + 1)
        rows[0] = 0
        assert made_axis(tensor(tmp_path, rows), Said("toward", "embeddings-first"), origin()).layers == (0, 1, 2)

    def test_other_counts_need_the_layer_of_each_row(self, tmp_path):
        two = tensor(tmp_path, axis_rows()[:2])
        with pytest.raises(VectorsError, match="has 2 rows, the model 4 layers: .* --layers has to name"):
            made_axis(two, TOWARD, origin())
        axis = made_axis(two, Said("toward", None, (1, 3)), origin())
        assert axis.layers == (1, 3) and axis.metadata["imported"]["rows"]["by"] == "said"
        for layers, says in (((1, 2, 3), "has 2 rows, the model 4"), ((1, 4), "the model has layers 0 to 3")):
            with pytest.raises(VectorsError, match=says):
                made_axis(two, Said("toward", None, layers), origin())
        with pytest.raises(VectorsError, match="--rows goes with numbered rows"):
            made_axis(two, Said("toward", "layers", (1, 3)), origin())

    def test_one_vector(self, tmp_path):
        one = tensor(tmp_path, axis_rows()[2])
        with pytest.raises(VectorsError, match="holds one vector and no layer: say --layers L"):
            made_axis(one, TOWARD, origin())
        assert made_axis(one, Said("toward", None, (2,)), origin()).layers == (2,)
        with pytest.raises(VectorsError, match="has 1 rows, --layers names 2"):
            made_axis(one, Said("toward", None, (1, 2)), origin())

    def test_some_layers_of_a_whole_file(self, tmp_path):
        axis = made_axis(tensor(tmp_path), Said("toward", None, (1, 2)), origin())
        assert axis.layers == (1, 2) and torch.allclose(axis.direction, unit(axis_rows())[1:3])
        with pytest.raises(VectorsError, match="--layers 9: the file has layers 0 to 3"):
            made_axis(tensor(tmp_path), Said("toward", None, (1, 9)), origin())

    def test_names_that_count_one_more_than_there_are_layers(self, tmp_path):
        rows = axis_rows(layers=LAYERS + 1)
        for first in (0, 1):
            save_file({f"layers.{i}": rows[i].clone() for i in range(first, LAYERS + 1)}, tmp_path / "v")
            with pytest.raises(VectorsError, match="a row of layer 4; .* layers 0 to 3; if .* --rows embeddings-first"):
                made_axis(read(tmp_path / "v"), TOWARD, origin())
            with pytest.raises(VectorsError, match="a row of layer 4; the model has layers 0 to 3$"):
                made_axis(read(tmp_path / "v"), Said("toward", "layers"), origin())
            axis = made_axis(read(tmp_path / "v"), Said("toward", "embeddings-first", (0, 1, 2)), origin())
            torch.testing.assert_close(axis.direction, unit(rows[1:4]))
        save_file({"layers.5": rows[0].clone()}, tmp_path / "v")
        with pytest.raises(VectorsError, match="a row of layer 5; the model has layers 0 to 3$"):
            made_axis(read(tmp_path / "v"), TOWARD, origin())

    def test_what_the_file_states_is_not_contradicted(self, tmp_path):
        own = Axis.from_direction(unit(axis_rows()), layers=range(4), metadata={"num_layers": 4})
        exporting.axis_to_gguf(own, tmp_path / "a.gguf")
        exporting.axis_to_dict(own, tmp_path / "a.pt")
        for name in ("a.gguf", "a.pt"):
            with pytest.raises(VectorsError, match="layers its rows are is contradicted: .* leave out --rows"):
                made_axis(read(tmp_path / name), Said(None, "embeddings-first"), origin())
            agreed = made_axis(read(tmp_path / name), Said(None, "layers"), origin())
            assert torch.equal(agreed.direction, own.direction[[own.row(layer) for layer in agreed.layers]])

    def test_numbered_vectors(self, tmp_path):
        rows = axis_rows().numpy()
        found = read(gguf_file(tmp_path / "v", {i: rows[i] for i in (1, 2, 3)}))
        with pytest.raises(VectorsError, match=r"repeng .* --rows layers\), .*llama.cpp's .* --rows embeddings-first"):
            made_axis(found, TOWARD, origin())
        said = Said("toward", "layers")
        axis = made_axis(found, said, origin())
        assert axis.layers == (1, 2, 3) and torch.allclose(axis.direction, unit(axis_rows())[1:])
        assert axis.metadata["imported"]["rows"]["by"] == "said"
        late = made_axis(found, Said("toward", "embeddings-first"), origin())
        assert late.layers == (0, 1, 2) and torch.equal(late.direction, axis.direction)
        with pytest.raises(VectorsError, match="has a row of layer 3; the model has layers 0 to 2"):
            made_axis(found, said, origin(layers=3))

    def test_zero_rows_and_other_widths(self, tmp_path):
        rows = axis_rows()
        rows[3] = 0
        with pytest.raises(VectorsError, match="row of layer 3 is zero .* --layers"):
            made_axis(tensor(tmp_path, rows), TOWARD, origin())
        assert made_axis(tensor(tmp_path, rows), Said("toward", None, (0, 1, 2)), origin()).layers == (0, 1, 2)
        with pytest.raises(VectorsError, match="width 32, the model's residual stream 64: made for another model"):
            made_axis(tensor(tmp_path), TOWARD, origin(hidden=64))
        with pytest.raises(VectorsError, match="looks transposed"):
            made_axis(tensor(tmp_path, axis_rows().T.contiguous()), TOWARD, origin())


class TestClamps:
    """h - v max(<h, v> - tau, 0) along the negated axis is a floor of -tau along the axis."""

    @given(
        seed=st.integers(0, 2**31), tau=st.floats(-20, 20), length=st.floats(1e-3, 1e3),
        points=st.sampled_from(["toward", "away"]),
    )  # fmt: skip
    @settings(max_examples=150, deadline=None)
    def test_both_formulas_on_the_same_hidden_states(self, seed, tau, length, points):
        generator = torch.Generator().manual_seed(seed)
        hidden = torch.randn(3, 7, 16, generator=generator, dtype=torch.float64) * 10
        vector = torch.randn(16, generator=generator, dtype=torch.float64) * length
        published = published_clamp(hidden, vector, tau)
        bounds = bounds_of("x", [Clamp(4, vector.numpy(), tau)], points)
        low, high = (b if np.isfinite(b).all() else None for b in (bounds.floor, bounds.ceiling))
        cap = Cap(bounds.direction, bounds.layers, low, high)
        assert (cap.floor is None) == (points == "toward") and (cap.ceiling is None) == (points == "away")
        ours = clamped(hidden, cap.direction[0], *(None if b is None else b[0] for b in (cap.floor, cap.ceiling)))
        torch.testing.assert_close(ours, published, rtol=1e-6, atol=1e-5)
        above = hidden @ (vector / vector.norm()) > tau + 1e-4
        assert ((ours != hidden).any(-1) == above)[(hidden @ (vector / vector.norm()) - tau).abs() > 1e-4].all()

    def test_a_whole_model_under_both(self, tmp_path, new_model):
        model = new_model("llama")
        held = capping()
        cap = made_cap(read(saved(tmp_path / "c.pt", held)), None, Said(), origin())
        tokens = torch.arange(12).view(2, 6)
        plain = model(tokens).logits
        with cap.on(model):
            ours = model(tokens).logits
        hooks = []
        for entry in held["experiments"][0]["interventions"]:
            stored = held["vectors"][entry["vector"]]

            def hook(_module, _args, out, vector=stored["vector"], tau=entry["cap"]):
                return published_clamp(out, vector, tau) if torch.is_tensor(out) else (
                    published_clamp(out[0], vector, tau), *out[1:])  # fmt: skip

            hooks.append(model.model.layers[stored["layer"]].register_forward_hook(hook))
        theirs = model(tokens).logits
        for handle in hooks:
            handle.remove()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert (plain - theirs).abs().max() > 1e-2

    def test_the_cap_and_its_record(self, tmp_path):
        cap = made_cap(read(saved(tmp_path / "c.pt", capping())), None, Said(), origin())
        assert cap.layers == (1, 2) and cap.ceiling is None and cap.floor.tolist() == [-0.5, -0.25]
        torch.testing.assert_close(cap.direction, unit(axis_rows())[1:3])
        imported = cap.provenance["imported"]
        assert imported["experiment"] == "layers_1:3-p0.25" and imported["sign"]["by"] == "layout"
        np.testing.assert_allclose(imported["norms"], 3 * axis_rows()[1:3].double().norm(dim=1).numpy(), rtol=1e-6)
        cap.save(tmp_path / "cap")
        assert Cap.load(tmp_path / "cap").provenance == cap.provenance
        assert Cap.load(tmp_path / "cap").facts["num_layers"] == LAYERS

    def test_a_check_proves_the_sign(self, tmp_path):
        toward = dict(enumerate(axis_rows().double().numpy()))
        found = read(saved(tmp_path / "c.pt", capping()))
        sign = made_cap(found, None, Said(), origin(), toward).provenance["imported"]["sign"]
        assert sign["by"] == "proven" and sign["value"] == "away"
        other = made_cap(found, None, Said(), origin(), {layer: -row for layer, row in toward.items()})
        assert other.floor is None and other.ceiling.tolist() == [0.5, 0.25]
        with pytest.raises(VectorsError, match="contradicted: toward"):
            made_cap(found, None, TOWARD, origin(), toward)

    def test_choosing_an_experiment(self, tmp_path):
        held = capping()
        held["experiments"].append({**held["experiments"][0], "id": "layers_1:3-p0.5"})
        held["experiments"].append({"id": "baseline", "interventions": []})
        held["experiments"].append({"id": "layers_0:3-p1", "interventions": held["experiments"][0]["interventions"]})
        mixed = [*held["experiments"][0]["interventions"], {"vector": "layer_1/contrast", "coefficient": 2.0}]
        held["experiments"].append({"id": "mixed", "interventions": mixed})
        found = read(saved(tmp_path / "c.pt", held))
        for name, says in (
            (None, "name one with --experiment: 'layers_1:3-p0.25', 'layers_1:3-p0.5', 'baseline'"),
            ("other", "no experiment 'other'"),
            ("baseline", "'baseline' caps nothing"),
            ("layers_0:3-p1", "names layers 0 to 2 and holds 1, 2"),
            ("mixed", "1 interventions without a 'cap'"),
        ):
            with pytest.raises(VectorsError, match=says):
                made_cap(found, name, Said(), origin())
        assert made_cap(found, "layers_1:3-p0.5", Said(), origin()).layers == (1, 2)

    def test_what_does_not_fit(self, tmp_path):
        found = read(saved(tmp_path / "c.pt", capping()))
        with pytest.raises(VectorsError, match="caps layer 2; the model has layers 0 to 1"):
            made_cap(found, None, Said(), origin(layers=2))
        with pytest.raises(VectorsError, match="width 32, the model's residual stream 8"):
            made_cap(found, None, Said(), origin(hidden=8))
        with pytest.raises(VectorsError, match="names its layers; leave out --layers"):
            made_cap(found, None, Said(layers=(1,)), origin())
        shifted = made_cap(found, None, Said(rows="embeddings-first"), origin())
        assert shifted.layers == (0, 1) and shifted.provenance["imported"]["rows"]["by"] == "said"
        zero = capping()
        zero["vectors"]["layer_1/contrast"]["vector"] = torch.zeros(HIDDEN)
        with pytest.raises(VectorsError, match="the vector of layer 1: row 0 has norm 0"):
            made_cap(read(saved(tmp_path / "z.pt", zero)), None, Said(), origin())

    def test_two_clamps_of_one_layer(self):
        v = np.eye(4)[0]
        both = bounds_of("x", [Clamp(1, -v, 0.5), Clamp(1, 3 * v, 2.0), Clamp(1, -v, 0.25)], "away")
        assert both.floor.tolist() == [-0.25] and both.ceiling.tolist() == [2.0]
        np.testing.assert_array_equal(both.direction, [v])
        with pytest.raises(VectorsError, match=r"layer 1 is clamped along two directions, 90 degrees"):
            bounds_of("x", [Clamp(1, v, 0.5), Clamp(1, np.eye(4)[1], 0.5)], "away")


    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_one_vector_stored_twice(self, tmp_path, dtype):
        """What is taken for one direction gives what the published formula gives, to rounding."""
        random = np.random.default_rng(0)
        v = torch.tensor(random.normal(size=HIDDEN), dtype=dtype)
        hidden = torch.tensor(random.normal(size=(500, HIDDEN)) * 20)
        beside = torch.tensor(random.normal(size=HIDDEN))
        beside -= (beside @ v.double()) / v.double().norm() ** 2 * v.double()
        copies = [v.clone(), -2 * v, v.float() * 3.7, -unit(v[None])[0]]
        for copy in copies:
            held = {"vectors": {"a": {"layer": 2, "vector": v}, "b": {"layer": 2, "vector": copy}}, "experiments": [
                {"id": "e", "interventions": [{"vector": "a", "cap": 6.0}, {"vector": "b", "cap": 5.0}]}]}  # fmt: skip
            cap = made_cap(read(saved(tmp_path / "c.pt", held)), None, Said(), origin())
            bounds = [None if bound is None else bound[0] for bound in (cap.floor, cap.ceiling)]
            theirs = published_clamp(published_clamp(hidden, v.double(), 6.0), copy.double(), 5.0)
            torch.testing.assert_close(clamped(hidden, cap.direction[0], *bounds), theirs, rtol=1e-6, atol=1e-4)
        for degrees in (0.7, 0.05, 1e-3, 1e-4):
            turned = v.double() + beside / beside.norm() * v.double().norm() * np.tan(np.radians(degrees))
            held["vectors"]["b"]["vector"] = -turned
            said = rf"experiment 'e': layer 2 is clamped along two directions, {degrees:.1g}\d* degrees apart"
            with pytest.raises(VectorsError, match=said):
                made_cap(read(saved(tmp_path / "c.pt", held)), None, Said(), origin())

    def test_bounds_that_cross_are_named(self, tmp_path):
        v = axis_rows()[2]
        held = {"vectors": {"a": {"layer": 2, "vector": v}, "b": {"layer": 2, "vector": -2 * v}}, "experiments": [
            {"id": "e", "interventions": [{"vector": "a", "cap": -0.5}, {"vector": "b", "cap": -1.0}]}]}  # fmt: skip
        with pytest.raises(VectorsError, match=r"c.pt: experiment 'e': layer 2 .* at least 0.5 and at most -1 along"):
            made_cap(read(saved(tmp_path / "c.pt", held)), None, Said(), origin())


class TestUnits:
    @given(st.lists(st.floats(-300, 30), min_size=1, max_size=6), st.integers(0, 99))
    @settings(max_examples=60, deadline=None)
    def test_any_length(self, exponents, seed):
        random = np.random.default_rng(seed)
        rows = random.normal(size=(len(exponents), 8)) * 10.0 ** np.array(exponents)[:, None]
        made, norms = unit_rows(rows, "x")
        np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=2e-6)
        np.testing.assert_allclose(cosines(made, rows), 1, atol=1e-12)
        np.testing.assert_allclose(norms, lengths(rows))

    def test_no_length(self):
        with pytest.raises(VectorsError, match="x: row 1 has norm 0"):
            unit_rows(np.array([[1.0, 0.0], [0.0, 0.0]]), "x")
        assert cosines(np.zeros((1, 2)), np.ones((1, 2))).tolist() == [0.0]
