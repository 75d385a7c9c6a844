"""`benchmark.md`, `benchmark.csv` and the pictures: whatever they say."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from finflow_sb3.benchmark.pictures import pictures
from finflow_sb3.benchmark.results import CellResult
from finflow_sb3.benchmark.summary import Summary
from finflow_sb3.config import Settings
from finflow_sb3.config_files import plain_yaml
from finflow_sb3.evaluation.bootstrap import Interval
from finflow_sb3.evaluation.plot_style import label
from finflow_sb3.files import write_whole
from finflow_sb3.market.sources import EMBEDDED

__all__ = ["SHORT", "name_of", "sentence", "short_row", "write_tables"]

HEADS = (
    "Sharpe, IQM over seeds",
    "over equal weight",
    "better than equal weight",
    "better than CQSAC",
    "lag 1",
    "return a year",
    "max drawdown",
    "turnover a year",
    "cost a year",
    "steps",
    "seconds",
)
SHORT = (
    "Sharpe",
    "over equal weight",
    "interval",
    "return a year",
    "max drawdown",
    "turnover a year",
)
"""Columns that fit a terminal."""
_ZOO = (
    *("algo", "env_id", "mean_reward", "std_reward", "n_timesteps"),
    *("eval_timesteps", "eval_episodes"),
)
_FACTS = ("env_steps", "gradient_steps", "offline_transitions", "seconds", "reward")


def write_tables(
    out: Path,
    results: Sequence[CellResult],
    summaries: Sequence[Summary],
    settings: Settings,
    failed: Mapping[str, str],
) -> None:
    """Write everything that is to be read of a benchmark into its folder."""
    drawn = pictures(results, summaries)
    files = {
        "benchmark.md": _markdown(summaries, settings, failed, list(drawn)).encode(),
        "benchmark.csv": _cells_csv(results).encode(),
        "config.yml": plain_yaml(settings).encode(),
        **drawn,
    }
    for name, content in files.items():
        write_whole(out / name, content)


def sentence(summaries: Sequence[Summary]) -> str:
    """What it comes to, first of all against equal weight."""
    told = [s for s in summaries if s.gap is not None]
    better = [f"{name_of(s.algo)} on {s.market}" for s in told if s.verdict == "better"]
    worse = [f"{name_of(s.algo)} on {s.market}" for s in told if s.verdict == "worse"]
    if better:
        first = f"Better than equal weight, beyond what chance explains: {', '.join(better)}."
    else:
        first = "Nothing here is better than equal weight beyond what chance explains."
    return f"{first} Worse: {', '.join(worse)}." if worse else first


def name_of(algo: str) -> str:
    """How an algorithm is called in tables and pictures."""
    return label({"anchors": "anchors' average"}.get(algo, algo))


def short_row(summary: Summary) -> tuple[str, ...]:
    """A summary as cells under `SHORT`."""
    means, gap = summary.means, summary.gap
    interval = "–" if gap is None or math.isnan(gap.low) else f"{gap.low:+.2f} to {gap.high:+.2f}"
    return (
        f"{summary.sharpe.value:.3f}",
        "–" if gap is None else f"{gap.value:+.3f}",
        interval,
        f"{100 * means['annual_return']:.1f} %",
        f"{100 * means['max_drawdown']:.1f} %",
        f"{means['turnover']:.2f}",
    )


def _long_row(summary: Summary) -> tuple[str, ...]:
    """A summary as cells under `HEADS`."""
    means = summary.means
    steps = [
        f"{round(value):,} {what}"
        for value, what in (
            (summary.env_steps, "in the market"),
            (summary.gradient_steps, "of gradient offline"),
        )
        if value
    ]
    return (
        _interval(summary.sharpe, "{:.3f}"),
        _interval(summary.gap, "{:+.3f}"),
        _interval(summary.better, "{:.2f}"),
        _interval(summary.better_than_cqsac, "{:.2f}"),
        f"{summary.sharpe_lag_1:.3f}",
        f"{100 * means['annual_return']:.1f} %",
        f"{100 * means['max_drawdown']:.1f} %",
        f"{means['turnover']:.2f}",
        f"{100 * means['cost_drag']:.2f} %",
        ", ".join(steps) or "–",
        f"{summary.seconds:.0f}",
    )


def _interval(found: Interval | None, form: str) -> str:
    if found is None:
        return "–"
    value = form.format(found.value)
    if math.isnan(found.low) or found.low == found.high:
        return value
    return f"{value} ({form.format(found.low)} to {form.format(found.high)})"


def _markdown(
    summaries: Sequence[Summary],
    settings: Settings,
    failed: Mapping[str, str],
    drawn: Sequence[str],
) -> str:
    level, env = settings.evaluation.level, settings.env_kwargs
    lines = ["# Benchmark", "", sentence(summaries), ""]
    for market in dict.fromkeys(s.market for s in summaries):
        mine = [s for s in summaries if s.market == market]
        lines += [
            f"## {market}",
            "",
            f"Test split, {mine[0].days:,} days, net of {env.fee * 1e4:g} bps, lag 0.",
            "",
            _row(["", "seeds", *HEADS]),
            _row(["---", *["---:"] * (len(HEADS) + 1)]),
            *(_row([name_of(s.algo), str(s.seeds), *_long_row(s)]) for s in mine),
            "",
            "In the form of rl-baselines3-zoo (one pass through the test split is an episode; the "
            "reward is the log return over equal weight's in its daily σ, summed, no penalties):",
            "",
            _row(_ZOO),
            _row(["---", "---", *["---:"] * 5]),
            *(_row(_zoo_row(s, settings.env)) for s in mine),
            "",
        ]
    lines += [
        f"Intervals are of {level} %. That of the first column says what other seeds would give "
        "(stratified bootstrap), that of the second what other days would (stationary bootstrap, "
        "the median seed). “Better than” is the share of pairs of seeds in which the Sharpe ratio "
        "is higher. Offline phases learn from data of their own beside the steps in the market.",
        "",
        *(f"![{Path(name).stem}]({name})" for name in drawn),
    ]
    lines += [f"\n**{title}** failed: {why}" for title, why in failed.items()]
    return "\n".join(lines) + "\n"


def _zoo_row(summary: Summary, env: str) -> list[str]:
    return [
        summary.algo,
        env if summary.market == EMBEDDED else "finflow/Portfolio-v0",
        f"{summary.reward:.3f}",
        f"{summary.reward_deviation:.3f}",
        f"{round(summary.env_steps):,}",
        f"{summary.days * summary.seeds:,}",
        str(summary.seeds),
    ]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells_csv(results: Sequence[CellResult]) -> str:
    """One line a cell and lag."""
    names = list(results[0].measures["lag_0"])
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["algo", "market", "seed", "lag", *names, *_FACTS])
    for result in results:
        for lag, found in sorted(result.measures.items()):
            facts = [result.facts.get(name, "") for name in _FACTS]
            head = [result.algo, result.market, result.seed, lag.removeprefix("lag_")]
            writer.writerow([*head, *(found[name] for name in names), *facts])
    return buffer.getvalue()
