"""The fact sheet: its structure, that it loads nothing, its size, its charts, hostile names."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from report_fixtures import Page, curve, report, unpacked

from finflow_sb3.config_evaluation import EvaluationSettings
from finflow_sb3.evaluation.analysis import analyse
from finflow_sb3.evaluation.break_even import BreakEven
from finflow_sb3.evaluation.charts import days, thinned
from finflow_sb3.evaluation.drawdowns import deepest_falls, worst_days
from finflow_sb3.evaluation.metrics import drawdown
from finflow_sb3.evaluation.report import ReportInput, ReportMarket, write_report
from finflow_sb3.evaluation.report_charts import cost_charts, growth_charts, rolling_charts
from finflow_sb3.evaluation.report_numbers import number
from finflow_sb3.evaluation.report_template import STYLE

EVIL = "</script><script>alert('$x$')</script><!--<a href='https://x.example'>\u2028"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
LIMIT = 8_000_000


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures beside the page take seconds."""
    monkeypatch.setattr("finflow_sb3.evaluation.report.png_bytes", lambda figure: b"png")


def page_of(source: ReportInput, folder: Path) -> Page:
    return Page(write_report(source, folder).index.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(report(), tmp_path_factory.mktemp("page"))


def test_page_is_whole(page: Page) -> None:
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)
    assert "$" not in "".join(page.words)
    assert page.tags.count("script") == 3 and "noscript" in page.tags
    for heading in ("Summary", "Growth and drawdown", "Months and years", "Risk", "Settings"):
        assert heading in page.headings


def test_contents_lead_to_every_section(page: Page) -> None:
    assert len(page.loads) == len(page.headings)
    assert {address.removeprefix("#") for address in page.loads} <= set(page.ids)


