"""What a run notes beside its settings, so that it goes on with the same data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finflow_sb3.config import OFFLINE_ALGORITHMS, OfflineAlgorithm
from finflow_sb3.envs.observations import ObservedMarket, Scaler
from finflow_sb3.errors import ArtefactError
from finflow_sb3.evaluation.ranking import Ranking
from finflow_sb3.files import write_whole
from finflow_sb3.market.cache import content_key
from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.market.prices import PriceTable
from finflow_sb3.market.rounding import SAME_RETURN, rounding_errors
from finflow_sb3.market.sources import load_prices, write_prices
from finflow_sb3.messages import shown
from finflow_sb3.offline.own import Own
from finflow_sb3.pretrain.artefact import read_json, write_json
from finflow_sb3.runs.folder import RunFolder

__all__ = [
    "PLAN",
    "PRICES",
    "NotedMarket",
    "copy_ranking",
    "forget_ranking",
    "note_behaviours",
    "note_dataset",
    "note_market",
    "note_plan",
    "note_ranking",
    "noted_algo",
    "noted_behaviours",
    "noted_dataset",
    "noted_market",
    "noted_plan",
    "noted_prices",
    "noted_ranking",
    "run_of",
    "same_prices",
]

DATASET = "dataset.txt"
"""The dataset that was named."""
BEHAVIOURS = "behaviours.json"
"""The user's own rules that its data was collected with, and hashes of their files."""
PLAN = "plan.txt"
"""What follows a pretraining run (`full` goes on with fine-tuning, `offline` does not), and by
which algorithm it is."""
PRICES = "prices.parquet"
"""The prices themselves."""
MARKET = "market.json"
"""Layout, scaler and a hash of the prices; written last: with it a run has all that it needs."""
RANKING = "fqe.json"
"""Epochs by fitted Q evaluation: of a pretraining run, or of the one that a run was seeded by."""


@dataclass(frozen=True)
class NotedMarket:
    """The market that a run was trained on.

    Attributes
    ----------
    rows : of its price table
    prices : a hash of them
    scaler : of its features; it stays with the run, as its networks know no other
    """

    run: Path
    rows: int
    prices: str
    layout: ObservationLayout
    scaler: Scaler

    def require_past(self, prices: PriceTable, adjusted: bool = False) -> int:
        """Refuse prices of another universe or with another past; gives the number of new rows.

        Parameters
        ----------
        adjusted : let past returns alone agree, as they do after prices were adjusted once more

        Raises
        ------
        ArtefactError
            Naming what differs.
        """
        if prices.assets != self.layout.assets:
            missing = [a for a in self.layout.assets if a not in prices.assets]
            foreign = [a for a in prices.assets if a not in self.layout.assets]
            parts = [f"lacks {', '.join(missing[:5])}"] if missing else []
            parts += [f"adds {', '.join(foreign[:5])}"] if foreign else []
            what = " and ".join(parts) or "has them in another order"
            raise ArtefactError(
                f"{prices.source}: {what}, against the assets of {self.run}; give the same "
                "universe, or start a new run"
            )
        if _key(prices, self.rows) != self.prices and not (adjusted and self._same_past(prices)):
            raise ArtefactError(
                f"{self.run}: was trained on other prices than {prices.source} has now; "
                "give it the same past, or start a new run"
            )
        return len(prices) - self.rows

    def _same_past(self, prices: PriceTable) -> bool:
        """Whether past returns agree: a dividend rescales all closes that were adjusted before."""
        past = noted_prices(self.run)
        if len(prices) < len(past) or not np.array_equal(prices.dates[: len(past)], past.dates):
            return False
        begun = prices.rows(0, len(past))
        if not np.array_equal(begun.earning(), past.earning()):
            return False
        room = SAME_RETURN + rounding_errors(begun) + rounding_errors(past)
        return bool((np.abs(begun.returns() - past.returns()) <= room).all())


def note_market(folder: RunFolder, market: ObservedMarket) -> None:
    """Write the market's part of a run's notes."""
    prices = market.prices
    content = {
        "rows": len(prices),
        "prices": _key(prices, len(prices)),
        "layout": market.layout.as_dict(),
        "scaler": market.scaler.as_dict(),
    }
    write_prices(prices, folder.path / PRICES)
    write_json(folder.path / MARKET, content)


