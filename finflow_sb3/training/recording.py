"""What a stage writes while it trains: metrics, `status.json`, and a tracker's record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from finflow_sb3.config import Settings
from finflow_sb3.runs.checkpoints import Checkpoint
from finflow_sb3.runs.folder import RunFolder
from finflow_sb3.runs.metrics_log import MetricsLog
from finflow_sb3.runs.provenance import metrics_size
from finflow_sb3.runs.status import StatusFile
from finflow_sb3.training.trackers import Tracker, tracking

__all__ = ["Recording", "recording"]


@dataclass(frozen=True)
class Recording:
    """Where a stage writes while it runs."""

    log: MetricsLog
    status: StatusFile
    tracker: Tracker


@contextmanager
def recording(
    settings: Settings, folder: RunFolder, stage: str, total: int, checkpoint: Checkpoint | None
) -> Iterator[Recording]:
    """Open the records of a run, as they were at a checkpoint where it goes on from one.

    Parameters
    ----------
    stage, total : as for `StatusFile`
    """
    size, step = metrics_size(checkpoint), None if checkpoint is None else checkpoint.step
    board = folder.tensorboard if settings.run.tensorboard else None
    with (
        tracking(settings, folder) as tracker,
        MetricsLog(folder.metrics, board, size, step, tracker.mirror) as log,
        StatusFile(folder.status, stage, total, step or 0) as status,
    ):
        yield Recording(log, status, tracker)
