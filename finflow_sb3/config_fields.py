"""Fields of settings: what type and range each has, checked when a dataclass of them is made."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, field
from functools import cache
from typing import Any, Literal

from finflow_sb3.errors import ConfigError
from finflow_sb3.messages import one_line, remedy, shown
from finflow_sb3.zoo_values import check_text, plain

__all__ = ["Checked", "check_given", "setting"]

Form = Callable[[Any], Any]
"""Gives a value back as it is to be kept, or raises a `ConfigError` without the name."""


def setting(
    default: Any,
    help: str,
    low: float | None = None,
    high: float | None = None,
    form: Form | None = None,
) -> Any:
    """A dataclass field with its description, its range (both ends included) and its form.

    Parameters
    ----------
    default : ``...`` for a field that must be given
    """
    metadata = {"help": help, "low": low, "high": high, "form": form}
    if default is ...:
        return field(metadata=metadata)
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class Checked:
    """Checks types, ranges and forms of a settings dataclass when it is made."""

    def __post_init__(self) -> None:
        kind: Any = type(self)
        hints = _hints(kind)
        for item in dataclasses.fields(kind):
            value = _checked(item, getattr(self, item.name), hints[item.name])
            object.__setattr__(self, item.name, value)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def check_given(kind: Any, values: dict[str, Any], what: str) -> dict[str, Any]:
    """`values` as the fields of `kind` keep them; fields that are not given stay out.

    Parameters
    ----------
    kind : a `Checked` dataclass
    what : what a name is, for messages ("argument of EvalCallback")

    Raises
    ------
    ConfigError
        If a name is unknown, a value wrong, or one that has no default is missing.
    """
    fields = {item.name: item for item in dataclasses.fields(kind)}
    hints = _hints(kind)
    for name in values:
        if name not in fields:
            raise ConfigError(f"unknown {what} {shown(name)}; {remedy(name, list(fields))}")
    for name, item in fields.items():
        if name not in values and item.default is MISSING and item.default_factory is MISSING:
            raise ConfigError(f"{name} is missing; give {name}: {item.metadata['help']}")
    return {name: _checked(fields[name], value, hints[name]) for name, value in values.items()}


def _checked(item: dataclasses.Field[Any], value: Any, hint: Any) -> Any:
    form = item.metadata["form"]
    try:
        value = _coerced(value, hint)
        _check_range(item, value)
        return value if form is None or value is None else form(value)
    except ConfigError as error:
        inner = str(error).startswith(".")  # a key of a mapping
        raise ConfigError(f"{item.name}{'' if inner else ': '}{error}") from None


def _coerced(value: Any, hint: Any) -> Any:
    """`value` as `hint` asks for it: YAML's 3 is a float where one is due, "1e-3" too."""
    origin = typing.get_origin(hint)
    options = typing.get_args(hint)
    if origin is Literal:
        return _choice(value, options)
    if origin in (typing.Union, types.UnionType):
        return _one_of(value, options)
    if origin is tuple:
        if isinstance(value, (str, dict)):  # as the zoo writes a single callback
            value = (value,)
        if not hasattr(value, "__iter__"):
            raise ConfigError(f"{shown(value)} is not a list")
        return tuple(_coerced(v, options[0]) for v in value)
    if hint is Any:
        return value
    kind = origin or hint
    if kind is dict:
        return _mapping(value, options)
    simple = {float: _number, int: _whole_number, str: _text}
    if kind in simple:
        return simple[kind](value)
    if isinstance(value, kind):
        return value
    raise ConfigError(f"{shown(value)} is not {_type_name(hint)}")


def _choice(value: Any, options: tuple[Any, ...]) -> Any:
    if isinstance(value, bool) and "off" in options:  # YAML reads on and off so
        value = "on" if value else "off"
    if value in options and not isinstance(value, bool):
        return value
    hint = remedy(value if isinstance(value, str) else "", options)
    raise ConfigError(f"{shown(value)} is not known; {hint}")


def _one_of(value: Any, options: tuple[Any, ...]) -> Any:
    if value is None and type(None) in options:
        return None
    errors = []
    for option in options:
        if option is not type(None):
            try:
                return _coerced(value, option)
            except ConfigError as error:
                errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    wanted = " or ".join(_type_name(option) for option in options)
    raise ConfigError(f"{shown(value)} is not {wanted}")


def _number(value: Any) -> float:
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            pass
        except OverflowError:
            raise ConfigError(f"{shown(value)} is too large") from None
        else:
            if math.isfinite(number):
                return number
    raise ConfigError(f"{shown(value)} is not a number")


def _whole_number(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, (float, str)):
        try:
            return int(value) if isinstance(value, str) else _whole(value)
        except ValueError:
            pass
        try:
            return _whole(float(value))  # 1e6 in a text
        except (ValueError, OverflowError):
            pass
    raise ConfigError(f"{shown(value)} is not a whole number")


def _whole(value: float) -> int:
    if not value.is_integer():
        raise ValueError
    return int(value)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return check_text(value)
    quotes = "; put it in quotes" if isinstance(value, (bool, int, float)) else ""
    raise ConfigError(f"{shown(value)} is not a text{quotes}")


def _mapping(value: Any, options: tuple[Any, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{shown(value)} is not a mapping")
    if not options or options[1] is Any:
        kept: dict[str, Any] = plain(value)
        return kept
    plain(dict.fromkeys(value))
    found = {}
    for name, item in value.items():
        try:
            found[name] = _coerced(item, options[1])
        except ConfigError as error:
            raise ConfigError(f".{one_line(name)}: {error}") from None
    return found


def _type_name(hint: Any) -> str:
    names = {
        float: "a number",
        int: "a whole number",
        str: "a text",
        bool: "true or false",
        dict: "a mapping",
        tuple: "a list",
        type(None): "null",
    }
    if typing.get_origin(hint) is Literal:
        return " or ".join(str(option) for option in typing.get_args(hint))
    return names.get(typing.get_origin(hint) or hint, str(hint))


def _check_range(item: dataclasses.Field[Any], value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    low, high = item.metadata.get("low"), item.metadata.get("high")
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"{'-inf' if low is None else low} to {'inf' if high is None else high}"
        raise ConfigError(f"{shown(value)} is out of range ({bounds})")