def noted_market(folder: RunFolder) -> NotedMarket:
    """The market of a run.

    Raises
    ------
    ArtefactError
        If the run was stopped before it began to train, or its note is not whole.
    """
    path = folder.path / MARKET
    if not path.is_file():
        raise ArtefactError(
            f"{folder.path}: was stopped before its training began; nothing is lost: start it "
            f"again with -c {folder.path / 'config.yml'}"
        )
    content: dict[str, Any] = read_json(path)
    return NotedMarket(
        folder.path,
        int(content.get("rows", 0)),
        str(content.get("prices")),
        ObservationLayout.from_dict(content.get("layout", {})),
        Scaler.from_dict(content.get("scaler", {})),
    )


def noted_prices(run: Path) -> PriceTable:
    """The prices that a run was trained on, its test split too.

    Raises
    ------
    ArtefactError
        If the run has none.
    """
    if not (run / PRICES).is_file():
        raise ArtefactError(f"{run}: has no {PRICES}; give the folder of a run that was trained")
    return load_prices(str(run / PRICES), partial=True)


def same_prices(one: NotedMarket, other: NotedMarket) -> bool:
    """Whether two runs know the same closes of the same days, up to where the shorter history ends.

    What the sources are called does not matter: a path has many spellings.
    """
    if one.prices == other.prices:
        return True
    shorter, longer = sorted((one, other), key=lambda noted: noted.rows)
    if shorter.rows == longer.rows:
        return False
    return _key(noted_prices(longer.run), shorter.rows) == shorter.prices


def _key(prices: PriceTable, rows: int) -> str:
    past = prices.rows(0, rows)
    return content_key(past.dates, past.close, past.assets, *past.listing())


def note_dataset(folder: RunFolder, dataset: str | Path | None) -> None:
    """Write which dataset was named, if one was."""
    if dataset is not None:
        write_whole(folder.path / DATASET, f"{Path(dataset).resolve()}\n".encode())


def noted_dataset(folder: RunFolder) -> Path | None:
    """The dataset that was named for this run."""
    noted = folder.path / DATASET
    return Path(noted.read_text().rstrip("\n")) if noted.is_file() else None


def note_behaviours(folder: RunFolder, own: Own) -> None:
    """Write which rules of the user's own the run's data comes from, if there are some."""
    if own.names:
        write_json(folder.path / BEHAVIOURS, own.as_dict())


def noted_behaviours(run: Path) -> dict[str, Any]:
    """What `note_behaviours` wrote. It is for comparing: nothing in it is imported."""
    path = run / BEHAVIOURS
    return read_json(path) if path.is_file() else {}


def note_plan(folder: RunFolder, plan: str, algo: OfflineAlgorithm) -> None:
    """Write what follows this pretraining run, and its algorithm."""
    write_whole(folder.path / PLAN, f"{plan}\n{algo}\n".encode())


def noted_plan(folder: RunFolder) -> str:
    """What follows this run; `full` where nothing was noted."""
    return next(iter(_plan(folder)), "full")


def noted_algo(folder: RunFolder) -> OfflineAlgorithm:
    """The algorithm of a pretraining run; IQL, once the only one, where none was noted.

    Raises
    ------
    ArtefactError
        If the note names none that there is.
    """
    written = [*_plan(folder)[1:], "iql"][0]
    for algo in OFFLINE_ALGORITHMS:
        if written == algo:
            return algo
    raise ArtefactError(
        f"{folder.path / PLAN}: {shown(written)} is no algorithm of the offline phase; start the "
        f"run again with -c {folder.path / 'config.yml'}"
    )


def _plan(folder: RunFolder) -> list[str]:
    noted = folder.path / PLAN
    return noted.read_text().split() if noted.is_file() else []


def note_ranking(folder: RunFolder, found: Ranking) -> None:
    write_json(folder.path / RANKING, found.as_dict())


def noted_ranking(folder: RunFolder) -> Ranking | None:
    """Epochs of pretraining by fitted Q evaluation, where there was one.

    Raises
    ------
    ArtefactError
        If the file is damaged.
    """
    path = folder.path / RANKING
    return Ranking.from_dict(read_json(path), str(path)) if path.is_file() else None


def run_of(pretrained: Path) -> Path:
    """The run that notes lie in, of a pretrained policy that was named by its `best/`."""
    return pretrained.parent if pretrained.name == "best" else pretrained


def copy_ranking(pretrained: Path, folder: RunFolder) -> None:
    """Note in a run what is noted in the one that seeded it."""
    path = pretrained / RANKING
    if path.is_file():
        write_whole(folder.path / RANKING, path.read_bytes())


def forget_ranking(folder: RunFolder) -> None:
    """Pretraining goes on: what is noted would not be of its end."""
    (folder.path / RANKING).unlink(missing_ok=True)
