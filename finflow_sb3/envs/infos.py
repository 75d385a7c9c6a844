"""Infos of a step: dictionaries that are filled as far as they are read."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["LazyInfo", "LazyInfos", "StepRecord"]

# A dictionary keeps the order and finds a name at once.
NAMES = dict.fromkeys(("date", "row", "value", "weights", "turnover", "cost"))


class Source(Protocol):
    """What infos are read from: entries by name, for each portfolio."""

    @property
    def names(self) -> Collection[str]: ...

    def read(self, i: int, name: str) -> Any: ...


@dataclass(frozen=True)
class StepRecord:
    """The arrays of one step, which nothing writes to after it.

    Attributes
    ----------
    dates : shape [T], days of the market
    row, value, turnover, cost : shape [B]
    weights : shape [B, n+1], as held after the trade of the step
    """

    dates: NDArray[np.datetime64]
    row: NDArray[np.int64]
    value: NDArray[np.float64]
    weights: NDArray[np.float64]
    turnover: NDArray[np.float64]
    cost: NDArray[np.float64]

    @property
    def names(self) -> Collection[str]:
        return NAMES

    def read(self, i: int, name: str) -> Any:
        """Entry `name` of portfolio i's info."""
        if name == "date":
            return str(self.dates[self.row[i]])
        if name == "weights":
            return self.weights[i].copy()
        return getattr(self, name)[i].item()

    def info(self, i: int) -> dict[str, Any]:
        """The whole info of portfolio i."""
        return {name: self.read(i, name) for name in NAMES}


class LazyInfo(dict[str, Any]):
    """A dictionary whose entries are made when they are first read: most never are.

    What is written before that stands over what would be made. Made by `LazyInfos`, which sets
    source and index itself: Python spends more on a constructor than on everything else here.
    """

    __slots__ = ("_index", "_source")

    _source: Source | None
    _index: int

    def _fill(self) -> None:
        source = self._source
        if source is not None:
            for name in source.names:
                if not super().__contains__(name):
                    super().__setitem__(name, source.read(self._index, name))
            self._source = None

    def __missing__(self, key: str) -> Any:
        if self._source is None or key not in self._source.names:
            raise KeyError(key)
        value = self[key] = self._source.read(self._index, key)
        return value

    def __contains__(self, key: object) -> bool:
        known = super().__contains__(key)
        return known or (self._source is not None and key in self._source.names)

    def get(self, key: str, default: Any = None) -> Any:
        # SB3 asks every info at every step for entries that only few have: nothing is made then.
        if self._source is None or key not in self._source.names:
            return super().get(key, default)
        return self[key]

    def __iter__(self) -> Iterator[str]:
        self._fill()
        return super().__iter__()

    def __reversed__(self) -> Iterator[str]:
        self._fill()
        return super().__reversed__()

    def __len__(self) -> int:
        self._fill()
        return super().__len__()

    def keys(self) -> Any:
        self._fill()
        return super().keys()

    def values(self) -> Any:
        self._fill()
        return super().values()

    def items(self) -> Any:
        self._fill()
        return super().items()

    def pop(self, *args: Any) -> Any:
        self._fill()
        return super().pop(*args)

    def popitem(self) -> tuple[str, Any]:
        self._fill()
        return super().popitem()

    def clear(self) -> None:
        self._fill()
        super().clear()

    def setdefault(self, key: str, default: Any = None) -> Any:
        self._fill()
        return super().setdefault(key, default)

    def __delitem__(self, key: str) -> None:
        self._fill()
        super().__delitem__(key)

    def copy(self) -> dict[str, Any]:
        self._fill()
        return dict(super().items())

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __eq__(self, other: object) -> bool:
        self._fill()
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None

    def __repr__(self) -> str:
        return repr(self.copy())

    def __reduce__(self) -> Any:
        return (dict, (self.copy(),))


class LazyInfos(list[dict[str, Any]]):
    """The infos of a step, one for each of `count` portfolios, made when they are first touched.

    Making hundreds of dictionaries takes a tenth of a step's time, and many callers read none.

    Parameters
    ----------
    known : entries that every info has from the start. Something has to be among them: `json`
        takes a dictionary without entries for empty and never asks.
    """

    __slots__ = ("_count", "_known", "_source")

    def __init__(self, source: Source, known: dict[str, Any], count: int):
        self._source: Source | None = source
        self._known, self._count = known, count

    def _fill(self) -> None:
        source = self._source
        if source is not None:
            self._source = None
            for i in range(self._count):
                info = LazyInfo(self._known)
                info._source, info._index = source, i
                super().append(info)

    def __radd__(self, other: list[Any]) -> list[Any]:
        return other + list(self)

    def __reduce__(self) -> Any:
        return (list, (list(self),))


def _touching(name: str) -> Any:
    """The method of `list`, on a list that is filled first."""
    method = getattr(list, name)

    def call(self: LazyInfos, *args: Any, **kwargs: Any) -> Any:
        self._fill()
        return method(self, *args, **kwargs)

    call.__name__ = name
    return call


# What `list` itself defines, not `object`; a test compares this with the running Python's.
TOUCHING = (
    *("__add__", "__contains__", "__delitem__", "__eq__", "__ge__", "__getitem__", "__gt__"),
    *("__iadd__", "__imul__", "__iter__", "__le__", "__len__", "__lt__", "__mul__", "__ne__"),
    *("__repr__", "__reversed__", "__rmul__", "__setitem__", "append", "clear", "copy", "count"),
    *("extend", "index", "insert", "pop", "remove", "reverse", "sort"),
)
for _name in TOUCHING:
    setattr(LazyInfos, _name, _touching(_name))
