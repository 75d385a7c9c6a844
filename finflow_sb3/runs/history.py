"""Reading a run's `metrics.jsonl`, also while another process writes it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finflow_sb3.errors import ArtefactError

__all__ = ["History", "read_history", "read_lines"]

Line = dict[str, Any]


@dataclass(frozen=True)
class History:
    """What a run has logged so far.

    Attributes
    ----------
    run : its folder
    kind : "pretraining" or "fine-tuning"
    train : lines with figures of training, in the order of steps
    validation : lines with figures of validation; of pretraining its epochs', named alike
    events : lines of kind "event"
    """

    run: Path
    kind: str
    train: tuple[Line, ...]
    validation: tuple[Line, ...]
    events: tuple[Line, ...]

    @property
    def best(self) -> Line | None:
        """The validation with the highest Sharpe ratio."""
        known = [line for line in self.validation if is_number(line.get("sharpe"))]
        return max(known, key=lambda line: float(line["sharpe"]), default=None)

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one figure, from the lines that have it as a finite number.

        Parameters
        ----------
        name : as in the file; ``validation/<name>`` for a figure of validation, and
            ``<name>/<position>`` for one of a list
        """
        lines = self.validation if name.startswith("validation/") else self.train
        key, _, position = name.removeprefix("validation/").partition("/")
        steps, values = [], []
        for line in lines:
            value = line.get(key)
            if position:
                long = isinstance(value, list) and len(value) > int(position)
                value = value[int(position)] if long else None  # type: ignore[index]
            if is_number(value):
                steps.append(int(line["step"]))
                values.append(float(value))  # type: ignore[arg-type]
        return steps, values


def read_history(run: str | Path) -> History:
    """The history of a run's folder.

    Raises
    ------
    ArtefactError
        If there is no such run, it has no metrics yet, or they are damaged.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise ArtefactError(f"{folder}: no such run")
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise ArtefactError(f"{folder}: no metrics.jsonl in it; give the folder of a run")
    lines = read_lines(path)
    if not lines:
        raise ArtefactError(f"{path}: nothing is logged yet; wait for the run's first line")
    epochs = _latest(lines, "pretrain")
    return History(
        run=folder,
        kind="pretraining" if epochs else "fine-tuning",
        train=tuple(epochs or _latest(lines, "train")),
        validation=tuple(map(_validation_of, epochs) if epochs else _latest(lines, "validation")),
        events=tuple(line for line in lines if line["kind"] == "event"),
    )


def read_lines(path: Path) -> list[Line]:
    """The whole lines of the file; one that is being written is left for the next time.

    Raises
    ------
    ArtefactError
        If a whole line is not one of a metrics log.
    """
    content = path.read_bytes()
    lines = []
    for number, text in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            line: Any = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict) or not is_number(line.get("step")):
            raise ArtefactError(
                f"{path}: line {number} is damaged; remove it, or resume the run from a "
                "checkpoint before it"
            )
        lines.append({"kind": "train", **line})
    return lines


def is_number(value: object) -> bool:
    """Whether it is a finite number: what was not finite is null in the file."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return known and math.isfinite(value)  # type: ignore[arg-type]


def _latest(lines: list[Line], kind: str) -> list[Line]:
    """Lines of a kind, the last one of each step, in the order of steps."""
    by_step = {int(line["step"]): line for line in lines if line["kind"] == kind}
    return [by_step[step] for step in sorted(by_step)]


def _validation_of(epoch: Line) -> Line:
    """The validation figures in a line of pretraining, under fine-tuning's names."""
    start = "validation_"
    figures = {k.removeprefix(start): v for k, v in epoch.items() if k.startswith(start)}
    return {"step": epoch["step"], "kind": "validation", "epoch": epoch["epoch"], **figures}
