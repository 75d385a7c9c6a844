"""A cell with all that has to travel to the machine that runs it, and what is heard of it."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from finflow_sb3.benchmark.cells import Cell
from finflow_sb3.config import Settings
from finflow_sb3.errors import FinflowError
from finflow_sb3.files import write_whole
from finflow_sb3.market.cache import cache_folder, content_key
from finflow_sb3.market.prices import PriceTable
from finflow_sb3.market.sources import EMBEDDED, load_prices, write_prices
from finflow_sb3.opening import open_prices

__all__ = [
    "Carried",
    "CellFailed",
    "Event",
    "Failed",
    "Files",
    "Listener",
    "Task",
    "Waiting",
    "carried_by",
    "placed",
    "prices_key",
    "table_key",
]

Files = dict[str, bytes]
"""Files by name: how results travel, and what the store keeps."""


@dataclass(frozen=True)
class Carried:
    """A file that a setting names: its own name, by which it is read, and its content."""

    name: str
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class Task:
    """A cell to run, wherever that is.

    Attributes
    ----------
    carried : files of this machine that the cell reads, by setting ("market.prices")
    """

    cell: Cell
    carried: Mapping[str, Carried] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """What happened to a cell.

    Attributes
    ----------
    what : `progress` is within a cell; `again` says that it failed and is retried
    why : of a failure
    stage, done : of `progress`
    total : of `progress` its units; of `started` the cells that are run, this one among them
    """

    cell: Cell
    what: Literal["started", "progress", "done", "again", "failed"]
    why: str = ""
    stage: str = ""
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Failed:
    """A cell that failed as often as it may, and why, in one line."""

    cell: Cell
    why: str


Listener = Callable[[Event], None]


class Waiting:
    """Attempts that are to be begun, in their order as far as it is of use."""

    def __init__(self, tasks: Sequence[Task]):
        self.attempts = [(task, 0) for task in tasks]
        self.total = len(tasks)

    def __len__(self) -> int:
        return len(self.attempts)

    def next(self, running: Sequence[Task]) -> tuple[Task, int]:
        """The first whose pretraining no running cell is at, or else the first.

        It would wait for the other, with a process that could do something else.
        """
        busy = {_shared(task) for task in running} - {None}
        free = (i for i, (task, _) in enumerate(self.attempts) if _shared(task) not in busy)
        return self.attempts.pop(next(free, 0))

    def again(self, task: Task, attempt: int) -> None:
        """Have a task tried once more, next of all."""
        self.attempts.insert(0, (task, attempt))


def _shared(task: Task) -> str | None:
    algo = task.cell.pretrains
    return None if algo is None else task.cell.pretraining_key(algo)


class CellFailed(FinflowError):
    """A cell's process ended without a result.

    Attributes
    ----------
    hopeless : whether another attempt would end in the same way
    """

    def __init__(self, why: str, hopeless: bool = False):
        super().__init__(why, hopeless)
        self.why, self.hopeless = why, hopeless

    def __str__(self) -> str:
        return self.why


def prices_key(settings: Settings) -> str:
    """A hash of a market's prices."""
    return table_key(open_prices(settings))


def table_key(table: PriceTable) -> str:
    """A hash of everything in a table that a cell may see."""
    named = {f.name: getattr(table, f.name) for f in dataclasses.fields(table)}
    arrays = [named[name] for name in sorted(named) if isinstance(named[name], np.ndarray)]
    return content_key(table.assets, [n for n in named if named[n] is not None], *arrays)


def carried_by(settings: Settings) -> dict[str, Carried]:
    """Files that a cell of these settings reads, so that no machine needs this one's disk.

    What Yahoo says is fetched here, once, for all cells to see the same.
    """
    found: dict[str, Carried] = {}
    source = settings.market.prices
    if source.startswith("yahoo:"):
        with tempfile.TemporaryDirectory() as name:
            table = load_prices(
                source, max_gap=settings.market.max_gap, partial=settings.market.partial
            )
            path = write_prices(table, Path(name) / "prices.parquet")
            found["market.prices"] = Carried(path.name, path.read_bytes())
    elif source != EMBEDDED:
        found["market.prices"] = _of_file(Path(source).expanduser())
    index = settings.evaluation.index
    if index is not None and Path(index).expanduser().is_file():
        found["evaluation.index"] = _of_file(Path(index).expanduser())
    return found


def _of_file(path: Path) -> Carried:
    return Carried(path.name, path.read_bytes())


def placed(task: Task) -> Cell:
    """The cell, with what it carries laid down on this machine.

    Folders are named after the content: what is cached of these prices is found again.
    """
    cell = task.cell
    for setting, carried in task.carried.items():
        digest = hashlib.sha256(carried.content).hexdigest()[:32]
        path = cache_folder() / "carried" / digest / Path(carried.name).name
        if not path.is_file() or path.stat().st_size != len(carried.content):
            write_whole(path, carried.content)
        section, _, field_name = setting.partition(".")
        settings = cell.settings.replace(**{section: {field_name: str(path)}})
        cell = dataclasses.replace(cell, settings=settings)
    return cell
