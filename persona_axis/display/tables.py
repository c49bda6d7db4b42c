"""What the terminal shows of an axis, a cap and a conversation. Rendering only: every figure is asked of its owner."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from persona_axis._axisparts import told_layers
from persona_axis.files.blocks import unread
from persona_axis.talks.ruler import layer_to_show

if TYPE_CHECKING:
    from persona_axis.axis import Axis
    from persona_axis.cap import Cap
    from persona_axis.files.spacefile import SpaceFile
    from persona_axis.space import PersonaSpace
    from persona_axis.talks.talk import Said

SHARES = (0.7, 0.8, 0.9)
_MOST_NOTES, _LONGEST = 50, 20_000  # 275 roles that are left out are 8,000 characters
_CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Output(Console):
    """Standard output. A pipe that was closed (head, less) is reported to `run` and not taken for a failure.

    Names in a file may hold characters that move a terminal's cursor or worse; they are left out.
    """

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            plain = segment.control or segment.text.isprintable() or segment.text == "\n"
            yield segment if plain else segment._replace(text=_CONTROLS.sub("", segment.text))


def show_axis(console: Console, axis: Axis, layer: int | None = None, count: int = 8) -> None:
    """The whole account of an axis file: what it is, how it looks at each layer, who lies where at one."""
    chosen = layer_to_show(axis, layer)
    console.print(_facts(axis))
    console.print()
    if "roles" not in axis.arrays:
        layers = ", ".join(map(str, axis.layers))
        console.print(Text(f"No role vectors in this {axis.metadata['provenance']} axis. Layers: {layers}."))
        return
    console.print(_by_layer(console, axis, chosen))
    console.print()
    if chosen in axis.role_layers:
        console.print(_who(axis.space(chosen), default_projection(axis, chosen), chosen, count))
    else:
        console.print(Text(f"The file holds no role vectors of layer {chosen}: who lies where cannot be told there."))


def show_space(console: Console, file: SpaceFile, count: int = 8) -> None:
    """A space of single rollouts: how many components hold how much, and where the roles lie."""
    space, about = file
    ratio = np.cumsum(space.explained_variance_ratio)
    held = [f"{n} {ratio[n - 1]:.0%}" for n in (1, 2, 4, 8, 16, 32, 64) if n <= len(ratio)]
    rollouts = about.get("rollouts")
    lines = {
        "model": about.get("model"),
        "rollouts": f"{rollouts:,}" if isinstance(rollouts, int) else None,
        "layer": str(about.get("layer", "")),
        "variance held": ", ".join(held),
        "|cos(axis, PC1)|": f"{abs(space.cosine_axis_pc1):.2f}",
        "provenance": about.get("date"),
    }
    console.print(account(lines, about.get("notes")))
    ranked = space.ranking()
    count = min(count, len(ranked) // 2) or 1
    console.print(_listed("nearest to the Assistant", ranked[:count]))
    console.print(_listed("farthest", ranked[::-1][:count]))


def default_projection(axis: Axis, layer: int) -> float:
    """Where the model without a role lies."""
    return float(axis.project(axis.array("default")[axis.row(layer)], layer))


def show_cap(console: Console, cap: Cap) -> None:
    """The bounds of a cap, layer by layer."""
    table = plain_table("layer", "floor", "ceiling")
    for row, layer in enumerate(cap.layers):
        bounds = [None if bound is None else bound[row] for bound in (cap.floor, cap.ceiling)]
        table.add_row(str(layer), *("" if bound is None else number(float(bound)) for bound in bounds))
    console.print(table)


def show_conversation(console: Console, prompts: Sequence[str], runs: Sequence[tuple[str, Sequence[Said]]]) -> None:
    """Conversations of the same prompts side by side, (title, replies) each; below each other on a narrow terminal."""
    narrow = console.width < 60
    for turn, (prompt, *same) in enumerate(zip(prompts, *(replies for _, replies in runs), strict=True)):
        console.print(Text(f"user: {prompt}", style="bold"))
        cells = [_reply(said) for said in same]
        if narrow or len(runs) == 1:
            for (title, _), cell in zip(runs, cells, strict=True):
                console.print(Text(title, style="dim"))
                console.print(cell)
        else:
            table = Table(box=None, padding=(0, 2, 0, 0), expand=True, show_header=not turn, header_style="dim")
            for title, _ in runs:
                table.add_column(title, ratio=1, overflow="fold")
            table.add_row(*cells)
            console.print(table)
        console.print()


def _reply(said: Said) -> RenderableType:
    where = ", ".join(f"layer {layer}: {number(value)}" for layer, value in sorted(said.projections.items()))
    text = Text(said.text or "(an empty reply)", style="" if said.text else "italic")
    return Group(text, Text(f"projection at {where}", style="cyan")) if where else text


def _facts(axis: Axis) -> Table:
    about = axis.metadata
    revision = f" @ {about['revision']}" if about.get("revision") else ""
    lines = {
        "model": f"{about.get('model', 'not stated')}{revision}",
        "architecture": about.get("architecture"),
        "stream": f"{len(axis.layers)} of {axis.num_layers} layers, hidden size {axis.hidden_size}",
        "plan": _plan(about.get("plan")),
        "drawn": _drawn(about),
        "roles kept": _kept(axis),
        "role vectors": _role_vectors(axis),
        "roles left out": ", ".join(f"{name} ({n} accepted)" for name, n in _dict(about, "roles_below").items()),
        "default": f"{about['default_count']:,} replies" if about.get("default_count") else None,
        "engine": None if about.get("engine") == "transformers" else about.get("engine"),
        "judge": about.get("judge"),
        "sampling": _chosen(_dict(about, "sampling"), "temperature", "top_p", "max_new_tokens"),
        "calibration": _chosen(_dict(about, "calibration")),
        "provenance": " ".join(str(about[key]) for key in ("provenance", "date") if about.get(key)),
    }
    return account(lines, about.get("notes"))


def account(lines: Mapping[str, Any], notes: Any) -> Table:
    """What a file states, a line each, without those that say nothing; `notes` below, if it is a list of them.

    A file may state megabytes, over which a terminal's table takes minutes: long texts and lists are cut.
    """
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in lines.items():
        if value:
            table.add_row(name, Text(_cut(str(value))))
    held = notes if isinstance(notes, list) else []
    for note in held[:_MOST_NOTES]:
        table.add_row("note", Text(_cut(str(note))))
    if len(held) > _MOST_NOTES:
        table.add_row("note", Text(f"({len(held) - _MOST_NOTES:,} more)"))
    return table


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ... ({len(text) - _LONGEST:,} more characters)"


def _dict(about: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A metadata entry that may be absent, or somebody else's idea of it."""
    value = about.get(key)
    return value if isinstance(value, dict) else {}


