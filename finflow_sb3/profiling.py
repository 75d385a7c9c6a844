"""The verb `profile`: where the time of fine-tuning goes."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from finflow_sb3.config import Settings
from finflow_sb3.cqsac.threads import threads_for
from finflow_sb3.errors import ConfigError
from finflow_sb3.files import write_whole
from finflow_sb3.parallel import require_alone
from finflow_sb3.pipeline import open_start
from finflow_sb3.results import Watch
from finflow_sb3.runs.folder import RunFolder
from finflow_sb3.runs.metrics_log import MetricsLog
from finflow_sb3.training.callbacks import TrainingCallback
from finflow_sb3.training.finetune import prepare
from finflow_sb3.training.guard import Guard
from finflow_sb3.training.profiled import Measured, Plan, measure
from finflow_sb3.training.stages import STAGES

__all__ = ["Cost", "Profile", "profile"]

TRACE, RESULT = "trace.json.gz", "profile.json"
OTHER = "other"
TOP = 15
NEVER = 10**9


@dataclass(frozen=True)
class Cost:
    """A stage or an operator: milliseconds and calls per update, and its share of the time."""

    name: str
    ms: float
    share: float
    calls: float


@dataclass(frozen=True)
class Profile:
    """Where the time of an update goes. An update is one step of the critics, with the rollout
    that belongs to it.

    Attributes
    ----------
    output, trace : the folder, and in it the Chrome trace of the first `traced_updates`
    updates : under the profiler; there were as many without it
    updates_per_second, profiled_updates_per_second : without the profiler, and under it, in
        windows that take turns
    overhead : how much longer an update takes under the profiler, 0.1 for a tenth
    stages : shares are of the wall time under the profiler and add up to 1, "other" included
    operators : those that take most by themselves; from `read_updates` of the updates, as shares
        of the time of all operators
    peak_memory : bytes resident at most, before the profiler began
    peak_device_memory : bytes allocated on CUDA at most, None without CUDA
    compiled : the inside of the two halves of an update can't be told apart
    """

    env: str
    output: Path
    trace: Path
    device: str
    threads: int
    compiled: bool
    updates: int
    traced_updates: int
    read_updates: int
    updates_per_second: float
    profiled_updates_per_second: float
    overhead: float
    stages: tuple[Cost, ...]
    operators: tuple[Cost, ...]
    peak_memory: int
    peak_device_memory: int | None


def profile(
    settings: Settings,
    steps: int = 500,
    pretrained: str | Path | None = None,
    output: str | Path | None = None,
    updates_warmup: int = 20,
    watch: Watch | None = None,
) -> Profile:
    """Time the fine-tuning that `finetune` would begin, stage by stage.

    The loop is the real one, with its metrics, from the first step on: it fills the replay
    buffer, warms up, and makes `steps` updates plain and as many under torch.profiler, by turns
    of some updates each. Validation and checkpoints, which come once in many episodes, are left
    out. No run is made.

    Parameters
    ----------
    steps : gradient updates to measure
    pretrained : run of `pretrain` that seeds the model
    output : folder for `trace.json.gz` and `profile.json`; `<log_dir>/profile/<env>_<n>` if not
        given
    updates_warmup : updates before the first that is timed; they compile what is compiled

    Raises
    ------
    ConfigError
        If there is nothing to measure, or settings do not fit together.
    """
    require_alone("profile")
    _check(settings, steps, updates_warmup)
    watch = watch or Watch()
    start = open_start(settings, pretrained, None, watch)
    settings = start.settings
    with _output(settings, output) as folder, tempfile.TemporaryDirectory() as scratch:
        model, report = prepare(settings, start.market, start.artefact, start.data)
        if settings.run.threads == "auto":
            torch.set_num_threads(threads_for(model.policy, settings.cqsac.batch_size))
        if report is not None:
            watch.seeded(report)
        unseen = settings.replace(run={"evaluate_interval": NEVER})
        board = Path(scratch) / "tensorboard" if settings.run.tensorboard else None
        with MetricsLog(Path(scratch) / "metrics.jsonl", board) as log:
            guard = Guard(settings.monitor, model, log)
            callback = TrainingCallback(
                start.market, unseen, log, guard, None, on_best=lambda _: None
            )
            measured = measure(
                model,
                callback,
                settings.cqsac.n_timesteps,
                Plan(updates_warmup, steps),
                folder / TRACE,
                watch.progress,
            )
        found = _profile(settings, folder, str(model.device), measured)
        plain = {**asdict(found), "output": str(found.output), "trace": str(found.trace)}
        write_whole(folder / RESULT, json.dumps(plain, indent=1).encode())
    return found


def _check(settings: Settings, steps: int, warm_up: int) -> None:
    if steps < 1:
        raise ConfigError(f"steps: {steps} leaves nothing to measure; give 1 or more")
    if warm_up < 0:
        raise ConfigError(f"updates_warmup: {warm_up} is negative; give 0 or more")
    if settings.cqsac.gradient_steps == 0:
        raise ConfigError("gradient_steps: 0 makes no update to measure; give 1 or more")


@contextmanager
def _output(settings: Settings, output: str | Path | None) -> Iterator[Path]:
    """The folder for results; one that was made here goes again if there are none."""
    if output is None:
        folder = RunFolder.create(settings.run.log_dir, "profile", settings.env).path
        made = True
    else:
        folder = Path(output)
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except BaseException:
        if made:
            shutil.rmtree(folder)
        raise


def _profile(settings: Settings, folder: Path, device: str, measured: Measured) -> Profile:
    plain = measured.plain_updates / measured.plain_seconds
    profiled = measured.updates / measured.seconds
    return Profile(
        env=settings.env,
        output=folder,
        trace=folder / TRACE,
        device=device,
        threads=torch.get_num_threads(),
        compiled=measured.compiled,
        updates=measured.updates,
        traced_updates=measured.traced,
        read_updates=measured.reading.updates,
        updates_per_second=plain,
        profiled_updates_per_second=profiled,
        overhead=plain / profiled - 1.0,
        stages=_stages(measured),
        operators=_operators(measured),
        peak_memory=measured.peak_resident,
        peak_device_memory=measured.peak_device,
    )


def _stages(measured: Measured) -> tuple[Cost, ...]:
    seconds, calls = dict(measured.clock.seconds), dict(measured.clock.calls)
    share = measured.reading.penalty_share
    if share > 0.0:
        backward = seconds["critic backward"]
        seconds["CQL penalty: backward"] = share * backward
        seconds["critic backward"] = (1.0 - share) * backward
        calls["CQL penalty: backward"] = calls["critic backward"]
    seconds[OTHER] = measured.seconds - sum(seconds.values())
    count = measured.updates
    return tuple(
        Cost(
            name,
            1e3 * seconds[name] / count,
            seconds[name] / measured.seconds,
            calls.get(name, 0) / count,
        )
        for name in (*STAGES, OTHER)
        if name in seconds
    )


def _operators(measured: Measured) -> tuple[Cost, ...]:
    rows: dict[str, Any] = measured.reading.operators
    count = measured.reading.updates
    whole = sum(own for own, _ in rows.values())
    top = sorted(rows.items(), key=lambda item: -item[1][0])[:TOP]
    return tuple(
        Cost(name, 1e-3 * own / count, own / whole, calls / count) for name, (own, calls) in top
    )
