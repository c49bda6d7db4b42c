"""A reader that can be broken on purpose while it reads."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from persona_axis.extraction.vllm_reader import Reader, Reading


class Breakable(Reader):
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
