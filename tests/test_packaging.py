"""What is shipped, what importing it costs, and that nothing in it points at one machine."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import persona_axis
from persona_axis.conversations import load_jailbreaks, load_scripts
from persona_axis.organism import troupe_path
from persona_axis.probes import load_probes, probes_path

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "numpy", "pandas", "matplotlib", "rich", "click", "safetensors")
WEIGHTS_LIMIT = 16 * 2**20


def python(code: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, as from a fresh clone: what git ignores is not there to slip in."""
    source = tmp_path_factory.mktemp("clone") / "persona-axis"
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "venv", "*_cache", "__pycache__", "demo", "dist", "build", "*.run"
    )
    shutil.copytree(ROOT, source, ignore=ignored)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=source)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_holds_the_package_and_its_data(names: set[str]) -> None:
    here = {path.relative_to(ROOT).as_posix() for path in (ROOT / "persona_axis").rglob("*") if path.is_file()}
    expected = {name for name in here if "__pycache__" not in name}
    probes = (path for path in (ROOT / "probes").rglob("*") if path.is_file())
    expected |= {f"persona_axis/_probes/{path.relative_to(ROOT / 'probes').as_posix()}" for path in probes}
    shipped = {name for name in names if name.startswith("persona_axis/")}
    assert shipped == expected
    assert {"persona_axis/py.typed", "persona_axis/_probes/roles.jsonl"} <= shipped
    assert {"persona_axis/_probes/conversations/emotional.jsonl", "persona_axis/_probes/jailbreaks.jsonl"} <= shipped
    assert any(name.startswith("persona_axis/organism/data/") for name in shipped)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_wheel_holds_nothing_else(names: set[str]) -> None:
    assert {name.split("/")[0] for name in names} == {
        "persona_axis",
        f"persona_axis-{persona_axis.__version__}.dist-info",
    }


@pytest.mark.parametrize("stage", ["chat", "base"])
def test_wheel_holds_troupe(names: set[str], stage: str) -> None:
    assert troupe_path(stage).is_dir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert f"persona_axis/organism/weights/{stage}/{name}" in names


def test_weights_are_small(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        weights = [entry for entry in archive.infolist() if "/weights/" in entry.filename]
    assert sum(entry.file_size for entry in weights) <= WEIGHTS_LIMIT


def test_wheel_runs_where_it_is_unpacked(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import persona_axis, persona_axis.probes as p, persona_axis.conversations as c\n"
        "print(persona_axis.__file__, p.probes_path(), p.load_probes().fingerprint, sep='\\n')\n"
        "print(len(c.load_scripts()), len(c.load_jailbreaks()))"
    )
    where, probes, fingerprint, counts = python(code, tmp_path, PYTHONPATH=str(tmp_path)).splitlines()
    assert Path(where).is_relative_to(tmp_path)
    assert Path(probes) == tmp_path / "persona_axis" / "_probes"
    assert fingerprint == load_probes().fingerprint
    assert counts == f"{len(load_scripts())} {len(load_jailbreaks())}"
    assert probes_path() == ROOT / "probes"


def test_the_script_is_declared(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (points,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "persona-axis = persona_axis.cli:main" in archive.read(points).decode()


def test_one_version_everywhere() -> None:
    version = persona_axis.__version__
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_import_is_light() -> None:
    code = f"import sys, persona_axis\nprint([name for name in {HEAVY} if name in sys.modules])"
    assert python(code, ROOT) == "[]"
    code = f"import sys, persona_axis\npersona_axis.load_probes()\nprint([n for n in {HEAVY} if n in sys.modules])"
    assert python(code, ROOT) == "[]"


def test_reading_an_axis_needs_no_torch() -> None:
    code = "import sys\nfrom persona_axis import Axis, PersonaSpace\nprint('torch' in sys.modules)"
    assert python(code, ROOT) == "False"


def test_public_names() -> None:
    assert {
        "Axis", "AxisFileError", "AxisMismatchError", "Cap", "ChatModel", "PersonaSpace", "load_probes",
    } <= set(persona_axis.__all__)  # fmt: skip
    assert len(persona_axis.__all__) <= 22 and set(persona_axis.__all__) <= set(dir(persona_axis))
    for name in persona_axis.__all__:
        assert getattr(persona_axis, name) is getattr(persona_axis, name)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = persona_axis.nonsense


def test_lazy_names_are_the_typed_ones() -> None:
    """The block for type checkers and the table used at run time name the same things."""
    tree = ast.parse((ROOT / "persona_axis" / "__init__.py").read_text())
    typed = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == persona_axis._HOMES
    assert set(typed) | {"__version__"} == set(persona_axis.__all__)


def test_nothing_imports_the_command_line() -> None:
    for path in (ROOT / "persona_axis").rglob("*.py"):
        if path.name not in ("cli.py", "__main__.py"):
            assert not re.search(r"^\s*(from|import) .*\bcli\b", path.read_text(), re.M), path


def test_no_pickle_is_loaded() -> None:
    """Not even published vectors: `vectors/torchpickle.py` walks through one and calls nothing."""
    loading = re.compile(r"\btorch\.load\(|\bpickle\.load|^\s*(import|from) pickle\b|\bjoblib\b", re.M)
    for path in (ROOT / "persona_axis").rglob("*.py"):
        assert not loading.search(path.read_text()), path


def test_nothing_names_a_registry_or_a_machine() -> None:
    for name in (
        "pyproject.toml",
        "Makefile",
        "constraints.txt",
        ".ci/run",
        "CITATION.cff",
        "CHANGELOG.md",
        ".gitignore",
    ):
        text = (ROOT / name).read_text()
        found = re.findall(r"https?://\S+|file://\S*|index-url|find-links|/(?:work|opt|root|home|tmp)/\S*", text)
        assert not found, f"{name}: {found}"


def planned(target: str) -> list[str]:
    done = subprocess.run(["make", "-n", "VENV=.nowhere", target], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_installs_torch_first_and_then_runs_everything() -> None:
    for target in ("demo", "test"):
        pip = [line for line in planned(target) if "pip install" in line]
        assert len(pip) == 2 and all("--constraint constraints.txt" in line for line in pip)
        assert pip[0].endswith(" torch") and "--editable" in pip[1]
    tests = "\n".join(planned("test"))
    assert "ruff check" in tests and "mypy" in tests and "pytest" in tests
    demo = "\n".join(planned("demo"))
    for command in ("extract", "show", "cap", "generate"):
        assert f"persona-axis {command} " in demo
    assert "torch==" in (ROOT / "constraints.txt").read_text()


def test_ci_runs_what_the_readme_says() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    assert "set -euo pipefail" in ci and "\nmake demo\n" in ci and "\nmake test\n" in ci
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in readme and "make test" in readme
