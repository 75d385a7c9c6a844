"""Rules of a user's own: functions from the past to weights, which trade beside the known ones.

A function is given in Python, or named as ``module:function`` by a flag. Such a name is imported
where the user typed it, and never from a file that was read.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import tokenize
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.errors import ConfigError, DataError
from finflow_sb3.market.cache import content_key
from finflow_sb3.market.readers import plain
from finflow_sb3.messages import one_line, remedy, shown

__all__ = ["CASH", "GivenRule", "OwnRule", "Past", "own_rules", "whole_weights"]

Float = NDArray[np.float64]
# What an optimiser's rounding may leave: below zero, or above one in all.
TOLERANCE = 1e-6
# The name of what is no asset, where weights have names.
CASH = "cash"


@dataclass(frozen=True)
class Past:
    """What is known when a rule decides, at the close of the last of `dates`, and no more.

    Its arrays are copies that end with this day: nothing later is reachable through them. They
    can't be written to.

    Attributes
    ----------
    dates : datetime64[D], shape [t+1]
    assets : n names, in the order of all weights
    close : shape [t+1, n], adjusted closes; NaN where an asset is not listed
    cash_rate : shape [t+1], simple daily rate of cash, earned from the day before
    held : shape [n+1], weights as they have drifted until now, cash last
    anchors : the classical allocations of this day by name, each of shape [n+1], cash last
    tradable : bool, shape [n], the assets that may be held from now on: what is given to others
        is shared out among these
    """

    dates: NDArray[np.datetime64]
    assets: tuple[str, ...]
    close: Float
    cash_rate: Float
    held: Float
    anchors: dict[str, Float]
    tradable: NDArray[np.bool_]


Function = Callable[[Past], ArrayLike]


@dataclass(frozen=True)
class OwnRule:
    """A user's rule.

    Attributes
    ----------
    name : ``module:function``, by which datasets call it
    function : gives weights of the assets, shape [n] or [n+1] with cash last, which are not
        negative and sum to 1 at most; what is missing to 1 is cash. A pandas Series with names
        is taken by these
    source : a hash of the file that the function stands in, None where that file does not say
        what it does (a closure, a notebook's cell, a file written anew since it was imported):
        such a rule can't be told from another of its name
    """

    name: str
    function: Function
    source: str | None

    def target(self, batch: PortfolioBatch, member: int) -> Float:
        """Target weights [n+1] of one portfolio at its present row.

        Raises
        ------
        DataError
            If the function fails, or what it gives is no allocation; the message names rule and
            date.
        """
        past = past_of(batch, member)
        where = f"{self.name}: on {past.dates[-1]} "
        try:
            given: Any = self.function(past)
        except (Exception, SystemExit) as error:
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise DataError(
                f"{where}it raised {what}{_line(error, 1)}; correct the rule"
            ) from error
        try:
            return whole_weights(given, past.assets)
        except ValueError as error:
            raise DataError(f"{where}{error}; correct the rule") from None


def _line(error: BaseException, frame: int = -1) -> str:
    """Which line of a file was running, as in `` (rules.py, line 12)``; empty where none was.

    Parameters
    ----------
    frame : of those from here to where it was raised
    """
    frames = traceback.extract_tb(error.__traceback__)[frame:]
    if not frames or frames[0].filename.startswith("<"):
        return ""
    return f" ({Path(frames[0].filename).name}, line {frames[0].lineno})"


def past_of(batch: PortfolioBatch, member: int) -> Past:
    """What one portfolio of a batch knows at its present row."""
    market, row = batch.market, int(batch.row[member])
    which = np.array([member])
    weights, tradable = batch.anchors(which)[0], batch.tradable(which)
    every = np.ones(len(market.prices.assets), dtype=np.bool_)
    return Past(
        dates=_kept(market.prices.dates[: row + 1]),
        assets=market.prices.assets,
        close=_kept(market.prices.listed_close()[: row + 1]),
        cash_rate=_kept(market.prices.cash_rate[: row + 1]),
        held=_kept(batch.held[member]),
        anchors={
            name: _kept(each) for name, each in zip(market.anchors.names, weights, strict=True)
        },
        tradable=_kept(every if tradable is None else tradable[0]),
    )


def _kept(array: NDArray[Any]) -> NDArray[Any]:
    """A copy that can't be written to. (A view would lead to the whole through its base.)"""
    copy = array.copy()
    copy.setflags(write=False)
    return copy


def whole_weights(given: Any, assets: Sequence[str]) -> Float:
    """Checked weights [n+1] that sum to one, cash last.

    Raises
    ------
    ValueError
        Saying what is wrong with them.
    """
    weights, n_assets = _numbers(_in_order(given, assets)), len(assets)
    if weights.shape not in ((n_assets,), (n_assets + 1,)):
        raise ValueError(
            f"gave weights of shape {weights.shape}, expected ({n_assets},), or "
            f"({n_assets + 1},) with cash last"
        )
    if not np.isfinite(weights).all():
        place = int(np.argmin(np.isfinite(weights)))
        raise ValueError(f"gave {weights[place]} as weight {place + 1}")
    if weights.min() < -TOLERANCE:
        place = int(weights.argmin())
        raise ValueError(f"gave {weights[place]:.6g} as weight {place + 1}, below zero")
    weights = np.maximum(weights, 0.0)
    total = float(weights.sum())
    if total > 1.0 + TOLERANCE:
        raise ValueError(f"gave weights that sum to {total:.6g}, more than 1")
    whole = np.zeros(n_assets + 1)
    whole[: len(weights)] = weights / max(total, 1.0)
    whole[-1] += max(0.0, 1.0 - float(whole.sum()))
    return whole


def _numbers(given: Any) -> Float:
    try:
        return np.array(given, dtype=np.float64)
    except Exception:  # each library's arrays fail in their own way
        raise ValueError(f"gave {shown(given)}, which are no weights") from None


def _in_order(given: Any, assets: Sequence[str]) -> Any:
    """The values of a Series with names as a list [n+1], where absent names have 0; what else is
    given, as it is.
    """
    pandas = sys.modules.get("pandas")  # nobody has a Series who has not imported it
    if pandas is None or not isinstance(given, pandas.Series):
        return given
    if not any(isinstance(name, str) for name in given.index):
        return given
    ordered: list[Any] = [0.0] * (len(assets) + 1)
    places: set[int] = set()
    for name, weight in zip(given.index, given.tolist(), strict=True):
        place = _place(name, assets)
        if place in places:
            raise ValueError(f"gave {name!r} two weights")
        places.add(place)
        ordered[place] = weight
    return ordered


def _place(name: Any, assets: Sequence[str]) -> int:
    """Where the weight of this name stands, cash last."""
    if name in assets:
        return assets.index(name)
    if isinstance(name, str) and plain(name) == CASH:
        return len(assets)
    raise ValueError(f"gave a weight to {name!r}, which is no asset ({remedy(str(name), assets)})")


# ------------------------------------------------------------------ finding them

GivenRule = str | Function | OwnRule
"""A rule as a user gives it: the function, or ``module:function``."""


def own_rules(given: Iterable[GivenRule]) -> tuple[OwnRule, ...]:
    """Rules from functions and ``module:function`` names; modules are imported here.

    Raises
    ------
    ConfigError
        If a name is not of that form, leads to no function, or stands for two rules.
    """
    rules = tuple(_found(each) for each in given)
    names = [each.name for each in rules]
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise ConfigError(f"{twice[0]}: two rules are called so; give each once, or rename one")
    return rules


def _found(given: GivenRule) -> OwnRule:
    if isinstance(given, OwnRule):
        return given
    return _named_rule(given) if isinstance(given, str) else _rule(given)


def _rule(function: Function, name: str | None = None) -> OwnRule:
    if not callable(function):
        raise ConfigError(f"{shown(function)} is no rule; give a function or 'module:function'")
    module = getattr(function, "__module__", type(function).__module__)
    own_name = getattr(function, "__qualname__", type(function).__qualname__)
    return OwnRule(name or f"{module}:{own_name}", function, _source(function))


def _source(function: Function) -> str | None:
    """A hash of the file that a plain function of a module stands in, if it still stands so."""
    if not inspect.isfunction(function) or function.__closure__ is not None:
        return None
    module = sys.modules.get(function.__module__)
    if getattr(module, function.__qualname__, None) is not function:
        return None
    path = Path(inspect.getsourcefile(function) or "")
    if not path.is_file():
        return None
    # In a session that has been open for a while the file may have been written anew.
    try:
        with tokenize.open(path) as file:
            text = file.read()
        compiled = compile(text, str(path), "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError):  # not decoded, or with null bytes
        return None
    return content_key(text) if function.__code__ in compiled.co_consts else None


def _named_rule(name: str) -> OwnRule:
    module_name, _, function_name = name.partition(":")
    parts = [*module_name.split("."), function_name]
    if not all(part.isidentifier() for part in parts):
        raise ConfigError(
            f"{shown(name)} is not module:function, as in my_rules:trend for the function trend "
            "of my_rules.py; rules that are built in go into --behaviours"
        )
    module = _imported(module_name, name)
    function = getattr(module, function_name, None)
    if not callable(function):
        near = difflib.get_close_matches(function_name, _functions(module), 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else "name one that it has"
        where = getattr(module, "__file__", None) or module_name
        raise ConfigError(f"{name}: {where} has no function {function_name!r}; {hint}")
    return _rule(function, name)


def _functions(module: Any) -> Sequence[str]:
    return [name for name, _ in inspect.getmembers(module, inspect.isfunction)]


def _imported(module: str, name: str) -> Any:
    """The module, looked for in the current folder too, behind all that is installed: a file
    there must not stand in for a library that somebody else imports.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise ConfigError(
                f"{name}: there is no module {module!r}, installed or in this folder; go to the "
                f"folder that {module.split('.', maxsplit=1)[0]}.py lies in, or set PYTHONPATH"
            ) from None
        raise _failed(name, error) from error
    except (Exception, SystemExit) as error:
        raise _failed(name, error) from error


def _failed(name: str, error: BaseException) -> ConfigError:
    what = one_line(f"{type(error).__name__}: {error}")
    return ConfigError(f"{name}: its module raised {what}{_line(error)}; correct it")
