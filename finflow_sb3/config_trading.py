"""Settings of costs and limits that are mappings, and what these settings say about each other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from finflow_sb3.errors import ConfigError
from finflow_sb3.messages import one_line, remedy, shown

if TYPE_CHECKING:
    from finflow_sb3.config import EnvSettings

__all__ = [
    "FrozenMapping",
    "by_asset",
    "group_limits",
    "groups",
    "require_consistent",
    "trading_faults",
]


class FrozenMapping(dict[str, Any]):
    """A mapping that stays as it is made, so that settings with one are a key of a cache.

    It is a `dict` to JSON, to `dataclasses.asdict` and in comparisons.
    """

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True))

    def __reduce__(self) -> Any:
        return (FrozenMapping, (dict(self),))

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("settings are frozen; make new ones with dataclasses.replace")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse


def by_asset(low: float, high: float) -> Callable[[Any], Any]:
    """A number, or numbers by asset, each in this range."""

    def form(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return FrozenMapping(
            {name: _number(name, number, low, high) for name, number in value.items()}
        )

    return form


def groups(value: dict[str, Any]) -> FrozenMapping:
    """Assets by the name of their group; an asset stands in one group at most."""
    home: dict[str, str] = {}
    found: dict[str, list[str]] = {}
    for name, members in value.items():
        if not isinstance(members, (list, tuple)) or not members:
            raise ConfigError(f".{one_line(name)}: {shown(members)} is no list of assets")
        for asset in members:
            if not isinstance(asset, str):
                raise ConfigError(f".{one_line(name)}: {shown(asset)} is no asset; quote its name")
            if asset in home:
                raise ConfigError(
                    f".{one_line(name)}: {shown(asset)} stands in {shown(home[asset])} already; "
                    "an asset has one group"
                )
            home[asset] = name
        found[name] = list(members)
    return FrozenMapping(found)


def group_limits(value: dict[str, Any]) -> FrozenMapping:
    """[least, most] by group, each a share of the portfolio's value."""
    found = {}
    for name, pair in value.items():
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ConfigError(f".{one_line(name)}: {shown(pair)} is not [least, most]")
        low, high = (_number(name, number, 0.0, 1.0) for number in pair)
        if low > high:
            raise ConfigError(f".{one_line(name)}: {low} is over {high}; give [least, most]")
        found[name] = [low, high]
    return FrozenMapping(found)


def _number(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high:
        return float(value)
    raise ConfigError(f".{one_line(name)}: {shown(value)} is no number from {low} to {high}")


Fault = tuple[tuple[str, ...], str]
"""The settings that contradict each other, and why."""


def trading_faults(env: EnvSettings) -> Iterator[Fault]:
    """What costs and limits contradict each other in, before any asset is known."""
    for name in ("ticket", "minimum_fee", "impact"):
        if getattr(env, name) > 0.0 and env.capital is None:
            yield (name, "capital"), f"{getattr(env, name)} needs {_CAPITAL}"
    if env.slippage != "none" and env.capital is None:
        yield ("slippage", "capital"), f"{env.slippage} needs {_CAPITAL}"
    for name in env.groups:
        if name not in env.group_limits:
            yield ("groups", "group_limits"), f"{shown(name)} has no entry in group_limits; add one"
    for name in env.group_limits:
        if name not in env.groups:
            hint = remedy(name, list(env.groups)) if env.groups else "give groups: its assets"
            yield ("group_limits", "groups"), f"{shown(name)} is no group; {hint}"
    low, high = env.min_position, env.max_position
    if isinstance(low, float) and isinstance(high, float) and low > high:
        yield ("min_position", "max_position"), f"{low} is over max_position {high}; lower it"


_CAPITAL = "the portfolio's value in money; set capital"


def require_consistent(env: EnvSettings) -> None:
    """Refuse the first of `trading_faults`.

    Raises
    ------
    ConfigError
        Naming the setting.
    """
    for names, reason in trading_faults(env):
        raise ConfigError(f"{names[0]}: {reason}")
