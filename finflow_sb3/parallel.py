"""Several processes on one training batch: joint noise, averaged gradients.

Under `torchrun` every process steps its own portfolios and draws its own batch of B
transitions; together they make one update on the W·B transitions of all W processes, equal to
that of one process on the joined batch up to rounding. For that gradients are averaged, the
load balancing sees the gates of all, and random numbers of an update are drawn for the whole
batch by every process, from the same seed, each keeping its own rows. What a network draws or
counts by itself (dropout, batch norm) is each process's own, and `cql_batch_size` is of each
process's batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch as th
from torch import Tensor
from torch import distributed as dist

from finflow_sb3.errors import ConfigError
from finflow_sb3.nets.noise import Noise

__all__ = [
    "JointNoise",
    "Workers",
    "any_of",
    "connect",
    "first_goes_first",
    "from_first",
    "highest",
    "own_rows",
    "rank",
    "require_alone",
    "world_size",
]


def world_size() -> int:
    """Number of processes that share a batch; 1 outside `torchrun`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process; 0 outside `torchrun`."""
    return dist.get_rank() if world_size() > 1 else 0


def connect(device: th.device) -> None:
    """Join the processes that `torchrun` started, if it did."""
    if not dist.is_available() or dist.is_initialized() or "RANK" not in os.environ:
        return
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Texts and flags travel between hosts, gradients between devices.
        both = "cpu:gloo,cuda:nccl"
        if device == th.device("cuda"):
            th.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group(both if device.type == "cuda" else "gloo")


def require_alone(what: str) -> None:
    """Refuse to do in several processes what would be done several times over.

    Raises
    ------
    ConfigError
        Under `torchrun` with more than one process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"{what} works in one process; give torchrun finflow pretrain or finetune alone"
        )


@contextmanager
def first_goes_first() -> Iterator[None]:
    """The others wait until the first process is through, and find what it has cached."""
    if rank() > 0:
        dist.barrier()
    yield
    if world_size() > 1 and rank() == 0:
        dist.barrier()


def from_first(text: str) -> str:
    """The first process's text, in all of them."""
    if world_size() == 1:
        return text
    raw = th.tensor(list(text.encode()), dtype=th.int64)
    size = th.tensor([len(raw)])
    dist.broadcast(size, 0)
    if rank() > 0:
        raw = th.empty(int(size), dtype=th.int64)
    dist.broadcast(raw, 0)
    return bytes(raw.tolist()).decode()


def any_of(flag: bool) -> bool:
    """Whether it is true in any process."""
    if world_size() == 1:
        return flag
    count = th.tensor([int(flag)])
    dist.all_reduce(count)
    return int(count) > 0


def highest(number: int) -> int:
    """The largest of all processes' numbers."""
    if world_size() == 1:
        return number
    largest = th.tensor([number])
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def own_rows(joint: Tensor) -> Tensor:
    """Rows of this process, of what was drawn for the batch of all."""
    size = joint.shape[0] // world_size()
    return joint[rank() * size : (rank() + 1) * size]


class JointNoise(Noise):
    """Draws for the batch of all processes, and gives this one's rows.

    Parameters
    ----------
    seed : the same in all processes
    """

    def __init__(self, seed: int, device: th.device):
        self.generator = th.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, device: th.device) -> Tensor:
        rows = shape[0] * world_size()
        return own_rows(th.randn(rows, *shape[1:], device=device, generator=self.generator))

    def uniform(self, *shape: int, device: th.device) -> Tensor:
        rows = shape[0] * world_size()
        return own_rows(th.rand(rows, *shape[1:], device=device, generator=self.generator))


class Workers:
    """What an update asks of the other processes; nothing where there are none."""

    def __init__(self) -> None:
        self.count = world_size()

    def mean(self, x: Tensor) -> Tensor:
        """Mean over processes of a mean over their rows; its gradient is this process's part.

        Gradients are averaged afterwards, which makes it that of the joint mean.
        """
        if self.count == 1:
            return x
        total = x.detach().clone()
        dist.all_reduce(total)
        return x + (total / self.count - x.detach())

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Mean over processes of all gradients, in one message."""
        if self.count == 1:
            return
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = th.cat([grad.reshape(-1) for grad in grads])
        dist.all_reduce(flat)
        flat /= self.count
        start = 0
        for grad in grads:
            grad.copy_(flat[start : start + grad.numel()].view_as(grad))
            start += grad.numel()

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the first one's values."""
        if self.count == 1:
            return
        for tensor in tensors:
            dist.broadcast(tensor.data, 0)
