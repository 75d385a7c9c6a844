"""Train, validation and test by date, purged; walk-forward folds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.config import MarketSettings
from finflow_sb3.errors import DataError

__all__ = ["Span", "Splits", "make_splits", "walk_forward"]

MIN_ROWS = 42


@dataclass(frozen=True)
class Span:
    """Rows of a price table: decisions from `start` on, the last return ends at `stop` − 1."""

    start: int
    stop: int

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def dates(self, dates: NDArray[np.datetime64]) -> tuple[str, str]:
        return str(dates[self.start]), str(dates[self.stop - 1])

    def return_dates(self, dates: NDArray[np.datetime64]) -> tuple[str, str]:
        """First and last day on which a decision of the span has earned its return."""
        return str(dates[self.start + 1]), str(dates[self.stop - 1])


@dataclass(frozen=True)
class Splits:
    """Three spans in order; between them `purge` rows belong to none."""

    train: Span
    validation: Span
    test: Span

    def named(self) -> dict[str, Span]:
        return {"train": self.train, "validation": self.validation, "test": self.test}


def make_splits(
    dates: NDArray[np.datetime64], first_row: int, settings: MarketSettings, purge: int = 1
) -> Splits:
    """Split the rows from `first_row` on, or those from `train_start` to `test_end`.

    Parameters
    ----------
    first_row : the first row with all features and anchors
    purge : label horizon in rows (execution lag + n-step): the last rows of train and
        validation whose labels would reach into the next split are left out

    Raises
    ------
    DataError
        If a split date lies outside the data, or a split would be shorter than 42 rows.
    """
    first_row, stop = _usable(dates, first_row, settings)
    usable = stop - first_row
    train_stop = first_row + round(usable * settings.train_fraction)
    validation_stop = train_stop + round(usable * settings.validation_fraction)
    share = settings.validation_fraction / (1.0 - settings.train_fraction)
    if settings.train_end is not None:
        train_stop = _row_after(dates, settings.train_end, first_row, "train_end")
        validation_stop = train_stop + round((stop - train_stop) * share)
    if settings.validation_end is not None:
        validation_stop = _row_after(dates, settings.validation_end, first_row, "validation_end")
    splits = Splits(
        Span(first_row, train_stop - purge),
        Span(train_stop, validation_stop - purge),
        Span(validation_stop, stop),
    )
    for name, span in splits.named().items():
        if len(span) < MIN_ROWS:
            raise DataError(
                f"the {name} split has {len(span)} rows, needs {MIN_ROWS}; "
                f"usable days are {dates[first_row]} to {dates[stop - 1]}: move train_end or "
                "validation_end, or give a longer history"
            )
    return splits


def _usable(
    dates: NDArray[np.datetime64], first_row: int, settings: MarketSettings
) -> tuple[int, int]:
    """First row to train on, and the row after the last to test on."""
    stop = len(dates)
    if settings.test_end is not None:
        stop = _row_after(dates, settings.test_end, first_row, "test_end")
    if settings.train_start is not None:
        day = np.datetime64(settings.train_start, "D")
        if day >= dates[stop - 1]:
            raise DataError(
                f"train_start: {settings.train_start} lies outside the usable data "
                f"({dates[first_row]} to {dates[stop - 1]})"
            )
        first_row = max(first_row, int(np.searchsorted(dates, day)))
    return first_row, stop


def _row_after(dates: NDArray[np.datetime64], text: str, first_row: int, name: str) -> int:
    day = np.datetime64(text, "D")
    if not dates[first_row] <= day < dates[-1]:
        raise DataError(
            f"{name}: {text} lies outside the usable data ({dates[first_row]} to {dates[-1]})"
        )
    return int(np.searchsorted(dates, day, side="right"))


def walk_forward(
    n_rows: int,
    first_row: int,
    test_size: int,
    train_size: int,
    purge: int = 1,
    expanding: bool = True,
) -> Iterator[tuple[Span, Span]]:
    """Folds (train, test) in order, from skfolio's `WalkForward`.

    Parameters
    ----------
    test_size, train_size : rows; with `expanding` train starts at `first_row` in every fold
    """
    from skfolio.model_selection import WalkForward

    folds = WalkForward(
        test_size=test_size, train_size=train_size, purged_size=purge, expand_train=expanding
    )
    for train, test in folds.split(np.zeros((n_rows - first_row, 1))):
        yield (
            Span(first_row + int(train[0]), first_row + int(train[-1]) + 1),
            Span(first_row + int(test[0]), first_row + int(test[-1]) + 1),
        )