def test_page_loads_nothing(page: Page) -> None:
    assert all(address.startswith("#") for address in page.loads)
    assert not {"link", "img", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    rules = dict(rule.strip().split(" ", 1) for rule in page.policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert "connect-src" not in rules and "http" not in page.policy
    assert "http" not in page.scripts[1] + page.scripts[2]


def test_only_its_own_scripts_may_run(page: Page) -> None:
    allowed = re.findall(r"'sha256-([^']+)'", page.policy)
    library, _, drawing = page.scripts
    found = [hashlib.sha256(script.encode()).digest() for script in (library, drawing)]
    assert [base64.b64decode(each) for each in allowed] == found
    assert "unsafe-inline" not in page.policy.split("script-src")[1]


def test_every_chart_has_a_place_and_is_valid_plotly(page: Page) -> None:
    assert set(page.charts) == {each for each in page.ids if each.startswith("chart-")}
    dates = json.loads(page.scripts[1])["dates"]
    for chart in page.charts.values():
        for trace in chart["data"]:
            if "dates" in trace:
                trace["x"] = dates[trace.pop("dates")]
                assert len(trace["x"]) == len(unpacked(trace["y"])), chart["id"]
        go.Figure(data=_inked(chart["data"]), layout=_inked(chart["layout"]))


def _inked(value: Any) -> Any:
    """`value` with a colour for every variable of the style sheet."""
    if isinstance(value, dict):
        return {name: _inked(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_inked(item) for item in value]
    return "#123456" if isinstance(value, str) and value.startswith("--") else value


def test_colours_are_of_the_style_sheet(page: Page) -> None:
    used = set(re.findall(r'"(--[a-z]+)"', page.scripts[1] + page.scripts[2]))
    light, dark = STYLE.split("prefers-color-scheme: dark", 1)
    assert used and all(f"{name}:" in light and f"{name}:" in dark for name in used)


@pytest.mark.usefixtures("quick")
def test_twenty_years_of_a_hundred_assets_stay_below_the_limit(tmp_path: Path) -> None:
    count, n = 5040, 100
    policy = curve("cqsac", days=count, n=n, gates=True)
    names = [f"rule_{k}" for k in range(13)]
    rules = [
        dataclasses.replace(
            curve(name, days=count, n=2), weights=policy.weights, assets=policy.assets
        )
        for name in ("equal_weight", *names)
    ]
    found = write_report(report(policy=(policy,), baselines=tuple(rules)), tmp_path)
    size = found.index.stat().st_size
    assert 5_000_000 < size < LIMIT


@pytest.mark.usefixtures("quick")
def test_data_cannot_become_markup(tmp_path: Path) -> None:
    source = report(
        title=EVIL,
        run=EVIL,
        command=EVIL,
        notes=(EVIL,),
        extra={EVIL: EVIL},
        settings={EVIL: EVIL, "section": {EVIL: [EVIL]}},
        splits={EVIL: ("2010-01-01", "2018-12-31"), "test": ("2019-01-01", "2019-10-28")},
        market=ReportMarket(EVIL, (EVIL,), EVIL, EVIL, survivorship=EVIL),
    )
    evil = dataclasses.replace(
        source.policy[0], name=EVIL, assets=(EVIL, "$a$", "_b"), anchors=(EVIL, "b")
    )
    rule = dataclasses.replace(source.baselines[2], name=f"{EVIL}2")
    page = page_of(
        dataclasses.replace(source, policy=(evil,), baselines=(*source.baselines, rule)), tmp_path
    )
    assert page.tags.count("script") == 3 and page.open == []
    assert all(address.startswith("#") for address in page.loads)
    assert "Mind the universe." in page.words
    assert sum(EVIL in word for word in page.words) >= 12
    assert "<" not in page.scripts[1]
    names = [t["name"] for c in page.charts.values() for t in c["data"] if "alert" in t["name"]]
    # Plotly reads some HTML in text: what it is given has none.
    assert names and not any("<" in name for name in names)


@pytest.mark.usefixtures("quick")
def test_sections_stand_where_there_is_something_to_say(tmp_path: Path) -> None:
    plain = page_of(report(days=40), tmp_path / "plain")
    assert "Rolling measures" not in plain.headings and "Pretraining" not in plain.headings
    assert "Break-even fee" not in plain.words and "Factors" not in plain.words
    source = report()
    policy, *others = source.at_lag(0)
    known = analyse(policy, others, None, EvaluationSettings(factors="skfolio", level=80))
    fee = BreakEven("sharpe", 0, "found", 0.00123, 0.2, 0.02, 17)
    full = page_of(
        dataclasses.replace(source, analysis=known, break_even=(fee,)), tmp_path / "full"
    )
    assert "Rolling measures" in full.headings
    assert ["Sharpe ratio, lag 0", "0.200", "12.3 bps", "17"] in full.rows
    assert "Factors" in full.words and any("80 %" in word for word in full.words)


@pytest.mark.usefixtures("quick")
def test_parts_of_costs_are_shown_where_curves_have_them(tmp_path: Path) -> None:
    source = report()
    policy, later = source.policy
    parts = {"fee": policy.cost * 0.75, "slippage": policy.cost * 0.25}
    object.__setattr__(policy, "cost_parts", {**parts, "impact": 0.0 * policy.cost})
    page = page_of(dataclasses.replace(source, policy=(policy, later)), tmp_path)
    expected = [number(float(x.sum()), "plain") for x in (*parts.values(), policy.cost)]
    assert ["CQSAC", *expected] in page.rows


def test_figures_of_the_page_are_those_of_the_analysis(page: Page) -> None:
    source = report()
    policy, *others = source.at_lag(0)
    known = analyse(policy, others, None, EvaluationSettings())
    row = next(r for r in page.rows if r[0] == "CQSAC" and "to" in " ".join(r))
    sharpe = known.intervals[0].sharpe
    low, high = number(sharpe.low, "ratio"), number(sharpe.high, "ratio")
    assert row[1:3] == [number(sharpe.value, "ratio"), f"{low} to {high}"]
    january = next(r for r in page.rows if r[0] == "2019")[1]
    first = number(known.months[0].policy, "percent").removesuffix("\u00a0%")
    assert (known.months[0].month, january) == (1, first)


def test_charts_hold_the_curves(page: Page) -> None:
    policy = report().policy[0]
    equity, falls = page.charts["chart-equity"]["data"], page.charts["chart-drawdown"]["data"]
    expected = np.concatenate([[1.0], policy.value])
    np.testing.assert_allclose(unpacked(equity[0]["y"]), expected, rtol=1e-6)
    np.testing.assert_allclose(unpacked(falls[0]["y"]), drawdown(policy.value), atol=1e-6)
    weights = page.charts["chart-weights"]["data"]
    total = np.sum([unpacked(trace["y"]) for trace in weights], axis=0)
    np.testing.assert_allclose(total, 1.0, atol=1e-5)
    assert equity[-1]["name"] == "CQSAC, lag 1"


def test_rolling_charts_by_hand() -> None:
    curves = [curve("cqsac"), curve("equal_weight")]
    sharpe, volatility, beta = rolling_charts(curves)
    last = slice(300 - 126, 300)
    ours, theirs = (c.returns[last] for c in curves)
    covariance = np.cov(ours, theirs)
    for chart, expected in (
        (sharpe, ours.mean() / ours.std(ddof=1) * np.sqrt(252)),
        (volatility, ours.std(ddof=1) * np.sqrt(252)),
        (beta, covariance[0, 1] / covariance[1, 1]),
    ):
        assert unpacked(chart.traces[0]["y"])[-1] == pytest.approx(expected, rel=1e-5)
    assert len(beta.traces) == 1
    assert np.isnan(unpacked(volatility.traces[0]["y"])[0])


def test_cost_charts_by_hand() -> None:
    policy = curve("cqsac")
    turnover, paid = cost_charts([policy, curve("equal_weight")])
    assert unpacked(turnover.traces[0]["y"])[-1] == pytest.approx(
        policy.turnover[-21:].mean() * 252, rel=1e-5
    )
    assert unpacked(paid.traces[0]["y"])[-1] == pytest.approx(policy.cost.sum(), rel=1e-5)


@pytest.mark.parametrize("count", [1, 4, 5, 6, 300])
def test_thinned_days_end_with_the_last(count: int) -> None:
    at = thinned(count)
    assert at[-1] == count - 1 and np.all(np.diff(at) == 5) and at[0] < 5
    assert days(curve("cqsac", days=count))["weeks"][-1] == days(curve("x", days=count))["all"][-1]


def test_ruin_has_a_place_on_a_log_axis() -> None:
    ruined = curve("cqsac")
    ruined.returns[100:] = -1.0
    equity, _ = growth_charts([ruined, curve("equal_weight")], [])
    assert unpacked(equity.traces[0]["y"]).min() > 0.0


def test_falls_by_hand() -> None:
    values = np.array([1.0, 0.9, 1.0, 1.2, 0.6, 0.9, 1.2, 1.3, 1.17])
    source = curve("cqsac", days=9)
    returns = values / np.concatenate([[1.0], values[:-1]]) - 1.0
    source = dataclasses.replace(source, returns=returns)
    day = [str(d) for d in source.dates]
    falls = deepest_falls(source)
    assert [round(f.depth, 9) for f in falls] == [-0.5, -0.1, -0.1]
    assert (falls[0].peak, falls[0].trough) == (day[3], day[4])
    assert (falls[0].recovered, falls[0].days) == (day[6], 3)
    assert {(f.recovered, f.days) for f in falls[1:]} == {(day[2], 2), (None, 1)}
    assert len(deepest_falls(source, count=1)) == 1
    worst = [d for d, _ in worst_days(source)]
    assert worst[0] == day[4] and sorted(worst[1:]) == [day[1], day[8]]


def test_a_loss_on_the_first_day_falls_from_the_start() -> None:
    source = dataclasses.replace(curve("cqsac", days=2), returns=np.array([-0.5, 1.0]))
    (fall,) = deepest_falls(source)
    assert (fall.peak, fall.recovered) == (str(source.decisions[0]), str(source.dates[1]))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("width", [pytest.param(1400, marks=pytest.mark.slow), 500])
def test_browser_draws_every_chart_without_a_complaint(width: int, tmp_path: Path) -> None:
    evil = dataclasses.replace(report().policy[0], assets=(EVIL, "$a$", "_b"))
    found = write_report(report(policy=(evil,)), tmp_path / "report")
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},900",
        "--enable-logging=stderr",
        "--v=0",
        "--virtual-time-budget=60000",
        "--dump-dom",
        found.index.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert 'data-charts="drawn"' in done.stdout[:2000], done.stderr[-2000:]
    charts = len(Page(found.index.read_text(encoding="utf-8")).charts)
    assert charts >= 9
    assert done.stdout.count('<g class="infolayer"') == charts
    # Refused requests, errors of scripts and anything else that a browser minds.
    assert "CONSOLE" not in done.stderr
