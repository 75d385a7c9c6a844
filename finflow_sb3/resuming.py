"""Going on with runs that were stopped or killed, exactly or with other settings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from finflow_sb3.collecting import collect_into, offline_data, transitions_for
from finflow_sb3.config import Settings
from finflow_sb3.config_files import read_config, write_config
from finflow_sb3.errors import ArtefactError, ConfigError
from finflow_sb3.evaluate_run import evaluate
from finflow_sb3.offline.collect import market_key
from finflow_sb3.offline.own import Own, noted, require_same
from finflow_sb3.offline.own_rules import GivenRule, own_rules
from finflow_sb3.offline.parts import Parts
from finflow_sb3.offline.record import read_record
from finflow_sb3.opening import open_own, open_pinned
from finflow_sb3.parallel import (
    first_goes_first,
    require_alone,
)
from finflow_sb3.pipeline import (
    finetune,
    going_on,
    is_pretraining,
    run_finetuning,
    run_pretraining,
)
from finflow_sb3.plain_pretraining import (
    is_without_market,
    noted_plain,
    plain_settings,
    run_plain_pretraining,
)
from finflow_sb3.plain_training import refuse_to_resume
from finflow_sb3.pretrain.artefact import read_artefact
from finflow_sb3.reopening import (
    chosen_checkpoint,
    fixed_of_finetuning,
    fixed_of_pretraining,
    fixed_without_market,
    of_this_process,
    refuse_or_tell,
    reopened,
    start,
)
from finflow_sb3.results import Collected, Finetuned, Pretrained, Trained, Watch
from finflow_sb3.run_notes import (
    noted_algo,
    noted_behaviours,
    noted_dataset,
    noted_plan,
    noted_ranking,
)
from finflow_sb3.runs.checkpoints import (
    Checkpoint,
    CheckpointStore,
    named_checkpoint,
)
from finflow_sb3.runs.folder import RunFolder
from finflow_sb3.runs.provenance import (
    changed_settings,
    same_validation,
    warn_of_other_versions,
)

__all__ = ["continue_training", "resume", "resume_collecting", "resume_pretraining"]


def resume(
    run: str | Path,
    n_timesteps: int | None = None,
    stop_at: int | None = None,
    watch: Watch | None = None,
    *,
    settings: Settings | None = None,
    prices: str | None = None,
    behaviours: Sequence[GivenRule] = (),
) -> Finetuned:
    """Go on with a fine-tuning run from its latest checkpoint, or from one that is named.

    With nothing else given, what comes is bit for bit what the run would have come to had it
    never stopped.

    Parameters
    ----------
    run : the run's folder, or one checkpoint in it
    n_timesteps : train to this many steps instead of what the run was set to
    settings : instead of the run's own; what differs is named in a remark
    prices : of the same universe, with a longer history: training goes on with the new days,
        and validation moves on by as many
    behaviours : the rules of your own that the run began with: none is imported because a file
        says so

    Raises
    ------
    CheckpointError
        If no checkpoint is whole.
    ConfigError
        If a setting differs that a run can't change.
    """
    watch = watch or Watch()
    path = Path(run)
    named = named_checkpoint(path)
    folder = RunFolder.open(named.parent.parent if named else path)
    refuse_to_resume(folder.path)
    if is_pretraining(folder.path):
        raise ArtefactError(
            f"{path}: is a pretraining run; go on with finflow pretrain --resume {path}, or "
            f"fine-tune it with finflow finetune --pretrained {path}"
        )
    own = _same_rules(folder, behaviours)
    settings = settings or folder.settings()
    if n_timesteps is not None:
        settings = settings.replace(cqsac={"n_timesteps": n_timesteps})
    folder, named = of_this_process(folder, named, settings, "finetune")
    seeded = folder.path / "seed"
    artefact = read_artefact(seeded) if seeded.is_dir() else None
    open = reopened(folder, named, settings, prices, fixed_of_finetuning, watch)
    settings, checkpoint = open.settings, open.checkpoint
    step = 0 if checkpoint is None else checkpoint.step
    if prices is not None and step >= settings.cqsac.n_timesteps:
        raise ConfigError(
            f"{folder.path}: has done all its {step:,} steps; say with --n-timesteps how many it "
            "is to do in all"
        )
    data = offline_data(settings, open.market, noted_dataset(folder), watch, own)
    start(open, watch)
    watch.remark(f"Resuming at step {step:,} of {settings.cqsac.n_timesteps:,}.")
    return run_finetuning(settings, open.market, folder, artefact, data, watch, checkpoint, stop_at)


def resume_pretraining(
    run: str | Path,
    stop_at: int | None = None,
    watch: Watch | None = None,
    *,
    settings: Settings | None = None,
    prices: str | None = None,
    behaviours: Sequence[GivenRule] = (),
) -> Pretrained:
    """Go on with a pretraining run, as `resume` does with a fine-tuning run.

    Parameters
    ----------
    stop_at : stop with a checkpoint after this gradient step
    """
    watch = watch or Watch()
    path = Path(run)
    named = named_checkpoint(path)
    folder = RunFolder.open(named.parent.parent if named else path)
    if not is_pretraining(folder.path):
        raise ArtefactError(
            f"{path}: is no pretraining run; go on with finflow finetune --resume {path}"
        )
    algo = noted_algo(folder)
    own = _same_rules(folder, behaviours)
    settings = settings or folder.settings()
    folder, named = of_this_process(folder, named, settings, "pretrain")
    if is_without_market(folder):
        return _resume_plain(folder, named, settings, prices, stop_at, watch)
    open = reopened(folder, named, settings, prices, partial(fixed_of_pretraining, algo), watch)
    settings, checkpoint = open.settings, open.checkpoint
    learned = settings.offline(algo)
    total = learned.epochs * learned.steps_per_epoch
    if checkpoint is not None and checkpoint.step >= total:
        _require_same_validation(checkpoint, settings, folder, total)
    with first_goes_first():
        data, dataset = transitions_for(settings, open.market, noted_dataset(folder), watch, own)
    start(open, watch)
    step = 0 if checkpoint is None else checkpoint.step
    watch.remark(f"Resuming at gradient step {step:,} of {total:,}.")
    return run_pretraining(settings, open.market, data, dataset, folder, watch, checkpoint, stop_at)


def _require_same_validation(
    checkpoint: Checkpoint, settings: Settings, folder: RunFolder, total: int
) -> None:
    """Refuse another validation where no epoch is left that could be judged by it."""
    if not same_validation(checkpoint, settings):
        raise ConfigError(
            f"{folder.path}: has done all its {total:,} steps, and validation would begin anew; "
            "say with --epochs how many epochs it is to do in all"
        )


def _resume_plain(
    folder: RunFolder,
    named: Path | None,
    settings: Settings,
    prices: str | None,
    stop_at: int | None,
    watch: Watch,
) -> Pretrained:
    """Go on with a run that has no market."""
    if prices is not None:
        raise ConfigError(f"{folder.path}: learns without a market; leave out --prices")
    settings = plain_settings(settings, str(folder.path))
    checkpoint = chosen_checkpoint(folder, named, watch)
    if checkpoint is not None:
        changed = changed_settings(checkpoint, settings)
        refuse_or_tell(changed, fixed_without_market, folder, watch)
        warn_of_other_versions(checkpoint, watch.remark)
    dataset = noted_plain(folder).open(watch)
    if settings != folder.settings():
        write_config(settings, folder.path / "config.yml")
    watch.started(folder.path)
    with going_on(folder, "pretrain"):
        return run_plain_pretraining(settings, dataset, folder, watch, checkpoint, stop_at)


def resume_collecting(
    dataset: str | Path,
    watch: Watch | None = None,
    *,
    behaviours: Sequence[GivenRule] = (),
    records: Sequence[str | Path] = (),
) -> Collected:
    """Go on with a collection that was stopped or killed, to the same dataset.

    Parameters
    ----------
    dataset : the file that it was to write
    behaviours, records : those that it began with

    Raises
    ------
    ArtefactError
        If nothing was left of it, what was left is damaged, or it began with other rules of the
        user's own, or records.
    """
    require_alone("collect")
    path, watch = Path(dataset), watch or Watch()
    parts = Parts(path)
    if not parts.plan.is_file():
        why = "is whole" if path.is_file() else "there is no collection of that name to go on with"
        raise ArtefactError(f"{path}: {why}; leave --resume out to collect anew")
    note, rules = parts.own, own_rules(behaviours)
    found = [read_record(record) for record in records]
    require_same(note, noted(rules, found, False), str(path))
    settings, market = open_pinned(read_config(parts.plan), None, watch)
    if parts.market != market_key(market):
        raise ArtefactError(
            f"{settings.market.prices}: its prices are not those that {path} was begun on; give "
            "them back, or leave --resume out to collect anew"
        )
    own = open_own(market, rules, found, bool(note.get("only_own")), watch)
    return collect_into(settings, market, path, watch, own)


def continue_training(
    run: str | Path,
    watch: Watch | None = None,
    *,
    settings: Settings | None = None,
    prices: str | None = None,
    behaviours: Sequence[GivenRule] = (),
    report: bool = True,
) -> Trained:
    """Go on with what `train` left: with pretraining that was cut short, then with fine-tuning
    where that was to follow; or with fine-tuning; then evaluate.

    Parameters
    ----------
    run : a run of either kind, or one checkpoint in it
    behaviours : as for `resume`
    report : evaluate at the end
    """
    path, pretrained = Path(run), None
    named = named_checkpoint(path)
    folder = RunFolder.open(named.parent.parent if named else path)
    if is_without_market(folder):
        raise ArtefactError(
            f"{path}: has no market to go on in; go on with finflow pretrain --resume {path}"
        )
    if not is_pretraining(folder.path):
        finetuned = resume(
            path, watch=watch, settings=settings, prices=prices, behaviours=behaviours
        )
        ends = report and finetuned.finished
        return Trained(None, finetuned, evaluate(finetuned.run, watch=watch) if ends else None)
    if named is not None or not _pretraining_is_done(folder):
        pretrained = resume_pretraining(
            path, watch=watch, settings=settings, prices=prices, behaviours=behaviours
        )
        if not pretrained.finished:
            return Trained(pretrained, None, None)
    if noted_plan(folder) == "offline":
        evaluated = evaluate(folder.path, watch=watch) if report else None
        return Trained(pretrained, None, evaluated)
    own = settings or folder.settings()
    dataset = noted_dataset(folder) if own.cqsac.offline_fraction > 0.0 else None
    rules = _same_rules(folder, behaviours).rules if own.cqsac.offline_fraction > 0.0 else ()
    finetuned = finetune(own, folder.path, dataset, watch=watch, behaviours=rules)
    ends = report and finetuned.finished
    evaluated = evaluate(finetuned.run, watch=watch) if ends else None
    return Trained(pretrained, finetuned, evaluated)


def _same_rules(folder: RunFolder, behaviours: Sequence[GivenRule]) -> Own:
    """The user's own rules, which must be those that the run began with."""
    own = Own(own_rules(behaviours))
    require_same(noted_behaviours(folder.path), own.as_dict(), str(folder.path))
    return own


def _pretraining_is_done(folder: RunFolder) -> bool:
    own = folder.settings().offline(noted_algo(folder))
    checkpoints = CheckpointStore(folder.checkpoints).all()
    if not checkpoints:
        return False
    learned = int(checkpoints[-1].name.rpartition("_")[2]) >= own.epochs * own.steps_per_epoch
    return learned and (own.fqe_epochs == 0 or noted_ranking(folder) is not None)
