"""Waves of a collection that has not ended, kept on disk until it has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from finflow_sb3.errors import ArtefactError
from finflow_sb3.files import sweep, whole_folder, write_whole
from finflow_sb3.manifests import read_manifest, write_manifest

__all__ = ["Parts", "Wave"]

Wave = dict[str, NDArray[Any]]
"""One episode of each of B portfolios: arrays by name, the portfolios along the first axis."""

FORMAT = "finflow-waves-1"
PLAN = "config.yml"


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

    def start(self, plan: bytes) -> None:
        """Begin anew, with this configuration."""
        self.remove()
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
            state = {"waves": len(waves), "generator": dict(generator.bit_generator.state)}
            (new / "state.json").write_text(json.dumps(state))
            write_manifest(new, FORMAT)

    def restore(self, generator: np.random.Generator) -> list[Wave]:
        """All waves so far; `generator` then draws what comes after them.

        Raises
        ------
        ArtefactError
            Naming the file that is damaged.
        """
        waves: list[Wave] = []
        while (folder := self.folder / f"waves_{len(waves):08d}").is_dir():
            read_manifest(folder, FORMAT, ArtefactError)
            state = json.loads((folder / "state.json").read_text())
            waves += [load_file(folder / _name(i)) for i in range(state["waves"])]
            generator.bit_generator.state = state["generator"]
        return waves

    def remove(self) -> None:
        """The dataset is written, or begun anew."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _name(number: int) -> str:
    return f"{number:04d}.safetensors"
