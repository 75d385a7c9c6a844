"""Datasets of others, by what they are."""

from __future__ import annotations

from pathlib import Path

from finflow_sb3.errors import ArtefactError, ConfigError
from finflow_sb3.offline.d3rlpy_files import is_d3rlpy_file, read_d3rlpy
from finflow_sb3.offline.minari_store import is_minari, read_minari
from finflow_sb3.offline.npz_files import read_npz
from finflow_sb3.offline.plain import PlainDataset
from finflow_sb3.offline.spaces import ActionRange

__all__ = ["is_plain", "read_plain"]


def is_plain(source: str | Path) -> bool:
    """Whether it is a dataset without a market: Minari's, d3rlpy's or `.npz`."""
    path = Path(source)
    return is_minari(str(source)) or path.suffix == ".npz" or is_d3rlpy_file(path)


def read_plain(source: str | Path, action_range: ActionRange | None = None) -> PlainDataset:
    """Read a dataset without a market: `minari:ID` or Minari's folder, d3rlpy's file, `.npz`.

    Nothing in it is executed, and nothing is downloaded.

    Parameters
    ----------
    action_range : lowest and highest action of the environment, which d3rlpy's files and `.npz`
        do not have; without it their actions have to lie in [-1, 1]

    Raises
    ------
    ArtefactError
        If there is no such dataset, it is of another kind, or it is not whole.
    ConfigError
        If a range is given for a dataset that has its own.
    MissingExtraError
        If it is one of Minari's, and minari is not installed.
    """
    path = Path(source)
    if is_minari(str(source)):
        if action_range is not None:
            raise ConfigError(f"{source}: has its own bounds of actions; leave out --action-range")
        return read_minari(str(source))
    if not path.exists():
        raise ArtefactError(f"{source}: no such dataset; give a file, or minari:ID")
    if path.suffix == ".npz":
        return read_npz(path, action_range)
    if is_d3rlpy_file(path):
        return read_d3rlpy(path, action_range)
    raise ArtefactError(f"{source}: is no dataset of d3rlpy or Minari, and no .npz")
