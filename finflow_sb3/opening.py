"""Opening the market of a configuration, and the folder of a new run."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from finflow_sb3.config import Settings
from finflow_sb3.envs.observations import ObservedMarket, Scaler, observe, with_interest
from finflow_sb3.errors import ConfigError
from finflow_sb3.files import present
from finflow_sb3.market.prices import PriceTable
from finflow_sb3.market.sources import load_prices
from finflow_sb3.offline.own import Own
from finflow_sb3.offline.own_rules import GivenRule, OwnRule, own_rules
from finflow_sb3.offline.record import Record, decision_days, replay
from finflow_sb3.parallel import from_first, rank
from finflow_sb3.results import Watch
from finflow_sb3.runs.folder import RunFolder

__all__ = [
    "new_run",
    "open_market",
    "open_own",
    "open_pinned",
    "open_prices",
    "rules_instead_of",
]


@contextmanager
def new_run(
    settings: Settings, algo: str, watch: Watch, name: str | None = None
) -> Iterator[RunFolder]:
    """A new run's folder. An end that comes before it holds anything of use removes it.

    Parameters
    ----------
    name : what it is called after; the environment if not given
    """
    name = name or settings.env
    path = RunFolder.create(settings.run.log_dir, algo, name).path if rank() == 0 else ""
    folder = RunFolder(Path(from_first(str(path)))).of_worker(rank())
    folder.path.mkdir(parents=True, exist_ok=True)
    try:
        folder.write_settings(settings)
        watch.started(folder.path)
        yield folder
    except BaseException:
        if not (present(folder.best).is_dir() or folder.checkpoints.is_dir()):
            shutil.rmtree(folder.path, ignore_errors=True)  # of several processes each its own
        raise


def open_prices(settings: Settings) -> PriceTable:
    """The prices of a configuration, with the cash rate that it sets."""
    source = settings.market
    table = load_prices(source.prices, max_gap=source.max_gap, partial=source.partial)
    return with_interest(table, settings.env_kwargs.cash_rate)


def open_market(
    settings: Settings, scaler: Scaler | None = None, watch: Watch | None = None
) -> ObservedMarket:
    """The market of a configuration, with features and anchors computed."""
    watch = watch or Watch()
    threads = settings.run.threads
    torch.set_num_threads(1 if threads == "auto" else threads)
    return observe(
        open_prices(settings),
        settings.market,
        settings.env_kwargs,
        scaler,
        on_progress=lambda done, total: watch.progress("anchors", done, total),
    )


def open_pinned(
    settings: Settings, scaler: Scaler | None, watch: Watch
) -> tuple[Settings, ObservedMarket]:
    """The market, and its settings with split dates written out, so that more data moves no split.

    The market carries these settings too: a dataset's key is then the same before and after.
    """
    market = open_market(settings, scaler, watch)
    dates, splits = market.prices.dates, market.splits
    settings = settings.replace(
        market={
            "train_end": str(dates[splits.validation.start - 1]),
            "validation_end": str(dates[splits.test.start - 1]),
        }
    )
    return settings, dataclasses.replace(market, settings=settings.market)


def open_own(
    market: ObservedMarket,
    rules: tuple[OwnRule, ...],
    records: Iterable[Record],
    alone: bool,
    watch: Watch,
) -> Own:
    """What the user brings to a collection, with records laid over the training split."""
    replays = tuple(replay(record, market) for record in records)
    for each in replays:
        if each.left_out:
            watch.remark(
                f"{each.record.path}: left out are {each.left_out:,} of its {each.days:,} days, "
                f"which are none of {decision_days(market)}."
            )
    return Own(rules, replays, alone)


def rules_instead_of(dataset: str | Path | None, behaviours: Iterable[GivenRule]) -> Own:
    """The user's own rules, which a dataset that is given would leave without effect.

    Raises
    ------
    ConfigError
        If there are both; and as `own_rules` does.
    """
    rules = own_rules(behaviours)
    if rules and dataset is not None:
        raise ConfigError(
            f"{dataset}: is taken as it is, and nothing is collected with {rules[0].name}; leave "
            "out one of the two"
        )
    return Own(rules)
