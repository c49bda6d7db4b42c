"""What large data costs: an axis file of gigabytes, a PCA of 100,000 rollouts, replies that are only read.

    python benchmarks/large_data.py axis                  # 126 layers x 16384 x 300 roles
    python benchmarks/large_data.py pca                   # 8192 wide, 25,000 and 100,000 rollouts
    python benchmarks/large_data.py responses             # Troupe's rollouts drawn, then read again
    python benchmarks/large_data.py offload               # a random model in memory and on disk

Each measurement runs in a process of its own, so that its peak memory is its own. The figures are those of
docs/cost.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

MB = 2.0**20


def write_axis(path: Path, layers: int, hidden: int, roles: int, bfloat16: bool = False) -> None:
    """A synthetic axis file, written role after role: no more than a role is in memory.

    Role i is role 0 plus i times a step, so that means are known without adding anything up.
    """
    rng = np.random.default_rng(0)
    first = rng.normal(size=(layers, hidden)).astype(np.float32)
    step = (rng.normal(size=(layers, hidden)) / roles).astype(np.float32)
    # Whole multiples of 2^-8 survive every sum and rounding, so that what is stored has exactly this mean.
    first, step = np.round(first * 256) / 256, np.round(step * 256) / 256
    stored = np.dtype("<u2") if bfloat16 else np.dtype("<f4")

    def role(i: int) -> np.ndarray:
        vectors = np.ascontiguousarray(first + np.float32(i) * step, dtype="<f4")
        return (vectors.view("<u4") >> np.uint32(16)).astype("<u2") if bfloat16 else vectors

    digests = [hashlib.sha256() for _ in range(layers)]
    total = np.zeros((layers, hidden))
    for i in range(roles):
        vectors = role(i)
        total += (vectors.astype("<u4") << np.uint32(16)).view("<f4") if bfloat16 else vectors
        for digest, row in zip(digests, vectors, strict=True):
            digest.update(row.data)
    mean = (total / roles).astype("<f4")
    default = (mean + rng.normal(size=mean.shape)).astype("<f4")
    difference = default.astype(np.float64) - mean
    direction = (difference / np.linalg.norm(difference, axis=1, keepdims=True)).astype("<f4")
    table = np.tile(np.linspace(-1, 1, 101, dtype="<f4"), (layers, 1))
    tensors: dict[str, np.ndarray] = {
        "layers": np.arange(layers, dtype="<i8"), "role_layers": np.arange(layers, dtype="<i8"),
        "default": default, "direction": direction, "mean_norm": np.ones(layers, "<f4"), "roles_mean": mean,
    }  # fmt: skip
    tensors |= {f"quantiles_{name}": table for name in ("default", "default_tokens", "roles", "roles_tokens")}
    names = [f"role {i}" for i in range(roles)]
    about = _stated(layers, hidden, names) | {"roles_sha256": [digest.hexdigest() for digest in digests]}
    from persona_axis.files.axisfile import encode_metadata

    header: dict[str, Any] = {"__metadata__": encode_metadata(about)}
    end = 0
    for name, array in tensors.items():
        code = "I64" if array.dtype.kind == "i" else "F32"
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    size = roles * layers * hidden * stored.itemsize
    code = "BF16" if bfloat16 else "F32"
    header["roles"] = {"dtype": code, "shape": [roles, layers, hidden], "data_offsets": [end, end + size]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(array.data)
        for i in range(roles):
            file.write(role(i).data)


def _stated(layers: int, hidden: int, names: list[str]) -> dict[str, Any]:
    from persona_axis.files.axisfile import CONVENTIONS, FORMAT

    return {
        "format": FORMAT, "conventions": dict(CONVENTIONS), "provenance": "extracted", "model": "synthetic",
        "revision": None, "architecture": "llama", "dtype": "bfloat16", "hidden_size": hidden, "num_layers": layers,
        "weights_sha256": "a" * 64, "chat_template_sha256": None, "probes_sha256": "c" * 64, "role_names": names,
        "accepted": dict.fromkeys(names, 1200), "default_count": 1200, "judge": "none", "seed": 0,
        "sampling": {"temperature": 0.7}, "calibration": {"default": 1}, "versions": {"none": "0"},
        "date": "2026-01-01",
        "split_half": {key: [0.99] * layers for key in ("cosine", "low", "high")}, "recommended_layer": layers // 2,
    }  # fmt: skip


def _measured(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds, how many MB the peak of memory rose, and what `work` gave."""
    before, began = _peak(), time.monotonic()
    found = work()
    return time.monotonic() - began, _peak() - before, found


def _peak() -> float:
    """MB of memory at most so far. Not by getrusage, which begins with the peak of the process that started this."""
    facts = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(facts["VmHWM"].split()[0]) / 1024


def _read() -> float:
    """MB that this process has asked of files."""
    facts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(facts["rchar"]) / MB


def _alone(*arguments: str) -> None:
    """This very script with other arguments, in a process of its own."""
    subprocess.run([sys.executable, __file__, *arguments], check=True)


