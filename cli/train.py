"""`finflow train` and `finflow demo`: every stage in a row."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from finflow_sb3.cli.console import console, out, print_json
from finflow_sb3.cli.ensembles import Combine, Seeds, Shrink, check_all_trained, together
from finflow_sb3.cli.finetune import (
    GradientCheckpointing,
    MixedPrecision,
    Resume,
    check_finished,
    precision,
)
from finflow_sb3.cli.options import Shared, shared_options, shared_settings
from finflow_sb3.cli.plain_training import Algorithm, train_plain_command
from finflow_sb3.cli.runs import (
    CHANGING,
    FIXED_BY_RUN,
    OwnRules,
    flags,
    refuse_flags,
    settings_of_resumed,
)
from finflow_sb3.config import OfflineAlgorithm
from finflow_sb3.errors import ConfigError

if TYPE_CHECKING:
    from finflow_sb3.config import Settings
    from finflow_sb3.ensemble_training import TrainedEnsemble
    from finflow_sb3.pipeline import Trained

__all__ = ["demo_command", "train_command"]

Mode = Literal["demo", "full", "offline", "online"]
# Bare keys of a resumed run, of whichever phase, that both phases have.
ALGO_OF_RUN = "cqsac"


@shared_options
def train_command(
    shared: Shared,
    algo: Annotated[
        Algorithm | None,
        typer.Option(
            help="cqsac, or an algorithm of Stable-Baselines3 from scratch in the same market.",
            show_default="cqsac",
        ),
    ] = None,
    mode: Annotated[
        Mode | None,
        typer.Option(
            help="full pretrains and fine-tunes, offline and online one of both; demo is small.",
            show_default="full",
        ),
    ] = None,
    offline_algo: Annotated[
        OfflineAlgorithm | None, typer.Option(help="What pretrains.", show_default="iql")
    ] = None,
    iql_epochs: Annotated[int | None, typer.Option(help="Epochs of pretraining by iql.")] = None,
    td3bc_epochs: Annotated[
        int | None, typer.Option(help="Epochs of pretraining by td3bc.")
    ] = None,
    sac_episodes: Annotated[
        int | None, typer.Option(min=1, help="Episodes of fine-tuning, episode_length steps each.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Transitions in a batch, in both phases.")
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File of finflow collect.",
            show_default="collected, or from the cache",
        ),
    ] = None,
    behaviour: OwnRules = None,
    seeds: Seeds = None,
    combine: Combine = None,
    shrink: Shrink = None,
    resume: Resume = None,
    mixed_precision: MixedPrecision = None,
    gradient_checkpointing: GradientCheckpointing = None,
) -> None:
    """Collect, pretrain, fine-tune and evaluate in one go; or train SB3's own with --algo."""
    cqsac = {
        "batch_size": batch_size,
        "mixed_precision": precision(mixed_precision),
        "gradient_checkpointing": gradient_checkpointing,
    }
    own = {
        "mode": mode,
        "offline_algo": offline_algo,
        "iql_epochs": iql_epochs,
        "td3bc_epochs": td3bc_epochs,
        "sac_episodes": sac_episodes,
        "dataset": dataset,
        "seeds": seeds,
        "combine": combine,
        "shrink": shrink,
        **cqsac,
    }
    if algo is not None and algo != "cqsac":
        rest = {"behaviour": behaviour, "resume": resume}
        return train_plain_command(shared, algo, {**own, **rest})
    trained: Trained | TrainedEnsemble
    if resume is not None:
        trained = _go_on(resume, shared, {"algo": algo, **own}, behaviour or [])
    else:
        chosen, pretraining = mode or "full", offline_algo or "iql"
        epochs: dict[OfflineAlgorithm, int | None] = {"iql": iql_epochs, "td3bc": td3bc_epochs}
        _check_lengths(chosen, offline_algo, epochs, sac_episodes)
        sections: dict[str, dict[str, Any]] = {
            pretraining: {"epochs": epochs[pretraining], "batch_size": batch_size},
            "cqsac": cqsac,
        }
        owner = {"offline": pretraining, "online": "cqsac"}.get(chosen)
        settings = shared_settings(shared, owner, **sections)
        if sac_episodes is not None:
            steps = sac_episodes * settings.env_kwargs.episode_length
            settings = settings.replace(cqsac={"n_timesteps": steps})
        begin = partial(_trained, settings, chosen, dataset, pretraining, behaviour or [])
        trained = begin(together(seeds, combine, shrink))
    _show(trained, shared.json, flags(behaviour=behaviour))


