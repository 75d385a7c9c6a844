"""The verb `explain_period`: what matters to policies over a period, and what it came to."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from finflow_sb3.ensembles import Runs
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.errors import ConfigError, DataError
from finflow_sb3.evaluation.ensemble import Combination
from finflow_sb3.evaluation.plot_style import png_bytes
from finflow_sb3.explain.attribution import Attribution, Ledger
from finflow_sb3.explain.document import json_bytes
from finflow_sb3.explain.importance import Importance, Sample
from finflow_sb3.explain.period_page import period_page
from finflow_sb3.explain.pictures import importance_picture
from finflow_sb3.explain.run import folder_name, folder_of, opened
from finflow_sb3.explain.state import Asked, replay, row_of, span_of
from finflow_sb3.files import write_whole
from finflow_sb3.market.splits import Span
from finflow_sb3.results import Watch

__all__ = ["Overview", "Split", "explain_period"]

Split = Literal["train", "validation", "test"]
WIDE = 10.0


@dataclass(frozen=True)
class Overview:
    """A period explained.

    Attributes
    ----------
    policy : its name
    first, last : day of the first decision, and day of the last return
    importance : of sampled days
    attribution : of the net return of the whole period
    page, document, picture : files
    """

    policy: str
    first: str
    last: str
    importance: Importance
    attribution: Attribution
    page: Path
    document: Path
    picture: Path

    def as_dict(self) -> dict[str, Any]:
        """Names to plain values."""
        return {
            "policy": self.policy,
            "first": self.first,
            "last": self.last,
            "importance": dataclasses.asdict(self.importance),
            "attribution": self.attribution.as_dict(),
        }


def explain_period(
    runs: Runs,
    first: str | None = None,
    last: str | None = None,
    *,
    split: Split | None = None,
    samples: int = 50,
    prices: str | None = None,
    combination: Combination | None = None,
    shrinkage: float | None = None,
    out: str | Path | None = None,
    watch: Watch | None = None,
) -> Overview:
    """Explain days of a run's own backtest, or of several runs', and the return of all of them.

    Parameters
    ----------
    runs : a run, an ensemble's folder, or several runs
    first, last : trading days of one split, as 2020-12-31; its ends if not given
    split : that split; the one that `first` (or `last`) lies in if not given, or the test split
    samples : days that features and voices are explained of, at even distances
    prices, combination, shrinkage, out : as for `explain`

    Raises
    ------
    DataError
        If days are none of the split's, or attributions are not complete.
    ConfigError
        If there are no samples.
    ArtefactError
        As `load_policies` does.
    """
    if samples < 1:
        raise ConfigError(f"--samples: {samples} days explain nothing; give 1 or more")
    watch = watch or Watch()
    policies, market = opened(runs, prices, combination, shrinkage, watch)
    start, period = _period(market, first, last, split)
    days = len(period) - 1
    chosen = period.start + np.unique(np.linspace(0, days - 1, min(samples, days)).round())
    rows = frozenset(chosen.astype(int).tolist())
    ledger, sample = Ledger(period.start), Sample(policies)

    def on_day(batch: PortfolioBatch, asked: Asked) -> None:
        if int(batch.row[0]) in rows:
            sample.take(batch, asked)
        ledger.take(batch, asked)

    env, end = policies.settings.env_kwargs, period.stop - 1
    progress = partial(watch.progress, "explaining")
    batch = replay(policies, market, Span(start, period.stop), end, env, on_day, progress)
    attribution, importance = ledger.attribution(batch), sample.importance()
    assert attribution is not None  # a period has a day at least
    folder = folder_of(runs, policies, out)
    stem = f"{attribution.first}_{attribution.last}"
    overview = Overview(
        policy=policies.name,
        first=attribution.first,
        last=attribution.last,
        importance=importance,
        attribution=attribution,
        page=folder / f"{stem}.html",
        document=folder / f"{stem}.json",
        picture=folder / f"{stem}.png",
    )
    name = str(folder_name(runs, policies))
    page = period_page(overview.policy, importance, attribution, name, market.prices.source)
    write_whole(overview.page, page.encode())
    write_whole(overview.document, json_bytes(overview.as_dict()))
    write_whole(overview.picture, png_bytes(importance_picture(importance, WIDE)))
    return overview


def _period(
    market: ObservedMarket, first: str | None, last: str | None, split: Split | None
) -> tuple[int, Span]:
    """Where the backtest starts, and the rows of the period, the last return's among them."""
    dates = market.prices.dates
    given = {"--from": first, "--to": last}
    rows = {flag: row_of(market, day, flag) for flag, day in given.items() if day is not None}
    if split is not None:
        span = market.splits.named()[split]
    elif rows:
        flag, row = next(iter(rows.items()))
        split, span = span_of(market, row, flag)  # type: ignore[assignment]
    else:
        split, span = "test", market.splits.test
    low, high = rows.get("--from", span.start), rows.get("--to", span.stop - 1)
    if low >= high:
        raise DataError(
            f"--from, --to: {dates[low]} is not before {dates[high]}; give the first day and the "
            "last of a period"
        )
    if not span.start <= low < high < span.stop:
        raise DataError(
            f"--from, --to: {dates[low]} to {dates[high]} do not lie in the {split} split, "
            f"{dates[span.start]} to {dates[span.stop - 1]}; give days of one split"
        )
    return span.start, Span(low, high + 1)
