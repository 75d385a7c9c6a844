"""Forms of settings that a type and a range do not say: dates, devices, risk measures."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable
from typing import Any

from finflow_sb3.errors import ConfigError
from finflow_sb3.messages import one_line, remedy, shown

__all__ = [
    "date",
    "device",
    "ent_coef",
    "names_among",
    "not_empty",
    "risk_measure",
    "risk_parts",
    "target_entropy",
]

_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?")
_RISKS = "neutral, cvar:<level in (0, 1]> or wang:<strength>"


def date(value: str) -> str:
    """A day as YYYY-MM-DD."""
    try:
        if _DATE.fullmatch(value) is None:
            raise ValueError
        datetime.date.fromisoformat(value)
    except ValueError:
        raise ConfigError(f"{shown(value)} is not a date; write it as YYYY-MM-DD") from None
    return value


def device(value: str) -> str:
    """The name of a device; whether it is there shows when a run starts."""
    if _DEVICE.fullmatch(value) is None:
        raise ConfigError(f"{shown(value)} is not auto, cpu, cuda or cuda:N")
    return value


def not_empty(value: Any) -> Any:
    """A list or text with something in it."""
    if not value:
        raise ConfigError("is empty; name at least one")
    return value


def names_among(known: tuple[str, ...], flag: str) -> Callable[[tuple[str, ...]], tuple[str, ...]]:
    """A form: one or more of the `known` names.

    Parameters
    ----------
    flag : by which code of the user's own is named: settings are read from files, and nothing
        that is read is run
    """

    def form(value: tuple[str, ...]) -> tuple[str, ...]:
        for name in not_empty(value):
            if ":" in name:
                raise ConfigError(
                    f"{shown(name)} is code of your own, which settings can't name; give it as "
                    f"{flag} {one_line(name)}"
                )
            if name not in known:
                raise ConfigError(f"{shown(name)} is not known; {remedy(name, known)}")
        return value

    return form


def risk_measure(value: str) -> str:
    """A measure that `risk_parts` can take apart."""
    risk_parts(value)
    return value


def risk_parts(measure: str) -> tuple[str, float]:
    """Kind and number of a risk measure: ``("cvar", 0.25)``; of `neutral` the number is 0.

    Raises
    ------
    ConfigError
        If it is none of `neutral`, `cvar:<level in (0, 1]>`, `wang:<strength under 10>`.
    """
    if measure == "neutral":
        return measure, 0.0
    kind, _, number = measure.partition(":")
    value = _float(number)
    if (kind == "cvar" and 0.0 < value <= 1.0) or (kind == "wang" and abs(value) < 10.0):
        return kind, value
    raise ConfigError(f"{shown(measure)} is not {_RISKS}")


def ent_coef(value: str | float) -> str | float:
    """SB3's entropy coefficient: a number, or ``auto``, or ``auto_<start>``."""
    text = str(value)
    automatic = text == "auto" or (text.startswith("auto_") and _float(text[5:]) > 0.0)
    if automatic or _float(text) >= 0.0:
        return value
    raise ConfigError(f"{shown(value)} is not a number from 0 up, auto or auto_<start over 0>")


def target_entropy(value: str | float) -> str | float:
    """SB3's target entropy, or that of the policy that a run is seeded with."""
    if value in ("auto", "seeded") or math.isfinite(_float(str(value))):
        return value
    raise ConfigError(f"{shown(value)} is not auto, seeded or a number")


def _float(text: str) -> float:
    """The finite number that a text is, else NaN, which no range holds."""
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan
