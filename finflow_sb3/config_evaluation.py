"""Settings of the evaluation: what a policy is compared with, and how sure a figure has to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finflow_sb3 import config_forms as forms
from finflow_sb3.config_fields import Checked, setting
from finflow_sb3.errors import ConfigError
from finflow_sb3.messages import one_line, shown

__all__ = ["ALLOCATORS", "AUTO", "BASELINES", "STRESS", "EvaluationSettings"]

ALLOCATORS = (
    "inverse_volatility",
    "minimum_variance",
    "maximum_sharpe",
    "risk_budgeting",
    "maximum_diversification",
    "hrp",
    "herc",
    "minimum_cvar",
    "nested_clusters",
)
"""Rules that skfolio fits to trailing windows."""
BASELINES = ("equal_weight", "buy_and_hold", *ALLOCATORS, "sixty_forty", "index", "anchors")
"""Rules that a policy is compared with; `anchors` stands for each of them and their average."""
AUTO = "auto"
"""A block length that the data chooses."""
STRESS = {
    "financial crisis": ["2008-09-01", "2009-03-31"],
    "pandemic": ["2020-02-20", "2020-03-23"],
    "rate shock": ["2022-01-01", "2022-06-30"],
}


def windows(value: dict[str, Any]) -> dict[str, list[str]]:
    """By name a first and a last day.

    Raises
    ------
    ConfigError
        If one is no pair of days in order.
    """
    found = {}
    for name, pair in value.items():
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ConfigError(f".{one_line(name)}: {shown(pair)} is not [first day, last day]")
        first, last = (forms.date(str(day)) for day in pair)
        if first >= last:
            raise ConfigError(f".{one_line(name)}: {first} must lie before {last}")
        found[name] = [first, last]
    return found


def block_length(value: int | str) -> int | str:
    """Days, or ``auto``."""
    if isinstance(value, str) and value != AUTO:
        raise ConfigError(f"{shown(value)} is not a number of days or {AUTO}")
    return value


@dataclass(frozen=True)
class EvaluationSettings(Checked):
    """What a policy is compared with, and how sure a figure has to be."""

    baselines: tuple[str, ...] = setting(
        BASELINES,
        "rules beside the policy; equal_weight is always there",
        form=forms.names_among(BASELINES, "a rule of finflow collect --behaviour"),
    )
    lookback: int = setting(756, "trailing days that an allocator sees", 63, 5040)
    rebalance: int = setting(21, "days between two rebalancings of a rule", 1, 252)
    equities: tuple[str, ...] | None = setting(
        None, "assets that 60/40 takes for equities; all but bonds, cash and commodities if null"
    )
    bonds: tuple[str, ...] | None = setting(
        None, "assets that 60/40 takes for bonds; well-known US funds if null"
    )
    index: str | None = setting(
        None, "an index to compare with: an asset's name, or a file of one price a day"
    )
    factors: str | None = setting(
        None, "factor returns to regress on: skfolio (its five US factors) or a file"
    )
    stress: dict[str, Any] = setting(STRESS, "periods by name: [first day, last day]", form=windows)
    level: int = setting(95, "probability of intervals, in percent", 50, 99)
    draws: int = setting(1000, "bootstrap draws", 100, 100_000)
    block: int | str = setting(
        21,
        "mean days in a block of the stationary bootstrap, or auto (Politis and White's)",
        1,
        252,
        form=block_length,
    )
    trials: int = setting(
        1, "configurations that were tried, for the deflated Sharpe ratio", 1, 10**7
    )
