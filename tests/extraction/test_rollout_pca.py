"""The PCA of rollouts that are not kept: against exact PCA, in any grouping, across kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import chat_factory as tiny
import numpy as np
import pytest
from command_line import command_in

from persona_axis import Axis, AxisFileError, ExtractionError, PersonaAxisError
from persona_axis.cli import app
from persona_axis.extract import Options, extract, run_directory
from persona_axis.extraction.rolloutpca import DEFAULT, RolloutPca, space_path
from persona_axis.files.spacefile import load_space, save_space
from persona_axis.sampling import Sampling

OPTIONS = Options(
    prompts=2, questions=8, sampling=Sampling(max_new_tokens=12), batch_size=10, min_accepted=3, rollout_pca=1
)
ROLES = 20  # of 16 rollouts: more than the PCA takes at once
NAMES = [f"role {i}" for i in range(20)]

CHILD = """
import os, signal, sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
import test_rollout_pca as t
from persona_axis.extraction import blocks, rolloutpca
out, how, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
module = {{"state": rolloutpca, "block": blocks}}[how]
whole, calls = module.write_atomically, []
def torn(path, content):
    if how == "state" or path.parent.name == "blocks":
        calls.append(path)
        if len(calls) > count:
            os.kill(os.getpid(), signal.SIGKILL)  # "block": the state is written, its batch is not committed
    whole(path, content)
