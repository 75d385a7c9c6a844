"""A collection that was stopped, killed or damaged goes on to the same dataset."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from learning_fixtures import tiny_settings
from typer.testing import CliRunner

from finflow_sb3.cli.app import app
from finflow_sb3.config import Settings
from finflow_sb3.errors import ArtefactError
from finflow_sb3.offline import collect as collecting
from finflow_sb3.offline.collect import CollectionStopped
from finflow_sb3.offline.dataset import OfflineDataset
from finflow_sb3.offline.dataset_file import read_dataset
from finflow_sb3.pipeline import Watch, collect
from finflow_sb3.resuming import resume_collecting


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Nine waves of four portfolios; parts of two waves; a cache of its own."""
    monkeypatch.setenv("FINFLOW_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(collecting, "PART_TRANSITIONS", 2 * 4 * 20)
    return tiny_settings(tmp_path, collect={"episodes": 36, "n_envs": 4})


class Interrupt(Watch):
    """Sends this process a signal after some episodes."""

    def __init__(self, episodes: int, number: int = signal.SIGTERM):
        self.episodes, self.number = episodes, number

    def progress(self, stage: str, done: int, total: int) -> None:
        if stage == "episodes" and done == self.episodes:
            os.kill(os.getpid(), self.number)


def assert_same(first: OfflineDataset, second: OfflineDataset) -> None:
    for name in ("states", "row", "action", "reward", "distance", "episode", "behaviour"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
    assert first.settings == second.settings


def stopped_at(settings: Settings, path: Path | None, episodes: int) -> None:
    with pytest.raises(CollectionStopped):
        collect(settings, path, Interrupt(episodes))


def test_stop_and_resume_is_one_go(settings: Settings, tmp_path: Path) -> None:
    whole = collect(settings, tmp_path / "whole.h5")
    path = tmp_path / "stopped.h5"
    stopped_at(settings, path, 4)  # in the middle of a part
    assert not path.exists()
    with pytest.raises(CollectionStopped):
        resume_collecting(path, Interrupt(24))
    done = resume_collecting(path)
    assert (done.transitions, done.episodes) == (whole.transitions, whole.episodes)
    assert_same(read_dataset(path), read_dataset(whole.path))
    assert sorted(p.name for p in tmp_path.glob("stopped*")) == ["stopped.h5"]


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("file", ["data.h5", None])
def test_an_interruption_while_data_is_written_is_a_stop(
    settings: Settings, tmp_path: Path, file: str | None
) -> None:
    class Interrupted(Watch):
        def progress(self, stage: str, done: int, total: int) -> None:
            if stage == "writing data":
                raise KeyboardInterrupt

    path = None if file is None else tmp_path / file
    with pytest.raises(CollectionStopped):
        collect(settings, path, Interrupted())
    done = collect(settings) if path is None else resume_collecting(path)
    assert done.episodes == 36
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    ("step", "name"),
    [("offline.collect.read_dataset", "data.h5"), ("collecting.write_npz", "d.npz")],
)
def test_an_interruption_after_that_is_a_stop(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, name: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(f"finflow_sb3.{step}", interrupted)
        with pytest.raises(CollectionStopped):
            collect(settings, tmp_path / name)
    assert resume_collecting(tmp_path / name).episodes == 36
    assert not list(tmp_path.rglob("*.part"))


def test_the_cache_goes_on_by_itself(settings: Settings) -> None:
    stopped_at(settings, None, 20)
    seen: list[int] = []

    class Seeing(Watch):
        def progress(self, stage: str, done: int, total: int) -> None:
            if stage == "episodes":
                seen.append(done)

    done = collect(settings, watch=Seeing())
    assert seen[0] > 20
    assert_same(read_dataset(done.path), read_dataset(collect(settings).path))
    assert not list(done.path.parent.glob("*.part"))


def test_damaged_parts_of_the_cache_are_collected_anew(settings: Settings) -> None:
    stopped_at(settings, None, 20)
    damage(Path(os.environ["FINFLOW_CACHE_DIR"]))
    assert collect(settings).episodes == 36


def damage(folder: Path) -> Path:
    file = next(iter(sorted(folder.rglob("0001.safetensors"))))
    file.write_bytes(file.read_bytes()[:-1])
    return file


def test_damaged_parts_of_a_file_are_named(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "data.h5"
    stopped_at(settings, path, 20)
    file = damage(tmp_path / "data.h5.part")
    with pytest.raises(ArtefactError, match=r"0001\.safetensors: has \d+ bytes") as caught:
        resume_collecting(path)
    assert str(file) in str(caught.value)
    collect(settings, path)  # without going on, what is there does not count
    assert read_dataset(path).n_episodes == 36


@pytest.mark.parametrize("made", [True, False])
def test_nothing_to_go_on_with(settings: Settings, tmp_path: Path, made: bool) -> None:
    path = tmp_path / "data.h5"
    if made:
        collect(settings, path)
    with pytest.raises(ArtefactError, match="is whole" if made else "no collection of that name"):
        resume_collecting(path)


def test_the_command_says_how_to_go_on(settings: Settings, tmp_path: Path) -> None:
    """A process of its own is killed, another is interrupted, and a third ends."""
    path = tmp_path / "data.h5"
    script = (
        "import os, signal, sys\n"
        "from finflow_sb3.offline import collect\n"
        "collect.PART_TRANSITIONS = 160\n"
        "from finflow_sb3.cli.watching import TerminalWatch\n"
        "def progress(self, stage, done, total):\n"
        "    if stage == 'episodes' and done >= int(sys.argv[2]):\n"
        "        os.kill(os.getpid(), int(sys.argv[1]))\n"
        "TerminalWatch.progress = progress\n"
        "from finflow_sb3.cli.app import app\n"
        "app(sys.argv[3:])\n"
    )

    def run(number: int, episodes: int, *args: Any) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", script, str(int(number)), str(episodes), *map(str, args)]
        return subprocess.run(words, capture_output=True, text=True)

    flags = ["-c", config(settings, tmp_path), "--save-path", path]
    killed = run(signal.SIGKILL, 12, "collect", *flags)
    assert killed.returncode == -signal.SIGKILL
    stopped = run(signal.SIGINT, 28, "collect", "--resume", path)
    assert stopped.returncode == 130
    last = stopped.stderr.splitlines()[-1]
    assert last == f"stopped; go on with: finflow collect --resume {path}"
    runner = CliRunner()
    refused = runner.invoke(app, ["collect", "--resume", str(path), "--episodes", "5"])
    assert refused.exit_code == 1 and "leave out --episodes" in refused.stderr
    done = runner.invoke(app, ["collect", "--resume", str(path), "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["episodes"] == 36
    assert_same(read_dataset(path), read_dataset(collect(settings, tmp_path / "whole.h5").path))


def config(settings: Settings, folder: Path) -> Path:
    from finflow_sb3.config_files import write_config

    path = folder / "settings.yml"
    write_config(settings, path)
    return path


def test_other_prices_are_refused(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "data.h5"
    stopped_at(settings, path, 20)
    prices = Path(settings.market.prices)
    table = pd.read_csv(prices)
    table.iloc[300, 1] *= 1.01
    table.to_csv(prices, index=False)
    with pytest.raises(ArtefactError, match=r"are not those that .*data\.h5 was begun on"):
        resume_collecting(path)
