"""Where pretraining stands, and everything that it needs to go on as if it had never stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finflow_sb3.pretrain.learner import Learner
from finflow_sb3.runs.checkpoints import Checkpoint, fitting
from finflow_sb3.runs.random_state import (
    global_random_state,
    optimizer_state,
    restore_global_random_state,
    restore_optimizer,
)

__all__ = ["Course", "Epoch", "Kept", "Tensors", "capture", "restore"]

Tensors = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Epoch:
    """Means over one epoch, and its validation backtest.

    Attributes
    ----------
    losses : by name, as the algorithm's paper defines them; the mean over the steps that had each
    gates : mean gate over the validation split
    validation : see `evaluation.quick.validate`
    """

    number: int
    losses: dict[str, float]
    validation: dict[str, float]
    gates: tuple[float, ...] = ()


class Kept(NamedTuple):
    """An epoch, and the artefact's weights at its end."""

    epoch: Epoch
    weights: dict[str, Tensor]


@dataclass
class Course:
    """What pretraining has come to, besides the networks.

    Attributes
    ----------
    step : gradient steps done
    totals : losses of the present epoch, added up, each with the number of steps that had it
    epochs : those that have ended
    kept : the best (with a market by validation Sharpe) and their weights, the best first
    """

    step: int = 0
    totals: dict[str, tuple[float, int]] = field(default_factory=dict)
    epochs: list[Epoch] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list, repr=False)

    @property
    def best(self) -> Epoch | None:
        """The first of those that are kept."""
        return self.kept[0].epoch if self.kept else None

    def keep(
        self,
        epoch: Epoch,
        weights: Callable[[], dict[str, Tensor]],
        room: int,
        score: Callable[[Epoch], float],
    ) -> None:
        """Keep an epoch and its weights if it is among the `room` of the highest score; an equal
        one stays behind an earlier one.
        """
        mine = score(epoch)
        better = [mine > score(other.epoch) for other in self.kept]
        place = better.index(True) if True in better else len(better)
        if place < room:
            self.kept.insert(place, Kept(epoch, weights()))
        del self.kept[room:]

    def put_first(self, chosen: Kept) -> None:
        """Make one of the kept epochs the best."""
        others = [each for each in self.kept if each.epoch.number != chosen.epoch.number]
        self.kept = [chosen, *others]

    def add(self, losses: dict[str, float]) -> None:
        """Count a gradient step with its losses."""
        for name, value in losses.items():
            total, count = self.totals.get(name, (0.0, 0))
            self.totals[name] = (total + value, count + 1)
        self.step += 1

    def means(self) -> dict[str, float]:
        """Mean losses since the last call."""
        means = {name: total / count for name, (total, count) in self.totals.items()}
        self.totals = {}
        return means


def capture(
    learner: Learner, generator: torch.Generator, course: Course
) -> tuple[Tensors, dict[str, Any]]:
    """Tensors by file, and the rest as JSON; between two gradient steps."""
    random_tensors, random_plain = global_random_state()
    tensors: Tensors = {
        "random": {**random_tensors, "batches": generator.get_state()},
        **{f"kept_{place}": each.weights for place, each in enumerate(course.kept)},
    }
    for name, module in learner.torch_modules().items():
        tensors[name] = dict(module.state_dict())
    groups = {}
    for name, optimizer in learner.optimizers().items():
        tensors[f"optimizer_{name}"], groups[name] = optimizer_state(optimizer)
    return tensors, {
        "step": course.step,
        "totals": course.totals,
        "epochs": [dataclasses.asdict(epoch) for epoch in course.epochs],
        "kept": [each.epoch.number for each in course.kept],
        "optimizers": groups,
        "random": random_plain,
    }


def restore(learner: Learner, generator: torch.Generator, checkpoint: Checkpoint) -> Course:
    """Bring a freshly made algorithm of the same settings to the state of a checkpoint.

    Raises
    ------
    CheckpointError
        If the checkpoint does not fit it.
    """
    with fitting(checkpoint):
        return _restore(learner, generator, checkpoint)


def _restore(learner: Learner, generator: torch.Generator, checkpoint: Checkpoint) -> Course:
    tensors, state = checkpoint.tensors, checkpoint.state
    for name, module in learner.torch_modules().items():
        module.load_state_dict(dict(tensors[name]), strict=True)
    for name, optimizer in learner.optimizers().items():
        stored = dict(tensors[f"optimizer_{name}"])
        restore_optimizer(optimizer, stored, state["optimizers"][name])
    learner.go_on_from(int(state["step"]))
    epochs = [_epoch(entry) for entry in state["epochs"]]
    # Networks are initialised with random numbers: these states come last.
    generator.set_state(tensors["random"]["batches"])
    restore_global_random_state(dict(tensors["random"]), state["random"])
    return Course(
        step=int(state["step"]),
        totals={name: (total, int(n)) for name, (total, n) in state["totals"].items()},
        epochs=epochs,
        kept=[
            Kept(epochs[int(number) - 1], dict(tensors[f"kept_{place}"]))
            for place, number in enumerate(state["kept"])
        ],
    )


def _epoch(entry: dict[str, Any]) -> Epoch:
    return Epoch(**{**entry, "gates": tuple(entry["gates"])})
