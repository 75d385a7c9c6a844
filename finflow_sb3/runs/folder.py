"""Folders of runs: `logs/<algo>/<env>_<n>/`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from finflow_sb3.config import Settings
from finflow_sb3.config_files import read_config, write_config
from finflow_sb3.errors import ArtefactError
from finflow_sb3.files import write_whole

__all__ = ["RunFolder"]


@dataclass(frozen=True)
class RunFolder:
    """Where one run keeps what it writes."""

    path: Path

    @classmethod
    def create(cls, log_dir: str | Path, algo: str, env: str) -> RunFolder:
        """The next free folder of this algorithm and environment."""
        parent = Path(log_dir) / algo
        parent.mkdir(parents=True, exist_ok=True)
        stem = env.replace("/", "-")
        endings = [path.name[len(stem) + 1 :] for path in parent.glob(f"{stem}_*")]
        number = max((int(ending) for ending in endings if ending.isdigit()), default=0)
        while True:
            number += 1
            path = parent / f"{stem}_{number}"
            try:
                path.mkdir()
            except FileExistsError:  # another run took it meanwhile
                continue
            return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run.

        Raises
        ------
        ArtefactError
            If there is no such run.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise ArtefactError(f"{folder}: no such run")
        if not (folder / "config.yml").is_file():
            raise ArtefactError(f"{folder}: no config.yml in it; give the folder of a run")
        return cls(folder)

    def of_worker(self, rank: int) -> RunFolder:
        """Where process `rank` of several keeps what is its own; the first one's is the run."""
        return self if rank == 0 else RunFolder(self.path / "workers" / str(rank))

    @property
    def workers(self) -> int:
        """How many processes trained this run."""
        return 1 + len(list(self.path.glob("workers/*")))

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def last(self) -> Path:
        """The policy at the end, of a run that keeps no best."""
        return self.path / "last"

    @property
    def report(self) -> Path:
        return self.path / "report"

    def write_settings(self, settings: Settings) -> None:
        """`config.yml`, which reruns the run, and `command.txt`."""
        write_config(settings, self.path / "config.yml")
        words = ["finflow", *sys.argv[1:]] if "finflow" in Path(sys.argv[0]).name else sys.argv
        write_whole(self.path / "command.txt", (" ".join(words) + "\n").encode())

    def settings(self) -> Settings:
        return read_config(self.path / "config.yml")

    def command(self) -> str:
        path = self.path / "command.txt"
        return path.read_text().strip() if path.is_file() else ""
