"""What a checkpoint says of its run: settings, versions of the libraries, threads, metrics."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch

from finflow_sb3._version import installed_version
from finflow_sb3.config import Settings
from finflow_sb3.runs.checkpoints import Checkpoint, fitting

__all__ = [
    "changed_settings",
    "metrics_size",
    "provenance",
    "same_validation",
    "warn_of_other_versions",
]

LIBRARIES = ("torch", "numpy", "stable-baselines3", "sb3-contrib", "d3rlpy")


def provenance(settings: Settings, size: int) -> dict[str, Any]:
    """What joins the state of every checkpoint.

    Parameters
    ----------
    size : bytes of `metrics.jsonl` that were written before it
    """
    return {"settings": settings.as_dict(), "made_with": _made_with(), "metrics_size": size}


def metrics_size(checkpoint: Checkpoint | None) -> int | None:
    """Bytes of `metrics.jsonl` to keep, None of a new run."""
    if checkpoint is None:
        return None
    with fitting(checkpoint):
        return int(checkpoint.state["metrics_size"])


def changed_settings(checkpoint: Checkpoint, now: Settings) -> list[tuple[str, Any, Any]]:
    """Dotted name, value when the checkpoint was written and value now, where they differ."""
    with fitting(checkpoint):
        before = _flat(checkpoint.state["settings"])
    after = _flat(now.as_dict())
    known = [name for name in after if name in before]
    return [found for name in known for found in _differences(name, before[name], after[name])]


def same_validation(checkpoint: Checkpoint, now: Settings) -> bool:
    """Whether the best so far was the best on the validation split that there is now."""
    moved = {name for name, _, _ in changed_settings(checkpoint, now)}
    return not moved & {"market.train_end", "market.validation_end"}


def warn_of_other_versions(checkpoint: Checkpoint, warn: Callable[[str], None]) -> None:
    """Say what differs from what a checkpoint was made with: it may move the last bits."""
    now = _made_with()
    with fitting(checkpoint):
        before = {name: checkpoint.state["made_with"].get(name, now[name]) for name in now}
    differing = [f"{k} {before[k]} is now {now[k]}" for k in now if before[k] != now[k]]
    if differing:
        warn(f"Not bit for bit as before: {', '.join(differing)}.")


def _made_with() -> dict[str, Any]:
    """finflow's and its libraries' versions, and torch's threads in this process."""
    versions = {name: version(name) for name in LIBRARIES}
    return {"finflow": installed_version(), **versions, "threads": torch.get_num_threads()}


def _differences(name: str, before: Any, after: Any) -> list[tuple[str, Any, Any]]:
    """Of one setting; of a mapping the entries that differ."""
    if before == after:
        return []
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return [(name, before, after)]
    keys = dict.fromkeys([*before, *after])
    pairs = [(key, before.get(key), after.get(key)) for key in keys]
    return [(f"{name}.{key}", old, new) for key, old, new in pairs if old != new]


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = value if isinstance(value, dict) else {"": value}
        flat |= {f"{name}.{key}".rstrip("."): item for key, item in inner.items()}
    return flat
