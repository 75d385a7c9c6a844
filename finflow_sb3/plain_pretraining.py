"""Pretraining runs on datasets without a market: what they refuse, note and write."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from finflow_sb3.config import Settings
from finflow_sb3.config_files import resolve
from finflow_sb3.errors import ArtefactError, ConfigError
from finflow_sb3.market.cache import content_key
from finflow_sb3.offline.formats import read_plain
from finflow_sb3.offline.plain import PlainDataset
from finflow_sb3.offline.spaces import ActionRange, Spaces
from finflow_sb3.pretrain.artefact import read_json, write_json
from finflow_sb3.pretrain.plain import run_plain
from finflow_sb3.pretrain.run import start_learner
from finflow_sb3.pretraining_record import pretraining_record
from finflow_sb3.results import Pretrained, Watch
from finflow_sb3.runs.checkpoints import Checkpoint
from finflow_sb3.runs.folder import RunFolder
from finflow_sb3.training.build import pick_device

__all__ = [
    "OF_MARKETS",
    "NotedPlain",
    "is_without_market",
    "note_plain",
    "noted_plain",
    "open_plain",
    "plain_name",
    "plain_settings",
    "run_plain_pretraining",
]

NOTE = "spaces.json"
"""The dataset of a run without a market, its spaces and a hash of it."""
OF_MARKETS = ("market", "env_kwargs", "collect")
OF_GATES = ("balance_coef", "prior_coef")
OF_EXPERTS = ("expert_hidden", "gate_hidden", "token_hidden", "mixture")


def plain_settings(settings: Settings, source: str) -> Settings:
    """Settings of a run without a market: none of the gate's, and no pull to the anchors.

    Raises
    ------
    ConfigError
        Naming a setting that was given and needs a market.
    """
    usual = resolve(algo="iql", environ={})
    if settings.env != usual.env:
        raise ConfigError(f"{source}: has no market, and env is {settings.env!r}; leave it out")
    for section in OF_MARKETS:
        for name, value in vars(getattr(settings, section)).items():
            if value != getattr(getattr(usual, section), name):
                variable = f"FINFLOW_{name.upper()}"
                remedy = f"unset {variable}" if variable in os.environ else "leave it out"
                raise ConfigError(
                    f"{source}: has no market, and {section}.{name} is {value!r}; {remedy}"
                )
    for name in OF_EXPERTS:
        if name in settings.iql.policy_kwargs:
            raise ConfigError(
                f"{source}: is learned by perceptrons, and policy_kwargs has {name}; leave it out "
                "(critic_hidden has the widths of all networks)"
            )
    for name in OF_GATES:
        value = getattr(settings.iql, name)
        if value not in (0.0, getattr(usual.iql, name)):
            raise ConfigError(f"{source}: has no market, and iql.{name} is {value:g}; leave it out")
    return settings.replace(iql=dict.fromkeys(OF_GATES, 0.0))


def open_plain(source: str, action_range: ActionRange | None, watch: Watch) -> PlainDataset:
    """Read a dataset, and say what is in it."""
    dataset = read_plain(source, action_range)
    watch.remark(
        f"{source}: {len(dataset):,} transitions in {dataset.n_episodes:,} episodes, without a "
        "market: a perceptron learns, and a tenth of the episodes is held out."
    )
    if dataset.left_out:
        watch.remark(f"Left out, as what followed them is not in it: {dataset.left_out:,} steps.")
    if dataset.clipped:
        watch.remark(f"Moved to the edge of the action space: {dataset.clipped:,} actions.")
    return dataset


def plain_name(source: str) -> str:
    """How the runs on a dataset are called."""
    name = source.partition(":")[2] if source.startswith("minari:") else Path(source).stem
    return name or "dataset"


# ------------------------------------------------------------------ what a run notes


@dataclass(frozen=True)
class NotedPlain:
    """The dataset of a run: where it was, its spaces, and a hash of it."""

    run: Path
    source: str
    spaces: Spaces
    key: str

    def open(self, watch: Watch) -> PlainDataset:
        """The dataset again.

        Raises
        ------
        ArtefactError
            If it is not the same any more.
        """
        known = not (self.source.startswith("minari:") or Path(self.source).is_dir())
        bounds = (self.spaces.low, self.spaces.high) if known else None
        dataset = open_plain(self.source, bounds, watch)
        if _key(dataset) != self.key:
            raise ArtefactError(
                f"{self.run}: was trained on other data than {self.source} has now; give it back "
                "what it had, or start a new run"
            )
        return dataset


def note_plain(folder: RunFolder, source: str, dataset: PlainDataset) -> None:
    """Write the dataset's part of a run's notes."""
    place = source if source.startswith("minari:") else str(Path(source).resolve())
    content = {"dataset": place, "spaces": dataset.spaces.as_dict(), "key": _key(dataset)}
    write_json(folder.path / NOTE, content)


def noted_plain(folder: RunFolder) -> NotedPlain:
    """The dataset of a run without a market.

    Raises
    ------
    ArtefactError
        If the note is not whole.
    """
    content = read_json(folder.path / NOTE)
    spaces = Spaces.from_dict(content.get("spaces", {}))
    return NotedPlain(folder.path, str(content.get("dataset")), spaces, str(content.get("key")))


def is_without_market(folder: RunFolder) -> bool:
    return (folder.path / NOTE).is_file()


def _key(dataset: PlainDataset) -> str:
    names = ("observations", "after", "action", "reward", "episode", "terminal")
    return content_key(dataset.spaces.as_dict(), *(getattr(dataset, name) for name in names))


# ------------------------------------------------------------------ training


def run_plain_pretraining(
    settings: Settings,
    dataset: PlainDataset,
    folder: RunFolder,
    watch: Watch,
    checkpoint: Checkpoint | None = None,
    stop_at: int | None = None,
) -> Pretrained:
    """Train IQL in a run's folder, from the start or from a checkpoint of it."""
    iql, seed, device = settings.iql, settings.run.seed, pick_device(settings.run.device)
    total = iql.epochs * iql.steps_per_epoch
    started = start_learner(
        dataset.spaces, settings.env_kwargs.gate_scale, iql, seed, device, checkpoint
    )
    record = pretraining_record(settings, iql, folder, total, watch, checkpoint, stop_at)
    with record as open_record:
        outcome = run_plain(dataset, iql, started, seed, device, **open_record.callbacks)
        return open_record.end(outcome, dataset.source, untrained={})
