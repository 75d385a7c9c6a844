"""What the tests of `finflow tune` share: small spaces, and what a study has in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
from pipeline_fixtures import tiny_settings

from finflow_sb3.config import Settings
from finflow_sb3.tuning.outcome import Tuned

TWO = (
    # With another rate even an untrained policy has another curve: no two trials are alike.
    "env_kwargs.trade_rate: {low: 0.02, high: 1.0, log: true}\n"
    "cqsac.gamma: {low: 0.9, high: 0.99}\n"
)
ONE = "iql.gamma: {low: 0.9, high: 0.99}\n"


def space(folder: Path, text: str = TWO) -> Path:
    """A file of a space."""
    path = folder / "space.yml"
    path.write_text(text)
    return path


def tunable(folder: Path, **changes: dict[str, Any]) -> Settings:
    """`tiny_settings` that lie in `TWO`."""
    return tiny_settings(folder, **{"env_kwargs": {"trade_rate": 0.1}, **changes})


def trials_of(tuned: Tuned) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=tuned.study, storage=tuned.storage).trials


def told(trials: list[optuna.trial.FrozenTrial]) -> list[Any]:
    return [(t.number, t.state, t.params, t.values, t.intermediate_values) for t in trials]
