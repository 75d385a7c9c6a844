"""`finflow explain`: why a policy decided as it did on a day."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from finflow_sb3.cli.console import out, print_json
from finflow_sb3.cli.options import Shared, shared_options
from finflow_sb3.cli.runs import refuse_flags
from finflow_sb3.errors import ConfigError

if TYPE_CHECKING:
    from finflow_sb3.explain.decision import WhatIf
    from finflow_sb3.explain.run import Explanation

__all__ = ["command"]


@shared_options
def command(
    shared: Shared,
    runs: Annotated[list[Path], typer.Argument(help="Folder of a run; several decide together.")],
    date: Annotated[
        str | None, typer.Option(metavar="DAY", help="A trading day, as 2020-12-31.")
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
            help="CSV of asset and weight to hold instead of what the backtest holds.",
        ),
    ] = None,
    days: Annotated[
        int, typer.Option(min=1, help="Days before it whose return is taken apart.")
    ] = 252,
    combine: Annotated[
        Literal["mean", "median", "validation"], typer.Option(help="How several runs decide.")
    ] = "mean",
    shrink: Annotated[
        float, typer.Option(min=0.0, help="How much disagreement of runs holds trades back.")
    ] = 0.0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FOLDER", help="Where to write.", show_default="report/explain"
        ),
    ] = None,
) -> None:
    """Explain a decision: who was heard, what moved each weight, its risk and what came of it."""
    why = "a decision is explained with the run's own config.yml, but for prices"
    refuse_flags(why, shared, {}, keep=("prices",))
    if date is None:
        raise ConfigError("--date: is missing; name the trading day to explain, as 2020-12-31")

    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.cli.watching import watching
    from finflow_sb3.explain.run import explain

    what_if = _question(asset, above, below, features)
    with watching() as watch:
        found = explain(
            runs[0] if len(runs) == 1 else runs,
            date,
            prices=shared.prices,
            holdings=holdings,
            what_if=what_if,
            days=days,
            combination=combine,
            shrinkage=shrink,
            out=output,
            watch=watch,
        )
    if shared.json:
        from finflow_sb3.explain.document import as_document

        print_json({**as_document(found.explained), "page": found.page, "document": found.document})
    else:
        _show(found)


def _question(
    asset: str | None, above: float | None, below: float | None, features: str | None
) -> WhatIf | None:
    if asset is None:
        given = {"--above": above, "--below": below, "--features": features}
        for name, value in given.items():
            if value is not None:
                raise ConfigError(f"{name}: belongs to an asset; name it with --asset")
        return None
    from finflow_sb3.explain.decision import WhatIf

    blocks = tuple(name.strip() for name in (features or "").split(",") if name.strip())
    return WhatIf(asset, above, below, blocks)


def _show(found: Explanation) -> None:
    from rich.text import Text

    for line in found.summary:
        out.print(Text(line), width=min(out.width, 100))
    out.print(Text(f"Card: {found.page}"), soft_wrap=True)
