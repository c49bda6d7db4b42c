"""Pages of docs whose code is executed, from top to bottom, in one namespace."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {
    "transformer_lens": "transformer_lens", "nnsight": "nnsight", "traits": "persona_axis", "serving": "persona_axis",
    "signals": "persona_axis", "listener": "persona_axis",
    "bench": "persona_axis",
}  # fmt: skip
"""Pages that run, and the package that each needs beside this one."""
AXIS = "extract --out axis.safetensors --roles 3 --prompts 2 --questions 8 --min-accepted 4 --yes"
BEFORE = {
    "serving": (AXIS,),
    "traits": (
        AXIS,
        "extract --traits --only evil,warm --questions 8 --out traits.safetensors --yes",
    )
}
"""Commands whose files a page takes up, small."""

FENCE = re.compile(r"^```(\w*)\s*$")


def script(page: str) -> str:
    """The python blocks of a page, each line where it stands in the page, so that errors name its lines."""
    kept, language = [], None
    for line in page.splitlines():
        fence = FENCE.match(line)
        if fence:
            language = fence[1] if language is None else None
        kept.append(line if language == "python" and not fence else "")
    assert language is None, "a block is not closed"
    return "\n".join(kept) + "\n"


@pytest.mark.parametrize("name", [name for name in PAGES if (DOCS / f"{name}.md").is_file()])
def test_a_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(PAGES[name], reason=f"{name}.md needs {PAGES[name]}")
    code = tmp_path / f"page_{name}.py"  # a file for what looks its own source up, and not called like the package
    code.write_text(script((DOCS / f"{name}.md").read_text()))
    assert code.read_text().strip(), "the page has no python blocks"
    monkeypatch.chdir(tmp_path)
    for command in BEFORE.get(name, ()):
        subprocess.run([sys.executable, "-m", "persona_axis.cli", *command.split()], check=True)
    runpy.run_path(str(code))


def test_only_python_is_kept_and_lines_stay() -> None:
    page = "# T\n```python\na = 1\n```\n    indented\n```sh\nls\n```\n```python\nb = a / 0\n```\n"
    lines = script(page).split("\n")
    assert [(i, line) for i, line in enumerate(lines, 1) if line] == [(3, "a = 1"), (10, "b = a / 0")]
    with pytest.raises(AssertionError, match="not closed"):
        script("```python\na = 1\n")


def test_every_page_with_code_is_listed() -> None:
    with_code = {path.stem for path in DOCS.glob("*.md") if script(path.read_text()).strip()}
    assert with_code <= set(PAGES)
