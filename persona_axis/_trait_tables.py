"""What the terminal shows of trait vectors. Rendering only, as in `_tables`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from persona_axis._tables import account, number, plain_table
from persona_axis.traits import Controls, TraitCosine, Traits


def show_traits(console: Console, traits: Traits, layer: int | None = None) -> None:
    """The traits of a file by their certainty at `layer` (the middle one unless given), and where the default lies."""
    layer = traits.layers[len(traits.layers) // 2] if layer is None else layer
    halves = traits.split_half(layer)
    console.print(_facts(traits))
    console.print()
    table = plain_table("trait", "kind", "split-half\ncosine", "length", "default")
    for column in table.columns[:2]:
        column.justify = "left"
    kinds = dict(zip(traits.names, traits.metadata["kinds"], strict=True))
    for name in sorted(traits.names, key=lambda name: -halves[name]):
        place = traits.places(name, layer)
        length = place["positive"] - place["negative"]
        share = (place["default"] - place["negative"]) / length
        table.add_row(Text(name), Text(kinds[name]), f"{halves[name]:.2f}", number(length), f"{share:.0%}")
    console.print(table)
    caption = (
        f"At layer {layer}. split-half: do halves of the questions agree on the trait; length: how far its poles lie apart, "
        "in residual-stream units; default: where the model without a role lies, 0% as when it is told to suppress the "
        "trait, 100% as when told to show it."
    )
    console.print(Text(caption, style="dim"))


def show_trait_cosines(
    console: Console, traits: Traits, cosines: Sequence[TraitCosine], controls: Controls, layer: int
) -> None:
    """How the traits lie to an axis, most toward the Assistant first."""
    console.print(_facts(traits))
    console.print()
    table = plain_table("trait", "cosine with\nthe axis", "[95%]", "noise", "split-half\ncosine")
    table.columns[0].justify = "left"
    for one in cosines:
        mark = "* " if one.told_apart else ""
        table.add_row(
            Text(one.trait), f"{mark}{one.cosine:+.2f}", Text(f"[{one.low:+.2f}, {one.high:+.2f}]"), f"{one.noise:.2f}",
            f"{one.split_half:.2f}", style="" if one.told_apart else "dim",
        )  # fmt: skip
    console.print(table)
    apart = sum(one.told_apart for one in cosines)
    console.print(Text(told_controls(controls, layer, apart, len(cosines)), style="dim"))


def told_controls(controls: Controls, layer: int, apart: int, of: int) -> str:
    """What stands below the cosines: how to read them and what they are compared with."""
    mixture = f", a random mixture of the axis's roles {controls.mixture:.2f}" if controls.mixture is not None else ""
    return (
        f"At layer {layer}, + toward the Assistant; intervals are over questions, not over wordings. * {apart} of {of} are "
        "told from 0: beyond their noise (what the trait's own noise gives, its signs shuffled; one in twenty is beyond "
        f"it by chance) with 0 outside the interval. One in twenty times a random direction reaches "
        f"{controls.random:.2f}{mixture}."
    )


def _facts(traits: Traits) -> object:
    about = traits.metadata
    revision = f" @ {about['revision']}" if about["revision"] else ""
    fewest = min(min(pair) for pair in about["accepted"].values())
    below = about.get("traits_below")
    lines = {
        "model": f"{about['model']}{revision}",
        "stream": f"{len(traits.layers)} of {about['num_layers']} layers, hidden size {about['hidden_size']}",
        "traits": f"{len(traits.names)}, from {fewest} accepted replies a pole or more",
        "left out": ", ".join(below) if isinstance(below, dict) else "",
        "judge": about["judge"],
        "date": about["date"],
    }
    return account(lines, about.get("notes"))