def axis(layers: int, hidden: int, roles: int) -> None:
    """Write the two files and measure each call on them."""
    with tempfile.TemporaryDirectory() as directory:
        for bfloat16 in (False, True):
            path = Path(directory, "axis.safetensors")
            write_axis(path, layers, hidden, roles, bfloat16)
            size = path.stat().st_size / MB
            kind = "bfloat16" if bfloat16 else "float32"
            print(f"\n{layers} layers x {hidden} x {roles} roles, {kind}: {size:.0f} MB\n")
            print("| call | seconds | MB read | MB of memory |\n| --- | --- | --- | --- |", flush=True)
            for call in ("load", "roles_at", "space", "verify"):
                _alone("axis-call", call, str(path))


def axis_call(call: str, path: str) -> None:
    """One call on a file, in a process that does nothing else."""
    from persona_axis import Axis

    calls: dict[str, Callable[[Axis], Any]] = {
        "load": lambda axis: None,
        "roles_at": lambda axis: axis.roles_at(axis.recommended_layer),
        "space": lambda axis: axis.space(axis.recommended_layer),
        "verify": lambda axis: axis.verify(),
    }
    before = _read()
    loading, loaded, axis = _measured(lambda: Axis.load(path))
    if call == "load":
        print(f"| load | {loading:.2f} | {_read() - before:.1f} | {loaded:.0f} |", flush=True)
        return
    before = _read()
    seconds, rose, _ = _measured(lambda: calls[call](axis))
    print(f"| {call} | {seconds:.2f} | {_read() - before:.1f} | {rose:.0f} |", flush=True)


def pca(hidden: int, rollouts: list[int]) -> None:
    """Feed so many rollouts, each number in a process of its own; then against exact PCA where that can run."""
    print(f"\n{hidden} wide\n")
    print("| rollouts | seconds | rollouts/s | MB of memory |\n| --- | --- | --- | --- |", flush=True)
    for count in rollouts:
        _alone("pca-call", str(count), str(hidden))
    print("\nAgainst exact PCA\n", flush=True)
    _alone("pca-exact", "20000", "1024")


def _rollouts(count: int, hidden: int, roles: int = 100) -> Iterator[tuple[str, np.ndarray]]:
    """Means of rollouts, role after role (the hardest order), a hundred at most at a time. As activations' do, their
    variance falls as a power of the component's number."""
    rng = np.random.default_rng(0)
    wide = min(hidden, 1024)
    scale = (10 / np.arange(1, wide + 1) ** 0.8).astype(np.float32)
    basis = np.linalg.qr(rng.normal(size=(hidden, wide)))[0].astype(np.float32).T * scale[:, None]
    for role in range(roles):
        center = rng.normal(size=wide).astype(np.float32)
        left = count // roles
        while left:
            some = min(left, 100)
            inside = center + 0.7 * rng.normal(size=(some, wide)).astype(np.float32)
            yield f"role {role}", inside @ basis + np.float32(0.05) * rng.normal(size=(some, hidden)).astype(np.float32)
            left -= some


def _fed(count: int, hidden: int) -> Any:
    from persona_axis.extraction.rolloutpca import RolloutPca

    found = RolloutPca([f"role {i}" for i in range(100)], hidden)
    found.add("default", np.ones(hidden))
    for role, means in _rollouts(count, hidden):
        found.add(role, means)
    return found


def pca_call(rollouts: int, hidden: int) -> None:
    """So many rollouts in a process that does nothing else; its first 1,000 are in the memory it begins with."""
    _fed(1000, hidden).result()
    seconds, rose, _ = _measured(lambda: _fed(rollouts, hidden).result())
    print(f"| {rollouts:,} | {seconds:.0f} | {rollouts / seconds:.0f} | {_peak():.0f} (+{rose:.0f}) |", flush=True)


def pca_exact(rollouts: int, hidden: int) -> None:
    """The same against an SVD of all of it."""
    space = _fed(rollouts, hidden).result()
    vectors = np.concatenate([means for _, means in _rollouts(rollouts, hidden)]).astype(np.float64)
    vectors -= vectors.mean(axis=0)
    sizes, rows = np.linalg.eigh(vectors.T @ vectors)
    ratio, rows = sizes[::-1] / sizes.sum(), rows.T[::-1]
    print(f"{rollouts:,} x {hidden}, of the exact components 1 to n: the largest relative error of their shares of the")
    print("variance, the least cosine with their own, and how much of them lies in the span of the 64 at least\n")
    print("| n | share | cosine | in the span |\n| --- | --- | --- | --- |")
    inside = np.linalg.norm(rows[:64] @ space.components.T, axis=1)
    own = np.abs((rows[:64] * space.components).sum(axis=1))
    error = np.abs(space.explained_variance_ratio / ratio[:64] - 1)
    for n in (1, 8, 16, 32, 64):
        print(f"| {n} | {error[:n].max():.1e} | {own[:n].min():.4f} | {inside[:n].min():.4f} |", flush=True)


