"""What a matrix is made of: one algorithm on one market with one seed, to train and to backtest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finflow_sb3._version import installed_version
from finflow_sb3.config import OFFLINE_ALGORITHMS, Settings
from finflow_sb3.config_evaluation import BASELINES
from finflow_sb3.config_keys import PLAIN_ALGORITHMS
from finflow_sb3.errors import ConfigError
from finflow_sb3.market.cache import content_key
from finflow_sb3.messages import remedy, shown

__all__ = ["LEARNED", "Cell", "known_algorithm"]

LEARNED = ("cqsac", "cqsac_scratch", *OFFLINE_ALGORITHMS, *PLAIN_ALGORITHMS)
"""Algorithms that train; `cqsac` is pretrained by IQL, `cqsac_scratch` is not."""


def known_algorithm(name: str) -> str:
    """`name`, if it is an algorithm or a rule.

    Raises
    ------
    ConfigError
        If it is neither.
    """
    known = [*LEARNED, *BASELINES]
    if name not in known:
        raise ConfigError(f"--algos: {shown(name)} is not known; {remedy(name, known)}")
    return name


@dataclass(frozen=True)
class Cell:
    """One task: all that it needs, and nothing of where or when it runs.

    Attributes
    ----------
    algo : one of `LEARNED`, or a rule of `BASELINES`
    market : what the market is called in tables; `settings.market` says what it is
    settings : resolved, with the cell's seed in `run.seed`
    arguments : of a plain algorithm of SB3
    fold : which fold of a walk-forward; empty for none
    prices : hash of the prices, as two files of one name may differ
    """

    algo: str
    market: str
    settings: Settings
    prices: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    fold: str = ""

    @property
    def seed(self) -> int:
        return self.settings.run.seed

    @property
    def learns(self) -> bool:
        return self.algo in LEARNED

    @property
    def title(self) -> str:
        parts = [self.algo, self.market, self.fold]
        return " ".join(p for p in [*parts, f"seed {self.seed}" if self.learns else ""] if p)

    @property
    def key(self) -> str:
        """A hash of what its numbers depend on: not of folders, nor of how often it reports."""
        content = self.settings.as_dict()
        market = {k: v for k, v in content["market"].items() if k != "prices"}
        run = {"seed": self.seed, "threads": content["run"]["threads"]}
        for name in ("evaluate_interval", "save_best", "device"):
            run[name] = content["run"][name]
        rest = {k: v for k, v in content.items() if k not in ("market", "run", "monitor")}
        return content_key(
            installed_version(), self.algo, self.prices, self.fold, market, run, rest,
            content["monitor"], dict(self.arguments),
        )  # fmt: skip

    @property
    def name(self) -> str:
        """Of its folder: readable, and its own."""
        readable = "-".join(p for p in (self.algo, self.market, self.fold) if p)
        clean = "".join(c if c.isalnum() or c in "-_." else "-" for c in readable)[:80]
        seed = f"-s{self.seed}" if self.learns else ""
        return f"{clean}{seed}-{self.key[:12]}"
