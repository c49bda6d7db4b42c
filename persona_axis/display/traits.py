"""What the terminal shows of trait vectors. Rendering only, as in `display.tables`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from persona_axis.display.tables import account, number, plain_table
from persona_axis.traits import AGREE, Controls, TraitCosine, Traits


def show_traits(console: Console, traits: Traits, layer: int | None = None) -> None:
    """The traits of a file by their certainty at `layer` (the middle one unless given), and where the default lies."""
    layer = traits.layers[len(traits.layers) // 2] if layer is None else layer
    certainty = traits.certainty(layer)
    console.print(_facts(traits))
    console.print()
    table = plain_table("trait", "kind", "split-half\ncosine", "wordings\nagree", "length", "default")
    for column in table.columns[:2]:
        column.justify, column.no_wrap = "left", False  # where there is no room, names are broken and not figures
    kinds = dict(zip(traits.names, traits.metadata["kinds"], strict=True))
    for name, (half, wordings) in sorted(certainty.items(), key=lambda item: -min(item[1])):
        place = traits.places(name, layer)
        length = place["positive"] - place["negative"]
        share = (place["default"] - place["negative"]) / length
        cells = f"{half:.2f}", f"{wordings:+.2f}", number(length), f"{share:.0%}"
        table.add_row(Text(name), Text(kinds[name]), *cells)
    console.print(table)
    caption = (
        f"At layer {layer}, surest first. split-half: how far halves of the questions agree on the trait; wordings: "
        "how far its pairs of instructions do; length: how far its poles lie apart, in residual-stream units; default: "
        "where the model without a role lies, 0% as when told to suppress the trait, 100% as when told to show it. "
        f"{told_wordings([wording for _, wording in certainty.values()])}"
    )
    console.print(Text(caption, style="dim"))


def show_trait_cosines(
    console: Console, traits: Traits, cosines: Sequence[TraitCosine], controls: Controls, layer: int
) -> None:
    """How the traits lie to an axis, most toward the Assistant first."""
    console.print(_facts(traits))
    console.print()
    table = plain_table("trait", "cosine with\nthe axis", "[95%]", "noise", "split-half\ncosine", "wordings\nagree")
    table.columns[0].justify, table.columns[0].no_wrap = "left", False
    for one in cosines:
        mark = "* " if one.told_apart else ""
        table.add_row(
            Text(one.trait), f"{mark}{one.cosine:+.2f}", Text(f"[{one.low:+.2f}, {one.high:+.2f}]"), f"{one.noise:.2f}",
            f"{one.split_half:.2f}", f"{one.wordings:+.2f}", style="" if one.told_apart else "dim",
        )  # fmt: skip
    console.print(table)
    mixture = f", a random mixture of the axis's roles {controls.mixture:.2f}" if controls.mixture is not None else ""
    caption = (
        f"At layer {layer}, + toward the Assistant; intervals are over questions. noise: what the trait's own noise "
        f"gives, signs shuffled, one time in twenty. * {sum(one.told_apart for one in cosines)} of {len(cosines)} are "
        f"told from 0: beyond their noise, 0 outside the interval, wordings {AGREE:g} or more. One in twenty times a "
        f"random direction reaches {controls.random:.2f}{mixture}. {told_wordings([one.wordings for one in cosines])}"
    )
    console.print(Text(caption, style="dim"))


def told_wordings(cosines: Sequence[float]) -> str:
    """How many traits are the same in other words, beside how many would seem to be by chance."""
    same, opposite = (sum(sign * cosine >= AGREE for cosine in cosines) for sign in (1, -1))
    return (
        f"Wordings agree ({AGREE:g} or more) for {same} of {len(cosines)} traits and are opposite (-{AGREE:g} or less) "
        f"for {opposite}: instructions that did not mean the trait to the model would do both as often."
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
        "engine": None if about.get("engine") == "transformers" else about.get("engine"),
        "judge": about["judge"],
        "date": about["date"],
    }
    return account(lines, about.get("notes"))
