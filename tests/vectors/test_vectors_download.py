"""The published files themselves, where a hub can be reached: the layouts that the other tests build are theirs."""

from __future__ import annotations

import socket
from urllib.parse import urlparse

import pytest
from vectors_factory import origin

from persona_axis.vectors.found import Clamps
from persona_axis.vectors.making import made_axis, made_cap
from persona_axis.vectors.reading import read
from persona_axis.vectors.telling import Said

pytestmark = pytest.mark.network
REPOSITORY = "lu-christina/assistant-axis-vectors"
QWEN = {"layers": 64, "hidden": 5120}


@pytest.fixture(scope="module")
def download():
    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    host = urlparse(ENDPOINT).hostname
    try:
        if HF_HUB_OFFLINE:
            raise OSError("offline by HF_HUB_OFFLINE")
        socket.create_connection((host, 443), timeout=5).close()
    except OSError as error:
        pytest.skip(f"no hub can be reached: {error}")
    return lambda name: hf_hub_download(REPOSITORY, name, repo_type="dataset")


def test_the_published_axis(download):
    found = read(download("qwen-3-32b/assistant_axis.pt"))
    axis = made_axis(found, Said(sign="toward"), origin(**QWEN))
    assert axis.layers == tuple(range(64)) and axis.hidden_size == 5120


def test_a_published_role_vector(download):
    found = read(download("qwen-3-32b/role_vectors/devils_advocate.pt"))
    assert found.rows.shape == (64, 5120)


def test_the_published_capping_configuration(download):
    clamps = read(download("qwen-3-32b/capping_config.pt"))
    assert isinstance(clamps, Clamps)
    cap = made_cap(clamps, "layers_46:54-p0.25", Said(), origin(**QWEN))
    assert cap.layers == tuple(range(46, 54)) and cap.floor is not None
