"""What a step hands out: infos that are made when they are read, and arrays that stay."""

from __future__ import annotations

import copy
import itertools
import json
import operator
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from markets import random_actions, small_market

from finflow_sb3.envs.infos import TOUCHING, LazyInfo, LazyInfos
from finflow_sb3.envs.rows import Recycled
from finflow_sb3.envs.vec import PortfolioVecEnv

# ------------------------------------------------------------------ one info


class Noted:
    """What an info is read from, and what was read."""

    names = ("date", "value")

    def __init__(self) -> None:
        self.made: list[str] = []

    def read(self, i: int, name: str) -> Any:
        self.made.append(name)
        return {"date": "2000-01-03", "value": 0.5 + i}[name]


def filled() -> tuple[LazyInfo, dict[str, Any], list[str]]:
    """The second of two infos, what it holds, and what was made for it."""
    source = Noted()
    info = LazyInfos(source, {"known": False}, 2)[1]
    return info, {"known": False, "date": "2000-01-03", "value": 1.5}, source.made


READERS = {
    "dict": dict,
    "unpack": lambda info: {**info},
    "copy": lambda info: info.copy(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda info: pickle.loads(pickle.dumps(info)),  # noqa: S301 (its own bytes)
    "json": lambda info: json.loads(json.dumps(info)),
    "items": lambda info: dict(info.items()),
    "keys": lambda info: {key: info[key] for key in info},
    "values": lambda info: dict(zip(info.keys(), info.values(), strict=True)),
    "union": lambda info: info | {},
    "right union": lambda info: {} | info,
    "repr": lambda info: dict(eval(repr(info))),  # noqa: S307 (its own words)
    "update": lambda info: dict(list(info.items())),
    "reversed": lambda info: {key: info[key] for key in reversed(info)},
    "popitem": lambda info: dict(info.popitem() for _ in range(3)),
}


@pytest.mark.parametrize("reader", READERS)
def test_lazy_info_reads_as_a_dictionary(reader: str) -> None:
    info, content, built = filled()
    assert built == []
    assert READERS[reader](info) == content
    assert built == ["date", "value"]


def test_lazy_info_behaves_as_a_dictionary() -> None:
    assert filled()[0] == filled()[1]
    assert filled()[0] != {}
    assert (filled()[0] != filled()[1]) is False
    assert len(filled()[0]) == 3
    info, _, built = filled()
    assert info["known"] is info.get("known") is False
    assert info.get("episode") is None
    assert "episode" not in info
    assert "date" in info
    assert built == []
    assert bool(filled()[0])
    assert "date" in filled()[0]
    assert filled()[0].get("value") == 1.5
    assert filled()[0].get("other", 7) == 7
    assert filled()[0].pop("value") == 1.5
    assert filled()[0].pop("other", None) is None
    assert filled()[0].setdefault("value", 2.0) == 1.5
    with pytest.raises(KeyError):
        filled()[0]["other"]
    info, _, built = filled()
    info["value"] = 9.0
    assert built == []
    assert info["value"] == 9.0
    assert info["date"] == "2000-01-03"
    del info["date"]
    assert dict(info) == {"known": False, "value": 9.0}
    info, _, built = filled()
    assert info["value"] == info["value"] == info.get("value") == 1.5
    assert built == ["value"]
    info.update(value=7.0)
    assert dict(info) == {"known": False, "date": "2000-01-03", "value": 7.0}
    assert built == ["value", "date"]
    info, _, _ = filled()
    info.clear()
    assert dict(info) == {}
    assert info.get("date") is None
    merged, _, _ = filled()
    merged |= {"other": 1}
    assert dict(merged) == {**filled()[1], "other": 1}


# ------------------------------------------------------------------ all of them


LIST_READERS: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "unpack": lambda infos: [*infos],
    "comprehension": lambda infos: [info for info in infos],  # noqa: C416 (another path in C)
    "index": lambda infos: [infos[0], infos[1], infos[-1]],
    "slice": lambda infos: infos[:],
    "copy": lambda infos: infos.copy(),
    "enumerate": lambda infos: [info for _, info in enumerate(infos)],
    "zip": lambda infos: [info for info, _ in zip(infos, range(3), strict=True)],
    "reversed": lambda infos: list(reversed(infos))[::-1],
    "add": lambda infos: operator.add(infos, []),
    "right add": lambda infos: operator.add([], infos),
    "chain": lambda infos: list(itertools.chain([], infos)),
    "in-place add": lambda infos: operator.iadd([], infos),
    "length": lambda infos: [infos[i] for i in range(len(infos))],
    "pop": lambda infos: [infos.pop(0) for _ in range(3)],
    "sorted": lambda infos: sorted(infos, key=lambda info: info["value"]),
    "tuple": lambda infos: [*tuple(infos)],
    "array": lambda infos: np.array(infos, dtype=object).tolist(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda infos: pickle.loads(pickle.dumps(infos)),  # noqa: S301 (its own bytes)
    "json": lambda infos: json.loads(json.dumps(infos)),
    "repr": lambda infos: eval(repr(infos)),  # noqa: S307 (its own words)
}


@pytest.mark.parametrize("reader", LIST_READERS)
def test_lazy_infos_read_as_a_list(reader: str) -> None:
    infos = LazyInfos(Noted(), {"known": False}, 3)
    assert isinstance(infos, list)
    expected = [{"known": False, "date": "2000-01-03", "value": 0.5 + i} for i in range(3)]
    assert LIST_READERS[reader](infos) == expected
    assert LazyInfos(Noted(), {"known": False}, 3) == expected
    assert expected == LazyInfos(Noted(), {"known": False}, 3)


def test_lazy_infos_change_as_a_list() -> None:
    infos = LazyInfos(Noted(), {"known": False}, 2)
    infos[1] = {"value": 7.0}
    assert infos == [{"known": False, "date": "2000-01-03", "value": 0.5}, {"value": 7.0}]
    assert bool(infos)
    infos = LazyInfos(Noted(), {"known": False}, 2)
    infos.append({})
    assert len(infos) == 3 and infos[2] == {}
    infos = LazyInfos(Noted(), {"known": False}, 2)
    infos.clear()
    assert infos == [] and not infos


def test_no_method_of_a_list_is_left_out() -> None:
    """One that is not overridden would see the list before it is filled."""
    content_free = {"__class_getitem__", "__doc__", "__getattribute__", "__hash__", "__init__"}
    content_free |= {"__new__", "__sizeof__"}
    assert set(TOUCHING) == set(vars(list)) - content_free


# ------------------------------------------------------------------ what is handed out


def test_late_read_infos_are_of_their_step() -> None:
    """Even after a reset of everything, and after more steps."""
    env = PortfolioVecEnv(small_market(), 3, seed=0)
    env.reset()
    rng = np.random.default_rng(0)
    env.step(random_actions(env.market, 3, rng))
    expected = [env.batch.info(i) for i in range(3)]
    env.step_async(random_actions(env.market, 3, rng))
    infos = env.step_wait()[3]
    second = [env.batch.info(i) for i in range(3)]
    env.reset()
    env.step(random_actions(env.market, 3, rng))
    for info, after, before in zip(infos, second, expected, strict=True):
        assert info["date"] == after["date"] != before["date"]
        assert info["value"] == after["value"]
        np.testing.assert_array_equal(info["weights"], after["weights"])


HOLDERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "array": lambda seen: seen,
    "slice": lambda seen: seen[1:],
    "row": lambda seen: seen[2],
    "reshaped": lambda seen: seen.reshape(-1),
    "tensor": lambda seen: torch.from_numpy(seen).numpy(),
    "memory": lambda seen: np.asarray(memoryview(seen)),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_observations_that_are_held_stay(holder: str) -> None:
    """Through more steps than arrays are kept, and through ends of episodes."""
    env = PortfolioVecEnv(small_market(), 3, seed=0, episode_length=4)
    rng = np.random.default_rng(0)
    seen = env.reset()
    held, copies = [], []
    for _ in range(14):
        held.append(HOLDERS[holder](seen))
        copies.append(held[-1].copy())
        seen = env.step(random_actions(env.market, 3, rng))[0]
    for mine, copied in zip(held, copies, strict=True):
        np.testing.assert_array_equal(mine, copied)


def test_arrays_are_used_again_once_nobody_holds_them() -> None:
    pool = Recycled((4, 3), np.float32, most=2)
    one = pool.take()
    part = one[1:]
    where = one.ctypes.data
    two = pool.take()
    assert two.ctypes.data != where
    del one
    three = pool.take()
    assert three.ctypes.data not in (where, two.ctypes.data)
    del part
    assert pool.take().ctypes.data == where
    assert pool.take().dtype == np.float32 and pool.take().shape == (4, 3)
