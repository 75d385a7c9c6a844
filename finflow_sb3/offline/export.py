"""Our datasets in the formats of others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finflow_sb3.errors import ArtefactError, ConfigError
from finflow_sb3.offline.d3rlpy_files import write_d3rlpy
from finflow_sb3.offline.dataset import OfflineDataset
from finflow_sb3.offline.dataset_file import read_dataset
from finflow_sb3.offline.minari_store import PREFIX, stored_at, write_minari
from finflow_sb3.offline.npz_files import write_npz
from finflow_sb3.offline.plain import PlainEpisode
from finflow_sb3.offline.spaces import Spaces

__all__ = ["Exported", "episodes_of", "export_dataset"]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes
    ----------
    format : "minari", "d3rlpy" or "npz"
    path : the file or folder
    """

    source: Path
    format: str
    path: Path
    transitions: int
    episodes: int


def export_dataset(source: str | Path, target: str | Path) -> Exported:
    """Write a dataset of `collect` in a format that others read, whole or not at all.

    Parameters
    ----------
    source : file of `collect`
    target : `minari:ID` for Minari's local store, a folder for a Minari dataset elsewhere, a file
        ending in .h5 for d3rlpy or in .npz; it must not be there yet

    Raises
    ------
    ArtefactError
        If the source is no such dataset, or not whole.
    ConfigError
        If the target is there already, or of no known kind.
    MissingExtraError
        If it is for Minari, which is not installed.
    StorageError
        If it cannot be written.
    """
    form, path = _chosen(str(target))
    if path.exists():
        raise ConfigError(f"{path}: is there already; choose another name, or remove it first")
    dataset = read_dataset(Path(source))
    if not len(dataset):
        raise ArtefactError(f"{source}: holds no transitions; collect it again")
    if form == "minari":
        write_minari(episodes_of(dataset), _spaces(dataset), path, _metadata(dataset, target))
    elif form == "d3rlpy":
        write_d3rlpy(episodes_of(dataset), dataset.n_episodes, path)
    else:
        write_npz(dataset, path)
    return Exported(Path(source), form, path, len(dataset), dataset.n_episodes)


def episodes_of(dataset: OfflineDataset) -> Iterator[PlainEpisode]:
    """Its episodes one by one, each with the observation that it ended in."""
    bounds = [*dataset.starts.tolist(), len(dataset)]
    for number, start in enumerate(bounds[:-1]):
        batch = dataset.gather(torch.arange(start, bounds[number + 1]))
        yield PlainEpisode(
            torch.cat([batch.observations, batch.next_observations[-1:]]).numpy(),
            batch.actions.numpy(),
            batch.rewards[:, 0].numpy(),
            bool(dataset.terminal[number]),
        )


def _chosen(target: str) -> tuple[str, Path]:
    """Format and place."""
    if target.startswith(PREFIX):
        return "minari", stored_at(target)
    path = Path(target)
    known = {".h5": "d3rlpy", ".hdf5": "d3rlpy", ".npz": "npz", "": "minari"}
    if path.suffix not in known:
        raise ConfigError(
            f"{target}: {path.suffix} is no known kind; give minari:ID, a folder, or a file ending "
            "in .h5 (d3rlpy) or .npz"
        )
    return known[path.suffix], path


def _spaces(dataset: OfflineDataset) -> Spaces:
    size = dataset.layout.action_size
    return Spaces((dataset.layout.size,), (size,), (-1.0,) * size, (1.0,) * size)


def _metadata(dataset: OfflineDataset, target: str | Path) -> dict[str, Any]:
    """What Minari shows of it."""
    name = str(target).removeprefix(PREFIX)
    if name == str(target):
        # Outside of the store the folder's name is all there is to make an identifier of.
        name = re.sub(r"[^-\w]+", "-", Path(target).name)
    return {
        "dataset_id": name if re.search(r"-v\d+$", name) else f"{name}-v0",
        "algorithm_name": "known allocation rules",
        "description": f"Portfolios of {', '.join(dataset.layout.assets)} on the prices of "
        f"{dataset.settings.get('source', 'a file')}; the rules: {', '.join(dataset.behaviours)}.",
    }
