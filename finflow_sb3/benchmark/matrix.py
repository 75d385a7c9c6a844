"""Running a matrix of cells: what is missing of it, by an executor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from finflow_sb3.benchmark.cells import Cell
from finflow_sb3.benchmark.local import run_local
from finflow_sb3.benchmark.store import Store
from finflow_sb3.benchmark.tasks import Carried, Failed, Listener, Task, carried_by, prices_key
from finflow_sb3.errors import ConfigError

__all__ = ["Executor", "ExecutorName", "prices_key", "run_cells"]

ExecutorName = Literal["local", "ray"]


@dataclass(frozen=True)
class Executor:
    """Where cells run.

    Attributes
    ----------
    workers : cells at a time; as many as there are processors where it is None
    retries : of a cell that fails or whose process is killed
    address : of a Ray cluster; one of this machine is started where it is None

    Raises
    ------
    ConfigError
        If an address is given to the local executor, or a number is out of range.
    """

    name: ExecutorName = "local"
    workers: int | None = None
    retries: int = 2
    address: str | None = None

    def __post_init__(self) -> None:
        if self.name not in ("local", "ray"):
            raise ConfigError(f"--executor: {self.name!r} is not known; known: local, ray")
        if self.name == "local" and self.address is not None:
            raise ConfigError("--address: is of a Ray cluster; give --executor ray with it")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"--workers: {self.workers} is out of range (1 to inf)")
        if self.retries < 0:
            raise ConfigError(f"--retries: {self.retries} is out of range (0 to inf)")


def run_cells(
    cells: Sequence[Cell], store: Store, executor: Executor, listen: Listener
) -> list[Failed]:
    """Run the cells that have no result yet, and store each as it comes.

    Returns
    -------
    Cells that failed, and why, as `failed.json` in the store's folder has them; the others went on.

    Raises
    ------
    KeyboardInterrupt
        At Ctrl-C; what is stored stays, and the same call goes on with the rest.
    MissingExtraError
        If Ray is asked for and is not installed.
    StorageError
        If a result cannot be written, or another command is at work in the store's folder.
    """
    with store.alone():
        missing = [cell for cell in cells if not store.done(cell)]
        failed: list[Failed] = []
        if missing:
            failed = _run(_tasks(missing), store, executor, listen)
        store.note_failures(failed)
    return failed


def _run(tasks: list[Task], store: Store, executor: Executor, listen: Listener) -> list[Failed]:
    if executor.name == "ray":
        from finflow_sb3.benchmark.ray_cluster import run_ray

        return run_ray(tasks, store, executor.workers, executor.retries, executor.address, listen)
    workers = executor.workers or os.cpu_count() or 1
    return run_local(tasks, store, workers, executor.retries, listen)


def _tasks(cells: Sequence[Cell]) -> list[Task]:
    """Cells with the files that they read, each of which is read here once."""
    carried: dict[tuple[str, str | None], dict[str, Carried]] = {}
    for cell in cells:
        settings = cell.settings
        source = (settings.market.prices, settings.evaluation.index)
        if source not in carried:
            carried[source] = carried_by(settings)
    return [
        Task(cell, carried[cell.settings.market.prices, cell.settings.evaluation.index])
        for cell in cells
    ]
