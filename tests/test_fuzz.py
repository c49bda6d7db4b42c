"""Damaged files of every form: a valid value or the documented error, in bounded time and memory, and nothing else.

The campaign of benchmarks/fuzz.py in short, in full under `slow`; what it found is kept in test_fuzz_cases.py.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import _watched
from _forms import Form, forms
from _mutants import BYTES, KINDS, Mutant, mutants
from _watched import FAILED, REFUSED, VALID, batch
from fuzz import campaign

from persona_axis import Axis, Cap, PersonaAxisError
from persona_axis.stats import folding
from persona_axis.vectors.reading import read

MAGICS = (b"", b"GGUF\x03\0\0\0", b"\x93NUMPY\x01\0", b"PK\x03\x04", b"\x80\x02")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process's memory is read from /proc")


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> dict[str, Form]:
    return forms(tmp_path_factory.mktemp("forms"))


def held(known: dict[str, Form], count: int, seed: int) -> None:
    found = list(campaign(known, count, seed))
    bad = [(name, told.number, told.kind, told.why) for name, told in found if told.result == FAILED]
    assert not bad, f"{len(bad)} of {len(found)} with seed {seed}: {bad[:5]}"
    assert len(found) == count
    results = Counter((form, told.result) for form, told in found)
    assert sum(results[name, VALID] for name in known) > count / 20
    for name in set(known) - {"unit"}:  # a damaged unit is measured again
        assert results[name, REFUSED], name


def test_mutants(known):
    held(known, 30 * len(known), seed=100)


@pytest.mark.slow
def test_many_mutants(known):
    held(known, 20_000, seed=101)


def test_every_form_is_valid_before_it_is_damaged(known):
    for name, form in known.items():
        (told,) = batch(form, [Mutant(0, "none", form.content)])
        assert told.result == VALID, (name, told)


@given(st.binary(max_size=300), st.sampled_from(MAGICS))
@settings(max_examples=200, deadline=None)
def test_noise_behind_every_magic(tmp_path_factory, noise, magic):
    path = tmp_path_factory.mktemp("noise") / "file"
    path.write_bytes(magic + noise)
    for load in (read, Axis.load, Cap.load):
        with pytest.raises(PersonaAxisError):
            load(path)


def test_traits_that_load_and_break_in_use_are_seen(known, monkeypatch):
    """The reader goes on to what `show` does: here one figure is no number any more."""
    monkeypatch.setattr(folding, "noise_floor", lambda folds, toward: float("nan"))
    (told,) = batch(known["traits"], [Mutant(0, "none", known["traits"].content)])
    assert told.result == FAILED and "not a valid value: _traits_used.py" in told.why


def test_every_kind_of_damage_changes_something(known):
    """In some file, that is: a number may be overwritten with itself."""
    for family, kinds in KINDS.items():
        seeds = [form.content for form in known.values() if form.family == family]
        for kind, damage in {**kinds, **BYTES}.items():
            made = [damage(raw, random.Random(i)) for i in range(4) for raw in seeds[:2]]
            assert any(one not in seeds for one in made), (family, kind)


def test_a_mutant_can_be_made_again(known):
    form = known["pt-capping"]
    first, again = (list(mutants(form.content, "pt-capping", form.family, 3, range(20))) for _ in range(2))
    assert first == again
    assert first[7] == next(mutants(form.content, "pt-capping", form.family, 3, range(7, 8)))
    assert first != list(mutants(form.content, "pt-capping", form.family, 4, range(20)))


class Told(PersonaAxisError):
    def __str__(self) -> str:
        return self.args[0]  # no length, no escapes


def hungry(path: Path) -> None:
    bytearray(300 * 2**20)


def silent(path: Path) -> None:
    raise PersonaAxisError("damaged")


def chatty(path: Path) -> None:
    raise Told(f"{path}: {'x' * 10_000}")


def colourful(path: Path) -> None:
    raise Told(f"{path}: \x1b[2J")


def running(path: Path) -> None:
    import os

    os.system("true")


def writing(path: Path) -> None:
    Path(__file__).open("ab").close()


def warning(path: Path) -> None:
    import warnings

    warnings.warn("noise", stacklevel=1)


def printing(path: Path) -> None:
    import os

    os.write(2, b"noise")


def wrong(path: Path) -> None:
    assert path.name == "another"


def leaking(path: Path) -> None:
    raise KeyError("x")


def hanging(path: Path) -> None:
    while path:
        try:
            sum(range(1000))
        except Exception:  # what swallows everything does not swallow the clock
            continue


def asleep(path: Path) -> None:
    import signal
    import time

    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPROF])
    time.sleep(60 if path.read_bytes() == b"0" else 0)


def dying(path: Path) -> None:
    import os

    if path.read_bytes() == b"1":
        os._exit(3)


@pytest.mark.parametrize(
    ("read", "says"),
    [
        (hungry, "took 300 MiB for a file of 1 bytes"), (silent, "does not name the file"),
        (chatty, "an error of 10002 characters"), (colourful, "control characters"), (running, "ran something"),
        (writing, "wrote .*test_fuzz.py"), (warning, "warned: UserWarning: noise"), (printing, "printed: 'noise'"),
        (wrong, "not a valid value"), (leaking, "KeyError"), (hanging, "took more than 1 s"),
        (asleep, "hung for more than 2 s where no signal reaches"),
        (dying, "ended its process with code 3"),
    ],
)  # fmt: skip
def test_the_watch_sees_what_must_not_be(monkeypatch, read, says):
    """Each of these is a failure; a child that dies takes no other mutant with it."""
    import re

    monkeypatch.setattr(_watched, "SECONDS", 1)
    monkeypatch.setattr(_watched, "SILENCE", 2 if read is asleep else 30)
    made = [Mutant(i, "kind", str(i % 2).encode()) for i in range(1 if read in (hanging, asleep) else 3)]
    found = batch(Form("json", b"{}", read), made)
    assert [told.number for told in found] == [one.number for one in made]
    bad = [told for told in found if told.result == FAILED]
    assert len(bad) == (1 if read is dying else len(made)) and all(re.search(says, told.why) for told in bad), found
