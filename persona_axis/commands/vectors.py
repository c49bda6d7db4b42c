"""The commands `import` and `export`. Imports are local to them, as in cli.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from persona_axis.commands.options import layers, load_model, loading_options, refuse_overwriting, slug
from persona_axis.commands.terminal import debuggable

if TYPE_CHECKING:
    from persona_axis.axis import Axis
    from persona_axis.cap import Cap


@click.command("import", short_help="Turn published vectors into an axis or a cap.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--model", metavar="MODEL", required=True, help="The model they are of: a directory or a hub name.")
@loading_options
@click.option("--config-only", is_flag=True, help="Read the model's configuration only: no weights, no fingerprint.")
@click.option("--sign", type=click.Choice(["toward", "away"]), help="Where the vectors point, seen from the Assistant.")
@click.option("--rows", type=click.Choice(["layers", "embeddings-first"]),
              help="Whether row 0 is the output of layer 0 or the embeddings.")  # fmt: skip
@click.option("--layers", "at", metavar="LIST", callback=layers,
              help="Layers to take, or the layer of each row where the file numbers none.")  # fmt: skip
@click.option("--check", type=click.Path(path_type=Path), metavar="PATH",
              help="Prove sign and layers by an axis file or by role vectors with a default.")  # fmt: skip
@click.option("--check-rows", type=click.Choice(["layers", "embeddings-first"]),
              help="What --rows says of FILE, of the role vectors in --check.")  # fmt: skip
@click.option("--try-roles", type=click.IntRange(1), metavar="N",
              help="Prove the sign on the model: let it speak as itself and in N roles.")  # fmt: skip
@click.option("--default", type=click.Path(path_type=Path), metavar="PATH",
              help="The default vector, where a directory of role vectors holds none.")  # fmt: skip
@click.option("--experiment", metavar="ID", help="Which experiment of a capping configuration.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write.  [default: MODEL-axis or MODEL-cap]")
@debuggable
def import_(file: Path, model: str, revision: str | None, dtype: str, device_map: str | None, stack: str | None,
            config_only: bool, sign: Any, rows: Any, at: tuple[int, ...] | None, check: Path | None, check_rows: Any,
            try_roles: int | None, default: Path | None, experiment: str | None, out: Path | None) -> None:  # fmt: skip
    """Turn the vectors in FILE, made by somebody else, into an axis file, or a cap file if FILE configures capping.

    FILE is a torch .pt file (a tensor, an axis dictionary, a capping configuration), a directory of role vectors, npy,
    safetensors or a GGUF control vector. What it does not say has to be said (--sign, --rows, --layers) or proven
    (--check, --try-roles); the file written states which.
    """
    if check and try_roles:
        raise click.UsageError("prove the sign by --check or by --try-roles")
    if check_rows and not check:
        raise click.UsageError("--check-rows goes with --check")
    if config_only and try_roles:
        raise click.UsageError("--try-roles needs the model's weights: leave out --config-only")
    given = click.get_current_context().get_parameter_source
    for name in ("stack", "device_map", "dtype"):
        if config_only and given(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name.replace('_', '-')} says how to load weights, which --config-only does not")

    from persona_axis.vectors.found import Clamps
    from persona_axis.vectors.making import Origin, check_of, made_axis, made_cap
    from persona_axis.vectors.modelfacts import CONFIGURED, LOADED, config_facts
    from persona_axis.vectors.reading import read, read_check, sha256_of
    from persona_axis.vectors.telling import Said

    found = read(file, default)
    is_cap = isinstance(found, Clamps)
    if experiment and not is_cap:
        raise click.UsageError(f"--experiment goes with a capping configuration, which {file} is not")
    path = out or Path(f"{slug(model)}-{'cap' if is_cap else 'axis'}.safetensors")
    refuse_overwriting({"FILE": file, "--check": check, "--default": default}, {"--out": path})
    if any(path.resolve().parent == given.resolve() for given in (file, check) if given is not None):
        raise click.UsageError(f"{path} lies in a directory that is read: name another --out")
    said = Said(sign, rows, at)
    toward = None
    if config_only:
        origin = Origin(file.resolve().name, sha256_of(file), config_facts(model, revision), CONFIGURED)
    else:
        chat = load_model(model, revision, dtype, device_map, stack)
        origin = Origin(file.resolve().name, sha256_of(file), chat.facts, LOADED)
        if try_roles:
            from persona_axis.probes import load_probes
            from persona_axis.vectors.trying import tried_roles

            toward = tried_roles(chat, load_probes(), try_roles)
    if check is not None:
        toward = check_of(read_check(check), check_rows, int(origin.model["num_layers"]))

    from persona_axis.display.tables import Output, show_axis, show_cap

    made: Axis | Cap
    if isinstance(found, Clamps):
        made = made_cap(found, experiment, said, origin, toward)
        made.save(path)
        show_cap(Output(), made)
        for note in made.provenance["notes"]:
            click.echo(f"note: {note}", err=True)
    else:
        made = made_axis(found, said, origin, toward)
        made.save(path)
        show_axis(Output(), made)
    click.echo(f"saved {path}")


@click.command(short_help="Write an axis or a cap in a form that other tools load.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["gguf", "npy", "dict"]), required=True,
              help="llama.cpp's control vector, a plain array, or the published .pt dictionary.")  # fmt: skip
@click.option("--layers", "at", metavar="LIST", callback=layers, help="Layers of an axis as GGUF.  [default: all]")
@click.option("--axis", type=click.Path(path_type=Path),
              help="The axis a cap was made from: tells which strength stands nearest to the cap.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write.")
@debuggable
def export(file: Path, form: str, at: tuple[int, ...] | None, axis: Path | None, out: Path) -> None:
    """Write the axis or cap in FILE in a form that other tools load, and say what that form leaves out.

    A GGUF control vector can only be added; no form but the dictionary (a capping configuration) holds a cap.
    """
    refuse_overwriting({"FILE": file, "--axis": axis}, {"--out": out})

    from persona_axis.axis import Axis
    from persona_axis.files.safefile import read_safe
    from persona_axis.vectors import exporting

    is_cap = read_safe(file).metadata.get("format", "").startswith("persona-cap/")
    if at and (is_cap or form != "gguf"):
        raise click.UsageError("--layers goes with --format gguf and an axis")
    if axis and not (is_cap and form == "gguf"):
        raise click.UsageError("--axis goes with --format gguf and a cap")
    if is_cap:
        from persona_axis.cap import Cap

        cap = Cap.load(file)
        if form == "npy":
            raise click.UsageError("an npy file holds no bounds: export a cap with --format dict, or its axis as npy")
        notes = (
            exporting.cap_to_dict(cap, out)
            if form == "dict"
            else exporting.cap_to_gguf(cap, out, Axis.load(axis) if axis else None)
        )
    else:
        ruler = Axis.load(file)
        notes = {
            "npy": lambda: exporting.axis_to_npy(ruler, out),
            "dict": lambda: exporting.axis_to_dict(ruler, out),
            "gguf": lambda: exporting.axis_to_gguf(ruler, out, at),
        }[form]()
    for note in notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"saved {out}")
