"""The verb `explain`: one decision of a run or an ensemble, as its own backtest took it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from finflow_sb3.allocation.holdings import Holdings
from finflow_sb3.ensembles import Policies, Runs, load_policies
from finflow_sb3.envs.observations import TRADING_DAYS, ObservedMarket
from finflow_sb3.evaluation.ensemble import Combination
from finflow_sb3.explain.attribution import Ledger
from finflow_sb3.explain.decision import Explained, explain_decision
from finflow_sb3.explain.document import as_document, json_bytes
from finflow_sb3.explain.page import card_page
from finflow_sb3.explain.state import replay, row_of, span_of, state_with, weights_of
from finflow_sb3.explain.what_if import WhatIf
from finflow_sb3.explain.words import two_lines
from finflow_sb3.files import write_whole
from finflow_sb3.opening import open_market
from finflow_sb3.results import Watch

__all__ = ["Explanation", "explain", "opened"]


@dataclass(frozen=True)
class Explanation:
    """A decision card on disk, and what it says.

    Attributes
    ----------
    page, document : the card as HTML and as JSON
    summary : two lines of plain language
    """

    explained: Explained
    page: Path
    document: Path
    summary: tuple[str, str]


def explain(
    runs: Runs,
    date: str,
    *,
    prices: str | None = None,
    holdings: Holdings | str | Path | None = None,
    what_if: WhatIf | None = None,
    days: int = TRADING_DAYS,
    combination: Combination | None = None,
    shrinkage: float | None = None,
    out: str | Path | None = None,
    watch: Watch | None = None,
) -> Explanation:
    """Explain what a run's best policy, or several together, decided at the close of a day.

    The portfolio is the one that their own backtest has on that day: from the first day of the
    split that the day lies in, in equal weights, net of costs.

    Parameters
    ----------
    runs : a run, an ensemble's folder, or several runs
    date : a trading day, as 2020-12-31
    prices : other prices of the same universe; the run's own if not given
    holdings : to use in the place of that portfolio, as for `allocate`, at the closes of `date`;
        what came of the days before is left out then
    what_if : a question to answer in the card
    days : how many days before `date` the realised return is taken apart for, at most
    combination, shrinkage : of several runs, see `load_policies`
    out : folder to write into; ``report/explain`` in the run's folder (the first of several) if
        not given

    Raises
    ------
    DataError
        If the day is none, the holdings cannot be read or attributions are not complete.
    ConfigError
        If the question names what there is not.
    ArtefactError
        As `load_policies` does.
    """
    watch = watch or Watch()
    policies, market = opened(runs, prices, combination, shrinkage, watch)
    env, row = policies.settings.env_kwargs, row_of(market, date)
    if holdings is not None:
        held = weights_of(holdings, market.prices.rows(0, row + 1))
        batch, attribution = state_with(market, env, row, held), None
    else:
        _, span = span_of(market, row)
        ledger = Ledger(max(span.start, row - days))
        progress = partial(watch.progress, "backtest")
        batch = replay(policies, market, span, row, env, ledger.take, progress)
        attribution = ledger.attribution(batch)
    explained = explain_decision(policies, market, batch, what_if, attribution)
    folder = folder_of(runs, policies, out)
    return write_card(explained, folder, str(folder_name(runs, policies)), market)


def opened(
    runs: Runs,
    prices: str | None,
    combination: Combination | None,
    shrinkage: float | None,
    watch: Watch,
) -> tuple[Policies, ObservedMarket]:
    """The policies and the market that they decide in."""
    policies = load_policies(runs, combination, shrinkage)
    settings = policies.settings
    if prices is not None:
        settings = settings.replace(market={"prices": prices})
    market = open_market(settings, policies.scaler, watch)
    market.layout.require_equal(policies.layout, str(policies.runs[0]))
    return policies, market


def folder_name(runs: Runs, policies: Policies) -> Path:
    """The one folder that was given, or the first of several runs."""
    return Path(runs) if isinstance(runs, (str, Path)) else policies.runs[0]


def folder_of(runs: Runs, policies: Policies, out: str | Path | None) -> Path:
    """Where explanations go."""
    return folder_name(runs, policies) / "report" / "explain" if out is None else Path(out)


def write_card(explained: Explained, folder: Path, run: str, market: ObservedMarket) -> Explanation:
    """Write a decision card, ``<date>.html`` and ``<date>.json``."""
    page, document = folder / f"{explained.date}.html", folder / f"{explained.date}.json"
    title = market.prices.source
    write_whole(page, card_page(explained, run, title).encode())
    write_whole(document, json_bytes(as_document(explained)))
    return Explanation(explained, page, document, two_lines(explained))
