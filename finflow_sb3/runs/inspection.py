"""What checkpoints a run has, and whether they are whole."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from finflow_sb3.errors import CheckpointError
from finflow_sb3.runs.checkpoints import CheckpointStore, read_checkpoint
from finflow_sb3.runs.folder import RunFolder

__all__ = ["Listed", "Verified", "list_checkpoints", "verify_checkpoints"]

POINTERS = ("latest", "best")


@dataclass(frozen=True)
class Listed:
    """One checkpoint.

    Attributes
    ----------
    named : `latest`, `best`, both or neither
    size : bytes of the files in its folder
    written : when, UTC
    """

    path: Path
    step: int
    named: tuple[str, ...]
    size: int
    written: datetime.datetime


@dataclass(frozen=True)
class Verified:
    """What was read and compared: whole checkpoints, and what is wrong, a line each."""

    whole: tuple[Path, ...]
    damaged: tuple[str, ...]


def list_checkpoints(run: str | Path) -> tuple[Listed, ...]:
    """Checkpoints of a run, oldest first. Contents are not read.

    Raises
    ------
    ArtefactError
        If there is no such run.
    """
    store = CheckpointStore(RunFolder.open(run).checkpoints)
    named = {name: store.pointed(name) for name in POINTERS if _points(store, name)}
    return tuple(
        Listed(
            path=path,
            step=int(path.name.removeprefix("step_")),
            named=tuple(name for name, target in named.items() if target == path),
            size=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
            written=datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC),
        )
        for path in store.all()
    )


def verify_checkpoints(run: str | Path) -> Verified:
    """Compare every file of every checkpoint with its checksum, those of other processes too.

    Raises
    ------
    ArtefactError
        If there is no such run.
    CheckpointError
        If it has no checkpoints.
    """
    folder = RunFolder.open(run)
    whole: list[Path] = []
    damaged: list[str] = []
    for rank in range(folder.workers):
        _verify(CheckpointStore(folder.of_worker(rank).checkpoints), whole, damaged)
    if not whole and not damaged:
        raise CheckpointError(f"{folder.checkpoints}: no checkpoints to verify")
    return Verified(tuple(whole), tuple(damaged))


def _verify(store: CheckpointStore, whole: list[Path], damaged: list[str]) -> None:
    # Not `all`, which passes over one that has lost its manifest.
    for path in sorted(store.folder.glob("step_*")):
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            damaged.append(str(error))
        else:
            whole.append(path)
    for name in POINTERS:
        file = store.folder / f"{name}.json"
        if not file.is_file():
            continue
        if not _points(store, name):
            damaged.append(f"{file}: cannot be read; name a checkpoint instead of {name}")
        elif not store.pointed(name).is_dir():
            damaged.append(f"{file}: names {store.pointed(name).name}, which is not there")


def _points(store: CheckpointStore, name: str) -> bool:
    try:
        store.pointed(name)
    except CheckpointError:
        return False
    return True
