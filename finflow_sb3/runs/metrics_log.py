"""`metrics.jsonl`: one JSON object a line, in the order of steps, without wall-clock figures.

A line reaches the file in one system call, so that others can read the file at any moment. Even
so a reader may see a write that crosses a page of memory as far as the page's end: a line that
would cross one is moved to the start of the next by spaces before it, which JSON ignores.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.errors import StorageError

if TYPE_CHECKING:
    from finflow_sb3.runs.board import Board

__all__ = ["MetricsLog"]

PAGE = 4096


class MetricsLog:
    """Appends lines, and shows the same numbers in TensorBoard.

    Parameters
    ----------
    path : the file
    tensorboard : folder of event files, or None
    size : bytes to keep: what a resumed run had written when its checkpoint was taken
    step : step of that checkpoint; TensorBoard forgets what was drawn after it
    mirror : called with the step and the numbers of each line, named as in TensorBoard

    Raises
    ------
    StorageError
        If a line cannot be written, here and in every method; no part of it stays in the file.
    """

    def __init__(
        self,
        path: Path,
        tensorboard: Path | None = None,
        size: int | None = None,
        step: int | None = None,
        mirror: Callable[[int, dict[str, float]], None] | None = None,
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        if size is not None and path.exists():
            # Never longer than it is: that would fill the file with zeros.
            os.truncate(path, min(size, path.stat().st_size))
        # A new log empties the file instead of removing it: somebody may be reading it already.
        fresh = os.O_TRUNC if size is None else 0
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | fresh
        self._handle = os.open(path, flags, 0o666)
        self._size = os.fstat(self._handle).st_size
        self._step, self._tensorboard = step or 0, tensorboard
        self._mirror = mirror
        self._board: Board | None = None
        if tensorboard is not None:
            self._open_board(tensorboard, step)

    def _open_board(self, folder: Path, step: int | None) -> None:
        from finflow_sb3.runs.board import Board

        self._board = Board(folder, step)

    def write(self, step: int, **values: Any) -> None:
        """One line; numbers that are not finite become null."""
        self._append({"step": step, **values})
        self._step = step
        numbers = _numbers(values)
        if self._board is not None:
            self._board.scalars(step, numbers)
        if self._mirror is not None:
            self._mirror(step, numbers)

    def event(self, step: int, check: str, action: str, message: str, **values: Any) -> None:
        """A line of kind "event": what a check found, what was done, and the figures behind it."""
        said = {"kind": "event", "check": check, "action": action, "message": message, **values}
        self._append({"step": step, **said})
        if self._board is not None:
            self._board.text(step, f"events/{check}", f"**{action}**: {message}")

    def histogram(self, step: int, name: str, values: NDArray[np.floating[Any]]) -> None:
        """How `values` (any shape) are spread, for TensorBoard alone."""
        if self._board is not None:
            self._board.histogram(step, name, values)

    def hyperparameters(
        self, settings: Mapping[str, Any], metrics: Mapping[str, float | None]
    ) -> None:
        """What the run was set to and came to, for TensorBoard's HPARAMS tab alone.

        Parameters
        ----------
        settings : one level, as in ``{"cqsac.gamma": 0.99}``
        metrics : final figures; drawn as ``final/<name>``
        """
        if self._board is not None:
            self._board.hyperparameters(self._step, settings, metrics)

    def rewind(self, size: int, step: int) -> None:
        """Forget the lines after the first `size` bytes, and what was drawn after `step`.

        Events alone stay: they tell what led there.
        """
        with self.path.open("rb") as file:
            file.seek(size)
            dropped = [json.loads(line) for line in file]
        os.ftruncate(self._handle, size)
        self._size = size
        for line in dropped:
            if line.get("kind") == "event":
                self._append(line)
        if self._board is not None and self._tensorboard is not None:
            self._board.close()
            self._open_board(self._tensorboard, step)

    def sync(self) -> None:
        """Have the lines on the disk before what comes next."""
        try:
            os.fsync(self._handle)
        except OSError as error:
            raise StorageError.of(self.path, error) from error

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._size

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
            if self._board is not None:
                self._board.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, line: dict[str, Any]) -> None:
        content = json.dumps(_plain(line)).encode() + b"\n"
        left = PAGE - self._size % PAGE
        if left < len(content) <= PAGE:
            content = b" " * left + content
        try:
            written = os.write(self._handle, content)
            if written < len(content):  # the disk took a part: asking for the rest tells why
                written += os.write(self._handle, content[written:])
            if written < len(content):
                raise OSError("only a part of the line was taken")
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._handle, self._size)
            raise StorageError.of(self.path, error) from error
        self._size += len(content)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Numbers as ``kind/name``, and those of a list as ``kind/name/<position>``."""
    group = str(values.get("kind", "train"))
    found: dict[str, float] = {}
    for name, value in values.items():
        parts = (
            {f"/{i}": v for i, v in enumerate(value)} if isinstance(value, list) else {"": value}
        )
        for ending, part in parts.items():
            if isinstance(part, (int, float)) and not isinstance(part, bool):
                found[f"{group}/{name}{ending}"] = part
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
