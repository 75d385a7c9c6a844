"""SB3's own algorithms trained on the market, from scratch, by the rules of fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from finflow_sb3.allocator import keep_freed_memory
from finflow_sb3.config import Settings
from finflow_sb3.config_arguments import PlainArguments, algorithm_arguments, checked_arguments
from finflow_sb3.config_checks import is_portfolio
from finflow_sb3.config_documents import read_document
from finflow_sb3.config_export import own_yaml
from finflow_sb3.config_keys import PLAIN_ALGORITHMS
from finflow_sb3.config_plain import PLAIN
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.errors import ArtefactError, ConfigError, DataError
from finflow_sb3.evaluate_run import evaluate
from finflow_sb3.evaluation.plot_style import label
from finflow_sb3.files import write_whole
from finflow_sb3.messages import remedy, shown
from finflow_sb3.opening import new_run, open_pinned
from finflow_sb3.parallel import require_alone
from finflow_sb3.results import Finetuned, Trained, Watch
from finflow_sb3.run_notes import note_market
from finflow_sb3.runs.folder import RunFolder
from finflow_sb3.stopping import stop_on_signal
from finflow_sb3.training.build import pick_device
from finflow_sb3.training.callbacks import EndOfTraining
from finflow_sb3.training.plain_callback import PlainCallback
from finflow_sb3.training.plain_model import build_plain, keep_plain, rollout_steps
from finflow_sb3.training.recording import recording

__all__ = ["refuse_to_resume", "train_and_evaluate_plain", "train_plain"]

STAGE = "training"


def train_plain(
    settings: Settings,
    algo: str,
    arguments: Mapping[str, Any] | PlainArguments | None = None,
    stop_at: int | None = None,
    watch: Watch | None = None,
) -> Finetuned:
    """Train an algorithm of SB3 or sb3-contrib in `n_envs` portfolios of the training split.

    Seeds, validation and the choice of the best are fine-tuning's: a backtest on the validation
    split each `run.evaluate_interval` episodes, start and end included, and the policy with the
    best Sharpe ratio in `best/`. On-policy algorithms validate at the end of the rollout in which
    it falls due, and do the whole number of rollouts that is nearest to `n_timesteps`. There are
    no checkpoints: such a run can't be resumed.

    Parameters
    ----------
    settings : of the market, the environment and the run; sections of other algorithms have no
        part in it
    algo : "sac", "td3", "ddpg", "ppo", "a2c", "tqc" or "crossq"
    arguments : of `config_arguments.plain_arguments`; or single ones, over the packaged file's
    stop_at : stop at the first boundary at or after this environment step

    Returns
    -------
    Finetuned
        Its `steps` are those that were done, over all portfolios.

    Raises
    ------
    ConfigError
        If an argument is wrong, or has no effect on portfolios.
    """
    watch = watch or Watch()
    require_alone("train")
    full = _arguments(settings, algo, arguments)
    pick_device(settings.run.device)  # refuses one that is not there before anchors are fitted
    settings, market = open_pinned(settings, None, watch)
    with new_run(settings, algo, watch) as folder:
        _write_arguments(settings, algo, full, folder)
        note_market(folder, market)
        return _run(settings, algo, full, market, folder, stop_at, watch)


def train_and_evaluate_plain(
    settings: Settings,
    algo: str,
    arguments: Mapping[str, Any] | PlainArguments | None = None,
    watch: Watch | None = None,
) -> Trained:
    """`train_plain`, and the evaluation of what it kept, if it came to its end."""
    trained = train_plain(settings, algo, arguments, watch=watch)
    evaluated = evaluate(trained.run, watch=watch) if trained.finished else None
    return Trained(None, trained, evaluated)


def refuse_to_resume(run: Path) -> None:
    """Refuse a run of `train_plain`, which has nothing to go on from.

    Raises
    ------
    ArtefactError
    """
    algo = read_document(RunFolder.open(run).path / "config.yml").algo
    if algo in PLAIN_ALGORITHMS:
        raise ArtefactError(
            f"{run}: is a run of {label(algo)}, which keeps no checkpoints and can't be resumed; "
            f"train anew with finflow train --algo {algo} --config {run}/config.yml"
        )


# ------------------------------------------------------------------ arguments


def _arguments(
    settings: Settings, algo: str, arguments: Mapping[str, Any] | PlainArguments | None
) -> dict[str, Any]:
    """Every argument, SB3's defaults included, with those refused that portfolios can't heed."""
    if algo not in PLAIN:
        raise ConfigError(f"algo: {shown(algo)} is not known; {remedy(algo, PLAIN_ALGORITHMS)}")
    if not is_portfolio(settings.env):
        raise ConfigError(
            f"env: {shown(settings.env)} is not made of prices; use finflow/Portfolio-v0"
        )
    if isinstance(arguments, PlainArguments):
        unused, given = arguments.unused, arguments.arguments
        for name in unused:
            where = arguments.origins.get(name, algo)
            raise ConfigError(f"{where}: nothing acts on {name} in portfolios; leave it out")
    else:
        given = {**algorithm_arguments(algo, settings.env, environ={}), **(arguments or {})}
    full = checked_arguments(algo, given)
    if full["normalize"]:
        raise ConfigError(
            f"{algo}.normalize: observations are scaled by the market's own scaler, which travels "
            "with every policy; set it to false"
        )
    if full["policy"] != "MlpPolicy":
        raise ConfigError(
            f"{algo}.policy: {full['policy']} is for images or Dict observations, and portfolios "
            "have flat ones; use MlpPolicy"
        )
    if "episode" in str(full.get("train_freq")) and full["n_envs"] > 1:
        raise ConfigError(
            f"{algo}.train_freq: whole episodes are counted in one environment, and n_envs is "
            f"{full['n_envs']}; give a number of steps, or n_envs:1"
        )
    if full["env_kwargs"]:
        raise ConfigError(f"{algo}.env_kwargs: those of portfolios are in the settings")
    return full


def _write_arguments(
    settings: Settings, algo: str, arguments: dict[str, Any], folder: RunFolder
) -> None:
    """`config.yml` with the algorithm's arguments in the place of the two phases' sections."""
    written = {name: value for name, value in arguments.items() if name != "env_kwargs"}
    text = own_yaml(settings, algo, PlainArguments(written, {}, {}))
    write_whole(folder.path / "config.yml", text.encode())


# ------------------------------------------------------------------ training


def _run(
    settings: Settings,
    algo: str,
    arguments: dict[str, Any],
    market: ObservedMarket,
    folder: RunFolder,
    stop_at: int | None,
    watch: Watch,
) -> Finetuned:
    keep_freed_memory()
    model = build_plain(algo, arguments, market, settings.env_kwargs, settings.run)
    total = _steps(algo, arguments, watch)
    keep = partial(keep_plain, model, algo, arguments, market)
    with recording(settings, folder, STAGE, total, None) as record:
        callback = PlainCallback(
            market,
            settings,
            record.log,
            on_best=partial(keep, folder.best) if settings.run.save_best else _keep_none,
            on_progress=record.status.before(
                lambda step: watch.progress(STAGE, min(step, total), total)
            ),
            stop_at=stop_at,
            on_validated=watch.validated,
        )
        _learn(model, callback, [callback, *record.tracker.callbacks], total)
        record.status.stopping = callback.stopping
        if not callback.stopping:
            record.log.hyperparameters(
                _hyperparameters(settings, algo, arguments), callback.last_validation
            )
    if not settings.run.save_best and callback.reason is None:
        keep(folder.last, callback.last_validation)
    return Finetuned(
        run=folder.path,
        steps=callback.seen,
        finished=not callback.stopping,
        best=callback.best if callback.best > float("-inf") else None,
        validation=callback.last_validation,
        seeded=None,
        stopped=callback.reason,
    )


def _keep_none(figures: dict[str, float]) -> None:
    """`save_best` is off: the last policy is kept at the end."""


def _steps(algo: str, arguments: Mapping[str, Any], watch: Watch) -> int:
    """Steps to do: those asked for, or the nearest that whole rollouts make."""
    asked, rollout = int(arguments["n_timesteps"]), rollout_steps(algo, arguments)
    if rollout is None:
        return asked
    total = max(1, round(asked / rollout)) * rollout
    if total != asked:
        watch.remark(
            f"{label(algo)} learns from whole rollouts of {rollout:,} steps: {total:,} steps are "
            f"done in the place of {asked:,}."
        )
    return total


def _learn(model: Any, callback: PlainCallback, callbacks: list[Any], total: int) -> None:
    """SB3's learn of `model`, stopping at a boundary on Ctrl-C or SIGTERM."""
    with stop_on_signal() as callback.stop, suppress(EndOfTraining):
        try:
            model.learn(total, callback=callbacks, log_interval=None)
        except (DataError, ValueError):  # what the market and torch make of weights of NaN
            callback.require_finite()
            raise
        callback.finish()


def _hyperparameters(settings: Settings, algo: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What has a part in such a run, by dotted name."""
    shared = {
        name: value
        for name, value in settings.flat().items()
        if name.split(".")[0] in ("env", "market", "env_kwargs", "run")
    }
    own = {
        f"{algo}.{name}": value if isinstance(value, (bool, int, float, str)) else repr(value)
        for name, value in arguments.items()
    }
    return shared | own
