"""A directory of role vectors, one .pt file each: the axis is made from them, and so is the proof of its sign."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from torch import Tensor

from persona_axis.errors import VectorsError
from persona_axis.vectors.found import Found, Rows, Settled
from persona_axis.vectors.reading import read_bytes
from persona_axis.vectors.torchfile import read_torch
from persona_axis.vectors.torchlayouts import role_of

_NO_ROLES = ("assistant_axis", "default_vector")
"""Published beside the role vectors, as bare tensors of the same shape."""


def found_in_directory(path: Path, default: Found | None = None) -> Found:
    """default - mean(roles) of the directory's .pt files, each a dictionary with `vector`, `type` and `role`.

    The default is the role named "default" or of type "mean" (several are averaged, as published), or `default`.
    Where all are bare tensors, each is the vector of the role that its file is named after. The file that `default`
    was read from is no role if it lies there too. Raises `VectorsError` naming the file.
    """
    files = sorted(path.glob("*.pt"))
    if not files:
        raise VectorsError(f"{path}: holds no .pt files; expected one for each role")
    roles: dict[str, Rows] = {}
    bare: list[str] = []
    defaults: list[Rows] = [] if default is None else [default.rows]
    given = None if default is None else os.path.realpath(default.where)
    shape = None if default is None else default.rows.shape
    for file in files:
        if os.path.realpath(file) == given:
            continue
        raw = read_bytes(file)
        held = read_torch(str(file), raw)
        name, is_default, rows = role_of(str(file), held, len(raw), file.stem)
        shape = shape or rows.shape
        if rows.shape != shape:
            raise VectorsError(f"{file}: vector {list(rows.shape)} differs from the others, which are {list(shape)}")
        if is_default:
            defaults.append(rows)
            continue
        if name in roles:
            raise VectorsError(f"{file}: role {name[:60]!r} occurs twice")
        if isinstance(held, Tensor):
            bare.append(file.name)
        roles[name] = rows
    odd, why = bare, "beside dictionaries of roles"
    if len(bare) == len(roles):
        odd, why = [name for name in bare if Path(name).stem in _NO_ROLES], "named as published axes and defaults are"
    if odd:
        raise VectorsError(
            f"{path}: {', '.join(name[:60] for name in odd[:5])}: a bare tensor {why}, not known to be a role: move it "
            "elsewhere, and name it with --default if it is the default"
        )
    if default is not None and len(defaults) > 1:
        raise VectorsError(f"{path}: holds a default vector of its own; leave out the other one, {default.where}")
    if not defaults:
        raise VectorsError(f"{path}: holds no default vector (role 'default' or type 'mean'); name it with --default")
    if not roles:
        raise VectorsError(f"{path}: holds no role vectors, only the default")
    middle: Rows = np.mean(defaults, axis=0)
    stacked: Rows = np.stack(list(roles.values()))
    rows = middle - stacked.mean(axis=0)
    return Found(
        str(path), "role vectors", rows, tuple(range(len(rows))), default=middle, roles=stacked,
        role_names=tuple(roles), reference=rows,
        sign=Settled("toward", "proven", "the direction is default - mean(roles) of the vectors in the directory"),
        about={"default_vectors": len(defaults), "role_vectors": len(roles)},
    )  # fmt: skip
