"""`persona-axis import` and `persona-axis export`: what they write, ask, and refuse."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import chat_factory
import numpy as np
import pytest
import torch
from test_cli import Ended
from transformers import BartConfig
from vectors_factory import HIDDEN, LAYERS, axis_rows, capping, means, roles_directory, saved, torch_bytes, unit

from persona_axis import Axis, Cap, ChatModel
from persona_axis.cli import app
from persona_axis.commands.terminal import run
from persona_axis.errors import ModelError, VectorsError
from persona_axis.vectors.modelfacts import config_facts
from persona_axis.vectors.trying import tried_roles

Command = Callable[..., Ended]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Run the command in this process, in a directory with a small model `tiny` and nothing else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    chat_factory.llama(layers=LAYERS, hidden=HIDDEN).save_pretrained("tiny")
    chat_factory.tokenizer().save_pretrained("tiny")

    def _command(*args: object) -> Ended:
        capsys.readouterr()
        code = run(app, [str(arg) for arg in args], name="persona-axis")
        return Ended(code, *capsys.readouterr())

    return _command


def test_import_and_use(command: Command) -> None:
    saved(Path("published.pt"), axis_rows())
    done = command("import", "published.pt", "--model", "./tiny", "--sign", "toward")
    assert done.code == 0, done.err
    assert "saved tiny-axis.safetensors" in done.out and "sign said: toward" in done.out
    axis = Axis.load("tiny-axis.safetensors")
    torch.testing.assert_close(axis.direction, unit(axis_rows()))
    assert axis.metadata["imported"]["file"] == "published.pt"
    chat = ChatModel.load("./tiny")
    axis.require(chat.model, chat.tokenizer)
    assert axis.facts["weights_sha256"] == chat.facts["weights_sha256"]
    assert command("cap", "tiny-axis.safetensors", "--layers", "1-2", "--floor", 0.5, "--out", "c").code == 0
    talk = command("generate", "./tiny", "--cap", "c", "--prompt", "hello", "--max-new-tokens", 4)
    assert talk.code == 0, talk.err
    shown = command("show", "tiny-axis.safetensors")
    assert shown.code == 0 and "imported from published.pt (torch tensor)" in shown.out


def test_the_configuration_alone(command: Command) -> None:
    saved(Path("published.pt"), axis_rows())
    Path("tiny/model.safetensors").unlink()
    done = command("import", "published.pt", "--model", "./tiny", "--config-only", "--sign", "away", "--out", "a")
    assert done.code == 0, done.err
    axis = Axis.load("a")
    assert "weights_sha256" not in axis.facts and axis.facts["num_layers"] == LAYERS
    assert axis.metadata["imported"]["model"]["value"] == "configuration"
    assert command("import", "published.pt", "--model", "./tiny", "--sign", "away").code == 1


def test_embeddings_first_as_the_error_proposes(command: Command) -> None:
    saved(Path("trait.pt"), axis_rows(layers=LAYERS + 1))
    asked = command("import", "trait.pt", "--model", "./tiny", "--sign", "away")
    assert asked.code == 1 and not asked.out and asked.err.count("\n") == 1
    option = re.search(r"--rows embeddings-first", asked.err)
    assert option is not None
    done = command("import", "trait.pt", "--model", "./tiny", "--sign", "away", *option[0].split(), "--out", "a")
    assert done.code == 0 and "embeddings-first" in done.out and "layer 3 is left out" in " ".join(done.out.split())
    torch.testing.assert_close(Axis.load("a").direction, -unit(axis_rows(layers=LAYERS + 1))[1:4])


def test_roles_and_checks(command: Command) -> None:
    roles_directory(Path("roles"))
    assert command("import", "roles", "--model", "./tiny", "--out", "axis").code == 0
    saved(Path("negated.pt"), -axis_rows())
    for check in ("roles", "axis"):
        done = command("import", "negated.pt", "--model", "./tiny", "--check", check, "--out", "b")
        assert done.code == 0 and "sign proven: away" in done.out, done.err
        torch.testing.assert_close(Axis.load("b").direction, Axis.load("axis").direction)
    contradicted = command("import", "negated.pt", "--model", "./tiny", "--check", "roles", "--sign", "toward")
    assert contradicted.code == 1 and "contradicted" in contradicted.err
    saved(Path("default_vector.pt"), means()[0])
    Path("roles/default.pt").unlink()
    assert command("import", "roles", "--model", "./tiny", "--out", "c").code == 1
    done = command("import", "roles", "--model", "./tiny", "--default", "default_vector.pt", "--out", "c")
    assert done.code == 0 and torch.equal(Axis.load("c").direction, Axis.load("axis").direction)


def test_capping_configuration(command: Command) -> None:
    held = capping()
    held["experiments"].append({**held["experiments"][0], "id": "layers_1:3-p0.5"})
    saved(Path("capping.pt"), held)
    asked = command("import", "capping.pt", "--model", "./tiny")
    assert asked.code == 1 and "--experiment: 'layers_1:3-p0.25', 'layers_1:3-p0.5'" in asked.err
    done = command("import", "capping.pt", "--model", "./tiny", "--experiment", "layers_1:3-p0.25")
    assert done.code == 0 and "saved tiny-cap.safetensors" in done.out and "negated axis" in done.err
    cap = Cap.load("tiny-cap.safetensors")
    assert cap.layers == (1, 2) and cap.floor is not None and cap.floor.tolist() == [-0.5, -0.25]
    chat = ChatModel.load("./tiny")
    with cap.on(chat.model, chat.tokenizer):
        chat.generate([[{"role": "user", "content": "hello"}]])
    for form, out in (("dict", "back.pt"), ("gguf", "back.gguf")):
        exported = command("export", "tiny-cap.safetensors", "--format", form, "--out", out)
        assert exported.code == 0 and f"saved {out}" in exported.out
    assert "a cap cannot be expressed" in exported.err
    assert command("import", "back.pt", "--model", "./tiny", "--out", "again").code == 0
    assert torch.equal(Cap.load("again").direction, cap.direction)


@pytest.mark.parametrize(("form", "more"), [("dict", []), ("npy", ["--sign", "toward"]), ("gguf", [])])
def test_axis_round_trips(command: Command, form: str, more: list[str]) -> None:
    roles_directory(Path("roles"))
    assert command("import", "roles", "--model", "./tiny", "--out", "axis").code == 0
    exported = command("export", "axis", "--format", form, "--out", "there")
    assert exported.code == 0 and exported.out == "saved there\n"
    assert command("import", "there", "--model", "./tiny", *more, "--out", "back").code == 0
    back, axis = Axis.load("back"), Axis.load("axis")
    assert torch.equal(back.direction, axis.direction[[axis.row(layer) for layer in back.layers]])
    assert back.layers == ((1, 2, 3) if form == "gguf" else (0, 1, 2, 3))


USAGE = {
    "no model": ["import", "v.pt"],
    "sign": ["import", "v.pt", "--model", "./tiny", "--sign", "up"],
    "rows": ["import", "v.pt", "--model", "./tiny", "--rows", "first"],
    "two proofs": ["import", "v.pt", "--model", "./tiny", "--check", "v.pt", "--try-roles", 2],
    "no weights to try": ["import", "v.pt", "--model", "./tiny", "--config-only", "--try-roles", 2],
    "no weights to stack": ["import", "v.pt", "--model", "./tiny", "--config-only", "--stack", "model.layers"],
    "no weights to place": ["import", "v.pt", "--model", "./tiny", "--config-only", "--device-map", "auto"],
    "no weights of a type": ["import", "v.pt", "--model", "./tiny", "--config-only", "--dtype", "auto"],
    "no experiments": ["import", "v.pt", "--model", "./tiny", "--experiment", "x"],
    "over itself": ["import", "v.pt", "--model", "./tiny", "--out", "v.pt"],
    "no format": ["export", "axis", "--out", "x"],
    "export over itself": ["export", "axis", "--format", "npy", "--out", "axis"],
    "export over what is read": ["export", "cap", "--format", "gguf", "--axis", "axis", "--out", "./axis"],
    "layers of npy": ["export", "axis", "--format", "npy", "--layers", "1", "--out", "x"],
    "axis of an axis": ["export", "axis", "--format", "gguf", "--axis", "axis", "--out", "x"],
    "npy of a cap": ["export", "cap", "--format", "npy", "--out", "x"],
}


@pytest.mark.parametrize("case", USAGE)
def test_usage(command: Command, case: str) -> None:
    saved(Path("v.pt"), axis_rows())
    axis = Axis.from_direction(unit(axis_rows()), layers=range(4), metadata={"num_layers": 4})
    axis.save("axis")
    axis.cap([1], floor=0.0).save("cap")
    ended = command(*USAGE[case])
    assert ended.code == 2 and not ended.out and "Error: " in ended.err


def test_failures_are_one_line(command: Command) -> None:
    Path("bad.pt").write_bytes(torch_bytes(axis_rows())[:-200])
    np.save("wide.npy", np.ones((LAYERS, HIDDEN + 1)))
    np.save("v.npy", axis_rows().numpy())
    for arguments, says in (
        (["import", "nowhere", "--model", "./tiny"], "nowhere: cannot be read"),
        (["import", "bad.pt", "--model", "./tiny"], "bad.pt: truncated or damaged"),
        (["import", "wide.npy", "--model", "./tiny", "--sign", "away"], "made for another model"),
        (["import", "v.npy", "--model", "./nowhere", "--sign", "away"], "no such model directory"),
        (["import", "v.npy", "--model", "./tiny", "--sign", "away", "--out", "no/x"], "no/x: could not be written"),
        (["import", "v.npy", "--model", "./tiny", "--check", "v.npy"], "proves no sign"),
        (["import", "v.npy", "--model", "./tiny", "--try-roles", 9999], "the probes hold"),
        (["export", "v.npy", "--format", "npy", "--out", "x"], "v.npy: not a safetensors file"),
    ):
        ended = command(*arguments)
        assert ended.code == 1 and says in ended.err and ended.err.count("\n") == 1, ended.err


def test_a_sign_tried_on_the_model(command: Command) -> None:
    """Directions made by trying other roles are recognised, turned or not; the model is random, its roles differ."""
    chat = ChatModel.load("./tiny")
    probes = chat_factory.probes(roles=6, questions=4)
    toward = tried_roles(chat, probes, 6)
    assert sorted(toward) == list(range(LAYERS)) and all(row.shape == (HIDDEN,) for row in toward.values())
    again = tried_roles(chat, probes, 6)
    assert all(np.array_equal(toward[layer], again[layer]) for layer in toward)
    with pytest.raises(VectorsError, match="--try-roles 7: the probes hold 6 roles"):
        tried_roles(chat, probes, 7)


def test_the_commands_in_the_docs_run(command: Command) -> None:
    """Those under "Writing other tools' forms", on files like the demo's."""
    Path("demo").mkdir()
    facts, random = config_facts("troupe"), np.random.default_rng(0)
    layers, hidden = facts["num_layers"], facts["hidden_size"]
    tables = dict.fromkeys(("roles_tokens", "default_tokens"), np.tile(np.linspace(-9, 9, 101), (layers, 1)))
    axis = Axis.from_means(
        random.normal(size=(layers, hidden)) + 1, random.normal(size=(3, layers, hidden)), layers=range(layers),
        quantiles=tables, metadata={**facts, "provenance": "imported"},
    )  # fmt: skip
    axis.save("demo/troupe.safetensors")
    axis.cap([1, 2, 3], floor="default_tokens:p50").save("demo/cap.safetensors")
    page = (Path(__file__).resolve().parents[2] / "docs" / "vectors.md").read_text()
    lines = re.findall(r"^    persona-axis (.*demo/.*|import axis.*)$", page, re.M)
    assert len(lines) == 6
    for line in lines:
        ended = command(*line.split())
        assert ended.code == 0, ended.err
    assert torch.equal(Axis.load("same.safetensors").direction, axis.direction)


def test_facts_of_a_configuration(command: Command) -> None:
    chat = ChatModel.load("./tiny")
    facts = config_facts("./tiny")
    assert {key: chat.facts[key] for key in facts} == facts
    troupe = config_facts("troupe")
    assert troupe["model"] == "troupe" and troupe["num_layers"] > 0
    with pytest.raises(ModelError, match="no such model directory"):
        config_facts("./nowhere")


def test_a_decoder_whose_configuration_is_of_two_stacks(command: Command) -> None:
    config = BartConfig(d_model=HIDDEN, encoder_layers=6, decoder_layers=LAYERS, is_decoder=True,
                        is_encoder_decoder=False, architectures=["BartForCausalLM"])  # fmt: skip
    config.save_pretrained("bart")
    assert config_facts("./bart")["num_layers"] == LAYERS
    saved(Path("v.pt"), axis_rows())
    done = command("import", "v.pt", "--model", "./bart", "--config-only", "--sign", "toward", "--out", "a")
    assert done.code == 0 and "no layers were located" in " ".join(done.out.split()), done.err
    assert Axis.load("a").layers == tuple(range(LAYERS))
