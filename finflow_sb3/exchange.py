"""The verbs `export_zip` and `import_zip`: runs to Stable-Baselines3's zips and back."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from finflow_sb3.config import OfflineSettings, Settings
from finflow_sb3.errors import ArtefactError, CheckpointError, ConfigError
from finflow_sb3.network_sizes import NetworkSizes
from finflow_sb3.opening import open_pinned
from finflow_sb3.parallel import require_alone
from finflow_sb3.pipeline import (
    from_scratch,
    is_pretraining,
    new_run,
    without_value,
)
from finflow_sb3.pretrain.artefact import read_artefact, write_artefact
from finflow_sb3.results import Watch
from finflow_sb3.run_notes import note_market, noted_market
from finflow_sb3.runs.checkpoints import CheckpointStore, read_checkpoint
from finflow_sb3.runs.folder import RunFolder
from finflow_sb3.runs.random_state import global_random_state, restore_global_random_state
from finflow_sb3.training.adopt import adopt
from finflow_sb3.training.build import build_env, build_model
from finflow_sb3.training.finetune import prepare
from finflow_sb3.training.sb3_zip import ZipContent, read_zip, write_zip
from finflow_sb3.training.state import restore
from finflow_sb3.training.zip_fit import artefact_of, fill, require_fit

__all__ = ["Exported", "Imported", "export_zip", "import_zip"]


@dataclass(frozen=True)
class Exported:
    """A zip that `CQSAC.load` reads, and the checkpoint that it was made of."""

    path: Path
    checkpoint: Path
    steps: int


@dataclass(frozen=True)
class Imported:
    """A new run that was made of a zip. `steps` are those that the zip was trained for."""

    run: Path
    steps: int
    validation: dict[str, float]


def export_zip(
    run: str | Path, output: str | Path, checkpoint: str = "latest", watch: Watch | None = None
) -> Exported:
    """Write a checkpoint of a fine-tuning run as Stable-Baselines3 writes a model.

    `CQSAC.load` reads it, without prices to predict, and with an environment to train on. The
    zip holds no replay and no offline data: its `offline_fraction` is 0.

    Parameters
    ----------
    output : file that ends in .zip; one that is there is replaced
    checkpoint : `latest`, `best`, or the name of one, as in `step_25200`

    Raises
    ------
    CheckpointError
        If there is no such checkpoint, or it is not whole.
    """
    require_alone("checkpoint export")
    watch, path = watch or Watch(), Path(output)
    if path.suffix != ".zip":
        raise ConfigError(f"{path}: a file for Stable-Baselines3 ends in .zip")
    folder = RunFolder.open(run)
    if is_pretraining(folder.path):
        raise ArtefactError(f"{run}: is a pretraining run; only fine-tuning has a CQSAC to export")
    stored = read_checkpoint(_checkpoint_path(folder, checkpoint))
    # Where it was trained may have other devices than this machine.
    settings = folder.settings().replace(run={"device": "auto"})
    seeded = folder.path / "seed"
    artefact = read_artefact(seeded) if seeded.is_dir() else None
    noted = noted_market(folder)
    settings, market = open_pinned(settings, noted.scaler, watch)
    noted.layout.require_equal(market.layout, str(folder.path))
    noted.require_past(market.prices)
    with _same_random_state():
        model, _ = prepare(settings, market, artefact)
        restore(model, stored)
        write_zip(model, market, path)
    return Exported(path, stored.path, model.num_timesteps)


def _checkpoint_path(folder: RunFolder, name: str) -> Path:
    store = CheckpointStore(folder.checkpoints)
    if name == "best" and not (store.folder / "best.json").is_file():
        raise CheckpointError(
            f"{folder.path}: no checkpoint was best (the start was, or save_best is off); export "
            "latest"
        )
    if name in ("latest", "best"):
        return store.pointed(name)
    found = re.fullmatch(r"step_(\d+)", name)
    if found is None:
        raise ConfigError(f"checkpoint: {name!r} is not latest, best or step_<number>")
    path = folder.checkpoints / f"step_{int(found[1]):012d}"
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: no such checkpoint; finflow checkpoint list {folder.path} shows those there "
            "are"
        )
    return path


@contextmanager
def _same_random_state() -> Iterator[None]:
    """A model that is built and restored sets the state of all generators: put it back."""
    tensors, plain = global_random_state()
    try:
        yield
    finally:
        restore_global_random_state(tensors, plain)


def import_zip(
    path: str | Path, settings: Settings, trust: bool = False, watch: Watch | None = None
) -> Imported:
    """Make a run of a zip that Stable-Baselines3 wrote of a CQSAC, to evaluate and to go on with.

    Only tensors and plain numbers are read, and no pickle in it is opened; all else is as the
    settings say. The new run acts with the zip's policy until its replay buffer holds as much as
    a new run's would before the first update.

    Parameters
    ----------
    settings : what it was trained with: prices and splits, environment, sizes of the networks
    trust : that the file comes from somebody who may run code on this machine

    Raises
    ------
    ArtefactError
        Without `trust`.
    CheckpointError
        If the file is no such zip, or does not fit the settings; the message names what.
    """
    zip_path = Path(path)
    if not trust:
        raise ArtefactError(
            f"{zip_path}: zips of Stable-Baselines3 hold pickles, which can run code when they are "
            "opened; if you know where it comes from, give --trust (trust=True): tensors and "
            "numbers alone are then read"
        )
    require_alone("checkpoint import")
    watch = watch or Watch()
    content = read_zip(zip_path)
    steps = content.counters()["num_timesteps"]
    sizes = _seeded_sizes(settings, content)
    if sizes is None:
        settings = from_scratch(settings)
    begin = max(settings.cqsac.warmup_steps, settings.cqsac.learning_starts)
    settings = settings.replace(cqsac={"warmup_steps": steps + begin})
    settings, market = open_pinned(settings, None, watch)
    env = settings.env_kwargs
    artefact = artefact_of(content, market, sizes, env.gate_scale) if sizes else None
    if artefact is not None and not artefact.has_value:
        settings = without_value(settings, watch)
    vec_env = build_env(market, env, settings.cqsac, settings.run.seed)
    model = build_model(vec_env, market, env, settings.cqsac, settings.run, artefact)
    require_fit(content, model, market, env)
    fill(model, content)
    with new_run(settings, "cqsac", watch) as folder:
        if artefact is not None:
            write_artefact(artefact, folder.path / "seed")
        note_market(folder, market)
        validation = adopt(model, settings, market, folder)
    return Imported(folder.path, steps, validation)


def _seeded_sizes(settings: Settings, content: ZipContent) -> NetworkSizes | None:
    """Sizes as the pretraining run of these settings would have that seeded what the zip holds;
    None of a zip that was trained from scratch.
    """
    if settings.cqsac.policy != "MultiExpertPolicy":
        return None
    if any(name.startswith("reference_value.") for name in content.policy):
        own: OfflineSettings = settings.iql
    elif content.policy_kwargs.get("with_value") is False:  # seeded, without V
        own = settings.td3bc
    else:
        return None
    given = {
        "n_critics": own.n_critics,
        "n_quantiles": own.n_quantiles,
        **own.policy_kwargs,
        **settings.cqsac.policy_kwargs,
    }
    known = {item.name for item in dataclasses.fields(NetworkSizes)}
    return NetworkSizes.from_kwargs({k: v for k, v in given.items() if k in known})
