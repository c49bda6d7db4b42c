"""Models larger than memory: accelerate keeps layers on the CPU and on disk, and the axis is the same."""

from __future__ import annotations

import json
from pathlib import Path

import chat_factory as tiny
import click
import numpy as np
import pytest

from persona_axis import Axis, Cap
from persona_axis.chat import ChatModel
from persona_axis.commands.options import device_map
from persona_axis.extract import Options, extract, extract_responses, run_directory
from persona_axis.sampling import Sampling

pytest.importorskip("accelerate")

OPTIONS = Options(prompts=2, questions=4, sampling=Sampling(max_new_tokens=6), batch_size=16, min_accepted=2)
LAYERS = {f"model.layers.{i}": "disk" if i in (1, 2) else "cpu" for i in range(4)}
REST = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
MAPS = {
    "some layers on disk": {**LAYERS, **REST},
    "ends on disk": {**LAYERS, **REST, "model.embed_tokens": "disk", "lm_head": "disk", "model.norm": "disk"},
    "all on disk": {"": "disk"},
}


@pytest.fixture(scope="module", params=[False, True], ids=["own head", "tied head"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's directory, with the axis of the model in memory."""
    path = tmp_path_factory.mktemp("model")
    made = tiny.chat(model=tiny.llama(layers=4, tie_word_embeddings=request.param))
    made.model.save_pretrained(path)
    made.tokenizer.save_pretrained(path)
    extract(ChatModel.load(path), tiny.probes(6), OPTIONS, out=path / "axis")
    return path


@pytest.mark.parametrize("where", MAPS)
def test_the_axis_is_the_same_to_the_bit(stored: Path, tmp_path: Path, where: str) -> None:
    chat = ChatModel.load(stored, device_map=MAPS[where])
    assert any(parameter.is_meta for parameter in chat.model.parameters())
    wanted = Axis.load(stored / "axis")
    found = extract(chat, tiny.probes(6), OPTIONS, out=tmp_path / "axis").axis
    again = extract_responses(
        chat, run_directory(stored / "axis"), tiny.probes(6), OPTIONS, out=tmp_path / "read"
    ).axis
    for name, array in wanted.arrays.items():
        assert np.array_equal(found.arrays[name], array), name
        np.testing.assert_allclose(again.arrays[name], array, rtol=1e-4, atol=1e-5, err_msg=name)
    assert found.metadata["weights_sha256"] == wanted.metadata["weights_sha256"]
    assert any(parameter.is_meta for parameter in chat.model.parameters())  # nothing stays in memory


def test_a_cap_of_the_one_holds_the_other(stored: Path) -> None:
    axis = Axis.load(stored / "axis")
    cap: Cap = axis.cap(2, floor=float(axis.quantile("default", 99)[2]))
    talk = [[{"role": "user", "content": "how should i work ?"}]]
    said = []
    for chat in (ChatModel.load(stored), ChatModel.load(stored, device_map=MAPS["some layers on disk"])):
        with cap.on(chat.model):
            said.append(chat.generate(talk, Sampling(max_new_tokens=8)).ids)
    assert said[0] == said[1]


def test_a_map_on_the_command_line(tmp_path: Path) -> None:
    def told(value: str | None) -> object:
        return device_map(click.Context(click.Command("x")), click.Option(["--device-map"]), value)

    assert told(None) is None and told("auto") == "auto"
    assert told('{"": "disk"}') == {"": "disk"}
    (tmp_path / "map.json").write_text(json.dumps({"lm_head": 0, "model": "cpu"}))
    assert told(str(tmp_path / "map.json")) == {"lm_head": 0, "model": "cpu"}
    for bad in ('{"": ', "[1].json", str(tmp_path / "none.json"), '{"a": 1.5}', "{}"):
        with pytest.raises(click.BadParameter, match="is neither a name such as auto nor a JSON object"):
            told(bad)
