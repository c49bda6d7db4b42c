"""The commands `serve` and `sglang`. Imports are local to them, as in cli.py."""

from __future__ import annotations

from pathlib import Path

import click

from persona_axis.commands.options import allow_option, load_model, model_options
from persona_axis.commands.terminal import debuggable

_AT_LEAST_ONE = click.IntRange(1)


@click.command(short_help="Serve a model under a cap, OpenAI-compatible.")
@model_options
@click.option("--cap", type=click.Path(path_type=Path), metavar="FILE", help="Cap file that holds every request.")
@click.option("--without-cap", is_flag=True, help="Serve the model as it is, say to compare.")
@click.option("--axis", type=click.Path(path_type=Path), metavar="FILE", help="Axis file to measure replies on.")
@click.option("--layer", type=click.IntRange(0), metavar="L",
              help="Layer to measure at.  [default: recommended; if capped, the nearest that is not]")  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, help="Any other than the loopback needs --api-key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--api-key", envvar="PERSONA_AXIS_API_KEY", metavar="KEY",
              help="What clients have to send; in PERSONA_AXIS_API_KEY no process list shows it.")  # fmt: skip
@click.option("--max-tokens", type=_AT_LEAST_ONE, default=512, show_default=True, help="Longest reply in tokens.")
@click.option("--max-prompt-tokens", type=_AT_LEAST_ONE, default=1024, show_default=True, help="Longest conversation.")
@click.option("--max-requests", type=_AT_LEAST_ONE, default=64, show_default=True, help="At once; more are refused.")
@click.option("--max-body", type=_AT_LEAST_ONE, default=1 << 20, show_default=True, help="Bytes of a request.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=300.0, show_default=True,
              help="Seconds for one request.")  # fmt: skip
@click.option("--drain", type=click.FloatRange(1), default=30.0, show_default=True,
              help="Seconds that running requests are given on SIGTERM.")  # fmt: skip
@allow_option
@debuggable
def serve(model: str, revision: str | None, dtype: str, device_map: str | None, stack: str | None, cap: Path | None,
          without_cap: bool, axis: Path | None, layer: int | None, host: str, port: int, api_key: str | None,
          max_tokens: int, max_prompt_tokens: int, max_requests: int, max_body: int, timeout: float, drain: float,
          allow: tuple[str, ...]) -> None:  # fmt: skip
    """Serve MODEL (Troupe if none is given) under the cap in FILE, for clients of OpenAI's chat API.

    The cap is proven before the first request, or the server does not start. /metrics tells what it does. With --axis
    a request may ask for the projection of its reply: "persona_axis": {"projection": true}.
    """
    if (cap is None) is not without_cap:
        raise click.UsageError("name the cap with --cap FILE, or say --without-cap")
    if layer is not None and axis is None:
        raise click.UsageError("--layer is of an axis file: name one with --axis")

    from persona_axis.serving.serve import Where, require_packages
    from persona_axis.serving.serve import serve as run

    where = Where(host, port, api_key, drain)
    require_packages()

    from persona_axis.axis import Axis
    from persona_axis.cap import Cap
    from persona_axis.serving._answer import Limits

    held = None if cap is None else Cap.load(cap)
    ruled = None if axis is None else Axis.load(axis)
    chat = load_model(model, revision, dtype, device_map, stack)
    run(chat, held, axis=ruled, layer=layer, allow=allow, longest_prompt=max_prompt_tokens, longest_reply=max_tokens,
        limits=Limits(max_requests, max_body, timeout), where=where)  # fmt: skip


@click.command(short_help="Print the forward hooks that hold a cap inside SGLang.")
@click.argument("cap", type=click.Path(path_type=Path))
@click.option("--stack", default="model.layers", show_default=True, metavar="NAME",
              help="Where SGLang's model keeps its layers.")  # fmt: skip
@debuggable
def sglang(cap: Path, stack: str) -> None:
    """Print the JSON for SGLang's --forward-hooks that puts the cap file CAP on its layers.

    It was not run on an SGLang server: compare a few greedy replies with `Cap.on` before you rely on it.
    """
    from persona_axis.serving.sglang import specification

    click.echo(specification(cap, stack))
