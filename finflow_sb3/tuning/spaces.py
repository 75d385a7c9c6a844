"""Search spaces: which settings are tried, and over which values."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from finflow_sb3.config import OFFLINE_ALGORITHMS, Settings
from finflow_sb3.config_arguments import checked_arguments
from finflow_sb3.config_keys import ALGORITHMS, PLAIN_ALGORITHMS, check_key
from finflow_sb3.errors import ConfigError
from finflow_sb3.messages import one_line, remedy, shown
from finflow_sb3.zoo_values import parse_yaml

__all__ = ["Space", "Values", "defaults", "read_space", "with_values"]

Values = dict[str, Any]
"""A value for each setting, by `section.name`."""
_PARTS = {"low", "high", "log", "step", "choices"}


@dataclass(frozen=True)
class Space:
    """Settings by `section.name`, in the order of their importance, and what they may be."""

    ranges: dict[str, BaseDistribution]

    def suggest(self, trial: optuna.trial.BaseTrial) -> Values:
        """A value of each, as the study's sampler sees fit."""
        return {name: _suggested(trial, name, each) for name, each in self.ranges.items()}

    def as_dict(self) -> dict[str, Any]:
        """Plain values that tell two spaces apart."""
        return {
            name: {"kind": type(each).__name__, **each._asdict()}
            for name, each in self.ranges.items()
        }

    def first(self, count: int | None) -> Space:
        """The settings that matter most."""
        return Space(dict(list(self.ranges.items())[:count]))


def _suggested(trial: optuna.trial.BaseTrial, name: str, each: BaseDistribution) -> Any:
    if isinstance(each, FloatDistribution):
        return trial.suggest_float(name, each.low, each.high, step=each.step, log=each.log)
    if isinstance(each, IntDistribution):
        return trial.suggest_int(name, each.low, each.high, step=each.step, log=each.log)
    return trial.suggest_categorical(name, cast(CategoricalDistribution, each).choices)


def read_space(
    algo: str, settings: Settings, file: str | Path | None = None, pretrained: bool = False
) -> Space:
    """The packaged search space of an algorithm, or one from a file.

    Parameters
    ----------
    algo : of the study
    settings : that the values are put into
    file : YAML with `section.name` and its range or choices, the most important first
    pretrained : leave settings of the offline phase out

    Raises
    ------
    ConfigError
        If a setting is unknown or not one of this algorithm's training, or a value is none that
        it may have.
    """
    if algo not in ALGORITHMS:
        raise ConfigError(f"--algo: {shown(algo)} is not known; {remedy(algo, ALGORITHMS)}")
    where, content = _content(algo, file)
    ranges = {}
    for name, spec in content.items():
        section = _section(str(name), algo, where)
        if pretrained and section in ("collect", *OFFLINE_ALGORITHMS):
            if file is not None:
                raise ConfigError(
                    f"{where}: {name} belongs to pretraining, which --pretrained has done; leave "
                    "it out"
                )
            continue
        ranges[str(name)] = _range(f"{where}: {name}", spec)
        _try_ends(str(name), ranges[str(name)], algo, settings, where)
    if not ranges:
        raise ConfigError(f"{where}: names no setting; give at least one")
    return Space(ranges)


def _content(algo: str, file: str | Path | None) -> tuple[str, Mapping[Any, Any]]:
    if file is None:
        where = f"zoo_configs/spaces/{algo}.yml"
        source = importlib.resources.files("finflow_sb3.zoo_configs").joinpath(f"spaces/{algo}.yml")
        text = source.read_text("utf-8")
    else:
        where = str(file)
        try:
            text = Path(file).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: cannot be read ({one_line(str(error))})") from None
    content = parse_yaml(text, where)
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: is no mapping of settings to their ranges")
    return where, content


def _section(name: str, algo: str, where: str) -> str:
    """The section of a setting, which has to be part of this algorithm's training."""
    section, _, field = name.partition(".")
    trains = {"env_kwargs", "monitor", algo}
    if algo == "cqsac":
        trains |= {"iql", "collect"}
    elif algo in OFFLINE_ALGORITHMS:
        trains |= {"collect"}
    if section not in trains:
        raise ConfigError(
            f"{where}: {shown(name)} is no setting of {algo}'s training; write section.name with a "
            f"section of {', '.join(sorted(trains))}"
        )
    if section not in PLAIN_ALGORITHMS:
        check_key(section, field, where)
    return section


def _range(where: str, spec: Any) -> BaseDistribution:
    if not isinstance(spec, dict) or not spec or set(spec) - _PARTS:
        raise ConfigError(
            f"{where}: {shown(spec)} is neither {{low: 1, high: 2}} (log: true, step) nor "
            "{choices: [1, 2]}"
        )
    if "choices" in spec:
        choices = spec["choices"]
        if len(spec) > 1 or not isinstance(choices, list) or len(choices) < 2:
            raise ConfigError(f"{where}: choices is a list of two values or more, and stands alone")
        return CategoricalDistribution(choices)
    log, step = bool(spec.get("log", False)), spec.get("step")
    ends: list[Any] = [spec.get("low"), spec.get("high")]
    if not all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in ends):
        raise ConfigError(f"{where}: low and high have to be numbers")
    low, high = ends
    try:
        if all(isinstance(x, int) for x in ends):
            return IntDistribution(low, high, log=log, step=1 if step is None else step)
        return FloatDistribution(float(low), float(high), log=log, step=step)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {one_line(str(error))}") from None


def _try_ends(name: str, each: BaseDistribution, algo: str, settings: Settings, where: str) -> None:
    """Refuse values that the setting itself may not have, before anything is trained."""
    if isinstance(each, CategoricalDistribution):
        values: Sequence[Any] = each.choices
    else:
        ends = cast(FloatDistribution | IntDistribution, each)
        values = (ends.low, ends.high)
    for value in values:
        try:
            with_values(settings, {name: value}, algo)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None


def with_values(
    settings: Settings, values: Values, algo: str, arguments: Mapping[str, Any] | None = None
) -> tuple[Settings, dict[str, Any]]:
    """Settings with these values in them, and the arguments of a plain algorithm.

    Parameters
    ----------
    arguments : of the plain algorithm, which the values are put over

    Raises
    ------
    ConfigError
        If a value is none that its setting may have.
    """
    changes: dict[str, dict[str, Any]] = {}
    given = dict(arguments or {})
    for name, value in values.items():
        section, _, field = name.partition(".")
        if section in PLAIN_ALGORITHMS:
            given[field] = value
        else:
            changes.setdefault(section, {})[field] = value
    if algo in PLAIN_ALGORITHMS:
        given = checked_arguments(algo, given)
    return settings.replace(**changes), given


def defaults(
    space: Space, settings: Settings, arguments: Mapping[str, Any] | None = None
) -> Values:
    """What the settings of a space are before any tuning; what no range holds is left out."""
    found = {}
    for name, each in space.ranges.items():
        section, _, field = name.partition(".")
        plain = section in PLAIN_ALGORITHMS
        value = (
            (arguments or {}).get(field) if plain else getattr(getattr(settings, section), field)
        )
        if _holds(each, value):
            found[name] = value
    return found


def _holds(each: BaseDistribution, value: Any) -> bool:
    if isinstance(each, CategoricalDistribution):
        return value in each.choices
    ends = cast(FloatDistribution | IntDistribution, each)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and ends.low <= value <= ends.high
