"""Fourteen model types chosen for their differences in the default suite; all of them where there is time."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import families
from _families_page import BEGIN, BESIDE, END, markdown, short_table, verdicts_in, with_table
from _family import FAILED, NO_CACHE, NOT_BUILT, PASSED, REFUSED, Verdict, examine
from families import REGISTRY, examined

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "families.md"

CHOSEN = {
    "llama": "the plain stack",
    "gemma2": "norms around both halves of a layer, sliding windows, soft caps",
    "gpt2": "learned positions, transposed weights",
    "gpt_neox": "attention and feed-forward side by side",
    "gpt_oss": "experts, attention sinks",
    "deepseek_v3": "latent attention, shared and grouped experts",
    "gemma3": "a text model inside a larger one, beside a tower of as many layers",
    "bart": "the decoder of an encoder-decoder",
    "bert": "an encoder turned decoder",
    "mamba": "state space only, no attention; the reference has no embeddings",
    "jamba": "attention and state-space layers with experts",
    "qwen3_next": "linear and full attention",
    "zamba2": "one transformer block shared by several layers",
    "openai-gpt": "layers that return lists; no cache",
}
REASONS = {
    "deepseek_v4": "several streams side by side",
    "mllama": r"layers \[3\] .* did not run on plain text",
    "reformer": "returned a ReformerOutput, not hidden states",
    "xlm": r"saw transformer.attentions \(4 x .*name the list",
    "xlnet": r"returned \[2, 7, 32\] where one residual stream is \[7, 2, 32\]",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", CHOSEN)
def test_a_family(model_type):
    verdict = examine(model_type)
    assert verdict.status == (NO_CACHE if model_type == "openai-gpt" else PASSED), verdict


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", REASONS)
def test_a_refusal_says_why(model_type):
    verdict = examine(model_type)
    assert verdict.status == REFUSED and re.search(REASONS[model_type], verdict.reason), verdict


def crashing(name: str) -> Verdict:
    """Stands for `examine`: types that take their process down with them, in every way there is."""
    import os
    import signal
    import time

    if name == "gpt2":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "llama":
        time.sleep(60)
    if name == "mamba":
        bytearray(2**40)
    return Verdict(name, PASSED)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process")
def test_no_type_takes_the_run_down(monkeypatch):
    monkeypatch.setattr(families, "examine", crashing)
    monkeypatch.setattr(families, "SECONDS", 2)
    found = {v.model_type: v for v in examined(["gpt2", "llama", "mamba", "gemma"], jobs=2)}
    assert found["gemma"].status == PASSED
    assert {found[name].status for name in ("gpt2", "llama", "mamba")} == {FAILED}
    assert "ended with code -9" in found["gpt2"].reason and "more than 2 s" in found["llama"].reason
    assert "ended with code 1" in found["mamba"].reason


def test_the_page_holds_every_verdict_and_its_reason():
    refused = Verdict("b", REFUSED, "B", "x, 4 x Y", "a | b\nc")
    page = markdown([Verdict("a", PASSED), refused, Verdict("c", NOT_BUILT, reason="r")])
    assert "3 model types: 1 passed, 1 refused, 1 not built." in page
    assert "| b | B | x, 4 x Y | a \\| b c |" in page and "| c |  |  | r |" in page


def test_a_page_can_be_read_back():
    made = [Verdict("a", PASSED, "A", "x.layers, 4 x Y (full_attention, conv)", "if a | b"), Verdict("b", REFUSED, "B"),
            Verdict("c", NOT_BUILT, reason="| r")]  # fmt: skip
    assert verdicts_in(markdown(made)) == made
    page = PAGE.read_text()
    held = verdicts_in(page)
    assert f"{len(held)} model types" in counted(page) and markdown(held).split("\n## ")[1:] == page.split("\n## ")[1:]
    assert all(text in page for text in BESIDE)


def test_the_short_table_counts_each_type_once():
    stacks = {
        "model.layers, 4 x L": "layers of one kind",
        "model.layers, 4 x L (dense, sparse)": "or dense layers and experts",
        "model.layers, 4 x L (conv, full_attention)": "convolution in turns",
        "backbone.layers, 4 x M": "recurrence alone",
        "model.decoder.layers, 4 x D": "`decoder.layers`",
        "bert.encoder.layer, 4 x B": "an encoder's layers",
        "model.language_model.layers, 4 x L (full_attention, sliding_attention)": "the text decoder",
        "": "none found",
    }
    held = [Verdict(f"t{i}", PASSED if at and i % 2 == 0 else REFUSED, "K", at) for i, at in enumerate(stacks)]
    rows = short_table([*held, Verdict("llama", PASSED, "K", "model.layers, 2 x L")]).splitlines()
    assert rows[0] == "9 model types: 5 passed, 4 refused." and len(rows) == 4 + len(stacks)
    for i, (at, name) in enumerate(stacks.items()):
        (row,) = (row for row in rows if name in row)
        passed = 2 if i == 0 else int(bool(at) and i % 2 == 0)
        assert f" | {passed} | {2 if i == 0 else 1} | {'llama, t0' if i == 0 else f't{i}'} |" in row
    page = with_table(f"before {BEGIN}\nold\n{END} after", held)
    assert page.startswith(f"before {BEGIN}\n8 model types") and page.endswith(f"|\n{END} after")
    with pytest.raises(ValueError, match="has no <!-- by"):
        with_table("a page", held)


def counted(page: str) -> str:
    return re.search(r"\d+ model types: [^.]*", page).group()


def passes(page: str) -> int:
    return int(re.search(r"(\d+) passed", counted(page)).group(1))


def test_the_readme_counts_what_the_page_counts():
    told = " ".join((ROOT / "README.md").read_text().split())
    assert counted(PAGE.read_text()) in told and passes(PAGE.read_text()) >= 120


def test_the_readme_has_the_table_of_the_page():
    readme = (ROOT / "README.md").read_text()
    assert with_table(readme, verdicts_in(PAGE.read_text())) == readme


@pytest.mark.slow
def test_all_of_them(tmp_path):
    out = tmp_path / "families.md"
    command = [sys.executable, "benchmarks/families.py", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    page, committed = out.read_text(), PAGE.read_text()
    rows = {line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")}
    assert set(REGISTRY) <= rows
    assert "failed" not in counted(page) and passes(page) >= 120
    if f"transformers {transformers.__version__}," in committed:
        assert counted(page) == counted(committed)