def _chosen(entries: Mapping[str, Any], *keys: str) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {entries[key]}" for key in keys or entries if key in entries)


def _plan(plan: Any) -> str:
    if not isinstance(plan, dict) or not {"roles", "prompts", "questions", "rollouts"} <= set(plan):
        return ""
    return "{roles} roles x {prompts} prompts x {questions} questions, {rollouts:,} rollouts with the default's".format(
        **plan
    )


def _drawn(about: Mapping[str, Any]) -> str:
    """How many rollouts the precision asked for needed, and what it reached."""
    reached, drawn = _dict(about, "precision"), _dict(about, "tallies").get("drawn")
    if not isinstance(drawn, int) or not all(isinstance(reached.get(key), float) for key in ("expected", "low")):
        return ""
    return (
        f"{drawn:,} rollouts; expected cosine with the noise-free axis {reached['expected']:.4f}, at least "
        f"{reached['low']:.4f}"
    )


def _kept(axis: Axis) -> str:
    counts = sorted(_dict(axis.metadata, "accepted").values())
    if not counts:
        return str(len(unread(axis.arrays)["roles"])) if "roles" in axis.arrays else ""
    if counts[0] == counts[-1]:
        return f"{len(counts)}, from {counts[0]} accepted replies each"
    middle = counts[len(counts) // 2]
    return f"{len(counts)}, from {counts[0]} to {counts[-1]} accepted replies each (median {middle})"


def _role_vectors(axis: Axis) -> str:
    """What there is of them, where it is not all of them in full."""
    if not axis.bfloat16_roles and axis.role_layers in (axis.layers, ()):
        return ""
    where = "all layers" if axis.role_layers == axis.layers else f"{told_layers(axis.role_layers)} only"
    return f"of {where}{', in bfloat16' if axis.bfloat16_roles else ''}"


def _by_layer(console: Console, axis: Axis, chosen: int) -> RenderableType:
    """One line a layer; where the terminal is too narrow for columns, one sentence a layer."""
    halves = axis.split_half if axis.metadata.get("split_half") else None
    headers = {
        "layer": "layer",
        "|cos(axis, PC1)|": "|cos(axis,\nPC1)|",
        "PC1": "PC1\nshare",
        "components": "PCs for\n70/80/90%",
        "split-half": "split-half\ncosine [95%]",
        "default": "default",
        "roles": "roles:\nmean (sd)",
    }
    if not halves:
        del headers["split-half"]
    rows = []
    for row, layer in enumerate(axis.layers):
        cells = dict.fromkeys(headers, "")
        cells |= {
            "layer": f"{'* ' if layer == chosen else ''}{layer}",
            "default": f"{number(default_projection(axis, layer))}",
        }
        if halves:
            cells["split-half"] = f"{halves.cosine[row]:.3f} [{halves.low[row]:.3f}, {halves.high[row]:.3f}]"
        if layer in axis.role_layers:  # one space at a time: those of a large model are large
            space = axis.space(layer)
            cells["|cos(axis, PC1)|"] = f"{abs(space.cosine_axis_pc1):.2f}"
            cells["PC1"] = f"{space.explained_variance_ratio[0]:.0%}"
            cells["components"] = "/".join(str(space.n_components_for(share)) for share in SHARES)
            cells["roles"] = f"{number(space.projections.mean())} ({number(space.projections.std())})"
        rows.append(cells)
    caption = f"Projections in residual-stream units, larger = more Assistant; * layer {chosen} is looked at below."
    table = plain_table(*headers.values())
    for cells in rows:
        table.add_row(*cells.values(), style="bold" if cells["layer"].startswith("*") else "")
    needs = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    if needs > console.width:  # its columns would be cut
        lines = [Text(", ".join(f"{name} {cell}" for name, cell in cells.items() if cell)) for cells in rows]
        return Group(*lines, Text(caption, style="dim"))
    return Group(table, Text(caption, style="dim"))


def _who(space: PersonaSpace, default: float, layer: int, count: int) -> RenderableType:
    ranked = space.ranking()
    count = min(count, len(ranked) // 2) or 1
    spread = float(np.std(space.projections)) or 1.0
    above = sum(value > default for _, value in ranked)
    place = "above every role" if not above else f"below {above} of {len(ranked)} roles"
    sits = (
        f"At layer {layer} the default sits at {number(default)}, {place}, "
        f"{(default - float(np.mean(space.projections))) / spread:.1f} standard deviations above the mean role."
    )
    return Group(
        Text(sits),
        _listed("nearest to the Assistant", ranked[:count]),
        _listed("farthest", ranked[::-1][:count]),
    )


def _listed(title: str, roles: Iterable[tuple[str, float]]) -> Text:
    return Text(f"{title}: " + ", ".join(f"{name} {number(value)}" for name, value in roles))


def number(value: float) -> str:
    """Two decimals, fewer where the number is large: residual streams differ by orders of magnitude."""
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"


def printable(text: str) -> str:
    """Without control characters, which could steer the terminal; line breaks and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def plain_table(*headers: str) -> Table:
    from rich import box

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for header in headers:
        table.add_column(header, justify="right", vertical="bottom", no_wrap=True)
    return table