def responses(questions: int) -> None:
    """Troupe draws a plan; then the same rollouts are read, in processes of their own."""
    print("\n| Troupe | rollouts | seconds | rollouts/s | MB of memory | least cosine |", flush=True)
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        for what in ("drawn", "read"):
            _alone("responses-call", what, directory, str(questions))


def responses_call(what: str, directory: str, questions: int) -> None:
    """The whole extraction, calibration included, in one of the two ways."""
    import torch

    from persona_axis import Axis, ChatModel, load_probes
    from persona_axis.extract import Options, extract, extract_responses

    torch.set_num_threads(1)
    chat, probes = ChatModel.load("troupe"), load_probes()
    options = Options.preset(chat, questions=questions, batch_size=64, min_accepted=2, precision=1)
    drawn = Path(directory, "drawn.safetensors")
    run = Path(f"{drawn}.run")
    if what == "drawn":
        seconds, rose, found = _measured(lambda: extract(chat, probes, options, out=drawn))
    else:
        out = Path(directory, "read.safetensors")
        seconds, rose, found = _measured(lambda: extract_responses(chat, run, probes, options, out=out))
    pairs = zip(found.axis.arrays["direction"], Axis.load(drawn).arrays["direction"], strict=True)
    cosine = min(float(a.astype(float) @ b) for a, b in pairs)
    count = found.counts.rollouts
    print(f"| {what} | {count:,} | {seconds:.0f} | {count / seconds:.0f} | +{rose:.0f} | {cosine:.7f} |", flush=True)


def offload(layers: int, hidden: int) -> None:
    """A random Llama in memory and with its layers on disk: seconds of a batch drawn and of a batch read."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 128, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        LlamaForCausalLM(config).save_pretrained(directory)
        print(f"\n{layers} layers x {hidden}, {_size(directory):.0f} MB; 32 rows of 64 tokens, 16 drawn\n")
        print("| layers | seconds to draw | seconds to read | MB of memory |\n| --- | --- | --- | --- |", flush=True)
        for where in ("cpu", "disk"):
            _alone("offload-call", where, directory)


def _size(directory: str) -> float:
    return sum(path.stat().st_size for path in Path(directory).iterdir()) / MB


def offload_call(where: str, directory: str) -> None:
    """One batch drawn and one read, with the layers at one place."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    layers = json.loads(Path(directory, "config.json").read_text())["num_hidden_layers"]
    places = {f"model.layers.{i}": where for i in range(layers)}
    rest = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    before = _peak()
    model = AutoModelForCausalLM.from_pretrained(directory, device_map=places | rest)
    ids = torch.arange(32 * 64).reshape(32, 64) % 1000 + 10

    def draw() -> None:
        model.generate(ids, max_new_tokens=16, min_new_tokens=16, do_sample=False, pad_token_id=0)

    def read() -> None:
        with torch.inference_mode():
            model.base_model(input_ids=ids, use_cache=False)

    read()
    (drawing, _, _), (reading, _, _) = _measured(draw), _measured(read)
    print(f"| {where} | {drawing:.1f} | {reading:.1f} | +{_peak() - before:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    of_axis = kinds.add_parser("axis", help="an axis file of gigabytes")
    for name, default in (("layers", 126), ("hidden", 16384), ("roles", 300)):
        of_axis.add_argument(f"--{name}", type=int, default=default)
    one = kinds.add_parser("axis-call", help="one call on a file")
    one.add_argument("call")
    one.add_argument("path")
    of_pca = kinds.add_parser("pca", help="a PCA of rollouts that are not kept")
    of_pca.add_argument("--hidden", type=int, default=8192)
    of_pca.add_argument("--rollouts", type=int, nargs="+", default=[25_000, 100_000])
    for name in ("pca-call", "pca-exact"):
        one = kinds.add_parser(name, help="one measurement of it")
        one.add_argument("rollouts", type=int)
        one.add_argument("hidden", type=int)
    of_responses = kinds.add_parser("responses", help="rollouts that exist already")
    of_responses.add_argument("--questions", type=int, default=4)
    one = kinds.add_parser("responses-call", help="one way of the two")
    one.add_argument("what")
    one.add_argument("directory")
    one.add_argument("questions", type=int)
    of_offload = kinds.add_parser("offload", help="a model whose layers are on disk")
    for name, default in (("layers", 8), ("hidden", 1024)):
        of_offload.add_argument(f"--{name}", type=int, default=default)
    one = kinds.add_parser("offload-call", help="one place of the two")
    one.add_argument("where")
    one.add_argument("directory")
    asked = vars(parser.parse_args())
    work: dict[str, Callable[..., None]] = {"axis": axis, "axis-call": axis_call, "pca": pca}
    work |= {"pca-call": pca_call, "pca-exact": pca_exact, "responses": responses, "responses-call": responses_call}
    work |= {"offload": offload, "offload-call": offload_call}
    work[asked.pop("kind")](**asked)


if __name__ == "__main__":
    main()
