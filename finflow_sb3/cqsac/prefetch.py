"""Batches that are gathered while the one before is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["prefetched"]

Index = TypeVar("Index")
Batch = TypeVar("Batch")


def prefetched(
    draw: Callable[[], Index], gather: Callable[[Index], Batch], count: int, enabled: bool
) -> Iterator[Batch]:
    """`count` batches.

    All indices are drawn in the calling thread when the first batch is asked for, whether
    `enabled` or not: what else draws random numbers meanwhile finds them in the same order, and
    batches are the same, bit for bit.

    Parameters
    ----------
    draw : which transitions a batch has; takes random numbers
    gather : the batch of these; takes none, and may run in another thread
    enabled : gather one batch ahead in a thread, which ends with the iterator

    Raises
    ------
    Exception
        What `gather` raised, where its batch is asked for.
    """
    indices = [draw() for _ in range(count)]
    # A single batch has nothing to be gathered beside.
    if enabled and count > 1:
        yield from _ahead(gather, indices)
    else:
        yield from map(gather, indices)


def _ahead(gather: Callable[[Index], Batch], indices: list[Index]) -> Iterator[Batch]:
    with ThreadPoolExecutor(1, thread_name_prefix="finflow-prefetch") as worker:
        following = worker.submit(gather, indices[0])
        for index in indices[1:]:
            batch = following.result()
            following = worker.submit(gather, index)
            yield batch
        yield following.result()
