"""`metrics.jsonl`: one JSON object a line, in the order of steps, without wall-clock figures."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

__all__ = ["MetricsLog"]


class MetricsLog:
    """Appends lines, and the same numbers as TensorBoard scalars.

    Parameters
    ----------
    path : the file
    tensorboard : folder of event files, or None
    size : bytes to keep: what a resumed run had written when its checkpoint was taken
    """

    def __init__(self, path: Path, tensorboard: Path | None = None, size: int | None = None):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        if size is not None and path.exists():
            with path.open("r+b") as file:
                # Never longer than it is: that would fill the file with zeros.
                file.truncate(min(size, path.stat().st_size))
        elif size is None:
            path.unlink(missing_ok=True)
        self._file = path.open("ab")
        self._board: Any = None
        if tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(tensorboard))

    def write(self, step: int, **values: Any) -> None:
        """One line; numbers that are not finite become null."""
        line = {"step": step, **{name: _plain(value) for name, value in values.items()}}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        if self._board is not None:
            self._write_scalars(step, values)

    def _write_scalars(self, step: int, values: dict[str, Any]) -> None:
        group = str(values.get("kind", "train"))
        for name, value in values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self._board.add_scalar(f"{group}/{name}", value, step)
            elif isinstance(value, list):
                for i, part in enumerate(value):
                    self._board.add_scalar(f"{group}/{name}/{i}", part, step)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def rewind(self, size: int) -> None:
        """Forget the lines after the first `size` bytes; events alone stay."""
        with self.path.open("rb") as file:
            file.seek(size)
            dropped = file.readlines()
        self._file.truncate(size)
        self._file.seek(size)
        for line in dropped:
            if json.loads(line).get("kind") == "event":
                self._file.write(line)
        self._file.flush()

    def sync(self) -> None:
        """Have the disk hold all lines so far."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
