"""A benchmark in words and figures: the sentence that comes first, Markdown, CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence

from finflow_sb3.benchmark.results import CellResult
from finflow_sb3.benchmark.scores import Row
from finflow_sb3.evaluation.bootstrap import Interval
from finflow_sb3.evaluation.plot_style import label

__all__ = ["COLUMNS", "cells_csv", "interval", "markdown", "number", "title_of", "verdict"]

COLUMNS = {
    "algo": "",
    "env_id": "",
    "mean_reward": "reward",
    "std_reward": "reward",
    "n_timesteps": "count",
    "eval_timesteps": "count",
    "eval_episodes": "count",
    "sharpe": "interval",
    "excess_sharpe": "interval",
    "sharpe_lag_1": "ratio",
    "max_drawdown": "percent",
    "turnover": "times",
    "costs": "percent",
    "over_equal_weight": "chance",
    "over_cqsac": "chance",
    "seeds": "count",
    "gradient_steps": "count",
    "offline_transitions": "count",
    "seconds": "count",
}
"""Columns of the table and how their figures are written; the first seven are RL Zoo's."""
EXPLAINED = """\
Rewards are of episodes of the test split, one after the other, all seeds; Sharpe ratios and all
that follows are of one pass through the test split at execution lag 0, net of costs. `sharpe` is
the interquartile mean over seeds with its {level} % interval for other seeds. `excess_sharpe` is
the Sharpe ratio above that of equal weight, with its {level} % interval for other days and other
seeds. `over_equal_weight` and `over_cqsac` are the probability that a run has the higher Sharpe
ratio. `costs` and `turnover` are a year's. `n_timesteps` are environment steps online,
`gradient_steps` and `offline_transitions` those of an offline phase; `seconds` are of one run in
one thread, offline phase included."""


def title_of(algo: str) -> str:
    """How an algorithm is called in prose and pictures."""
    return label("anchors' average" if algo == "anchors" else algo)


def verdict(rows: Sequence[Row]) -> str:
    """Whether anything that learned beats equal weight, in one sentence."""
    learned = [row for row in rows if row.learns]
    if not learned:
        return "Nothing here has learned: these are rules beside equal weight."
    best = max(learned, key=lambda row: row.excess.value)
    name = title_of(best.algo)
    better = [row for row in learned if row.excess.low > 0.0]
    found = f"an excess Sharpe ratio of {interval(best.excess)}"
    if not better:
        why = "interval holds 0" if best.excess.high >= 0.0 else "interval lies below 0"
        if math.isnan(best.excess.low):
            why = "days are too few to tell"
        doubt = f"{found}, whose {why}."
        if len(learned) == 1:
            return f"{name} does not beat equal weight beyond doubt: it has {doubt}"
        return (
            f"None of the {len(learned)} learned algorithms beats equal weight beyond doubt: the "
            f"best, {name}, has {doubt}"
        )
    names = ", ".join(title_of(row.algo) for row in better)
    return f"{names} beat{'s' if len(better) == 1 else ''} equal weight: {name} has {found}."


def markdown(
    rows: Sequence[Row],
    overall: Sequence[Row],
    env_ids: Mapping[str, str],
    failed: Mapping[str, str],
    pictures: Sequence[str],
    command: str,
) -> str:
    """The page: verdict, table by market, table of all markets where there are several."""
    lines = ["# Benchmark", "", verdict(overall or rows), ""]
    if overall:
        lines += ["## All markets", "", *_table(overall, env_ids), "", "## By market", ""]
    lines += [*_table(rows, env_ids), "", EXPLAINED.format(level=rows[0].sharpe.level)]
    for title, why in failed.items():
        lines += ["", f"**{title}** failed and is left out: {why}"]
    lines += ["", *(f"![{name.removesuffix('.png')}]({name})" for name in pictures)]
    return "\n".join([*lines, "", f"Made by `{command}`.", ""])


def _table(rows: Sequence[Row], env_ids: Mapping[str, str]) -> list[str]:
    aligned = ["---" if kind == "" else "---:" for kind in COLUMNS.values()]
    ordered = sorted(rows, key=lambda row: (row.market, -row.sharpe.value))
    return [
        _line(COLUMNS),
        _line(aligned),
        *(_line(cells(row, env_ids).values()) for row in ordered),
    ]


def cells(row: Row, env_ids: Mapping[str, str]) -> dict[str, str]:
    """A row's figures as they are written, by column."""
    values = {
        "algo": row.algo,
        "env_id": env_ids.get(row.market, row.market),
        "excess_sharpe": row.excess,
        "costs": row.cost_drag,
    }
    found = {name: values.get(name, getattr(row, name, None)) for name in COLUMNS}
    return {name: number(found[name], kind) for name, kind in COLUMNS.items()}


def _line(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |"


def number(value: object, kind: str) -> str:
    """A figure as tables write it."""
    if value is None:
        return "–"
    if isinstance(value, Interval):
        return interval(value, 2 if kind == "chance" else 3)
    if isinstance(value, str):
        return value
    assert isinstance(value, (int, float))
    if math.isnan(value):
        return "–"
    if kind == "percent":
        return f"{100 * value:.2f} %"
    return {
        "count": f"{value:,.0f}",
        "reward": f"{value:.3f}",
        "ratio": f"{value:.3f}",
        "times": f"{value:.2f}",
    }[kind]


def interval(found: Interval, digits: int = 3) -> str:
    """A figure with its interval, as "0.912 (0.874 to 0.951)"."""
    if math.isnan(found.low):
        return f"{found.value:.{digits}f}"
    ends = f"{found.low:.{digits}f} to {found.high:.{digits}f}"
    return f"{found.value:.{digits}f} ({ends})"


def cells_csv(results: Sequence[CellResult]) -> str:
    """One row a cell and lag: every measure, and what it took."""
    buffer = io.StringIO()
    facts = ("env_steps", "gradient_steps", "offline_transitions", "seconds")
    measures = list(results[0].measures["lag_0"])
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["algo", "market", "seed", "lag", *measures, *facts, "mean_reward", "key"])
    for result in results:
        for lag, found in sorted(result.measures.items()):
            rewards = result.facts["episodes"][lag]
            writer.writerow(
                [
                    *(result.algo, result.market, result.seed, lag.removeprefix("lag_")),
                    *(repr(found[name]) for name in measures),
                    *(result.facts[name] for name in facts),
                    *(sum(rewards) / len(rewards) if rewards else "", result.key),
                ]
            )
    return buffer.getvalue()
