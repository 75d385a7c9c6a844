"""A cell as a task of a process of its own: bytes in, bytes out, one thread."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finflow_sb3.benchmark.cells import Cell

__all__ = ["Event", "Failed", "Listener", "Task", "work"]

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Task:
    """A cell to run, where its prices are a file with the file's content.

    Attributes
    ----------
    suffix : ending of the file, by which it is read
    shared : folder for pretrained networks; one of the worker's own where it is None
    """

    cell: Cell
    prices: bytes | None = None
    suffix: str = ""
    shared: str | None = None


@dataclass(frozen=True)
class Event:
    """What happened to a cell: `started`, `done`, `again` (it failed and is retried), `failed`."""

    cell: Cell
    what: Literal["started", "done", "again", "failed"]
    why: str = ""


@dataclass(frozen=True)
class Failed:
    """A cell that failed as often as it may, and why, in one line."""

    cell: Cell
    why: str


Listener = Callable[[Event], None]


def work(task: Task) -> dict[str, bytes]:
    """Files of a cell's result. Runs in a process that has done nothing else yet."""
    for name in THREADS:
        os.environ[name] = "1"
    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.benchmark.results import pack
    from finflow_sb3.benchmark.work import run_cell

    with tempfile.TemporaryDirectory(prefix="finflow-cell-") as name:
        scratch = Path(name)
        cell, shared = task.cell, Path(task.shared or scratch / "shared")
        if task.prices is not None:
            import dataclasses

            path = scratch / f"prices{task.suffix}"
            path.write_bytes(task.prices)
            settings = cell.settings.replace(market={"prices": str(path)})
            cell = dataclasses.replace(cell, settings=settings)
        return pack(run_cell(cell, scratch / "logs", shared))
