"""The axis: its file, every check on it, and what it is good for."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import HIDDEN, LAYERS
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from persona_axis import Axis, AxisFileError, AxisMismatchError, CapError
from persona_axis.axis import SplitHalf, directions
from persona_axis.files.safefile import MAX_HEADER_BYTES, read_safe
from persona_axis.fingerprint import model_facts, require_same, template_sha256, weights_fingerprint

ROWS, ROLES, WIDTH = 3, 5, 16
NAMES = ["ghost", "librarian", "tutor", "void", "analyst"]
LAYER_INDICES = [2, 4, 7]


def metadata(**changes):
    stated = {
        "model": "tiny", "revision": None, "architecture": "llama", "dtype": "bfloat16", "num_layers": 10,
        "weights_sha256": "a" * 64, "chat_template_sha256": "b" * 64, "probes_sha256": "c" * 64,
        "role_names": NAMES, "accepted": dict.fromkeys(NAMES, 12), "default_count": 40, "judge": "parser",
        "sampling": {"temperature": 0.7, "top_p": 0.9}, "seed": 0,
        "split_half": {"cosine": [0.9, 0.95, 0.99], "low": [0.8, 0.9, 0.98], "high": [0.95, 0.98, 1.0]},
        "calibration": {"default": 2000, "roles": 2000}, "versions": {"torch": "2"}, "date": "2026-11-23",
        "recommended_layer": 4,
    }  # fmt: skip
    return {**stated, **changes}


def arrays(seed=0):
    random = np.random.default_rng(seed)
    default = random.normal(size=(ROWS, WIDTH)) + 2
    roles = random.normal(size=(ROLES, ROWS, WIDTH))
    tables = {
        name: np.sort(random.normal(size=(ROWS, 101)), axis=1)
        for name in ("default", "roles", "default_tokens", "roles_tokens")
    }
    return {"default": default, "roles": roles, "mean_norm": np.full(ROWS, 4.0), "quantiles": tables}


def make(seed=0, bfloat16_roles=False, **changes) -> Axis:
    held = arrays(seed)
    default, roles = held.pop("default"), held.pop("roles")
    return Axis.from_means(
        default, roles, layers=LAYER_INDICES, metadata=metadata(**changes), bfloat16_roles=bfloat16_roles, **held
    )


@pytest.fixture
def path(tmp_path):
    make().save(tmp_path / "axis.safetensors")
    return tmp_path / "axis.safetensors"


class TestMaking:
    def test_direction_is_the_unit_difference_of_means(self):
        held, axis = arrays(), make()
        expected = held["default"] - held["roles"].mean(axis=0)
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(axis.direction.numpy(), expected, atol=1e-6)
        assert axis.direction.dtype == torch.float32
        assert axis.layers == (2, 4, 7) and axis.hidden_size == WIDTH and axis.num_layers == 10

    def test_it_points_toward_the_assistant_and_every_role_weighs_the_same(self):
        default, roles = np.array([[4.0, 0.0]]), np.array([[[0.0, 3.0]], [[0.0, -3.0]], [[0.0, 0.0]]])
        np.testing.assert_array_equal(directions(default, roles), [[1.0, 0.0]])

    def test_from_torch_of_any_dtype(self):
        held = arrays()
        for dtype in (torch.float64, torch.bfloat16):
            default, roles = (torch.from_numpy(held[k]).to(dtype) for k in ("default", "roles"))
            np.testing.assert_array_equal(directions(default, roles), directions(default.double(), roles.double()))

    @pytest.mark.parametrize(
        ("default", "roles", "says"),
        [
            (np.ones((1, 2)), np.ones((2, 1, 2)), "default equals the mean of the roles in row 0"),
            (np.ones((1, 2)), np.ones((2, 1, 3)), "expected .n, layers, hidden."),
            (np.ones((1, 2)), np.ones((0, 1, 2)), "expected .n, layers, hidden."),
            (np.ones((1, 2)), np.full((2, 1, 2), np.nan), "roles: holds NaN"),
            (np.full((1, 2), np.inf), np.ones((2, 1, 2)), "default: holds NaN or infinite"),
        ],
    )
    def test_what_gives_no_direction(self, default, roles, says):
        with pytest.raises(AxisFileError, match=says):
            directions(default, roles)

    def test_imported_needs_little_and_says_what_it_lacks(self):
        axis = Axis.from_direction(np.eye(4)[:2], layers=[0, 1], metadata={"num_layers": 2})
        assert axis.metadata["provenance"] == "imported"
        for call, lacks in (
            (lambda: axis.roles, "'roles'"), (lambda: axis.default, "'default'"),
            (lambda: axis.mean_norm, "'mean_norm'"), (lambda: axis.space(0), "'roles'"),
            (lambda: axis.cap(0, "default_tokens:p25"), "'quantiles_default_tokens'"),
            (lambda: axis.role_names, "'role_names'"), (lambda: axis.split_half, "'split_half'"),
            (lambda: axis.recommended_layer, "'recommended_layer'"),
        ):  # fmt: skip
            with pytest.raises(AxisFileError, match=f"this imported axis .* no {lacks}"):
                call()

    def test_provenance_can_be_stated(self):
        axis = Axis.from_direction(np.eye(4), layers=range(4), metadata={"num_layers": 4, "provenance": "fitted"})
        assert axis.metadata["provenance"] == "fitted"
        with pytest.raises(
            AxisFileError, match="provenance: expected one of extracted, imported, fitted, found 'found'"
        ):
            Axis.from_direction(np.eye(4), layers=range(4), metadata={"num_layers": 4, "provenance": "found"})

    def test_later_changes_of_the_inputs_do_not_reach_it(self):
        held = arrays()
        axis = Axis.from_means(
            held["default"], held["roles"], layers=LAYER_INDICES, metadata=metadata(), mean_norm=held["mean_norm"],
            quantiles=held["quantiles"],
        )  # fmt: skip
        held["default"][:] = 0
        assert axis.default.abs().sum() > 0

    def test_refuses_to_save_what_is_not_finite(self):
        held = arrays()
        held["quantiles"]["roles"][1, 3] = np.nan
        with pytest.raises(AxisFileError, match="quantiles_roles: holds NaN"):
            Axis.from_means(
                held["default"], held["roles"], layers=LAYER_INDICES, metadata=metadata(),
                mean_norm=held["mean_norm"], quantiles=held["quantiles"],
            )  # fmt: skip


class TestRoundTrip:
    @pytest.mark.parametrize("bfloat16_roles", [False, True])
    def test_everything_comes_back(self, tmp_path, bfloat16_roles):
        axis = make(bfloat16_roles=bfloat16_roles)
        axis.save(tmp_path / "a")
        back = Axis.load(tmp_path / "a")
        assert back.metadata == {**axis.metadata, "revision": None}
        assert set(back.arrays) == set(axis.arrays)
        for name in axis.arrays:
            np.testing.assert_array_equal(back.arrays[name], axis.arrays[name])
        assert back.bfloat16_roles == bfloat16_roles
        assert back.split_half == SplitHalf((0.9, 0.95, 0.99), (0.8, 0.9, 0.98), (0.95, 0.98, 1.0))
        assert back.role_names == tuple(NAMES) and back.recommended_layer == 4
        back.save(tmp_path / "b")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_bfloat16_rounds_as_torch_does(self):
        held = arrays()
        expected = torch.from_numpy(held["roles"]).float().to(torch.bfloat16).float()
        assert torch.equal(make(bfloat16_roles=True).roles, expected)

    def test_readable_by_anyone_with_safetensors(self, path):
        held = load_file(path)
        assert {name: (list(t.shape), t.dtype) for name, t in held.items()} == {
            "direction": ([ROWS, WIDTH], torch.float32), "default": ([ROWS, WIDTH], torch.float32),
            "roles": ([ROLES, ROWS, WIDTH], torch.float32), "mean_norm": ([ROWS], torch.float32),
            "layers": ([ROWS], torch.int64), "quantiles_default": ([ROWS, 101], torch.float32),
            "quantiles_roles": ([ROWS, 101], torch.float32),
            "quantiles_default_tokens": ([ROWS, 101], torch.float32),
            "quantiles_roles_tokens": ([ROWS, 101], torch.float32),
        }  # fmt: skip
        with safe_open(path, framework="pt") as file:
            stated = file.metadata()
        assert stated["format"] == "persona-axis/1" and stated["model"] == "tiny"
        assert json.loads(stated["hidden_size"]) == WIDTH and json.loads(stated["role_names"]) == NAMES
        assert "toward the Assistant" in json.loads(stated["conventions"])["sign"]

    def test_unknown_metadata_is_kept(self, path):
        held = load_file(path)
        with safe_open(path, framework="pt") as file:
            stated = file.metadata()
        save_file(held, path, {**stated, "remark": "plain words", "numbers": "[1, 2]"})
        axis = Axis.load(path)
        assert axis.metadata["remark"] == "plain words" and axis.metadata["numbers"] == [1, 2]
        axis.save(path)
        assert Axis.load(path).metadata["remark"] == "plain words"

    def test_loading_needs_no_torch(self, path):
        code = (
            "import sys; from persona_axis import Axis\n"
            f"axis = Axis.load({str(path)!r})\n"
            "axis.space(4).ranking(), axis.split_half, axis.quantile('roles', 25)\n"
            "axis.project(axis.array('roles'), 4)\n"
            "sys.exit('torch' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code], cwd=os.path.dirname(__file__) + "/..").returncode == 0

    @given(rows=st.integers(1, 4), roles=st.integers(1, 4), width=st.integers(1, 9), seed=st.integers(0, 99))
    @settings(max_examples=25, deadline=None)
    def test_any_shape(self, tmp_path_factory, rows, roles, width, seed):
        random = np.random.default_rng(seed)
        names = [f"r{i}" for i in range(roles)]
        halves = {key: [0.5] * rows for key in ("cosine", "low", "high")}
        axis = Axis.from_means(
            random.normal(size=(rows, width)), random.normal(size=(roles, rows, width)), layers=range(rows),
            metadata=metadata(
                num_layers=rows, role_names=names, accepted=dict.fromkeys(names, 1), split_half=halves,
                recommended_layer=None,
            ),
            mean_norm=np.ones(rows), quantiles={k: np.zeros((rows, 101)) for k in arrays()["quantiles"]},
            bfloat16_roles=bool(seed % 2),
        )  # fmt: skip
        path = tmp_path_factory.mktemp("axis") / "a"
        axis.save(path)
        np.testing.assert_array_equal(Axis.load(path).arrays["direction"], axis.arrays["direction"])


    @pytest.mark.parametrize("size", [640, 896, 1152, 1408])
    def test_a_header_as_long_as_a_pickle_begins(self, tmp_path, size):
        def saved(remark: str) -> int:
            Axis.from_direction(
                np.eye(4), layers=range(4), metadata={"num_layers": 4, "remark": remark}
            ).save(tmp_path / "a")
            return int.from_bytes((tmp_path / "a").read_bytes()[:8], "little")

        remark = "x" * (size - saved(""))
        assert saved(remark) == size
        assert Axis.load(tmp_path / "a").metadata["remark"] == remark


class TestChecks:
    """Every field, damaged in the file."""

    def damaged(self, path, tensors=(), stated=()):
        with safe_open(path, framework="pt") as file:
            metadata = {**file.metadata(), **dict(stated)}
        held = {**load_file(path), **dict(tensors)}
        save_file(
            {k: v for k, v in held.items() if v is not None}, path, {k: v for k, v in metadata.items() if v is not None}
        )
        return path

    def test_undamaged(self, path):
        assert Axis.load(self.damaged(path)).layers == (2, 4, 7)

    @pytest.mark.parametrize(
        "name",
        ["direction", "layers", "default", "roles", "mean_norm", "quantiles_default", "quantiles_roles",
         "quantiles_default_tokens", "quantiles_roles_tokens"],
    )  # fmt: skip
    def test_a_missing_tensor(self, path, name):
        with pytest.raises(AxisFileError, match=f"axis.safetensors: {name}: this tensor is missing"):
            Axis.load(self.damaged(path, {name: None}))

    @pytest.mark.parametrize(
        "key",
        ["provenance", "hidden_size", "num_layers", "conventions", "model", "revision", "architecture", "dtype",
         "chat_template_sha256", "weights_sha256", "probes_sha256", "role_names", "accepted", "default_count", "judge",
         "sampling", "seed", "split_half", "calibration", "versions", "date"],
    )  # fmt: skip
    def test_missing_metadata(self, path, key):
        with pytest.raises(AxisFileError, match=f"{key}: "):
            Axis.load(self.damaged(path, stated={key: None}))

    @pytest.mark.parametrize(
        ("tensors", "says"),
        [
            ({"extra": torch.zeros(1)}, "extra: an axis file holds no such tensor"),
            ({"direction": torch.eye(WIDTH)[:ROWS] * 2}, "direction: row of layer 2 has norm 2, not 1"),
            ({"direction": torch.eye(WIDTH)[:ROWS]}, r"direction: the row of layer 2 is not default - mean\(roles\)"),
            ({"direction": torch.eye(WIDTH)[:2]}, r"direction: expected \[3, 16\] float32, found \[2, 16\]"),
            ({"direction": torch.eye(WIDTH)[:ROWS].double()}, "direction: expected .* found .* float64"),
            ({"direction": torch.eye(WIDTH)[:ROWS].bfloat16()}, "direction: is bfloat16; only roles may be"),
            ({"default": torch.full((ROWS, WIDTH), torch.nan)}, "default: holds NaN or infinite"),
            ({"roles": torch.full((ROLES, ROWS, WIDTH), torch.inf)}, "roles: holds NaN or infinite"),
            ({"roles": torch.zeros(ROLES, WIDTH)}, r"roles: expected \[5, 3, 16\]"),
            ({"roles": torch.zeros(0, ROWS, WIDTH)}, r"roles: expected \[1, 3, 16\] float32, found \[0, 3, 16\]"),
            ({"roles": torch.zeros(ROLES, ROWS, WIDTH, dtype=torch.float16)}, "roles: dtype F16 is not among"),
            ({"mean_norm": torch.zeros(ROWS)}, "mean_norm: norms must be positive"),
            ({"mean_norm": torch.ones(ROWS + 1)}, r"mean_norm: expected \[3\]"),
            (
                {"quantiles_roles": torch.arange(101.0).flip(0).repeat(ROWS, 1)},
                "quantiles_roles: quantiles must not fall",
            ),
            ({"quantiles_default": torch.zeros(ROWS, 100)}, r"quantiles_default: expected \[3, 101\]"),
            ({"quantiles_roles_tokens": torch.full((ROWS, 101), torch.nan)}, "quantiles_roles_tokens: holds NaN"),
            ({"layers": torch.tensor([2, 4, 4])}, "layers: indices must rise"),
            ({"layers": torch.tensor([4, 2, 7])}, "layers: indices must rise"),
            ({"layers": torch.tensor([-1, 4, 7])}, "layers: -1 to 7 are not all among the model's 10"),
            ({"layers": torch.tensor([2, 4, 10])}, "layers: 2 to 10 are not all among"),
            ({"layers": torch.tensor([2.0, 4.0, 7.0])}, r"layers: expected \[layers\] int64"),
            ({"layers": torch.zeros(0, dtype=torch.int64)}, r"layers: expected \[layers\] int64"),
        ],
    )
    def test_a_tensor_that_cannot_be(self, path, tensors, says):
        with pytest.raises(AxisFileError, match=says):
            Axis.load(self.damaged(path, tensors))

    @pytest.mark.parametrize(
        ("stated", "says"),
        [
            ({"format": "persona-axis/2"}, "format: expected 'persona-axis/1', found 'persona-axis/2'"),
            ({"format": None}, "format: expected 'persona-axis/1', found None"),
            ({"provenance": "guessed"}, "provenance: expected one of .* found 'guessed'"),
            ({"hidden_size": "17"}, r"default: expected \[3, 17\]"),
            ({"hidden_size": "-16"}, "hidden_size: expected a positive integer"),
            ({"hidden_size": '"16"'}, "hidden_size: expected a positive integer"),
            ({"num_layers": "true"}, "num_layers: expected a positive integer"),
            ({"num_layers": "5"}, "layers: 2 to 7 are not all among the model's 5"),
            ({"num_layers": "{"}, "num_layers: not valid JSON"),
            ({"architecture": ""}, "architecture: is empty"),
            ({"conventions": json.dumps({"layer": "x"})}, "conventions: layer: expected .* found 'x'"),
            ({"conventions": "[]"}, "conventions: is empty"),
            ({"conventions": "3"}, "conventions: layer: expected"),
            ({"role_names": json.dumps(NAMES[:4])}, "role_names: 4 names for 5 role vectors"),
            ({"role_names": json.dumps(NAMES[:4] + NAMES[:1])}, "role_names: a name occurs twice"),
            ({"role_names": "[1, 2, 3, 4, 5]"}, "role_names: expected a list of names"),
            ({"accepted": json.dumps(dict.fromkeys(NAMES[:4], 3))}, "accepted: its roles are not those"),
            ({"accepted": json.dumps(dict.fromkeys(NAMES, 0))}, "accepted: expected a positive count"),
            ({"accepted": "[1]"}, "accepted: expected a positive count for each role name"),
            ({"default_count": "0"}, "default_count: expected a positive integer"),
            ({"split_half": json.dumps({"cosine": [1]})}, "split_half: expected cosine, low and high, each 3"),
            ({"split_half": json.dumps({k: [0.1, 0.2, 1.5] for k in ("cosine", "low", "high")})}, "from -1 to 1"),
            ({"split_half": '{"cosine": [NaN, 1, 1], "low": [0, 0, 0], "high": [1, 1, 1]}'}, "split_half: expected"),
            ({"split_half": '{"cosine": [1, 1, 1], "low": [1, 1, 1], "high": [0, 1, 1]}'}, "low end lies above"),
            ({"recommended_layer": "3"}, "recommended_layer: 3 is not one of the file's layers"),
            ({"recommended_layer": '"4"'}, "recommended_layer: '4'"),
        ],
    )  # fmt: skip
    def test_metadata_that_cannot_be(self, path, stated, says):
        with pytest.raises(AxisFileError, match=says):
            Axis.load(self.damaged(path, stated=stated))

    def test_a_flipped_sign_is_noticed(self, path):
        with pytest.raises(AxisFileError, match="is not default - mean"):
            Axis.load(self.damaged(path, {"direction": -load_file(path)["direction"]}))

    def test_roles_that_were_rounded_later_are_no_mistake_and_hide_none(self, tmp_path):
        """The difference of two large means is small: rounding turns it, and that much is allowed for."""
        random, held = np.random.default_rng(0), arrays()
        axis = Axis.from_means(
            10 + random.normal(size=(ROWS, WIDTH)), 10 + random.normal(size=(ROLES, ROWS, WIDTH)),
            layers=LAYER_INDICES, metadata=metadata(), mean_norm=held["mean_norm"], quantiles=held["quantiles"],
        )  # fmt: skip
        axis.save(tmp_path / "a")
        path = self.damaged(tmp_path / "a", {"roles": axis.roles.bfloat16(), "direction": axis.direction})
        assert (
            Axis.load(path).direction - torch.from_numpy(directions(axis.default, Axis.load(path).roles))
        ).norm() > 1e-3
        with pytest.raises(AxisFileError, match="is not default - mean"):
            Axis.load(self.damaged(path, {"direction": -axis.direction}))


class TestHostileFiles:
    def test_missing_and_directory(self, tmp_path):
        with pytest.raises(AxisFileError, match="nowhere: cannot be read: No such file"):
            Axis.load(tmp_path / "nowhere")
        with pytest.raises(AxisFileError, match="cannot be read: Is a directory"):
            Axis.load(tmp_path)

    @pytest.mark.parametrize("name", ["axis.safetensors", "axis.pt", "axis"])
    @pytest.mark.parametrize("protocol", range(6))
    def test_a_pickle_under_any_name_never_runs(self, tmp_path, name, protocol):
        class Trap:
            def __reduce__(self):
                return (os.mkdir, (str(tmp_path / "trapped"),))

        (tmp_path / name).write_bytes(pickle.dumps(Trap(), protocol))
        with pytest.raises(AxisFileError, match="pickle" if protocol >= 2 else "not a safetensors file"):
            Axis.load(tmp_path / name)
        torch.save({"direction": torch.eye(2)}, tmp_path / name)
        with pytest.raises(AxisFileError, match="is a pickle"):
            Axis.load(tmp_path / name)
        assert not (tmp_path / "trapped").exists()

    @pytest.mark.parametrize("length", [MAX_HEADER_BYTES + 1, 2**40, 2**64 - 1])
    def test_an_oversized_header(self, tmp_path, length):
        (tmp_path / "a").write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(AxisFileError, match=f"oversized header: it claims {length} bytes"):
            Axis.load(tmp_path / "a")

    @pytest.mark.parametrize("kept", [0, 3, 8, 100, -1, -5000])
    def test_a_truncated_file(self, path, kept):
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(AxisFileError, match="axis.safetensors: truncated"):
            Axis.load(path)

    def test_something_after_the_end(self, path):
        path.write_bytes(path.read_bytes() + b"more")
        with pytest.raises(AxisFileError, match="4 bytes follow the last tensor"):
            Axis.load(path)

    @pytest.mark.parametrize(
        ("header", "says"),
        [
            (b"not json", "its header is no JSON"),
            (b"\xff\xfe\xfa", "its header is no JSON"),
            (b"[1]", "no JSON object"),
            (b"[" * 100_000, "its header is no JSON"),
            (b'{"a": {}, "a": {}}', "a key occurs twice"),
            (b'{"__metadata__": {"format": 3}}', "metadata must map strings to strings"),
            (b'{"__metadata__": []}', "metadata must map"),
            (b'{"a": 3}', "a: malformed header entry"),
            (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}', "a: malformed header entry"),
            (b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', "a: malformed shape"),
            (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', "a: 4 bytes do not hold F32"),
            (b'{"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}', "a: dtype U8 is not among"),
            (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', "a: its data do not follow"),
            (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
             b' "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "b: its data do not follow"),
        ],
    )  # fmt: skip
    def test_a_header_that_lies(self, tmp_path, header, says):
        (tmp_path / "a").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
        with pytest.raises(AxisFileError, match=says):
            read_safe(tmp_path / "a")

    @given(at=st.integers(0, 400), byte=st.integers(0, 255), data=st.data())
    @settings(max_examples=150, deadline=None)
    def test_a_damaged_byte_is_an_axis_error_or_harmless(self, tmp_path_factory, at, byte, data):
        path = tmp_path_factory.getbasetemp() / "damaged"
        make().save(path)
        raw = bytearray(path.read_bytes())
        raw[at if data.draw(st.booleans()) else data.draw(st.integers(0, len(raw) - 1))] = byte
        path.write_bytes(raw)
        try:
            Axis.load(path)
        except AxisFileError as error:
            assert str(path) in str(error)


class TestSaving:
    def check_kept(self, path, before):
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [path.name], "a temporary file was left behind"

    def test_disk_full(self, path, monkeypatch):
        before = path.read_bytes()

        def full(_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(
            AxisFileError, match="could not be written: No space left.*file that was there is unchanged"
        ):
            make(seed=1).save(path)
        self.check_kept(path, before)

    def test_a_write_that_really_fails(self, path):
        before = path.read_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
            with pytest.raises(AxisFileError, match="could not be written: File too large"):
                make(seed=1).save(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, old)
        self.check_kept(path, before)

    def test_interrupted(self, path, monkeypatch):
        before = path.read_bytes()

        def interrupted(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(seed=1).save(path)
        self.check_kept(path, before)

    def test_no_such_directory(self, tmp_path):
        with pytest.raises(AxisFileError, match="could not be written: No such file or directory$"):
            make().save(tmp_path / "nowhere" / "axis")

    def test_replaces_keeps_permissions_and_follows_links(self, path, tmp_path):
        os.chmod(path, 0o640)
        link = tmp_path / "link"
        link.symlink_to(path)
        make(seed=1).save(link)
        assert link.is_symlink() and path.stat().st_mode & 0o777 == 0o640
        np.testing.assert_array_equal(Axis.load(path).arrays["default"], make(seed=1).arrays["default"])

    def test_a_new_file_has_ordinary_permissions(self, tmp_path):
        old = os.umask(0o022)
        try:
            make().save(tmp_path / "a")
        finally:
            os.umask(old)
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


class TestUse:
    def test_project(self):
        axis, hidden = make(), torch.randn(2, 5, WIDTH, dtype=torch.float64)
        for layer, row in ((2, 0), (4, 1), (7, 2)):
            expected = hidden @ axis.direction[row].double()
            torch.testing.assert_close(axis.project(hidden, layer), expected)
            assert axis.project(hidden.bfloat16(), layer).dtype == torch.float32
            np.testing.assert_allclose(axis.project(hidden.numpy(), layer), expected.numpy())
            assert axis.project(hidden.float().numpy(), layer).dtype == np.float32
        assert axis.project(hidden[0, 0], 2).shape == ()
        half = axis.project(hidden.bfloat16(), 4)
        torch.testing.assert_close(
            half.double(), hidden.bfloat16().double() @ axis.direction[1].double(), atol=1e-5, rtol=0
        )

    def test_layer_is_the_model_s_index_never_a_row(self):
        for layer in (0, 1, 3, 8, -1):
            with pytest.raises(AxisMismatchError, match=f"layer {layer} is not in this axis, which has layers 2, 4, 7"):
                make().project(torch.zeros(WIDTH), layer)

    def test_width_that_does_not_fit(self):
        with pytest.raises(AxisMismatchError, match="width 8; the axis has 16"):
            make().project(torch.zeros(3, 8), 2)

    def test_quantile(self):
        axis = make()
        table = axis.arrays["quantiles_roles"].astype(float)
        np.testing.assert_array_equal(axis.quantile("roles", 25), table[:, 25])
        np.testing.assert_allclose(axis.quantile("roles", 2.5), (table[:, 2] + table[:, 3]) / 2)
        np.testing.assert_array_equal(axis.quantile("roles", 100), table[:, 100])

    def test_cap_from_percentiles(self):
        axis = make()
        cap = axis.cap([7, 2], floor="default_tokens:p25", ceiling="default_tokens:p99.5")
        assert cap.layers == (7, 2)
        assert torch.equal(cap.direction, axis.direction[[2, 0]])
        np.testing.assert_array_equal(cap.floor, axis.quantile("default_tokens", 25)[[2, 0]])
        np.testing.assert_array_equal(cap.ceiling, axis.quantile("default_tokens", 99.5)[[2, 0]])
        assert cap.facts["weights_sha256"] == "a" * 64 and cap.facts["chat_template_sha256"] == "b" * 64
        assert cap.provenance["floor"] == "default_tokens:p25" and cap.provenance["axis"]["date"] == "2026-11-23"

    def test_cap_from_numbers_and_where_no_layer_is_named(self):
        axis = make()
        assert axis.cap(4, floor=1.5).floor.tolist() == [1.5]
        assert axis.cap(floor=0).layers == (4,)
        assert axis.cap(range(7, 8), ceiling=torch.ones(1, 3)).ceiling.shape == (1, 3)

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ({"floor": "default_tokens:p101"}, "percentile 101 lies outside 0-100"),
            ({"floor": "default_tokens:p-1"}, "percentile -1 lies outside 0-100"),
            ({"floor": "everyone:p5"}, "no distribution 'everyone': choose among default, roles"),
            ({"floor": "default_tokens"}, "bound 'default_tokens': expected a number or distribution:percentile"),
            ({"floor": "default_tokens:25"}, "expected a number or"),
            ({"floor": "default_tokens:p1.2.3"}, "expected a number or"),
            ({"floor": "roles:p90", "ceiling": "roles:p10"}, "floor .* lies above ceiling"),
            ({"layers": [2, 3], "floor": 0}, r"layers \[3\]: the axis has layers 2, 4, 7"),
            ({"layers": [], "floor": 0}, r"layers=\[\]: expected a layer"),
            ({}, "needs a floor or a ceiling"),
        ],
    )
    def test_caps_that_cannot_be(self, arguments, says):
        with pytest.raises(CapError, match=says):
            make().cap(**{"layers": [2, 7], **arguments})

    def test_space(self):
        axis, held = make(), arrays()
        space = axis.space(4)
        assert space.names == tuple(NAMES)
        np.testing.assert_allclose(space.axis, axis.direction[1].numpy(), atol=1e-6)
        np.testing.assert_allclose(space.mean, held["roles"][:, 1].mean(axis=0), atol=1e-6)


class TestRequire:
    template = "{{ messages }}"

    def axis(self, model, /, **changes) -> Axis:
        facts = {**model_facts(model), "chat_template_sha256": template_sha256(self.template), **changes}
        return Axis.from_direction(np.eye(HIDDEN)[:1], layers=[1], metadata={k: v for k, v in facts.items() if v})

    def test_its_own_model(self, any_model):
        self.axis(any_model).require(any_model, self.template)
        self.axis(any_model).require(any_model)

    def test_names_paths_and_revisions_are_never_decisive(self, llama):
        self.axis(llama, model="somebody/else", revision="abc", dtype="float16").require(llama, self.template)

    @pytest.mark.parametrize(
        ("changes", "says", "allow"),
        [
            ({"architecture": "qwen3"}, "architecture is qwen3 in the file and llama here", "architecture"),
            ({"num_layers": 7}, "number of layers is 7 in the file and 4 here", "num_layers"),
            ({"weights_sha256": "f" * 64}, r"weights fingerprint is ffffffffffff\.\.\. in the file", "weights"),
            ({"chat_template_sha256": "f" * 64}, r"chat template is ffffffffffff\.\.\. in the file", "chat_template"),
        ],
    )  # fmt: skip
    def test_each_difference_and_its_exception(self, llama, changes, says, allow):
        axis = self.axis(llama, model="tiny/llama", **changes)
        with pytest.raises(AxisMismatchError, match=f"{says}.*made for tiny/llama.*allow"):
            axis.require(llama, self.template)
        axis.require(llama, self.template, allow=(allow,))
        others = {"architecture", "num_layers", "weights", "chat_template"} - {allow}
        with pytest.raises(AxisMismatchError, match=says):
            axis.require(llama, self.template, allow=others)

    def test_hidden_size_has_no_exception(self, llama):
        axis = Axis.from_direction(np.eye(8)[:1], layers=[1], metadata={"num_layers": LAYERS})
        with pytest.raises(AxisMismatchError, match="hidden size is 8 in the file and 32 here"):
            axis.require(llama, allow=("weights", "architecture", "num_layers", "chat_template"))
        with pytest.raises(AxisMismatchError, match="expected a collection of architecture"):
            axis.require(llama, allow=("hidden_size",))
        with pytest.raises(AxisMismatchError, match="expected a collection"):
            axis.require(llama, allow="weights")

    def test_all_differences_are_told_together(self, llama):
        axis = self.axis(llama, architecture="qwen3", num_layers=7)
        with pytest.raises(AxisMismatchError, match="architecture is .*; number of layers is "):
            axis.require(llama)

    def test_a_template_where_the_file_knows_one_and_here_is_none(self, llama):
        class Tokenizer:
            chat_template = None

        with pytest.raises(AxisMismatchError, match="chat template is .* and None here"):
            self.axis(llama).require(llama, Tokenizer())

    def test_what_the_file_does_not_state_is_not_checked(self, llama):
        Axis.from_direction(np.eye(HIDDEN)[:1], layers=[1], metadata={"num_layers": LAYERS}).require(llama, "other")


class TestFingerprint:
    def test_survives_saving_dtype_and_wrapping(self, any_model, new_model, tmp_path):
        model = new_model(any_model.config.model_type).to(torch.bfloat16)
        own = weights_fingerprint(model)
        model.save_pretrained(tmp_path)
        for dtype in (torch.bfloat16, torch.float32):
            assert weights_fingerprint(type(model).from_pretrained(tmp_path, dtype=dtype)) == own
        assert weights_fingerprint(torch.compile(model, backend="eager")) == own
        assert weights_fingerprint(model.float()) == own

    def test_a_float32_model_and_its_bfloat16_copy(self, new_model):
        model = new_model("llama")
        own = weights_fingerprint(model)
        assert weights_fingerprint(model.to(torch.bfloat16)) == own

    def test_more_tokens_do_not_matter(self, new_model):
        import transformers

        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=300, **sizes))
        own = weights_fingerprint(model)
        model.resize_token_embeddings(310)
        assert weights_fingerprint(model) == own

    @pytest.mark.parametrize(
        "name", ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight",
                 "model.layers.2.mlp.down_proj.weight", "model.layers.3.input_layernorm.weight"],
    )  # fmt: skip
    def test_other_weights_differ(self, new_model, name):
        model = new_model("llama")
        own = weights_fingerprint(model)
        with torch.no_grad():
            model.get_parameter(name).mul_(1.02)
        assert weights_fingerprint(model) != own

    def test_another_seed_and_another_head_count_differ(self, new_model, llama):
        assert weights_fingerprint(new_model("llama", seed=1)) != weights_fingerprint(llama)
        model = new_model("llama")
        model.config.num_attention_heads = 8
        assert weights_fingerprint(model) != weights_fingerprint(llama)

    def test_adapters_differ_wherever_they_are(self, new_model):
        peft = pytest.importorskip("peft")
        own = weights_fingerprint(new_model("llama"))
        told = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
        configs = [peft.LoraConfig(layers_to_transform=[layer], **told) for layer in range(4)]
        configs += [peft.PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")]
        found = {own}
        for config in configs:
            for seed in (1, 2):  # the same places, other values
                base = new_model("llama")
                torch.manual_seed(seed)
                found.add(weights_fingerprint(peft.get_peft_model(base, config)))
        assert len(found) == 1 + 2 * len(configs)

    def test_offloaded_weights_are_read(self, new_model):
        from accelerate import cpu_offload

        model = new_model("llama")
        own = weights_fingerprint(model)
        cpu_offload(model, execution_device=torch.device("cpu"))
        assert next(model.model.layers[0].parameters()).is_meta
        assert weights_fingerprint(model) == own
        require_same({"weights_sha256": own}, model)

    def test_weights_that_are_not_there(self, new_model):
        from persona_axis import ModelError

        with pytest.raises(ModelError, match="meta device"):
            weights_fingerprint(new_model("llama").to("meta"))

    def test_templates(self):
        class Tokenizer:
            chat_template = "{{ x }}"

        class Several:
            chat_template = {"default": "{{ x }}", "tool_use": "{{ y }}"}

        assert template_sha256(Tokenizer()) == template_sha256("{{ x }}") != template_sha256("{{ x}}")
        assert template_sha256(Several()) not in (None, template_sha256("{{ x }}"))
        assert template_sha256(object()) is None

    def test_facts(self, shared_models):
        facts = model_facts(shared_models["gemma3"])
        assert facts["architecture"] == "gemma3_text" and facts["num_layers"] == LAYERS
        assert facts["hidden_size"] == HIDDEN and facts["dtype"] == "float32" and facts["revision"] is None
        assert model_facts(shared_models["llama"].model)["architecture"] == "llama"
