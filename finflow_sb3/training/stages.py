"""Stages of the training loop, timed from outside: methods are wrapped on the instance and put
back, so that ordinary runs carry nothing of it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import record_function

from finflow_sb3.cqsac.batches import Batches
from finflow_sb3.cqsac.compiling import Parts
from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.training.callbacks import TrainingCallback

__all__ = ["STAGES", "StageClock", "is_compiled", "staged"]

STAGES = (
    "environment",
    "acting",
    "replay: storing",
    "batch sampling",
    "critic targets",
    "critic forward",
    "CQL penalty: draws",
    "CQL penalty: forward",
    "critic backward",
    "CQL penalty: backward",
    "CQL multiplier",
    "critic optimiser",
    "actor forward",
    "actor backward",
    "actor optimiser",
    "temperature",
    "target networks",
    "logging",
)
"""In the order of the loop. `CQL penalty: backward` is a part of the critics' backward pass that
a trace tells apart, no call of its own."""

# Methods of the model by the stage that they belong to.
LOOP = {
    "_sample_action": "acting",
    "_store_transition": "replay: storing",
    "_update_info_buffer": "logging",
    "_record": "logging",
    "_log": "logging",
    "_prepared": "batch sampling",
    "_conservative_draws": "CQL penalty: draws",
    "_policy_noise": "actor forward",
    "_temperature": "temperature",
    "_update_temperature": "temperature",
    "_update_targets": "target networks",
}
# What a compiled update calls inside: a wrapper there would compile it anew.
INSIDE = {
    "_target_quantiles": "critic targets",
    "_conservative_penalty": "CQL penalty: forward",
}
CALLBACK = ("_on_rollout_start", "_on_step")


@dataclass
class StageClock:
    """Time and calls of each stage. A stage inside another one stops that one's clock.

    Attributes
    ----------
    device : where kernels are waited for at the ends of a stage, None where none run on
    seconds, calls : by stage
    """

    device: torch.device | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list)
    _since: float = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What happens in the block belongs to this stage."""
        self._change(entered=name)
        try:
            with record_function(name):
                yield
        finally:
            self._change(entered=None)

    def _change(self, entered: str | None) -> None:
        if self.device is not None:
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self._open:
            inner = self._open[-1]
            self.seconds[inner] = self.seconds.get(inner, 0.0) + now - self._since
        if entered is None:
            self._open.pop()
        else:
            self._open.append(entered)
            self.calls[entered] = self.calls.get(entered, 0) + 1
        self._since = now

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function as a stage."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return timed


@contextmanager
def staged(model: CQSAC, callback: TrainingCallback, clock: StageClock) -> Iterator[None]:
    """Stages of `model`'s loop under `clock` for the length of the block."""
    undo: list[tuple[Any, str, Any]] = []

    def replace(owner: Any, name: str, value: Any) -> None:
        undo.append((owner, name, vars(owner).get(name, undo)))
        setattr(owner, name, value)

    def wrap(owner: Any, name: str, stage: str) -> None:
        replace(owner, name, clock.around(stage, getattr(owner, name)))

    try:
        wrap(model.env, "step", "environment")
        for name, stage in LOOP.items():
            wrap(model, name, stage)
        if model.log_cql_alpha is not None:
            wrap(model, "_update_multiplier", "CQL multiplier")
        for name in CALLBACK:
            wrap(callback, name, "logging")
        if not is_compiled(model):
            for name, stage in INSIDE.items():
                wrap(model, name, stage)
        replace(model, "_batches", _timed_batches(clock, model._batches))
        replace(model, "_parts", _timed_parts(clock, model._parts))
        for name, ending in (("backward", "backward"), ("step", "optimiser")):
            whole = getattr(model.precision, name)
            replace(model.precision, name, _by_optimizer(clock, model, whole, name, ending))
        yield
    finally:
        for owner, name, before in reversed(undo):
            if before is undo:  # the class's own stood there
                delattr(owner, name)
            else:
                setattr(owner, name, before)


def is_compiled(model: CQSAC) -> bool:
    """Whether the halves of an update are compiled: nobody sees what happens inside them."""
    return hasattr(model._parts.critic, "_torchdynamo_orig_callable")


def _timed_parts(clock: StageClock, parts: Parts) -> Parts:
    return Parts(
        clock.around("critic forward", parts.critic), clock.around("actor forward", parts.actor)
    )


def _by_optimizer(
    clock: StageClock, model: CQSAC, function: Callable[..., Any], method: str, ending: str
) -> Callable[..., Any]:
    """`Precision`'s method, in the stage of the optimiser that it is given last."""
    names = {
        id(model.critic.optimizer): f"critic {ending}",
        id(model.actor.optimizer): f"actor {ending}",
        id(model.cql_alpha_optimizer): "CQL multiplier",
    }

    def timed(*args: Any) -> Any:
        with clock.stage(names[id(args[-1])]):
            return function(*args)

    return functools.wraps(function)(timed)


def _timed_batches(
    clock: StageClock, make: Callable[[int], Batches]
) -> Callable[[int], _TimedBatches]:
    return lambda batch_size: _TimedBatches(make(batch_size), clock)


@dataclass(frozen=True)
class _TimedBatches:
    """`Batches` whose stream is a stage each time it is asked for the next one."""

    batches: Batches
    clock: StageClock

    def stream(self, count: int, prefetch: bool = False) -> Iterator[Any]:
        stream = self.batches.stream(count, prefetch)
        for _ in range(count):
            with self.clock.stage("batch sampling"):
                batch = next(stream)
            yield batch
