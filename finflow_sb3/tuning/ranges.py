"""Ranges of a search space as YAML has them: numbers from low to high, or choices."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, cast

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from finflow_sb3.errors import ConfigError
from finflow_sb3.messages import one_line, shown

__all__ = ["decoded", "encoded", "holds", "read_range", "tried_values", "widened"]

_PARTS = {"low", "high", "log", "step", "choices"}
# Somewhere between two ends: what takes whole numbers alone refuses it.
BETWEEN = 0.382


def encoded(value: Any) -> Any:
    """A value as Optuna keeps it: lists, as widths of layers, are text there."""
    return json.dumps(list(value)) if isinstance(value, (list, tuple)) else value


def decoded(value: Any) -> Any:
    """A value as a setting takes it."""
    listed = isinstance(value, str) and value.startswith("[")
    return json.loads(value) if listed else value


def read_range(where: str, spec: Any) -> BaseDistribution:
    """The distribution of ``{low, high, log, step}`` or ``{choices}``.

    Raises
    ------
    ConfigError
        If it is neither, or holds less than two values.
    """
    if not isinstance(spec, dict) or not spec or set(spec) - _PARTS:
        raise ConfigError(
            f"{where}: {shown(spec)} is neither {{low: 1, high: 2}} (log: true, step) nor "
            "{choices: [1, 2]}"
        )
    return _choices(where, spec) if "choices" in spec else _numbers(where, spec)


def _choices(where: str, spec: dict[Any, Any]) -> BaseDistribution:
    choices = spec["choices"]
    if len(spec) > 1 or not isinstance(choices, list) or len(choices) < 2:
        raise ConfigError(f"{where}: choices is a list of two values or more, and stands alone")
    for choice in choices:
        if not isinstance(choice, (bool, int, float, str, list, type(None))):
            raise ConfigError(
                f"{where}: {shown(choice)} is no number, text, truth value or list of these"
            )
    kept = [encoded(choice) for choice in choices]
    twice = [choice for choice in kept if kept.count(choice) > 1]
    if twice:
        raise ConfigError(f"{where}: {shown(decoded(twice[0]))} stands twice; remove one")
    return CategoricalDistribution(kept)


def _numbers(where: str, spec: dict[Any, Any]) -> BaseDistribution:
    low: Any = spec.get("low")
    high: Any = spec.get("high")
    if not (_is_number(low) and _is_number(high)):
        raise ConfigError(f"{where}: low and high have to be numbers")
    if not low < high:
        raise ConfigError(f"{where}: low {low} has to be under high {high}")
    log, step = spec.get("log", False), spec.get("step")
    if not isinstance(log, bool):
        raise ConfigError(f"{where}: log is true or false, not {shown(log)}")
    whole = isinstance(low, int) and isinstance(high, int)
    if step is not None:
        _check_step(where, low, high, step, whole)
    try:
        if whole:
            return IntDistribution(low, high, log=log, step=1 if step is None else step)
        return FloatDistribution(float(low), float(high), log=log, step=step)
    except ValueError as error:
        raise ConfigError(f"{where}: {one_line(str(error))}") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_step(where: str, low: float, high: float, step: Any, whole: bool) -> None:
    if not _is_number(step) or step <= 0 or (whole and not isinstance(step, int)):
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"{where}: step is {kind} over 0, not {shown(step)}")
    if not _on_grid(low, high, step):
        raise ConfigError(
            f"{where}: steps of {step} do not lead from low {low} to high {high}; give another "
            "step, or move an end"
        )


def _on_grid(low: float, value: float, step: float) -> bool:
    count = (value - low) / step
    return round(count) >= 1 and math.isclose(count, round(count), rel_tol=1e-9)


def tried_values(each: BaseDistribution) -> Sequence[Any]:
    """Values that show whether a setting takes all of a range."""
    if isinstance(each, CategoricalDistribution):
        return each.choices
    if isinstance(each, FloatDistribution) and each.step is None:
        return (each.low, each.high, each.low + BETWEEN * (each.high - each.low))
    ends = cast(FloatDistribution | IntDistribution, each)
    return (ends.low, ends.high, ends.low + cast(float, ends.step))


def holds(each: BaseDistribution, value: Any) -> bool:
    """Whether a range has this value of a setting in it."""
    if isinstance(each, CategoricalDistribution):
        return encoded(value) in each.choices
    ends = cast(FloatDistribution | IntDistribution, each)
    if not _is_number(value) or not ends.low <= value <= ends.high:
        return False
    return ends.step is None or value == ends.low or _on_grid(ends.low, value, ends.step)


def widened(each: BaseDistribution, value: Any) -> BaseDistribution | None:
    """A range with this value in it too; None where there is none of its kind."""
    if isinstance(each, CategoricalDistribution):
        return None if isinstance(value, dict) else _with_choice(each, encoded(value))
    ends = cast(FloatDistribution | IntDistribution, each)
    if not _is_number(value) or ends.step not in (None, 1) or (ends.log and value <= 0):
        return None
    low, high = min(ends.low, value), max(ends.high, value)
    if isinstance(each, IntDistribution):
        return IntDistribution(int(low), int(high), log=each.log) if value == int(value) else None
    return FloatDistribution(float(low), float(high), log=ends.log)


def _with_choice(each: CategoricalDistribution, value: Any) -> CategoricalDistribution:
    choices = [*each.choices, value]
    return CategoricalDistribution(sorted(choices) if all(map(_is_number, choices)) else choices)