def _go_on(
    run: Path, shared: Shared, own: dict[str, Any], behaviours: list[str]
) -> Trained | TrainedEnsemble:
    """Go on with a run, or with an ensemble, which stays as it was begun."""
    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.cli.watching import watching
    from finflow_sb3.ensemble_training import continue_ensemble, is_ensemble
    from finflow_sb3.resuming import continue_training

    if is_ensemble(run):
        refuse_flags(FIXED_BY_RUN, shared, own)
        with watching() as watch:
            return continue_ensemble(run, watch, behaviours=behaviours)
    refuse_flags(FIXED_BY_RUN, shared, own, CHANGING)
    settings = settings_of_resumed(run, shared, ALGO_OF_RUN)
    with watching() as watch:
        return continue_training(
            run, watch, settings=settings, prices=shared.prices, behaviours=behaviours
        )


def _check_lengths(
    mode: Mode,
    algo: OfflineAlgorithm | None,
    epochs: dict[OfflineAlgorithm, int | None],
    episodes: int | None,
) -> None:
    """Refuse lengths that would have no effect."""
    given = [name for name, number in epochs.items() if number is not None]
    pretrains = algo or "iql"
    if mode == "online" and algo is not None:
        raise ConfigError("--offline-algo: --mode online does not pretrain; leave it out")
    if mode == "demo" and (given or episodes is not None):
        raise ConfigError(
            f"--mode demo has lengths of its own; use --mode full with --{pretrains}-epochs and "
            "--sac-episodes"
        )
    for name in given:
        if name != pretrains:
            raise ConfigError(
                f"--{name}-epochs: {pretrains} pretrains; give --{pretrains}-epochs, or "
                f"--offline-algo {name}"
            )


@shared_options
def demo_command(shared: Shared) -> None:
    """Everything from prices to the report with small settings, in a few minutes."""
    settings = shared_settings(shared, None)
    trained = _trained(settings, "demo", None, "iql", [])
    _show(trained, shared.json)
    if not shared.json:
        _suggest(settings.market.prices, trained)


def _trained(
    settings: Settings,
    mode: Mode,
    dataset: Path | None,
    algo: OfflineAlgorithm,
    behaviours: list[str],
    together: dict[str, Any] | None = None,
) -> Trained | TrainedEnsemble:
    """A new training, of one seed, or of several with the arguments of `train_ensemble`."""
    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.cli.watching import watching
    from finflow_sb3.ensemble_training import train_ensemble
    from finflow_sb3.evaluation.plot_style import label
    from finflow_sb3.pipeline import demo_settings, train

    with watching() as watch:
        if mode == "demo":
            small = demo_settings(settings)
            console.print(
                f"Demo on {small.market.prices}: {small.collect.episodes} episodes of known rules, "
                f"{small.offline(algo).epochs} epochs of {label(algo)}, "
                f"{small.cqsac.n_timesteps:,} steps of CQSAC, a backtest.",
                markup=False,
                highlight=False,
            )
        if together is not None:
            return train_ensemble(
                settings,
                mode=mode,
                dataset=dataset,
                watch=watch,
                offline_algo=algo,
                behaviours=behaviours,
                **together,
            )
        return train(settings, mode, dataset, watch, algo, behaviours=behaviours)


def _show(trained: Trained | TrainedEnsemble, as_json: bool, flags: str = "") -> None:
    from finflow_sb3.results import Trained

    if as_json:
        print_json(trained)
    go_on = f"train{flags} --resume"
    if isinstance(trained, Trained):
        for stage in (trained.pretrained, trained.finetuned):
            if stage is not None:
                check_finished(stage, go_on)
    else:
        check_all_trained(trained, go_on)
    if not as_json and trained.evaluated is not None:
        from finflow_sb3.cli.results import show_evaluated

        show_evaluated(trained.evaluated)


def _suggest(prices: str, trained: Trained | TrainedEnsemble) -> None:
    from rich.text import Text

    from finflow_sb3.cli.results import command
    from finflow_sb3.results import Trained

    if not (isinstance(trained, Trained) and trained.pretrained and trained.finetuned):
        return
    pretrained, finetuned = trained.pretrained.run, trained.finetuned.run
    source = "" if prices == "us20" else f" --prices {shlex.quote(prices)}"
    suggestions = {
        "Train at full length": f"finflow train --mode full{source}",
        "Fine-tune longer from this start": (
            f"{command('finetune --pretrained', pretrained)} --n-timesteps 252000"
        ),
        "Every figure as JSON": f"{command('evaluate', finetuned)} --json",
    }
    out.print(Text("What to try next:"))
    for what, line in suggestions.items():
        out.print(Text(f"  {what}:"))
        out.print(Text(f"    {line}", "cyan"), soft_wrap=True)
