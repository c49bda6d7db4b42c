"""What is committed was executed in full; and, slow, every notebook runs in short settings from first cell to last."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from chat_factory import llama, tokenizer
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
NAMES = (
    "01_persona_space", "02_drift_in_emotional_and_meta_reflective_conversations", "03_capping", "04_your_own_model",
    "05_inside_transformerlens_and_nnsight", "06_which_lever_when",
)  # fmt: skip
LIMIT = 600  # seconds a cell


def load(name: str) -> NotebookNode:
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    return notebook


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def told(notebook: NotebookNode) -> str:
    """Everything that the cells put out as text."""
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    texts = [output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs]
    return "\n".join(texts)


def pictures(notebook: NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for cell in code(notebook) for output in cell.outputs)


def execute(notebook: NotebookNode, folder: Path, monkeypatch: pytest.MonkeyPatch) -> NotebookNode:
    """Run it in `folder` with this checkout's package; an error in any cell, shell cells included, is raised."""
    command = folder / "bin" / "persona-axis"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m persona_axis.cli "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PERSONA_AXIS_SHORT", "1")
    resources = {"metadata": {"path": str(folder)}}
    return NotebookClient(notebook, timeout=LIMIT, kernel_name="python3", resources=resources).execute()


def test_these_are_the_notebooks() -> None:
    assert sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_was_executed_in_full_and_in_one_go(name: str) -> None:
    notebook = load(name)
    counts = [cell.execution_count for cell in code(notebook)]
    assert counts == list(range(1, len(counts) + 1)), f"{name} is not executed from top to bottom: make notebooks"
    kinds = {output.output_type for cell in code(notebook) for output in cell.outputs}
    assert "error" not in kinds
    assert pictures(notebook) >= 3
    assert "short settings" not in told(notebook) and "full settings" in told(notebook)


@pytest.mark.parametrize("name", NAMES)
def test_it_says_whose_figures_they_are_and_names_no_machine(name: str) -> None:
    notebook = load(name)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "Troupe" in prose and "not to conclude" in prose.lower()
    assert not re.search(r"/(?:work|root|home|tmp|opt|Users)/\S", told(notebook))
    for target in re.findall(r"\]\(([^)#]+)\)", prose):
        assert (ROOT / "notebooks" / target).exists(), f"{name} links to {target}, which is not there"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_in_short_settings(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = execute(load(name), tmp_path, monkeypatch)
    assert "short settings" in told(done)
    assert pictures(done) >= 3
    assert list((tmp_path / "work").glob("troupe-*.safetensors"))


@pytest.mark.slow
def test_the_last_one_runs_on_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "somebodys-model"
    llama().save_pretrained(model)
    tokenizer().save_pretrained(model)
    notebook = load("04_your_own_model")
    (cell,) = (cell for cell in code(notebook) if cell.source.startswith("MODEL = "))
    cell.source = cell.source.replace('"troupe"', repr(str(model)))
    done = execute(notebook, tmp_path, monkeypatch)
    assert "judged by 'all'" in told(done)
    assert "somebodys-model:" in told(done)
