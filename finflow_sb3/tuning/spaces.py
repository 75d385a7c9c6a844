"""Search spaces: which settings are tried, and over which values."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Mapping
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
from finflow_sb3.config_policies import EXPERTS, policy_fields
from finflow_sb3.ensembles import OF_TRAINING
from finflow_sb3.errors import ConfigError
from finflow_sb3.messages import one_line, remedy, shown
from finflow_sb3.network_sizes import NetworkSizes
from finflow_sb3.tuning.ranges import decoded, encoded, holds, read_range, tried_values, widened
from finflow_sb3.zoo_values import parse_yaml

__all__ = ["Space", "Values", "around", "defaults", "read_space", "with_values"]

Values = dict[str, Any]
"""A value for each setting, by `section.name` or `section.policy_kwargs.name`."""
KWARGS = "policy_kwargs"
SCALES = frozenset({"gate_scale", "tilt_scale", "drift_scale", "softmax_scale"})
"""What an action means: a pretrained policy has learned one meaning."""
VARIED = SCALES | OF_TRAINING | {"asset_dropout", "trade_rate"}
"""Settings of the environment that a policy may learn with; the others are its judges."""
OWN_SPACE = "give a space of your own without it (--space FILE)"


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
        if pretrained and _of_pretraining(section, str(name)):
            if file is not None:
                raise ConfigError(
                    f"{where}: {name} belongs to pretraining, which --pretrained has done; leave "
                    "it out"
                )
            continue
        ranges[str(name)] = read_range(f"{where}: {name}", spec)
        _try_values(str(name), ranges[str(name)], algo, settings, where, file is None)
    if not ranges:
        raise ConfigError(f"{where}: names no setting; give at least one")
    return Space(ranges)


def _content(algo: str, file: str | Path | None) -> tuple[str, Mapping[Any, Any]]:
    where = f"zoo_configs/spaces/{algo}.yml" if file is None else str(file)
    if file is None:
        source = importlib.resources.files("finflow_sb3.zoo_configs").joinpath(f"spaces/{algo}.yml")
        text = source.read_text("utf-8")
    else:
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
    section, field, key = _parts(name)
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
    if section == "env_kwargs" and field not in VARIED:
        raise ConfigError(
            f"{where}: {name} is what trials are judged by, not what they learn with; leave it "
            f"out, and set it for all of them with -p {field}:VALUE"
        )
    if bool(key) != (field == KWARGS):
        raise ConfigError(
            f"{where}: {name}: write section.name, or section.{KWARGS}.name for a size of networks"
        )
    _check_size(section, key, name, where)
    return section


def _check_size(section: str, key: str, name: str, where: str) -> None:
    """Refuse sizes of networks where another setting decides about them."""
    own = key in ("n_critics", "n_quantiles") and section in OFFLINE_ALGORITHMS
    if own or (key and section == "cqsac"):
        place = f"iql.{KWARGS}.{key}" if key not in ("n_critics", "n_quantiles") else f"iql.{key}"
        found = f"{section}.{key}" if own else place
        raise ConfigError(
            f"{where}: {name} is set where networks are pretrained; write {found}, or leave it "
            "out with --pretrained"
        )


def _parts(name: str) -> tuple[str, str, str]:
    """Section, setting, and the key of its mapping, empty where the setting is meant whole."""
    section, _, field = name.partition(".")
    field, _, key = field.partition(".")
    return section, field, key


def _of_pretraining(section: str, name: str) -> bool:
    return section in ("collect", *OFFLINE_ALGORITHMS) or (
        section == "env_kwargs" and _parts(name)[1] in SCALES
    )


def _try_values(
    name: str, each: BaseDistribution, algo: str, settings: Settings, where: str, packaged: bool
) -> None:
    """Refuse values that the setting itself may not have, before anything is trained."""
    for value in tried_values(each):
        try:
            with_values(settings, {name: value}, algo)
        except ConfigError as error:
            reason = str(error).removeprefix(f"{name}: ").removeprefix(f"{_parts(name)[1]}: ")
            what = f"; {OWN_SPACE}" if packaged else ""
            raise ConfigError(f"{where}: {name}: {reason}{what}") from None


def with_values(
    settings: Settings, values: Values, algo: str, arguments: Mapping[str, Any] | None = None
) -> tuple[Settings, dict[str, Any]]:
    """Settings with these values in them, and the arguments of a plain algorithm.

    CQSAC's networks take the sizes of those that are pretrained for them.

    Parameters
    ----------
    arguments : of the plain algorithm, which the values are put over

    Raises
    ------
    ConfigError
        If a value is none that its setting may have.
    """
    given = dict(arguments or {})
    changes: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, field, key = _parts(name)
        if section in PLAIN_ALGORITHMS:
            _put(given, field, key, decoded(value), given.get(KWARGS) or {})
            continue
        before = getattr(getattr(settings, section), KWARGS, {})
        # What a mapping says of a size counts for more than the setting of the same name.
        field, key = (KWARGS, field) if field in before else (field, key)
        _put(changes.setdefault(section, {}), field, key, decoded(value), before)
        size = key or field
        if algo == "cqsac" and section in OFFLINE_ALGORITHMS and _shapes(size, settings):
            online = changes.setdefault("cqsac", {})
            _put(online, KWARGS, size, decoded(value), settings.cqsac.policy_kwargs)
    if algo in PLAIN_ALGORITHMS:
        given = checked_arguments(algo, given)
    return settings.replace(**changes), given


def _put(into: dict[str, Any], field: str, key: str, value: Any, before: dict[str, Any]) -> None:
    into[field] = {**into.get(field, before), key: value} if key else value


def _shapes(size: str, settings: Settings) -> bool:
    """Whether networks are made of it that both phases have."""
    return settings.cqsac.policy == EXPERTS and size in NetworkSizes.__dataclass_fields__


def defaults(
    space: Space, settings: Settings, arguments: Mapping[str, Any] | None = None
) -> Values:
    """What the settings of a space are before any tuning, as Optuna keeps them."""
    return {name: encoded(_configured(name, settings, arguments or {})) for name in space.ranges}


def _configured(name: str, settings: Settings, arguments: Mapping[str, Any]) -> Any:
    section, field, key = _parts(name)
    plain = section in PLAIN_ALGORITHMS
    own = getattr(settings, section, None)
    mapping = (arguments.get(KWARGS) if plain else getattr(own, KWARGS, None)) or {}
    if key or (not plain and field in mapping):
        policy = arguments.get("policy", "MlpPolicy") if plain else EXPERTS
        size = key or field
        return mapping[size] if size in mapping else _usual(section, policy, size)
    return arguments.get(field) if plain else getattr(own, field)


def _usual(section: str, policy: str, size: str) -> Any:
    return getattr(policy_fields(section, policy)(), size)


def around(
    space: Space,
    now: Values,
    own: str | Path | None = None,
    remark: Callable[[str], None] = lambda text: None,
) -> Space:
    """A space that holds the settings as they are: the first trial is they.

    Packaged ranges are widened where they do not; a space of the user's own is as it is meant.

    Parameters
    ----------
    now : `defaults` of the space
    own : file of the space, None for a packaged one
    remark : told of ranges that were widened

    Raises
    ------
    ConfigError
        If a setting lies outside its range.
    """
    found = {}
    for name, each in space.ranges.items():
        found[name] = each
        if holds(each, now[name]):
            continue
        value = shown(decoded(now[name]))
        if own is not None:
            raise ConfigError(
                f"{own}: {name} is {value} in the settings, outside its range; widen the range, or "
                "set another value with -p"
            )
        wider = widened(each, now[name])
        if wider is None:
            raise ConfigError(
                f"--space: {name} is {value} in the settings, and the packaged range can't hold "
                f"that; set a number (-p {name}:NUMBER), or {OWN_SPACE}"
            )
        remark(f"{name}: {value} is added to the packaged range.")
        found[name] = wider
    return Space(found)
