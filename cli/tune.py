"""`finflow tune`: find settings with Optuna, on the validation split."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from finflow_sb3.cli.console import console, out, print_json
from finflow_sb3.cli.options import Shared, shared_options, shared_sources
from finflow_sb3.cli.runs import settings_from
from finflow_sb3.config import OfflineAlgorithm
from finflow_sb3.config_keys import PLAIN_ALGORITHMS, PlainAlgorithm

if TYPE_CHECKING:
    from finflow_sb3.results import Watch
    from finflow_sb3.tuning.outcome import Tuned
    from finflow_sb3.tuning.study import TrialEvent

__all__ = ["command"]

Algorithm = Literal["cqsac", OfflineAlgorithm, PlainAlgorithm]


@shared_options
def command(
    shared: Shared,
    algo: Annotated[Algorithm, typer.Option(help="Whose settings.")] = "cqsac",
    n_trials: Annotated[
        int, typer.Option(min=1, help="Trials that finish in all, pruned ones among them.")
    ] = 100,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            help="sharpe, sortino, calmar, cvar or return; repeat it for a Pareto front.",
            show_default="sharpe",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of a trial, by seed.")] = 1,
    folds: Annotated[
        int, typer.Option(min=1, help="Stretches before the test split, each judged by itself.")
    ] = 1,
    pretrained: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Tune the fine-tuning of this pretrained run."),
    ] = None,
    n_timesteps: Annotated[
        int | None, typer.Option(min=1, help="Environment steps of each training.")
    ] = None,
    sampler: Annotated[Literal["tpe", "gp", "random"], typer.Option(help="Optuna's.")] = "tpe",
    pruner: Annotated[
        Literal["median", "hyperband", "none"],
        typer.Option(help="What ends trials early, by their validation Sharpe so far."),
    ] = "median",
    storage: Annotated[
        str | None,
        typer.Option(
            help="sqlite:///FILE, journal:FILE or postgresql://…", show_default="OUT/study.db"
        ),
    ] = None,
    study_name: Annotated[
        str | None, typer.Option(help="In the storage.", show_default="algorithm and environment")
    ] = None,
    space: Annotated[
        Path | None,
        typer.Option(help="Search space as YAML.", show_default="zoo_configs/spaces/ALGO.yml"),
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="Only so many settings, the most important first.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the results.", show_default="logs/tune/ALGO_ENV"),
    ] = None,
) -> None:
    """Try settings with Optuna, judged on the validation split, and write the best as YAML.

    The same command goes on where a study was stopped; run it in several terminals or on several
    machines with one --storage to share the trials.
    """
    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.tuning.study import tune

    settings, arguments = _configured(shared, algo, pretrained, n_timesteps)
    where = folder or Path(settings.run.log_dir) / "tune" / f"{algo}_{settings.env}".replace(
        "/", "-"
    )
    with _shown(where, n_trials) as listen:
        tuned = tune(
            settings,
            n_trials,
            where,
            algo=algo,
            objectives=objective or ["sharpe"],
            seeds=seeds,
            folds=folds,
            pretrained=pretrained,
            sampler=sampler,
            pruner=pruner,
            storage=storage,
            study_name=study_name,
            space=space,
            top=top,
            arguments=arguments,
            watch=_remarks(),
            listen=listen,
        )
    if shared.json:
        print_json(tuned)
    else:
        _show(tuned)


def _configured(
    shared: Shared, algo: str, pretrained: Path | None, n_timesteps: int | None
) -> tuple[Any, Any]:
    """Settings that trials start from, and arguments of one of SB3's algorithms."""
    from finflow_sb3.config_arguments import plain_arguments
    from finflow_sb3.config_files import resolve
    from finflow_sb3.run_notes import run_of

    steps = {"n_timesteps": n_timesteps}
    if pretrained is not None:
        return settings_from(run_of(pretrained), shared, algo, cqsac=steps), None
    if algo not in PLAIN_ALGORITHMS:
        sources = shared_sources(shared, {"cqsac": steps} if algo == "cqsac" else {})
        return resolve(**sources, algo=algo), None
    sources = shared_sources(shared, {})
    if n_timesteps is not None:
        sources["params"] = [*sources["params"], f"n_timesteps:{n_timesteps}"]
    settings = resolve(**sources, algo=algo)
    files, params = sources["files"], sources["params"]
    return settings, plain_arguments(algo, settings.env, files=files, params=params)


def _remarks() -> Watch:
    """Prints what is worth a line; within a trial that is nothing."""
    from rich.text import Text

    from finflow_sb3.results import Watch

    class Remarks(Watch):
        def remark(self, text: str) -> None:
            console.print(Text(text), soft_wrap=True)

    return Remarks()


@contextmanager
def _shown(where: Path, n_trials: int) -> Iterator[Any]:
    """A listener that prints a line for each trial, under a bar of all.

    Ctrl-C exits with 130, and says that the same command goes on.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    styles = {"complete": "green", "failed": "red", "again": "yellow"}
    bars = Progress(
        TextColumn("trials"),
        BarColumn(bar_width=min(40, max(8, console.width - 70))),
        MofNCompleteColumn(),
        TextColumn("{task.fields[best]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=4,
        disable=console.quiet or not console.is_terminal,
    )
    task = bars.add_task("trials", total=n_trials, best="")

    def listen(event: TrialEvent) -> None:
        values = ", ".join(f"{x:.4f}" for x in event.values or ())
        best = "" if event.best is None else f"best {event.best:.4f}"
        bars.update(task, completed=event.finished, best=best)
        line = f"trial {event.number:>3} {event.what:<8} {values}{event.why}"
        if best and event.what == "complete":
            line += f"  ({best})"
        console.print(Text(line, styles.get(event.what, "")), soft_wrap=True)

    try:
        with bars:
            yield listen
    except KeyboardInterrupt:
        print(
            f"stopped; the study is in {shlex.quote(str(where))}: the same command goes on",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None


def _show(tuned: Tuned) -> None:
    from rich.table import Table
    from rich.text import Text

    done = f"{tuned.finished} trials finished, {tuned.pruned} of them pruned, {tuned.failed} failed"
    out.print(Text(f"{tuned.study}: {done}"))
    if tuned.best is None:
        out.print(Text("No trial is complete: there is no best."))
        return
    table = Table(box=None, pad_edge=False)
    for name in ("validation", "default", f"best (trial {tuned.best})"):
        table.add_column(name, justify="left" if name == "validation" else "right")
    for name, value in tuned.values.items():
        before = tuned.default.get(name)
        table.add_row(name, "–" if before is None else f"{before:.4f}", f"{value:.4f}")
    for name, value in tuned.settings.items():
        table.add_row(name, "", f"{value:.4g}" if isinstance(value, float) else str(value))
    out.print(table)
    if len(tuned.front) > 1:
        out.print(Text(f"Pareto front: trials {', '.join(map(str, tuned.front))}"))
    for path in tuned.files:
        out.print(Text(str(path)), soft_wrap=True)
    out.print(Text(f"Train with it: {tuned.train}"), soft_wrap=True)
