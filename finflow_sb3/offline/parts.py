"""Waves of a collection that has not ended, kept on disk until it has."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from finflow_sb3.errors import ArtefactError
from finflow_sb3.files import sweep, whole_folder, write_whole
from finflow_sb3.manifests import read_manifest, write_manifest
from finflow_sb3.offline.waves import Wave

__all__ = ["Parts"]

FORMAT = "finflow-waves-2"
PLAN = "config.yml"
MARKET = "market.txt"
OWN = "own.json"
STATE = "state.json"


class Parts:
    """What a collection has come to, in the folder `<dataset>.part`.

    Parameters
    ----------
    dataset : the file that the collection is to become
    """

    def __init__(self, dataset: Path):
        self.folder = dataset.with_name(f"{dataset.name}.part")

    @property
    def plan(self) -> Path:
        """The configuration of the collection."""
        return self.folder / PLAN

    @property
    def own(self) -> dict[str, Any]:
        """Note of what the user brought beside the configuration."""
        path = self.folder / OWN
        return _read(path) if path.is_file() else {}

    @property
    def market(self) -> str:
        """Hash of the prices that it was begun on."""
        path = self.folder / MARKET
        return path.read_text() if path.is_file() else ""

    def start(self, plan: bytes, own: dict[str, Any], market: str) -> None:
        """Begin anew, with this configuration, and this beside it.

        Parameters
        ----------
        market : a hash of the prices that it is collected on
        """
        self.remove()
        write_whole(self.folder / MARKET, market.encode())
        if own:
            write_whole(self.folder / OWN, json.dumps(own).encode())
        write_whole(self.plan, plan)

    def add(self, waves: list[Wave], done: int, generator: np.random.Generator) -> None:
        """Keep these waves as well.

        Parameters
        ----------
        done : waves kept before them
        generator : draws what comes after them
        """
        sweep(self.folder, "waves_*")
        with whole_folder(self.folder / f"waves_{done:08d}") as new:
            for i, wave in enumerate(waves):
                save_file({k: np.ascontiguousarray(v) for k, v in wave.items()}, new / _name(i))
            state = {
                "waves": len(waves),
                "transitions": sum(int(wave["lengths"].sum()) for wave in waves),
                "generator": dict(generator.bit_generator.state),
            }
            (new / STATE).write_text(json.dumps(state))
            write_manifest(new, FORMAT)

    def restore(self, generator: np.random.Generator) -> int:
        """Number of waves so far; `generator` then draws what comes after them.

        Raises
        ------
        ArtefactError
            Naming the file that is damaged.
        """
        waves = 0
        for folder, state in self._folders():
            read_manifest(folder, FORMAT, ArtefactError)
            generator.bit_generator.state = state["generator"]
            waves += state["waves"]
        return waves

    def waves(self) -> Iterator[Wave]:
        """All waves that are kept, in their order, one at a time."""
        for folder, state in self._folders():
            for i in range(state["waves"]):
                yield load_file(folder / _name(i))

    def transitions(self) -> int:
        """Number of transitions in all waves that are kept."""
        return sum(state["transitions"] for _, state in self._folders())

    def _folders(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        done = 0
        while (folder := self.folder / f"waves_{done:08d}").is_dir():
            state = _state(folder)
            yield folder, state
            done += state["waves"]

    def remove(self) -> None:
        """The dataset is written, or begun anew."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _state(folder: Path) -> dict[str, Any]:
    state = _read(folder / STATE)
    try:
        return {**state, **{name: int(state[name]) for name in ("waves", "transitions")}}
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(folder / STATE, error) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    if not isinstance(content, dict):
        raise _unreadable(path, "no mapping")
    return content


def _unreadable(path: Path, why: object) -> ArtefactError:
    return ArtefactError(f"{path}: cannot be read ({why}); collect it again")


def _name(number: int) -> str:
    return f"{number:04d}.safetensors"
