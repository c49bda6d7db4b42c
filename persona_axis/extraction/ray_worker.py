"""What runs on a Ray worker: a model of its own, held to be the driver's, and batches drawn with it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from persona_axis import __version__
from persona_axis.chat import ChatModel
from persona_axis.errors import ExtractionError
from persona_axis.extraction.engines import Job, Local, drawn, first_line
from persona_axis.extraction.settings import deciding_facts, surroundings
from persona_axis.extraction.window import Full
from persona_axis.model.outofmemory import is_out_of_memory
from persona_axis.sampling import Sampling


class Asked(NamedTuple):
    """What a worker is to hold and to do: arguments of `ChatModel.load`, what the driver's model is, and the plan's
    sampling and layers."""

    load: Mapping[str, Any]
    alike: Mapping[str, Any]
    threads: int
    sampling: Sampling
    layers: tuple[int, ...]


class Place(NamedTuple):
    """Where a worker runs."""

    host: str
    node: str
    pid: int

    def __str__(self) -> str:
        return f"{self.host}, node {self.node[:8]}, process {self.pid}"


class Drawn(NamedTuple):
    """`Replies` as they travel: arrays, which Ray moves without copying."""

    ids: list[list[int]]
    sums: Any
    norms: Any


class Worker:
    """An actor. It does nothing until it is asked, so that whoever made it can tell what it is waiting for."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.chat: ChatModel | None = None

    def where(self) -> Place:
        """The sign of life of a worker that has a place."""
        import ray

        return Place(socket.gethostname(), ray.get_runtime_context().get_node_id(), os.getpid())

    def load(self) -> None:
        """Load the model. Raises `ModelError` if it cannot be, and `ExtractionError` if it is not the driver's."""
        if self.chat is not None:
            return
        torch.set_num_threads(self.asked.threads)
        chat = ChatModel.load(**self.asked.load)
        require_alike(self.asked.alike, alike(chat))
        self.chat = chat

    def draw(self, job: Job, most: int) -> Drawn | Full:
        """A job's replies, at most `most` rollouts at once, or that memory did not suffice for that."""
        self.load()  # a worker that was just restarted draws nothing before its model is checked
        assert self.chat is not None
        try:
            replies = drawn(self.chat, job, most, self.asked.sampling, self.asked.layers)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            said = first_line(error)
        else:
            return Drawn(replies.ids, replies.sums.numpy(), replies.norms.numpy())
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return Full(said)


def alike(chat: ChatModel) -> dict[str, Any]:
    """What two models must share to give the same rollouts: weights, template, ends of replies, libraries, threads."""
    return {
        **deciding_facts(chat),
        "stop_ids": list(chat.stop_ids),
        "pad_id": chat.pad_id,
        "device": chat.device.type,
        "persona-axis": __version__,
        **surroundings(Local.name),
    }


def require_alike(driver: Mapping[str, Any], worker: Mapping[str, Any]) -> None:
    """Raise `ExtractionError` that says what differs."""
    unlike = [f"{key} is {worker[key]} there, {driver[key]} here" for key in driver if driver[key] != worker[key]]
    if unlike:
        raise ExtractionError(f"its model is not the driver's: {'; '.join(unlike)}")
