"""What stands for a server in tests: a process that has torch and nnsight, holds the model, and cannot import us.

Run as `python nnsight_server.py MODEL`; each line of standard input names a request's file and where its answer goes.
"""

from __future__ import annotations

import sys
from pathlib import Path


class Absent:
    """Finds our modules nowhere, though the test environment has them."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in ("persona_axis", "chat_factory"):
            raise ModuleNotFoundError(f"No module named {name!r}")


def answered(model, request: bytes) -> dict[str, object]:
    """What the request saves, or the text of the error that ended it."""
    from nnsight.schema.request import RequestModel
    from nnsight.tracing.tracer import _saves, dec, inc

    inc()
    try:
        tracer = RequestModel.deserialize(request, model._remoteable_persistent_objects())
        tracer.execute(tracer.info.code)
        return {name: value for name, value in tracer.info.frame.f_locals.items() if id(value) in _saves()}
    except Exception as error:
        return {"__error__": f"{type(error).__name__}: {error}"}
    finally:
        dec()


def main() -> None:
    import torch
    from nnsight import TransformersModel
    from transformers import AutoTokenizer

    model = TransformersModel(
        sys.argv[1], task="text-generation", dispatch=True, tokenizer=AutoTokenizer.from_pretrained(sys.argv[1])
    )
    print("ready", flush=True)
    for line in sys.stdin:
        request, answer = line.split()
        found = answered(model, Path(request).read_bytes())
        assert not any(name.startswith("persona_axis") for name in sys.modules)
        torch.save(found, answer)
        print("done", flush=True)


if __name__ == "__main__":
    sys.meta_path.insert(0, Absent())
    main()
