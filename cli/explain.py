"""`finflow explain`: why a policy decided as it did, on a day or over a period."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text

from finflow_sb3.cli.console import out, print_json
from finflow_sb3.cli.ensembles import Combine, RunFolders, Shrink
from finflow_sb3.cli.options import Shared, only_shared
from finflow_sb3.cli.runs import refuse_flags
from finflow_sb3.errors import ConfigError
from finflow_sb3.quiet import silence_gym_notice

if TYPE_CHECKING:
    from finflow_sb3.explain.period import Overview
    from finflow_sb3.explain.run import Explanation
    from finflow_sb3.explain.what_if import WhatIf

__all__ = ["command"]


@only_shared("prices")
def command(
    shared: Shared,
    runs: RunFolders,
    date: Annotated[
        str | None, typer.Option(metavar="DAY", help="A trading day, as 2020-12-31.")
    ] = None,
    overall: Annotated[
        bool,
        typer.Option("--global", help="Explain a period instead of a day.", show_default=False),
    ] = False,
    first: Annotated[
        str | None, typer.Option("--from", metavar="DAY", help="First day of the period.")
    ] = None,
    last: Annotated[
        str | None, typer.Option("--to", metavar="DAY", help="Last day of the period.")
    ] = None,
    split: Annotated[
        Literal["train", "validation", "test"] | None,
        typer.Option(help="Period to explain.", show_default="that of --from, else test"),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Days of the period to explain.", show_default="50"),
    ] = None,
    asset: Annotated[
        str | None,
        typer.Option(help="What would have had to differ for another weight of this asset?"),
    ] = None,
    above: Annotated[
        float | None, typer.Option(help="Its weight is to be above this share.")
    ] = None,
    below: Annotated[
        float | None, typer.Option(help="Its weight is to be below this share.")
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="GROUP,...",
            help="Groups of features that may differ for it.",
            show_default="all",
        ),
    ] = None,
    holdings: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CSV of symbol,shares and CASH to hold instead of what the backtest holds.",
        ),
    ] = None,
    days: Annotated[
        int | None,
        typer.Option(min=1, help="Days before it whose return is taken apart.", show_default="252"),
    ] = None,
    combine: Combine = None,
    shrink: Shrink = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FOLDER", help="Where to write.", show_default="report/explain"
        ),
    ] = None,
) -> None:
    """Explain a decision: who was heard, what moved each weight, its risk and what came of it.

    With --global what matters over a period, and where its return came from.
    """
    silence_gym_notice()
    why = "decisions are explained with the run's own config.yml, but for prices"
    refuse_flags(why, shared, {}, keep=("prices",))
    both: dict[str, Any] = {
        "runs": runs[0] if len(runs) == 1 else runs,
        "prices": shared.prices,
        "combination": combine,
        "shrinkage": shrink,
        "out": output,
    }
    question = {"asset": asset, "above": above, "below": below, "features": features}
    of_day = {"holdings": holdings, "days": days}
    of_period = {"from": first, "to": last, "split": split, "samples": samples}
    if overall:
        _refuse("--global: explains a period; leave out {}", date=date, **question, **of_day)
        _explain_period(of_period, both, shared.json)
        return
    _refuse("{}: belongs to a period; add --global to explain one", **of_period)
    if date is None:
        raise ConfigError(
            "--date: is missing; name the trading day to explain, as 2020-12-31, or use --global"
        )
    what_if = _question(asset, above, below, features)
    _explain_day({"date": date, "what_if": what_if, **of_day}, both, shared.json)


def _refuse(says: str, **values: Any) -> None:
    given = [f"--{name}" for name, value in values.items() if value is not None]
    if given:
        raise ConfigError(says.format(", ".join(given)))


def _question(
    asset: str | None, above: float | None, below: float | None, features: str | None
) -> WhatIf | None:
    if asset is None:
        given = {"--above": above, "--below": below, "--features": features}
        for name, value in given.items():
            if value is not None:
                raise ConfigError(f"{name}: belongs to an asset; name it with --asset")
        return None
    from finflow_sb3.explain.what_if import WhatIf

    blocks = tuple(name.strip() for name in (features or "").split(",") if name.strip())
    return WhatIf(asset, above, below, blocks)


def _explain_day(of_day: dict[str, Any], both: dict[str, Any], as_json: bool) -> None:
    from finflow_sb3.cli.watching import watching
    from finflow_sb3.explain.run import explain

    with watching() as watch:
        found = explain(**_said(of_day), **both, watch=watch)
    _tell_day(found, as_json)


def _explain_period(of_period: dict[str, Any], both: dict[str, Any], as_json: bool) -> None:
    from finflow_sb3.cli.watching import watching
    from finflow_sb3.explain.period import explain_period

    ends = {"first": of_period.pop("from"), "last": of_period.pop("to")}
    with watching() as watch:
        found = explain_period(**_said({**ends, **of_period}), **both, watch=watch)
    _tell_period(found, as_json)


def _said(values: dict[str, Any]) -> dict[str, Any]:
    """What was given on the command line; the library knows the rest."""
    return {name: value for name, value in values.items() if value is not None}


def _tell_day(found: Explanation, as_json: bool) -> None:
    if as_json:
        from finflow_sb3.explain.document import as_document

        paths = {"page": found.page, "document": found.document}
        print_json({**as_document(found.explained), **paths})
        return
    for line in found.summary:
        out.print(Text(line), width=min(out.width, 100))
    if found.explained.counterfactual is not None:
        from finflow_sb3.explain.words import answer_line

        out.print(Text(answer_line(found.explained.counterfactual)), width=min(out.width, 100))
    out.print(Text(f"Card: {found.page}"), soft_wrap=True)


def _tell_period(found: Overview, as_json: bool) -> None:
    if as_json:
        paths = {"page": found.page, "document": found.document, "picture": found.picture}
        print_json({**found.as_dict(), **paths})
        return
    from finflow_sb3.cli.tables import figures_table
    from finflow_sb3.explain.words import percent, points

    table = figures_table(f"{found.first} to {found.last}", "moves of the portfolio")
    for name, value in found.importance.blocks.items():
        table.add_row(f"features: {name.replace('_', ' ')}", percent(value, 2))
    for kind in ("anchors", "experts"):
        for name, heard in getattr(found.importance, kind).items():
            table.add_row(f"{kind[:-1]}: {name}", percent(heard.loudness, 2))
    out.print(table)
    made = found.attribution
    parts = zip(made.stages, made.parts.sum(axis=1).tolist(), strict=True)
    told = ", ".join(f"{name} {points(value)}" for name, value in [*parts, ("costs", made.costs)])
    line = f"Net return {points(made.total)} points in {made.days:,} days: {told}."
    out.print(Text(line), width=min(out.width, 100))
    out.print(Text(f"Page: {found.page}"), soft_wrap=True)
