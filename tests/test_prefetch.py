"""Prefetched batches are the batches that would have come anyway."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from finflow_sb3.cqsac.prefetch import prefetched
from finflow_sb3.cqsac.replay import TensorReplayBuffer


def names() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def no_worker() -> bool:
    return not any(name.startswith("finflow-prefetch") for name in names())


def counted() -> Callable[[], int]:
    numbers = iter(range(1000))
    return lambda: next(numbers)


def filled() -> TensorReplayBuffer:
    buffer = TensorReplayBuffer(
        100, spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)), "cpu", n_envs=2
    )
    rng = np.random.default_rng(0)
    for _ in range(30):
        seen, after, action = (rng.normal(size=(2, n)) for n in (3, 3, 2))
        buffer.add(seen, after, action, rng.normal(size=2), np.zeros(2), [{}, {}])
    return buffer


@given(count=st.integers(0, 12), size=st.integers(1, 9), seed=st.integers(0, 99))
def test_the_same_batches_with_and_without(count: int, size: int, seed: int) -> None:
    """Also where the caller draws random numbers between batches."""
    buffer, found = filled(), []
    for enabled in (False, True):
        np.random.seed(seed)
        batches = prefetched(lambda: buffer.draw(size), buffer.gather, count, enabled)
        found.append([(*(x.numpy() for x in b[:5]), np.random.normal()) for b in batches])
        found[-1].append((np.random.normal(),))
    np.testing.assert_equal(*found)
    assert len(found[0]) == count + 1
    assert no_worker()


def test_batches_are_what_sample_gives() -> None:
    buffer = filled()
    np.random.seed(0)
    batches = list(prefetched(lambda: buffer.draw(8), buffer.gather, 3, True))
    np.random.seed(0)
    for batch in batches:
        for mine, expected in zip(batch[:5], buffer.sample(8)[:5], strict=True):
            assert mine.equal(expected)


@pytest.mark.parametrize("enabled", [False, True])
def test_draws_come_first_and_in_order_in_the_calling_thread(enabled: bool) -> None:
    events: list[tuple[str, Any]] = []
    number = counted()

    def draw() -> int:
        events.append(("draw", threading.current_thread()))
        return number()

    def gather(index: int) -> int:
        events.append(("gather", threading.current_thread()))
        return 10 * index

    assert list(prefetched(draw, gather, 4, enabled)) == [0, 10, 20, 30]
    assert [name for name, _ in events] == ["draw"] * 4 + ["gather"] * 4
    assert {thread for name, thread in events if name == "draw"} == {threading.current_thread()}
    workers = {thread for name, thread in events if name == "gather"}
    assert len(workers) == 1 and (workers == {threading.current_thread()}) != enabled


def test_one_batch_is_gathered_ahead_and_no_more() -> None:
    started = [threading.Event() for _ in range(4)]

    def gather(index: int) -> int:
        started[index].set()
        return index

    batches = prefetched(counted(), gather, 4, True)
    for i in range(4):
        assert next(batches) == i
        if i < 3:
            assert started[i + 1].wait(10), "gathered while this one is used"
        assert not any(event.is_set() for event in started[i + 2 :])
    with pytest.raises(StopIteration):
        next(batches)
    assert no_worker()


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("broken", [0, 1, 3])
def test_an_error_reaches_the_caller_at_its_batch(enabled: bool, broken: int) -> None:
    def gather(index: int) -> int:
        if index == broken:
            raise ValueError(f"batch {index}")
        return index

    batches = prefetched(counted(), gather, 4, enabled)
    assert [next(batches) for _ in range(broken)] == list(range(broken))
    with pytest.raises(ValueError, match=f"batch {broken}"):
        next(batches)
    assert no_worker()


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_no_thread_is_left_when_the_caller_stops(taken: int) -> None:
    def gather(index: int) -> int:
        time.sleep(0.01)  # so that one is still being gathered
        return index

    batches: Any = prefetched(counted(), gather, 5, True)
    for _ in range(taken):
        next(batches)
    assert no_worker() == (taken == 0)
    batches.close()
    assert no_worker()


def test_no_thread_is_left_when_the_caller_fails() -> None:
    def consume() -> None:
        for _ in prefetched(counted(), lambda index: index, 5, True):
            raise KeyError

    with pytest.raises(KeyError):
        consume()
    assert no_worker()


@pytest.mark.parametrize("count", [0, 1])
def test_a_single_batch_needs_no_thread(count: int) -> None:
    where: list[threading.Thread] = []
    batches = prefetched(counted(), lambda _: where.append(threading.current_thread()), count, True)
    assert len(list(batches)) == count
    assert set(where) <= {threading.current_thread()}
