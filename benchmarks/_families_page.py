"""The pages that `families.py` writes: docs/families.md, every type with its reason, and the README's short table.

The page can be read back, so that the short table is seen to be that of the page without examining anything again.
"""

from __future__ import annotations

import platform
import re
from collections import Counter, defaultdict

import torch
import transformers
from _family import FAILED, NO_CACHE, NOT_BUILT, PASSED, REFUSED, Verdict

ORDER = (FAILED, PASSED, NO_CACHE, REFUSED, NOT_BUILT)
HEADINGS = {
    PASSED: "Everything holds. A remark says what the model does by itself, with no cap on it.",
    NO_CACHE: "Everything holds, but transformers generates with these models without a cache, so cached = uncached is "
    "true of nothing.",
    REFUSED: "The package refuses these models when they are loaded, and says why.",
    NOT_BUILT: "No tiny model could be made or run from the type's own config class: nothing is known about them.",
    FAILED: "A promise is broken.",
}
BEGIN, END = "<!-- by benchmarks/families.py -->", "<!-- end -->"
STACKS = (
    (r"\.language_model\.", "the text decoder in a model that also takes images or sound"),
    (r"\.encoder\.layers?,", "an encoder's layers, run causally"),
    (r"\.decoder\.layers,", "a `decoder.layers`: OPT, and decoders of encoder-decoders by themselves"),
    (r"^(backbone|rwkv)\.", "state space or recurrence alone"),
    (r"\(.*(linear_attention|conv|hybrid)", "linear attention, state space or convolution in turns with attention"),
    (r"\(", "kinds of attention, or dense layers and experts, in turns"),
    (r".", "layers of one kind"),
    (r"^$", "none found, or no model built"),
)
"""What a verdict's layers are called, by the first that fits, and what that is."""
WELL_KNOWN = (
    "llama", "qwen3", "mistral", "gpt2", "gpt_neox", "gemma3_text", "gpt_oss", "deepseek_v32", "gemma3", "fuyu",
    "qwen3_next", "jamba", "zamba2", "mamba", "rwkv", "bart", "opt", "whisper", "bert", "roberta",
)  # fmt: skip
EXAMPLES = 4
BESIDE = (
    "**Images and sound.** A vision-language model is read and held in its text decoder, which is told from its towers "
    "by structure (tests/test_vision.py: tiny LLaVA, Qwen2.5-VL and Idefics3; with an image in the prompt its tokens "
    "are held like all others). One that looks ahead within its prompt (PaliGemma) or cannot run on text alone "
    "(BLIP-2, Kosmos-2) is refused. Prompts of this package are texts. By name a model loads if it is in the registry; "
    "load another with its own class and give it to `ChatModel.load(model, tokenizer=...)`.",
    "",
    "**Encoder-decoders** are refused: they have two streams. The decoder of one by itself, such as BART's, passes.",
    "",
    "**Quantised models.** tests/test_quantised.py was run on the CPU with a tiny Llama and transformers' "
    "`quantization_config` of bitsandbytes 0.50.2 (8 bits; nf4), torchao 0.18.0 (int8 weights; activations, too) and "
    "optimum-quanto 0.2.7 (int8), and with torch's dynamic quantisation; without a package its part skips. Layers are "
    "found and proven, a cap is exact, and with a cache the same text is generated as without (dynamic quantisation by "
    "itself rounds a token otherwise among others than alone). Kernels for a GPU, GPTQ and AWQ were not run. A "
    "quantised copy is another model than the one that a file was made for: `--allow weights` says that this is meant. "
    "On a CPU with AVX512-BF16 bitsandbytes repacks 4-bit weights in their first pass and the fingerprint changes with "
    "them; `ChatModel.load` runs that pass, so what is made and used by way of it agrees.",
)


def counts(verdicts: list[Verdict]) -> str:
    """One line: how many of each."""
    found = Counter(v.status for v in verdicts)
    each = ", ".join(f"{found[status]} {status}" for status in ORDER if found[status])
    return f"{len(verdicts)} model types: {each}"


def markdown(verdicts: list[Verdict]) -> str:
    """The page of the docs."""
    lines = [
        "# Which models",
        "",
        f"{counts(verdicts)}. Written by `python benchmarks/families.py --out docs/families.md` with transformers "
        f"{transformers.__version__}, torch {torch.__version__.split('+')[0]}, Python {platform.python_version()}.",
        "",
        "Each type of transformers' causal-LM registry is built from its own config class, shrunk to a few layers with "
        "random weights, and held to this: its layers are found by structure; one forward pass proves that each is "
        "read, run once and in order, looks at no later token and reaches the logits; what is read is what "
        "transformers returns; a cap changes nothing inside its bounds and lands on them outside; generating with a "
        "cache gives what generating without one gives; a batch gives what its rows give; a cap from its file does "
        "what it did in memory, and each of its layers acts alone. A tiny random model says nothing about the quality "
        "of a checkpoint.",
        "",
        *BESIDE,
    ]
    for status in ORDER:
        chosen = [v for v in verdicts if v.status == status]
        if not chosen:
            continue
        reason = "remark" if status in (PASSED, NO_CACHE) else "reason"
        lines += ["", f"## {status.capitalize()}: {len(chosen)}", "", HEADINGS[status], ""]
        lines += [f"| type | class | layers | {reason} |", "| --- | --- | --- | --- |"]
        for v in chosen:
            cells = (v.model_type, v.kind, v.stack, v.reason)
            lines.append("| " + " | ".join(" ".join(c.replace("|", "\\|").split()) for c in cells) + " |")
    return "\n".join(lines) + "\n"


def verdicts_in(page: str) -> list[Verdict]:
    """The verdicts that `markdown` wrote, as far as it tells them."""
    found, status = [], ""
    for line in page.splitlines():
        if heading := re.fullmatch(r"## (.*): \d+", line):
            status = heading[1].lower()
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if status and len(cells) == 4 and cells[0] not in ("type", "---"):
            name, kind, stack, reason = cells
            found.append(Verdict(name, status, kind, stack, reason))
    return sorted(found, key=lambda v: v.model_type)


def short_table(verdicts: list[Verdict]) -> str:
    """What kinds of stack there are, and how many types of each pass."""
    kinds = defaultdict(list)
    for v in verdicts:
        kinds[next(name for pattern, name in STACKS if re.search(pattern, v.stack))].append(v)
    lines = [f"{counts(verdicts)}.", "", "| layers | pass | of | such as |", "| --- | --- | --- | --- |"]
    for _, name in reversed(STACKS[:-1]):
        lines += _row(name, kinds[name])
    return "\n".join([*lines, *_row(STACKS[-1][1], kinds[STACKS[-1][1]])])


def _row(name: str, held: list[Verdict]) -> list[str]:
    passed = [v.model_type for v in held if v.status == PASSED]
    order = {name: place for place, name in enumerate(WELL_KNOWN)}
    names = sorted(passed or [v.model_type for v in held])
    known = sorted(names, key=lambda name: order.get(name, len(order)))[:EXAMPLES]
    return [f"| {name} | {len(passed)} | {len(held)} | {', '.join(known)} |"] if held else []


def with_table(page: str, verdicts: list[Verdict]) -> str:
    """The page with the short table of `verdicts` between its marks. Raises `ValueError` where it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"the page has no {BEGIN} with {END} after it")
    return f"{before}{begin}\n{short_table(verdicts)}\n{end}{after}"
