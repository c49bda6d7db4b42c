"""A reader that can be broken on purpose while it reads, and that tells which requests were set aside and resumed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from persona_axis.extraction.vllm_reader import Reader, Reading


class Breakable(Reader):
    def persona_axis_read(self, layers: Sequence[int], rows: int, tokens: int) -> None:
        super().persona_axis_read(layers, rows, tokens)
        runner: Any = self.model_runner  # type: ignore[attr-defined]
        execute = runner.execute_model

        def execute_model(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
            if resumed := scheduled.scheduled_cached_reqs.resumed_req_ids:
                with open(os.environ["RESUMED"], "a") as file:
                    file.writelines(f"{request}\n" for request in resumed)
            return execute(scheduled, *args, **kwargs)

        runner.execute_model = execute_model

    def persona_axis_break(self, how: str) -> None:
        reading = self.persona_axis_reading
        assert reading is not None
        keep = Reading.keep

        def broken(layer: int, output: Any) -> None:
            if how == "half" and layer == 2:
                output = output[0] if not isinstance(output, Tensor) else output / 2
            if how == "forgets" and layer == 2:
                return
            keep(reading, layer, output)

        reading.keep = broken  # type: ignore[method-assign]
