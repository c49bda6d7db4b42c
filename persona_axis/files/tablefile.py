"""A table written piece by piece, as CSV or Parquet, that is there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from persona_axis.errors import DriftError
from persona_axis.trajectories.frame import empty

SUFFIXES = (".csv", ".parquet")


class TableWriter:
    """Writes frames one after another into one file.

        with TableWriter("drift.parquet") as table:
            for frame in trajectories(...):
                table.append(frame)

    The file appears when the block is left without an exception, and replaces an older one in one step; until then,
    and after a failure, the older one is untouched and nothing else is left behind. All frames must have the first
    one's columns; without any frame the file holds the drift table's columns and no rows. Raises `DriftError` for a
    path that ends otherwise, cannot be written, or a frame that does not fit.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in SUFFIXES:
            raise DriftError(f"{path}: a table is written as {' or '.join(SUFFIXES)}; name a file that ends so")
        self.rows = 0
        """How many were appended."""
        self._target = Path(os.path.realpath(self.path))  # a link keeps pointing where it did
        self._temporary = self._target.with_name(f".{self._target.name}.{secrets.token_hex(4)}")
        self._columns: list[str] | None = None
        self._file: Any = None
        self._parquet: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        try:
            self._file = open(self._temporary, "xb")
        except OSError as error:
            raise self._unwritten(error) from error
        return self

    def append(self, frame: pd.DataFrame) -> None:
        """Write a frame's rows after those before them; its index is not written."""
        if self._file is None:
            raise DriftError(f"{self.path}: rows can be added inside the `with` block of the writer only")
        columns = [str(name) for name in frame.columns]
        if self._columns not in (None, columns):
            raise DriftError(f"{self.path}: rows with the columns {columns} do not fit a table of {self._columns}")
        try:
            self._write(frame, first=self._columns is None)
        except OSError as error:
            raise self._unwritten(error) from error
        except pa.ArrowException as error:
            raise DriftError(f"{self.path}: rows do not fit the table: {error}") from error
        self._columns = columns
        self.rows += len(frame)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if self._columns is None:
                    self.append(empty())
                self._finish()
        except OSError as failed:
            raise self._unwritten(failed) from failed
        finally:
            self._give_up()

    def _write(self, frame: pd.DataFrame, first: bool) -> None:
        if self.path.suffix.lower() == ".csv":
            frame.to_csv(self._file, index=False, header=first, lineterminator="\n")
            return
        rows = pa.Table.from_pandas(frame, preserve_index=False)
        if self._parquet is None:
            self._parquet = pq.ParquetWriter(self._file, rows.schema)
        self._parquet.write_table(rows.cast(self._parquet.schema))

    def _finish(self) -> None:
        if self._parquet is not None:
            self._parquet.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if self._target.exists():
            os.chmod(self._temporary, self._target.stat().st_mode & 0o777)
        os.replace(self._temporary, self._target)

    def _give_up(self) -> None:
        """Close what is open and remove what was not put in place. After `_finish` there is nothing of either."""
        if self._parquet is not None and self._parquet.is_open:
            with contextlib.suppress(OSError, pa.ArrowException):
                self._parquet.close()
        with contextlib.suppress(OSError):
            self._file.close()
        self._file = None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._temporary)

    def _unwritten(self, error: OSError) -> DriftError:
        return DriftError(f"{self.path}: could not be written: {error.strerror or error}")
