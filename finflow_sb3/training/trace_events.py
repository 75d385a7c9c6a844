"""What the profiler's events tell of operators, and of the penalty's part of a backward pass."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch.profiler import profile

from finflow_sb3.training.stages import STAGES

__all__ = ["Reading", "penalty_part"]

FORWARD, BACKWARD = "CQL penalty: forward", "critic backward"
# A hash follows.
GRAPHS = "## Call CompiledFxGraph"
NODE = "autograd::engine::evaluate_function: "


@dataclass
class Reading:
    """Sums over the windows that were read.

    Attributes
    ----------
    updates : in them
    operators : name → microseconds in the operator itself (on the device, where there is one),
        and calls
    penalty, backward : microseconds of the critics' backward pass in nodes that the penalty
        made, and in all nodes
    """

    updates: int = 0
    operators: dict[str, tuple[float, int]] = field(default_factory=dict)
    penalty: float = 0.0
    backward: float = 0.0

    def add(self, window: profile, updates: int) -> None:
        """Read one window that has ended."""
        self.updates += updates
        for row in window.key_averages():
            if row.key in STAGES or row.is_user_annotation:
                continue
            name = GRAPHS if row.key.startswith(GRAPHS) else row.key
            before, calls = self.operators.get(name, (0.0, 0))
            own = row.self_cpu_time_total + row.self_device_time_total
            self.operators[name] = (before + own, calls + row.count)
        events: Any = window.events()  # type: ignore[no-untyped-call]
        penalty, backward = penalty_part(events or [])
        self.penalty, self.backward = self.penalty + penalty, self.backward + backward

    @property
    def penalty_share(self) -> float:
        """Of the critics' backward pass; 0 where no node of the penalty was seen."""
        return self.penalty / self.backward if self.backward > 0.0 else 0.0


def penalty_part(events: Iterable[Any]) -> tuple[float, float]:
    """Microseconds of backward nodes within the critics' backward pass: the penalty's, and all.

    An operator that is differentiated and the node of its backward pass carry the same
    `sequence_nr`.
    """
    events = list(events)
    forward = _Intervals(events, FORWARD)
    backward = _Intervals(events, BACKWARD)
    numbers = {
        event.sequence_nr
        for event in events
        if event.sequence_nr >= 0 and not event.name.startswith(NODE) and event in forward
    }
    penalty = whole = 0.0
    for event in events:
        if event.name.startswith(NODE) and event in backward:
            took = float(event.time_range.elapsed_us())
            whole += took
            if event.sequence_nr in numbers:
                penalty += took
    return penalty, whole


class _Intervals:
    """Whether an event lies within a stage; stages of one name don't overlap."""

    def __init__(self, events: Iterable[Any], name: str):
        spans = sorted((e.time_range.start, e.time_range.end) for e in events if e.name == name)
        self.starts = [start for start, _ in spans]
        self.ends = [end for _, end in spans]

    def __contains__(self, event: Any) -> bool:
        at = bisect_right(self.starts, event.time_range.start) - 1
        return at >= 0 and bool(event.time_range.end <= self.ends[at])
