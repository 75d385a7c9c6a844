"""Running a matrix of cells: what is missing of it, by an executor."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from finflow_sb3.benchmark.cells import Cell
from finflow_sb3.benchmark.local import run_local
from finflow_sb3.benchmark.store import Store
from finflow_sb3.benchmark.tasks import Failed, Listener, Task
from finflow_sb3.config import Settings
from finflow_sb3.errors import ConfigError
from finflow_sb3.market.cache import content_key
from finflow_sb3.market.sources import load_prices

__all__ = ["Executor", "ExecutorName", "prices_key", "run_cells"]

ExecutorName = Literal["local", "ray"]


@dataclasses.dataclass(frozen=True)
class Executor:
    """Where cells run.

    Attributes
    ----------
    workers : cells at a time; on Ray as many as the cluster has processors where it is None
    retries : of a cell that fails or whose process is killed
    address : of a Ray cluster; one of this machine is started where it is None
    """

    name: ExecutorName = "local"
    workers: int | None = None
    retries: int = 2
    address: str | None = None

    def __post_init__(self) -> None:
        if self.name == "local" and self.address is not None:
            raise ConfigError("--address: is of a Ray cluster; give --executor ray with it")


def prices_key(settings: Settings) -> str:
    """A hash of a market's prices."""
    table = load_prices(settings.market.prices, max_gap=settings.market.max_gap)
    return content_key(table.assets, table.dates, table.close, table.cash_rate)


def run_cells(
    cells: Sequence[Cell], store: Store, executor: Executor, listen: Listener
) -> list[Failed]:
    """Run the cells that have no result yet, and store each as it comes.

    Returns
    -------
    Cells that failed, and why; the others went on.
    """
    missing = [cell for cell in cells if not store.done(cell)]
    if not missing:
        return []
    if executor.name == "ray":
        from finflow_sb3.benchmark.ray_cluster import run_ray

        tasks = [_travelling(cell) for cell in missing]
        return run_ray(tasks, store, executor, listen)
    # What cells share is begun by one of them: the others would wait for it with their process.
    order = sorted(missing, key=lambda cell: (cell.fold, cell.seed))
    tasks = [Task(cell, shared=str(store.shared)) for cell in order]
    return run_local(tasks, store, executor.workers or 2, executor.retries, listen)


def _travelling(cell: Cell) -> Task:
    """A task for a machine that does not have the user's file of prices."""
    path = Path(cell.settings.market.prices)
    if not path.is_file():
        return Task(cell)
    return Task(cell, path.read_bytes(), "".join(path.suffixes[-2:]))
