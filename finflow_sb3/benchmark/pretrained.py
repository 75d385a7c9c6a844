"""Pretrained networks that cells have in common: made once on a machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from finflow_sb3.benchmark.cells import Cell
from finflow_sb3.config import OfflineAlgorithm
from finflow_sb3.errors import ArtefactError
from finflow_sb3.files import present, storing, whole_folder
from finflow_sb3.market.cache import cache_folder
from finflow_sb3.offline.dataset_file import read_dataset
from finflow_sb3.pipeline import pretrain
from finflow_sb3.pretrain.artefact import read_artefact, read_json, write_json
from finflow_sb3.results import Pretrained, Watch

__all__ = ["PretrainedCell", "pretrained_for"]

NOTE = "pretraining.json"


@dataclass(frozen=True)
class PretrainedCell:
    """Networks of an offline phase.

    Attributes
    ----------
    folder : with the artefact in it
    facts : `gradient_steps`, `offline_transitions`, `validation` of what was kept, and
        `seconds` that it took, whichever cell it was made for
    """

    folder: Path
    facts: dict[str, Any]


def pretrained_for(
    cell: Cell, algo: OfflineAlgorithm, scratch: Path, watch: Watch
) -> PretrainedCell:
    """The pretrained networks of a cell: what another cell of this machine made, or made now.

    Parameters
    ----------
    scratch : folder for what is of no use afterwards
    """
    target = cache_folder() / "pretrained" / f"{algo}-{cell.pretraining_key(algo)[:32]}"
    with storing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_suffix(".lock"))
        lock.acquire()
    try:
        found = _cached(target)
        return _made(cell, algo, scratch, target, watch) if found is None else found
    finally:
        lock.release()


def _cached(target: Path) -> PretrainedCell | None:
    """What is there, if it is whole; an unreadable cache entry is as good as none."""
    folder = present(target)
    try:
        read_artefact(folder)
        return PretrainedCell(folder, read_json(folder / NOTE))
    except ArtefactError:
        return None


def _made(
    cell: Cell, algo: OfflineAlgorithm, scratch: Path, target: Path, watch: Watch
) -> PretrainedCell:
    settings = cell.settings.replace(run={"log_dir": str(scratch), "tensorboard": False})
    begun = time.perf_counter()
    made = pretrain(settings, watch=watch, algo=algo)
    if not made.finished:
        raise KeyboardInterrupt  # a signal has cut it short: it is nobody's to share
    facts = _facts(made, time.perf_counter() - begun)
    with whole_folder(target) as new:
        for path in sorted(present(made.run / "best").iterdir()):
            (new / path.name).write_bytes(path.read_bytes())
        write_json(new / NOTE, facts)
    return PretrainedCell(target, facts)


def _facts(made: Pretrained, seconds: float) -> dict[str, Any]:
    return {
        "gradient_steps": made.steps,
        "offline_transitions": len(read_dataset(Path(str(made.dataset)))),
        "epoch": made.best_epoch,
        "validation": made.validation,
        "seconds": seconds,
    }
