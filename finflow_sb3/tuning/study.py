"""The verb `tune`: a study that ends with exactly as many trials as were asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import optuna
from sqlalchemy.exc import SQLAlchemyError

from finflow_sb3.benchmark.code import code_version
from finflow_sb3.benchmark.tasks import prices_key
from finflow_sb3.config import Settings
from finflow_sb3.config_arguments import PlainArguments, algorithm_arguments
from finflow_sb3.config_files import read_config
from finflow_sb3.config_keys import PLAIN_ALGORITHMS
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.errors import ConfigError, StorageError
from finflow_sb3.market.cache import content_key
from finflow_sb3.messages import one_line
from finflow_sb3.opening import open_market
from finflow_sb3.results import Watch
from finflow_sb3.run_notes import run_of
from finflow_sb3.tuning.folds import folds_of
from finflow_sb3.tuning.objectives import known_objectives
from finflow_sb3.tuning.outcome import Tuned, write_outcome
from finflow_sb3.tuning.ranges import tried_values
from finflow_sb3.tuning.spaces import Space, around, defaults, read_space, with_values
from finflow_sb3.tuning.storage import StudyStore, open_store
from finflow_sb3.tuning.trials import TrialPlan, validations
from finflow_sb3.tuning.work import Listener, TrialEvent, Work

__all__ = ["Pruner", "Sampler", "TrialEvent", "tune"]

Sampler = Literal["tpe", "gp", "random"]
Pruner = Literal["median", "hyperband", "none"]
MADE_WITH = "made_with"


def tune(
    settings: Settings,
    n_trials: int,
    out: str | Path,
    *,
    algo: str = "cqsac",
    objectives: Sequence[str] = ("sharpe",),
    seeds: int = 1,
    folds: int = 1,
    pretrained: str | Path | None = None,
    sampler: Sampler = "tpe",
    pruner: Pruner = "median",
    storage: str | None = None,
    study_name: str | None = None,
    space: str | Path | None = None,
    top: int | None = None,
    arguments: Mapping[str, Any] | PlainArguments | None = None,
    watch: Watch | None = None,
    listen: Listener | None = None,
) -> Tuned:
    """Try settings until `n_trials` have finished, pruned ones among them, and write the best.

    Every trial is judged on the validation split of each fold, by the mean over seeds and folds of
    the chosen policy's backtest, net of costs; the test split has no part in it. The first trial
    is the settings as they are. The study goes on where it exists, whoever began it; several
    processes with the same storage share its trials.

    Parameters
    ----------
    settings : what the trials start from
    out : folder of `best.yml`, tables and pictures, and of the study where `storage` is not given
    algo : "cqsac" (pretrained by IQL in each trial), "iql", "td3bc" or one of SB3's
    objectives : see `tuning.objectives`; several make a Pareto front, and no trial is pruned then
    seeds, folds : trainings of a trial
    pretrained : run whose fine-tuning is tuned; `settings` are those of that run then
    sampler, pruner : Optuna's; the pruner judges by the validation Sharpe ratio so far
    storage : `sqlite:///FILE`, `journal:FILE` or `postgresql://…`
    study_name : the algorithm and environment if not given
    space, top : a file instead of the packaged search space, and how many of its settings
    arguments : of one of SB3's algorithms
    watch : for progress within a trial
    listen : called when a trial ends

    Raises
    ------
    ConfigError
        If something is asked for that there is not, or the study was made with other settings.
    FinflowError
        If several trials in a row had no score; the last reason is named.
    KeyboardInterrupt
        At Ctrl-C; the same call goes on.
    """
    wanted = known_objectives(objectives)
    _check(n_trials, seeds, folds, pretrained, algo, sampler, pruner)
    own = _arguments(algo, settings, arguments)
    watch = watch or Watch()
    ranges = read_space(algo, settings, space, pretrained is not None).first(top)
    ranges = around(ranges, defaults(ranges, settings, own), space, watch.remark)
    market = open_market(settings, watch=watch)
    if pretrained is not None:
        _check_days(Path(pretrained), market)
    plan = TrialPlan(
        algo=algo,
        folds=folds_of(settings, market, folds),
        seeds=seeds,
        objectives=wanted,
        pretrained=None if pretrained is None else Path(pretrained),
        arguments=own,
        shared=not any(name.startswith(("iql.", "collect.", "env_")) for name in ranges.ranges),
        validations=_most_validations(ranges, settings, algo, own),
    )
    out = Path(out)
    store = open_store(storage or f"sqlite:///{out / 'study.db'}")
    name = study_name or f"{algo}-{settings.env.replace('/', '-')}"
    asked = {"sampler": sampler, "pruner": pruner if len(wanted) == 1 else "none"}
    study = _study(store, name, plan, ranges, {**asked, **_made_with(plan, ranges, settings)})
    work = Work(store, study, plan, ranges, sampler, n_trials, watch, listen)
    with _reachable(store):
        try:
            work.run(defaults(ranges, settings, own))
        finally:
            tuned = write_outcome(study, plan, ranges, settings, out, store.url)
    return tuned


@contextmanager
def _reachable(store: StudyStore) -> Iterator[None]:
    """Say in one line that the storage does not answer any more.

    Raises
    ------
    StorageError
        If it does not.
    """
    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
        why = one_line(str(error.__cause__ or error))[:200]
        raise StorageError(
            f"{store.url}: does not answer ({why}); what is complete is kept: the same command "
            "goes on"
        ) from error


def _check(
    n_trials: int,
    seeds: int,
    folds: int,
    pretrained: str | Path | None,
    algo: str,
    sampler: str,
    pruner: str,
) -> None:
    for flag, count in (("--n-trials", n_trials), ("--seeds", seeds), ("--folds", folds)):
        if count < 1:
            raise ConfigError(f"{flag}: {count} is less than one")
    for flag, name, known in (("--sampler", sampler, Sampler), ("--pruner", pruner, Pruner)):
        if name not in get_args(known):
            raise ConfigError(f"{flag}: {name!r} is not one of {', '.join(get_args(known))}")
    if pretrained is not None and algo != "cqsac":
        raise ConfigError(f"--pretrained: seeds cqsac, not {algo}; leave one of the two out")
    if pretrained is not None and folds > 1:
        raise ConfigError(
            "--folds: earlier folds are days that the pretrained run was trained on; leave it out "
            "with --pretrained"
        )


def _check_days(pretrained: Path, market: ObservedMarket) -> None:
    """Refuse to judge by days that the pretrained run has learned from."""
    noted = run_of(pretrained) / "config.yml"
    learned = read_config(noted).market.train_end if noted.is_file() else None
    first = str(market.prices.dates[market.splits.validation.start])
    if learned is not None and first <= learned:
        raise ConfigError(
            f"--pretrained: {pretrained} was trained on days up to {learned}, and trials would be "
            f"judged from {first} on; leave the split as it is in that run, or pretrain anew"
        )


def _most_validations(
    ranges: Space, settings: Settings, algo: str, arguments: Mapping[str, Any]
) -> int:
    """How many validations a training of any trial has at most."""
    trials = [{name: x} for name, each in ranges.ranges.items() for x in tried_values(each)]
    tried = [with_values(settings, values, algo, arguments) for values in [{}, *trials]]
    return max(validations(each, algo, own) for each, own in tried)


def _arguments(
    algo: str, settings: Settings, given: Mapping[str, Any] | PlainArguments | None
) -> dict[str, Any]:
    if algo not in PLAIN_ALGORITHMS:
        return {}
    over = given.arguments if isinstance(given, PlainArguments) else (given or {})
    return {**algorithm_arguments(algo, settings.env, environ={}), **over}


def _made_with(plan: TrialPlan, ranges: Space, settings: Settings) -> dict[str, Any]:
    """What trials of one study have to share, by what a user would call it."""
    content = settings.as_dict()
    sections = ("market", "env_kwargs", "collect", "iql", "td3bc", "cqsac", "monitor")
    own = {name: content_key(content[name]) for name in sections}
    run = {k: content["run"][k] for k in ("seed", "evaluate_interval")}
    weights = b"" if plan.pretrained is None else _weights(plan.pretrained)
    return {
        "algo": plan.algo,
        "objectives": list(plan.objectives),
        "space": content_key(ranges.as_dict()),
        "seeds": plan.seeds,
        "folds": len(plan.folds),
        "pretrained": hashlib.sha256(weights).hexdigest()[:16] if weights else None,
        "prices": prices_key(settings),
        "arguments": content_key(dict(plan.arguments)),
        **{f"settings of {name}": key for name, key in own.items()},
        "run": content_key(run),
        "code": code_version(),
    }


def _weights(run: Path) -> bytes:
    for path in (run / "best" / "weights.safetensors", run / "weights.safetensors"):
        if path.is_file():
            return path.read_bytes()
    return str(run).encode()


def _study(
    store: StudyStore, name: str, plan: TrialPlan, ranges: Space, made: dict[str, Any]
) -> optuna.Study:
    """The study of this name: made now, or one that was made with the same."""
    with store.alone():
        study = optuna.create_study(
            storage=store.storage,
            study_name=name,
            directions=["maximize"] * len(plan.objectives),
            pruner=_pruner(made["pruner"]),
            load_if_exists=True,
        )
        before = study.user_attrs.get(MADE_WITH)
        if before is None:
            study.set_user_attr(MADE_WITH, made)
            return study
    differs = [key for key, value in made.items() if before.get(key) != value]
    if differs:
        raise ConfigError(
            f"{store.url}: the study {name!r} was made with other {', '.join(differs)}; go on with "
            "the same, or name another --study-name"
        )
    return study


def _pruner(name: str) -> optuna.pruners.BasePruner:
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner()
    return optuna.pruners.NopPruner()
