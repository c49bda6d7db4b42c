"""The same question as fuzz.py, asked with coverage: atheris mutates files toward lines that were not reached before.

    pip install atheris
    python benchmarks/fuzz_atheris.py --loader pt-capping --seconds 300

The package is instrumented; the starting corpus is the valid file of the form and some mutants of fuzz.py. A crash is
whatever is neither a value that holds nor the family's error, and is written to the folder of `--out`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

try:
    import atheris
except ImportError:
    sys.exit("fuzzing with coverage is done by the atheris package: pip install atheris")

with atheris.instrument_imports(include=["persona_axis"]):
    import _forms
    from _mutants import mutants
    from _watched import LONGEST

    import persona_axis.vectors.torchlayouts  # noqa: F401  read lazily by the package, and wanted instrumented
    from persona_axis.errors import PersonaAxisError

PARENTS = 300


def main() -> None:
    """Set up the corpus, then let libFuzzer run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loader", required=True, help="a form of fuzz.py")
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="folder of crashing files")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        known = _forms.forms(root)
        if args.loader not in known:
            parser.error(f"{args.loader}: the forms are {', '.join(known)}")
        form = known[args.loader]
        corpus, place = root / "corpus", root / "files"
        corpus.mkdir()
        (corpus / "valid").write_bytes(form.content)
        for mutant in mutants(form.content, args.loader, form.family, args.seed, range(PARENTS)):
            if len(mutant.content) < 2**16:
                (corpus / str(mutant.number)).write_bytes(mutant.content)
        for beside, content in {**form.others, form.name: form.content}.items():
            (place / beside).parent.mkdir(parents=True, exist_ok=True)
            (place / beside).write_bytes(content)
        args.out.mkdir(parents=True, exist_ok=True)
        warnings.simplefilter("error")
        path = place / form.name

        def one(content: bytes) -> None:
            path.write_bytes(content)
            try:
                form.read(path)
            except PersonaAxisError as error:
                assert len(str(error)) <= LONGEST and str(error).isprintable(), error

        options = [f"-max_total_time={args.seconds}", f"-seed={args.seed + 1}", "-max_len=65536", "-rss_limit_mb=4096",
                   "-timeout=10", f"-artifact_prefix={args.out}/atheris-{args.loader}-"]  # fmt: skip
        atheris.Setup([sys.argv[0], *options, str(corpus)], one)
        try:
            atheris.Fuzz()  # leaves the process by itself
        finally:
            shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