module.write_atomically = torn
t.run(out)
"""


def run(out: Path | str, **changes: object) -> Axis:
    return extract(tiny.chat(), tiny.probes(ROLES), OPTIONS, out=out).axis


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def through(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("through") / "axis.safetensors"
    run(out)
    return out


def rollouts(n: int, hidden: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors role after role, the hardest order: spread falls as a power, as activations' does, around role means."""
    rng = np.random.default_rng(seed)
    scale = 10 / np.arange(1, hidden + 1) ** 0.8
    basis = np.linalg.qr(rng.normal(size=(hidden, hidden)))[0]
    of_roles = rng.normal(size=(len(NAMES), hidden)) * scale
    owner = np.repeat(np.arange(len(NAMES)), n // len(NAMES))
    noise = rng.normal(size=(n, hidden)) * scale * 0.7
    return ((of_roles[owner] + noise) @ basis + 3).astype(np.float32), owner


def exact(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, components and ratios by an SVD of everything."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    _, sizes, rows = np.linalg.svd(vectors - mean, full_matrices=False)
    return mean, rows, sizes**2 / (sizes**2).sum()


def fed(vectors: np.ndarray, owner: np.ndarray, at_once: int = 37) -> RolloutPca:
    pca = RolloutPca(NAMES, vectors.shape[1])
    pca.add(DEFAULT, np.ones((3, vectors.shape[1])))
    for role, name in enumerate(NAMES):
        own = vectors[owner == role]
        for a in range(0, len(own), at_once):
            pca.add(name, own[a : a + at_once])
    return pca


class TestAgainstExact:
    def test_within_the_stated_tolerance_where_there_are_more_directions_than_components(self):
        vectors, owner = rollouts(4000, 400)
        mean, rows, ratio = exact(vectors)
        space = fed(vectors, owner).result()
        assert len(space.components) == 64
        np.testing.assert_allclose(space.mean, mean, atol=1e-5)
        np.testing.assert_allclose(space.explained_variance_ratio[:32], ratio[:32], rtol=0.01)
        assert (np.abs((space.components[:16] * rows[:16]).sum(axis=1)) > 0.99).all()
        # Together the components span what the exact ones do: single ones may turn where two variances are alike.
        within = np.linalg.norm(rows[:32] @ space.components.T, axis=1)
        assert (within > 0.99).all()
        means = np.stack([vectors[owner == i].mean(axis=0, dtype=np.float64) for i in range(len(NAMES))])
        axis = 1 - means.mean(axis=0)
        np.testing.assert_allclose(space.axis, axis / np.linalg.norm(axis), atol=1e-6)
        np.testing.assert_allclose(space.projections, means @ space.axis, rtol=1e-5)
        assert (space.components @ space.axis >= 0).all()

    def test_to_rounding_where_nothing_is_cut_off(self):
        vectors, owner = rollouts(1000, 50)
        mean, rows, ratio = exact(vectors)
        space = fed(vectors, owner).result()
        np.testing.assert_allclose(space.explained_variance_ratio, ratio, rtol=1e-6)
        np.testing.assert_allclose(np.abs((space.components * rows).sum(axis=1)), 1, atol=1e-6)
        assert space.n_components_for(1.0) == 50

    def test_a_share_that_the_components_do_not_hold_is_told(self):
        vectors, owner = rollouts(4000, 400)
        with pytest.raises(PersonaAxisError, match="the 64 components there are hold"):
            fed(vectors, owner).result().n_components_for(0.999)

    @pytest.mark.parametrize("count", [20, 60, 240, 260])
    def test_few_rollouts(self, count):
        vectors, owner = rollouts(count, 300)
        _, rows, ratio = exact(vectors)
        space = fed(vectors, owner).result()
        kept = min(64, count - 1)
        assert len(space.components) == kept
        if count <= 256:
            np.testing.assert_allclose(space.explained_variance_ratio, ratio[:kept], rtol=1e-6)
            np.testing.assert_allclose(np.abs((space.components * rows[:kept]).sum(axis=1)), 1, atol=1e-6)


class TestState:
    def test_how_rollouts_come_makes_no_difference_and_the_result_changes_nothing(self):
        vectors, owner = rollouts(1000, 80)
        one, other = fed(vectors, owner, 1), fed(vectors, owner, 50)
        other.result()
        assert {k: a.tobytes() for k, a in one.state().items()} == {k: a.tobytes() for k, a in other.state().items()}
        assert one.rollouts == 1000

    def test_it_goes_on_from_its_state(self):
        vectors, owner = rollouts(1000, 80)
        whole = fed(vectors, owner)
        first = fed(vectors[:610], owner[:610])
        second = RolloutPca(NAMES, 80)
        second.go_on_from(first.state())
        for vector, role in zip(vectors[610:], owner[610:], strict=True):
            second.add(NAMES[role], vector)
        assert {k: a.tobytes() for k, a in second.state().items()} == {k: a.tobytes() for k, a in whole.state().items()}

    def test_what_cannot_be_is_refused(self):
        pca = RolloutPca(["ghost"], 8)
        for role, means, said in (
            ("tutor", np.ones(8), "no role 'tutor'"),
            ("ghost", np.ones(7), r"expected means \[n, 8\]"),
            ("ghost", np.full(8, np.nan), "role 'ghost' holds NaN"),
        ):
            with pytest.raises(PersonaAxisError, match=said):
                pca.add(role, means)
        with pytest.raises(PersonaAxisError, match="needs two of roles and one of the default"):
            pca.result()
        pca.add("ghost", np.ones((3, 8)))
        pca.add(DEFAULT, np.zeros(8))
        with pytest.raises(PersonaAxisError, match="all rollouts have the same mean"):
            pca.result()


class TestInARun:
    def test_its_roles_lie_where_those_of_the_axis_do(self, through):
        axis, (space, about) = Axis.load(through), load_space(space_path(through))
        assert space.names == axis.role_names and about["layer"] == 1
        assert about["rollouts"] == sum(axis.metadata["accepted"].values())
        np.testing.assert_allclose(space.axis, axis.arrays["direction"][axis.row(1)], atol=1e-5)
        np.testing.assert_allclose(space.projections, axis.space(1).projections, rtol=1e-4)
        assert not list(run_directory(through).glob("pca-*.tmp"))
        assert len(list(run_directory(through).glob("pca-*"))) <= 2

    @pytest.mark.parametrize("how", [pytest.param("state", marks=pytest.mark.slow), "block"])
    def test_killed_or_not_makes_no_difference(self, tmp_path, through, how):
        out = tmp_path / "axis.safetensors"
        here = Path(__file__).parents[1]
        code = CHILD.format(paths=[str(here / "extraction"), str(here), str(here.parent)])
        command = [sys.executable, "-c", code, str(out), how, "30"]  # when the PCA has been fitted once
        ended = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
        assert ended.returncode == -signal.SIGKILL
        assert any(run_directory(out).glob("pca-1-*"))
        run(out)
        one, other = (load_space(space_path(path)).space for path in (out, through))
        for name in ("mean", "components", "explained_variance_ratio", "axis", "projections"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name

    def test_a_run_without_one_cannot_get_one_later(self, tmp_path):
        out = tmp_path / "axis"
        plain = Options(**{**OPTIONS.__dict__, "rollout_pca": None})
        extract(tiny.chat(), tiny.probes(3), plain, out=out)
        with pytest.raises(ExtractionError, match="drawn without a PCA at layer 1.*name another run directory"):
            extract(tiny.chat(), tiny.probes(3), OPTIONS, out=out)
        with pytest.raises(ExtractionError, match="rollout_pca: layer 9 is not among those that are read"):
            extract(tiny.chat(), tiny.probes(3), Options(**{**OPTIONS.__dict__, "rollout_pca": 9}), out=tmp_path / "b")

    def test_a_damaged_state_is_told(self, tmp_path):
        out = tmp_path / "axis"
        extract(tiny.chat(), tiny.probes(3), OPTIONS, out=out)
        (state,) = sorted(run_directory(out).glob("pca-*"))[-1:]
        state.write_bytes(state.read_bytes()[:100])
        with pytest.raises(ExtractionError, match="is damaged"):
            extract(tiny.chat(), tiny.probes(3), OPTIONS, out=out)

    def test_shown(self, through, capsys, monkeypatch):
        command = command_in(through.parent, app, capsys, monkeypatch)
        shown = command("show", space_path(through).name)
        count = str(load_space(space_path(through)).metadata["rollouts"])
        assert shown.code == 0 and count in shown.out and "nearest to the Assistant" in shown.out
        assert command("show", space_path(through).name, "--plot").code == 2


def test_the_file_is_checked(tmp_path):
    vectors, owner = rollouts(200, 20)
    space = fed(vectors, owner).result()
    save_space(space, tmp_path / "a", {"layer": 3})
    back, about = load_space(tmp_path / "a")
    assert about["layer"] == 3 and back.names == space.names
    for name in ("mean", "components", "explained_variance_ratio", "axis", "projections"):
        assert np.array_equal(getattr(back, name), getattr(space, name))
    for changes, said in (
        ({"axis": space.axis * 2}, "axis: is not a unit vector"),
        ({"components": space.components * 2}, "components: are not orthonormal"),
        ({"mean": space.mean[:-1]}, "components: expected"),
        ({"projections": space.projections * np.nan}, "projections: is empty or holds NaN"),
        ({"explained_variance_ratio": space.explained_variance_ratio[::-1].copy()}, "must fall"),
        ({"names": ()}, "role_names: expected a list"),
    ):
        save_space(type(space)(**{**space.__dict__, **changes}), tmp_path / "b", {})
        with pytest.raises(AxisFileError, match=said):
            load_space(tmp_path / "b")
