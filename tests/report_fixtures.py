"""Made-up curves and reports, and a reader of the page that comes of them."""

from __future__ import annotations

import base64
import dataclasses
import json
from html.parser import HTMLParser
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.evaluation.report import ReportInput, ReportMarket

# Attributes that a browser follows.
LOADING = ("src", "srcset", "href", "data", "action")
ANCHORS = ("volatility", "momentum")


def curve(
    name: str, lag: int = 0, days: int = 300, n: int = 3, edge: float = 0.0, gates: bool = False
) -> Curve:
    rng = np.random.default_rng(sum(name.encode()) + lag)
    market = np.random.default_rng(0).normal(0.0004, 0.01, days)
    dates = np.datetime64("2019-01-01") + np.arange(days + 1)
    return Curve(
        name=name,
        dates=dates[1:],
        decisions=dates[:-1],
        returns=market + edge + rng.normal(0.0, 0.002, days),
        weights=rng.dirichlet(np.ones(n + 1), days),
        turnover=rng.uniform(0.0, 0.02, days),
        cost=rng.uniform(0.0, 2e-5, days),
        assets=tuple(f"S{i}" for i in range(n)),
        gates=rng.dirichlet(np.ones(2), days) if gates else None,
        anchors=ANCHORS if gates else (),
        fee=0.001,
        execution_lag=lag,
    )


def report(days: int = 300, edge: float = 0.0, **changes: Any) -> ReportInput:
    rules = ("equal_weight", "buy_and_hold", "anchors' average", "anchor: momentum")
    base = ReportInput(
        title="CQSAC on three stocks",
        run="cqsac/Toy_1",
        market=ReportMarket("toy", ("S0", "S1", "S2"), "2010-01-01", "2019-12-31"),
        splits={
            "train": ("2010-01-01", "2016-12-31"),
            "validation": ("2017-01-02", "2018-12-30"),
            "test": ("2019-01-01", "2019-10-28"),
        },
        policy=tuple(curve("cqsac", lag, days, edge=edge, gates=True) for lag in (0, 1)),
        baselines=tuple(curve(rule, lag, days) for rule in rules for lag in (0, 1)),
        settings={"env": "finflow/Toy-v0", "cqsac": {"gamma": 0.99, "alpha_init": None}},
        command="finflow evaluate logs/cqsac/Toy_1",
        notes=("A first note.",),
        extra={"Gradient steps": np.int64(12)},
    )
    return dataclasses.replace(base, **changes)


class Page(HTMLParser):
    """Tags, identifiers, addresses, scripts and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.words: list[str] = []
        self.headings: list[str] = []
        self.rows: list[list[str]] = []
        self.scripts: list[str] = []
        self.policy = ""
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.loads += [
            v or "" for k, v in attrs if k in ("src", "srcset", "href", "data", "action")
        ]
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"] or ""
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside in ("td", "th"):
            self.rows[-1].append(data)
        if inside == "h2":
            self.headings.append(data)
        if inside == "script":
            self.scripts[-1] += data
        elif inside != "style":
            self.words.append(data)

    @property
    def charts(self) -> dict[str, dict[str, Any]]:
        """Figures by the identifier of their place."""
        return {chart["id"]: chart for chart in json.loads(self.scripts[1])["charts"]}


def unpacked(values: dict[str, str]) -> NDArray[np.float64]:
    """Numbers of a typed array of plotly's."""
    raw = base64.b64decode(values["bdata"])
    return np.frombuffer(raw, dtype=f"<{values['dtype']}").astype(np.float64)
