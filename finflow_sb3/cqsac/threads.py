"""How many threads torch needs for a network."""

from __future__ import annotations

import os

from torch import nn

__all__ = ["threads_for"]

# Products of matrices under so many multiplications are over before a second thread has woken.
# On a busy machine threads that wait for each other cost many times what they bring.
WORTH_SHARING = 2**23


def threads_for(module: nn.Module, batch_size: int) -> int:
    """One thread for small networks, all cores for wide ones.

    It depends on the network alone, not on how busy the machine is: another number of threads
    may round differently, and the same seed has to give the same result.
    """
    widest = max(
        (p.shape[-1] * p.shape[-2] for p in module.parameters() if p.dim() >= 2), default=0
    )
    return _cores() if widest * batch_size >= WORTH_SHARING else 1


def _cores() -> int:
    """Cores that this process may use, shared with others that `torchrun` started here."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
