"""Which role vectors an extraction stores, and in what form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import chat_factory as tiny
import numpy as np
import pytest
from command_line import command_in

from persona_axis import Axis, ExtractionError
from persona_axis.cli import app
from persona_axis.extract import Options, extract
from persona_axis.extraction import rolevectors
from persona_axis.sampling import Sampling

OPTIONS = Options(prompts=2, questions=4, sampling=Sampling(max_new_tokens=6), batch_size=16, min_accepted=2)
ROLES, LAYERS, HIDDEN = 6, 3, 32


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run") / "run"


@pytest.fixture(scope="module")
def plain(run_dir: Path) -> Axis:
    return again(run_dir)


def again(run_dir: Path, **changes: object) -> Axis:
    """The file of the same rollouts under other options, which nothing is drawn again for."""
    out = run_dir.parent / "axis"
    extract(tiny.chat(), tiny.probes(ROLES), replace(OPTIONS, **changes), out=out, run_dir=run_dir)
    return Axis.load(out)


def test_a_small_axis_is_stored_whole_and_as_ever(plain: Axis) -> None:
    assert plain.role_layers == plain.layers == (0, 1, 2)
    assert "role_layers" not in plain.arrays and "roles_sha256" not in plain.metadata and not plain.bfloat16_roles


@pytest.mark.parametrize("told", [(1,), (0, 2), "all"])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_layers_and_precision_that_are_asked_for(plain: Axis, run_dir: Path, told: object, bfloat16: bool) -> None:
    found = again(run_dir, role_layers=told, bfloat16_roles=bfloat16)
    assert found.role_layers == (plain.layers if told == "all" else told)
    np.testing.assert_allclose(found.arrays["direction"], plain.arrays["direction"], atol=1e-6)
    for layer in found.role_layers:
        exact = plain.roles_at(layer)
        apart = np.abs(found.roles_at(layer) - exact)
        assert (apart <= np.abs(exact) * (2**-8 if bfloat16 else 0)).all() and bool(apart.any()) == bfloat16
    np.testing.assert_allclose(found.roles_mean, plain.roles_mean, atol=1e-6)


@pytest.mark.parametrize(("fit", "expected"), [(0, 1), (1, 1), (2, 2), (3, 3)])
def test_a_large_one_keeps_the_layers_around_the_recommended_one(
    plain: Axis, run_dir: Path, monkeypatch: pytest.MonkeyPatch, fit: int, expected: int
) -> None:
    monkeypatch.setattr(rolevectors, "MOST_BYTES", fit * ROLES * HIDDEN * 4)
    monkeypatch.setattr(rolevectors, "READ_AT_ONCE", 0)
    found = again(run_dir)
    assert len(found.role_layers) == expected and found.recommended_layer in found.role_layers
    assert plain.recommended_layer == 2
    assert found.role_layers == ((2,), (1, 2), (0, 1, 2))[expected - 1]
    assert len(found.metadata["roles_sha256"]) == expected


def test_layers_that_are_not_read_or_no_list_are_refused(run_dir: Path) -> None:
    with pytest.raises(ExtractionError, match=r"layer 7 is not among the layers that are read, \[0, 1, 2\]"):
        again(run_dir, role_layers=(1, 7))
    for told in ((), (2, 1), (1, 1)):
        with pytest.raises(ExtractionError, match='role_layers must be "all" or rising layers'):
            Options(role_layers=told)


def test_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = command_in(tmp_path, app, capsys, monkeypatch)
    plan = ["--roles", "3", "--prompts", "1", "--questions", "4", "--default-samples", "1", "--max-new-tokens", "8"]
    rest = ["--min-accepted", "1", "--judge", "all", "--yes", "--out", "a.safetensors"]
    made = command("extract", *plan, *rest, "--role-layers", "2,3", "--bf16-roles")
    assert made.code == 0 and "of layers 2 to 3 only, in bfloat16" in made.out
    shown = command("show", "a.safetensors", "--verify", "--layer", "3")
    assert shown.code == 0 and "verified: a.safetensors is sound, and so are its role vectors at 2 layers" in shown.out
    assert command("show", "a.safetensors", "--layer", "0").code == 0
    refused = command("extract", "--traits", "--bf16-roles")
    assert refused.code == 2 and "--bf16-roles goes with an axis" in refused.err
