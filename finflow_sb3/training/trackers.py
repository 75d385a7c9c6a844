"""Trackers of experiments, extras: Weights & Biases and MLflow.

Nothing is sent anywhere unless `run.track` names one, and then to where its own settings say
(WANDB_MODE, WANDB_BASE_URL; MLFLOW_TRACKING_URI). A resumed run goes on in the same record.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from finflow_sb3.config import Settings
from finflow_sb3.errors import ConfigError, MissingExtraError
from finflow_sb3.files import write_whole
from finflow_sb3.parallel import rank
from finflow_sb3.runs.folder import RunFolder

__all__ = ["Tracker", "tracking"]

PROJECT = "finflow"
NOTE = "tracker.json"


@dataclass(frozen=True)
class Tracker:
    """What a training loop gives to a tracker: `callbacks` for SB3's learn, and `mirror`, which
    takes the step and the numbers of each line of `metrics.jsonl`.
    """

    callbacks: tuple[BaseCallback, ...] = ()
    mirror: Callable[[int, dict[str, float]], None] | None = None


@contextmanager
def tracking(settings: Settings, folder: RunFolder) -> Iterator[Tracker]:
    """The tracker that `run.track` names; of several processes the first one has it.

    Raises
    ------
    MissingExtraError
        If it is not installed.
    ConfigError
        If wandb is to read TensorBoard events that are switched off.
    """
    kinds = {"wandb": _wandb, "mlflow": _mlflow}
    if settings.run.track == "off" or rank() > 0:
        yield Tracker()
        return
    with kinds[settings.run.track](settings, folder) as tracker:
        yield tracker


@contextmanager
def _wandb(settings: Settings, folder: RunFolder) -> Iterator[Tracker]:
    """Scalars, histograms and texts by way of the TensorBoard events, settings of the model by
    W&B's callback for SB3.
    """
    if not settings.run.tensorboard:
        raise ConfigError("track: wandb reads the TensorBoard events; set tensorboard to true")
    wandb = _extra("wandb")
    callback = _extra("wandb", "wandb.integration.sb3").WandbCallback
    wandb.tensorboard.patch(root_logdir=str(folder.tensorboard.absolute()))
    run = None
    try:
        run = wandb.init(
            project=PROJECT,
            name=_name(folder),
            dir=str(folder.path),
            config=settings.as_dict(),
            id=_noted(folder, "wandb"),
            resume="allow",
        )
        _note(folder, "wandb", run.id)
        yield Tracker((callback(),))
    except BaseException:
        if run is not None:
            run.finish(exit_code=1)
        raise
    else:
        run.finish()
    finally:
        wandb.tensorboard.unpatch()


@contextmanager
def _mlflow(settings: Settings, folder: RunFolder) -> Iterator[Tracker]:
    """Settings as parameters and every number of `metrics.jsonl` as a metric."""
    client = _extra("mlflow").MlflowClient()
    entities = _extra("mlflow", "mlflow.entities")
    noted = _noted(folder, "mlflow")
    if noted is None:
        experiment = client.get_experiment_by_name(PROJECT)
        number = experiment.experiment_id if experiment else client.create_experiment(PROJECT)
        noted = client.create_run(number, run_name=_name(folder)).info.run_id
        _note(folder, "mlflow", noted)
        parameters = [entities.Param(k, str(v)) for k, v in settings.flat().items()]
        client.log_batch(noted, params=parameters)
    else:
        client.update_run(noted, status="RUNNING")

    def mirror(step: int, numbers: dict[str, float]) -> None:
        now = time.time_ns() // 1_000_000
        metrics = [
            entities.Metric(name, number, now, step)
            for name, number in numbers.items()
            if math.isfinite(number)
        ]
        client.log_batch(noted, metrics=metrics)

    try:
        yield Tracker(mirror=mirror)
    except KeyboardInterrupt:
        client.set_terminated(noted, "KILLED")
        raise
    except BaseException:
        client.set_terminated(noted, "FAILED")
        raise
    client.set_terminated(noted)


def _extra(name: str, module: str | None = None) -> Any:
    try:
        return import_module(module or name)
    except ImportError:
        raise MissingExtraError(
            f'track: {name} is not installed; run: pip install "finflow-sb3[{name}]"'
        ) from None


def _name(folder: RunFolder) -> str:
    return f"{folder.path.parent.name}/{folder.path.name}"


def _noted(folder: RunFolder, kind: str) -> str | None:
    """The record that this run had in the same tracker before it was stopped."""
    try:
        note: Any = json.loads((folder.path / NOTE).read_text())
        return str(note["id"]) if note["track"] == kind else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _note(folder: RunFolder, kind: str, record: str) -> None:
    write_whole(Path(folder.path / NOTE), json.dumps({"track": kind, "id": record}).encode())
