"""What a matrix is made of: one algorithm on one market with one seed, to train and to backtest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from finflow_sb3.benchmark.code import code_version
from finflow_sb3.config import OFFLINE_ALGORITHMS, OfflineAlgorithm, Settings
from finflow_sb3.config_arguments import PlainArguments
from finflow_sb3.config_evaluation import BASELINES
from finflow_sb3.config_export import own_yaml
from finflow_sb3.config_files import plain_yaml, read_config
from finflow_sb3.config_keys import PLAIN_ALGORITHMS
from finflow_sb3.errors import ArtefactError, ConfigError
from finflow_sb3.market.cache import content_key
from finflow_sb3.messages import remedy, shown

__all__ = ["LEARNED", "OURS", "Cell", "cell_yaml", "known_algorithm", "read_cell", "write_cell"]

OURS = ("cqsac", "cqsac_scratch", *OFFLINE_ALGORITHMS)
"""`cqsac` is pretrained by IQL, `cqsac_scratch` learns online alone."""
LEARNED = (*OURS, *PLAIN_ALGORITHMS)
"""Algorithms that train."""

CELL, SETTINGS = "cell.json", "config.yml"


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
    settings : resolved, with the cell's seed in `run.seed`; its process has one torch thread
        whatever they say, and the CPU where the device is `auto`
    prices : hash of the prices, as two files of one name may differ
    arguments : of a plain algorithm of SB3, as JSON has them
    fold : which fold of a walk-forward; empty for none
    """

    algo: str
    market: str
    settings: Settings
    prices: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    fold: str = ""

    def __post_init__(self) -> None:
        device = self.settings.run.device
        alone = {"threads": 1, "device": "cpu" if device == "auto" else device}
        object.__setattr__(self, "settings", self.settings.replace(run=alone))

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
    def pretrains(self) -> OfflineAlgorithm | None:
        """The algorithm of its offline phase, if it has one."""
        if self.algo == "cqsac":
            return "iql"
        return next((algo for algo in OFFLINE_ALGORITHMS if algo == self.algo), None)

    @cached_property
    def key(self) -> str:
        """A hash of what its numbers depend on: code, prices, settings that have a say in them."""
        content = self.settings.as_dict()
        content["evaluation"] = _evaluation(content["evaluation"], self.algo)
        own = {"algo": self.algo, "fold": self.fold, "arguments": dict(self.arguments)}
        sections = ("env", "env_kwargs", *self._sections)
        parts = {name: content[name] for name in sections}
        return content_key(code_version(), self.prices, _market(content), _run(content), own, parts)

    @property
    def _sections(self) -> tuple[str, ...]:
        """Settings that the algorithm reads beside those of market and environment."""
        if not self.learns:
            return ("evaluation",)
        offline = () if self.pretrains is None else ("collect", self.pretrains)
        online = ("cqsac", "collect", "monitor") if self.algo.startswith("cqsac") else ()
        return tuple(dict.fromkeys([*offline, *online]))

    def pretraining_key(self, algo: OfflineAlgorithm) -> str:
        """The same of its offline phase alone, which cells have in common."""
        content = self.settings.as_dict()
        parts = {name: content[name] for name in ("env_kwargs", "collect", algo)}
        return content_key(code_version(), self.prices, _market(content), _run(content), parts)

    @property
    def name(self) -> str:
        """Of its folder: readable, and its own."""
        readable = "-".join(p for p in (self.algo, self.market, self.fold) if p)
        clean = "".join(c if c.isalnum() or c in "-_." else "-" for c in readable)[:80]
        seed = f"-s{self.seed}" if self.learns else ""
        return f"{clean}{seed}-{self.key[:12]}"


def _market(content: dict[str, Any]) -> dict[str, Any]:
    """Settings of the market without the name of its source: `prices` is hashed by content."""
    return {k: v for k, v in content["market"].items() if k != "prices"}


def _evaluation(evaluation: dict[str, Any], algo: str) -> dict[str, Any]:
    """What of it a rule's curve depends on; a file by its content, as it travels."""
    found = {k: evaluation[k] for k in ("lookback", "rebalance", "equities", "bonds")}
    if algo == "index":
        path = Path(evaluation["index"] or "").expanduser()
        whole = path.read_bytes() if path.is_file() else b""
        found["index"] = hashlib.sha256(whole).hexdigest() if whole else evaluation["index"]
    return found


def _run(content: dict[str, Any]) -> dict[str, Any]:
    """What of `run` has a say in numbers: not folders, nor how often is reported."""
    return {k: content["run"][k] for k in ("seed", "device", "evaluate_interval", "save_best")}


def cell_yaml(cell: Cell) -> str:
    """The resolved configuration, which runs the cell again."""
    if cell.algo in PLAIN_ALGORITHMS:
        return own_yaml(cell.settings, cell.algo, PlainArguments(dict(cell.arguments), {}, {}))
    return plain_yaml(cell.settings)


def write_cell(cell: Cell, folder: Path) -> None:
    """A cell as JSON and YAML in a folder, for another process to read."""
    plain = {f.name: getattr(cell, f.name) for f in dataclasses.fields(cell)}
    plain["arguments"] = dict(cell.arguments)
    del plain["settings"]
    plain["key"] = cell.key
    (folder / CELL).write_text(json.dumps(plain), "utf-8")
    (folder / SETTINGS).write_text(plain_yaml(cell.settings), "utf-8")


def read_cell(folder: Path) -> Cell:
    """What `write_cell` wrote. Nothing in it is executed.

    Raises
    ------
    ArtefactError
        If it is another cell here: with other code it would give other numbers.
    """
    content = json.loads((folder / CELL).read_text("utf-8"))
    key = content.pop("key")
    cell = Cell(settings=read_config(folder / SETTINGS), **content)
    if cell.key != key:
        raise ArtefactError(
            f"{cell.title}: finflow-sb3 on {platform.node()} ({code_version()}) is not what this "
            "was started with; install the same everywhere, and start again"
        )
    return cell
