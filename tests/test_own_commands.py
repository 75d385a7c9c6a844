"""Own rules and records through the verbs and the command: given by flag, asked for again."""

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
from pipeline_fixtures import runs_in, tiny_settings
from typer.testing import CliRunner

from finflow_sb3 import pipeline, resuming
from finflow_sb3.cli.app import app
from finflow_sb3.config import Settings
from finflow_sb3.config_files import write_config
from finflow_sb3.errors import ArtefactError, ConfigError, DataError
from finflow_sb3.offline import collect as collecting
from finflow_sb3.offline.collect import CollectionStopped
from finflow_sb3.offline.dataset_file import read_dataset
from finflow_sb3.pipeline import Watch

RULE = "own_rules_here:half"
TEXT = "def half(past):\n    return [0.5 / len(past.assets)] * len(past.assets)\n"


class Notebook(Watch):
    """Writes down remarks, and stops a collection after some episodes."""

    def __init__(self, stop: int | None = None) -> None:
        self.remarks: list[str] = []
        self.stop = stop

    def remark(self, text: str) -> None:
        self.remarks.append(text)

    def progress(self, stage: str, done: int, total: int) -> None:
        if stage == "episodes" and done == self.stop:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a rule, a record and a cache of its own."""
    monkeypatch.setenv("FINFLOW_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    sys.modules.pop("own_rules_here", None)
    (tmp_path / "own_rules_here.py").write_text(TEXT)
    return tmp_path


@pytest.fixture
def settings(folder: Path) -> Settings:
    return tiny_settings(folder, collect={"episodes": 18, "n_envs": 3})


@pytest.fixture
def record(settings: Settings, folder: Path) -> Path:
    """Two days 50 days apart, 10 of them before the training split."""
    market = pipeline.open_market(settings)
    rows = market.splits.train.start + np.array([-10, 40])
    table = pd.DataFrame({"date": market.prices.dates[rows], "A": 0.5, "C": [0.2, 0.4]})
    table.to_csv(folder / "held.csv", index=False)
    return folder / "held.csv"


def test_collect_in_python(settings: Settings, record: Path) -> None:
    watch = Notebook()
    done = pipeline.collect(settings, "d.h5", watch, behaviours=[RULE], records=[record])
    assert done.behaviours[RULE][0] == 2
    assert done.transitions_of["record:held"] == 41
    assert (done.episodes, done.transitions) == (20, 18 * 40 + 41)
    (remark,) = watch.remarks
    assert "left out are 10 of its 51 days, which are none of the training split's" in remark
    alone = pipeline.collect(settings, "e.h5", records=[record], only_own=True)
    assert (alone.episodes, alone.transitions) == (2, 41)
    assert alone.behaviours.keys() == {"record:held"}
    cached = pipeline.collect(settings, behaviours=[RULE], only_own=True)
    assert cached.behaviours.keys() == {RULE}
    exported = pipeline.collect(settings, "e.npz", records=[record], only_own=True)
    with np.load(exported.path) as archive:
        assert set(archive["behaviours"]) == {"record:held"}


@pytest.mark.parametrize("stop", [3, 12, 18, 19])
def test_a_stopped_collection_goes_on_with_the_same(
    settings: Settings, record: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Among rules, between rules and record, and within the record."""
    monkeypatch.setattr(collecting, "PART_TRANSITIONS", 200)
    own: dict[str, Any] = {"behaviours": [RULE], "records": [record]}
    whole = pipeline.collect(settings, "whole.h5", **own)
    with pytest.raises(CollectionStopped):
        pipeline.collect(settings, "d.h5", Notebook(stop), **own)
    for other in ({}, {"behaviours": [RULE]}, {"records": [record]}):
        with pytest.raises(ArtefactError, match=f"begun with --behaviour {RULE} --record"):
            resuming.resume_collecting("d.h5", **other)
    done = resuming.resume_collecting("d.h5", **own)
    first, second = read_dataset(whole.path), read_dataset(done.path)
    for name in ("states", "row", "action", "reward", "distance", "episode", "behaviour"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
    assert first.settings == second.settings


def failing(past: Any) -> Any:
    raise ArithmeticError


@pytest.mark.parametrize(
    ("own", "error"),
    [
        ({"only_own": True}, "leaves no behaviour"),
        ({"records": ["held.csv", "other/held.csv"]}, "record:held: two behaviours are called so"),
        ({"behaviours": [RULE, "own_rules_here:zero"]}, "too few"),
    ],
)
def test_what_is_refused_leaves_a_stopped_collection_alone(
    settings: Settings, record: Path, own: dict[str, Any], error: str
) -> None:
    Path("other").mkdir()
    Path("other/held.csv").write_bytes(record.read_bytes())
    Path("own_rules_here.py").write_text(TEXT + TEXT.replace("half", "zero"))
    settings = settings.replace(collect={"episodes": 9})
    with pytest.raises(CollectionStopped):
        pipeline.collect(settings, "d.h5", Notebook(6))
    with pytest.raises(ConfigError, match=error):
        pipeline.collect(settings, "d.h5", **own)
    assert resuming.resume_collecting("d.h5").episodes == 9


@pytest.mark.parametrize("own", [{"only_own": True}, {"records": ["held.csv", "held.csv"]}])
def test_names_are_refused_before_a_market_is_opened(
    settings: Settings, record: Path, monkeypatch: pytest.MonkeyPatch, own: dict[str, Any]
) -> None:
    monkeypatch.setattr("finflow_sb3.collecting.open_pinned", None)
    with pytest.raises(ConfigError):
        pipeline.collect(settings, "d.h5", **own)


def test_a_collection_that_fails_leaves_nothing_it_could_go_on_with(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="it raised ArithmeticError"):
        pipeline.collect(settings, "d.h5", behaviours=[failing])
    assert not Path("d.h5.part").exists()
    monkeypatch.setattr(collecting, "PART_TRANSITIONS", 1)
    with pytest.raises(DataError, match="it raised ArithmeticError"):
        pipeline.collect(settings, "d.h5", behaviours=[failing])
    assert list(Path("d.h5.part").glob("waves_*"))


def test_alone_is_noted(settings: Settings) -> None:
    with pytest.raises(CollectionStopped):
        pipeline.collect(settings, "d.h5", Notebook(6), behaviours=[RULE], only_own=True)
    done = resuming.resume_collecting("d.h5", behaviours=[RULE])
    assert done.behaviours.keys() == {RULE}


@pytest.mark.parametrize("note", ['{"behaviours": [["os:abort", null]]}', "[]", "no JSON"])
def test_nothing_in_a_note_is_run(settings: Settings, note: str) -> None:
    with pytest.raises(CollectionStopped):
        pipeline.collect(settings, "d.h5", Notebook(6))
    Path("d.h5.part/own.json").write_text(note)
    with pytest.raises(ArtefactError, match=r"--behaviour os:abort; give|cannot be read"):
        resuming.resume_collecting("d.h5")


def test_runs_ask_for_their_rules_again(settings: Settings) -> None:
    settings = settings.replace(cqsac={"offline_fraction": 0.5})
    pretrained = pipeline.pretrain(settings, stop_at=3, behaviours=[RULE])
    data = read_dataset(pretrained.dataset or Path())
    assert data.behaviours[-1] == RULE
    again = f"{pretrained.run}: was begun with --behaviour {RULE}; give the same again"
    with pytest.raises(ArtefactError, match=again):
        resuming.resume_pretraining(pretrained.run)
    done = resuming.resume_pretraining(pretrained.run, behaviours=[RULE])
    assert done.dataset == pretrained.dataset
    watch = Notebook()
    pipeline.finetune(settings, done.run, stop_at=16, watch=watch)
    assert [line for line in watch.remarks if f"it would with --behaviour {RULE}" in line]
    watch = Notebook()
    tuned = pipeline.finetune(settings, done.run, stop_at=16, watch=watch, behaviours=[RULE])
    assert not watch.remarks
    with pytest.raises(ArtefactError, match="give the same again"):
        resuming.resume(tuned.run)
    assert resuming.resume(tuned.run, stop_at=32, behaviours=[RULE]).steps == 32
    # Changed rules would be other data.
    Path("own_rules_here.py").write_text(TEXT.replace("0.5", "0.4"))
    sys.modules.pop("own_rules_here")
    with pytest.raises(ArtefactError, match="has changed since it was begun"):
        resuming.resume(tuned.run, behaviours=[RULE])


def test_rules_beside_a_dataset_have_no_effect_and_are_refused(settings: Settings) -> None:
    path = pipeline.collect(settings, "d.h5").path
    mixing = settings.replace(cqsac={"offline_fraction": 0.5})
    for stage in (pipeline.pretrain, pipeline.finetune):
        with pytest.raises(ConfigError, match="nothing is collected with own_rules_here:half"):
            stage(mixing, dataset=path, behaviours=[RULE])
    with pytest.raises(ConfigError, match=f"{RULE}: would not be used, as offline_fraction is 0"):
        pipeline.finetune(settings, behaviours=[RULE])
    assert runs_in(Path("logs")) == []


@pytest.mark.parametrize(("fraction", "mixed"), [(0.0, ()), (0.5, [RULE])])
def test_train_has_them_in_both_phases(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, fraction: float, mixed: Any
) -> None:
    given: list[Any] = []

    def stage(*_: Any, behaviours: Any, **__: Any) -> Any:
        given.append(behaviours)
        return pipeline.Pretrained(Path("p"), None, 1, len(given) == 1, 1, {}, {})

    monkeypatch.setattr(pipeline, "pretrain", stage)
    monkeypatch.setattr(pipeline, "finetune", stage)
    mixing = settings.replace(cqsac={"offline_fraction": fraction})
    pipeline.train(mixing, behaviours=[RULE])
    assert given == [[RULE], mixed]


# ------------------------------------------------------------------ the command


def run(*args: Any) -> Any:
    return CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"}).invoke(app, [*map(str, args)])


def test_the_command_shows_how_many_transitions_came_of_each(
    settings: Settings, record: Path
) -> None:
    write_config(settings, Path("c.yml"))
    result = run("collect", "-c", "c.yml", "--behaviour", RULE, "--record", record)
    assert result.exit_code == 0, result.stderr
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    assert rows[RULE][1:3] == ["2", "80"]
    assert rows["record:held"][1:3] == ["2", "41"]
    assert "left out are 10 of its 51 days" in result.stderr
    result = run("collect", "-c", "c.yml", "--record", record, "--only-own", "--json")
    assert json.loads(result.stdout)["transitions_of"] == {"record:held": 41}


def test_a_process_of_its_own_finds_rules_in_its_folder(settings: Settings) -> None:
    """The command's own folder is not the one that it is called in."""
    write_config(settings, Path("c.yml"))
    main = [sys.executable, "-P", "-c", "from finflow_sb3.cli.app import main; main()"]
    words = ["collect", "-c", "c.yml", "--behaviour", RULE, "--only-own", "--json"]
    done = subprocess.run([*main, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["transitions_of"] == {RULE: 18 * 40}


def test_pretrain_asks_for_the_flag_again(settings: Settings) -> None:
    write_config(settings, Path("c.yml"))
    flags = ["--behaviour", RULE, "--epochs", "1", "--json"]
    made = json.loads(run("pretrain", "-c", "c.yml", *flags).stdout)["run"]
    refused = run("pretrain", "--resume", made)
    assert refused.exit_code == 1
    assert f"begun with --behaviour {RULE}; give the same again" in refused.stderr
    again = run("pretrain", "--resume", made, "--behaviour", RULE, "--epochs", "2")
    assert again.exit_code == 0, again.stderr
    assert f"finflow finetune --behaviour {RULE} --pretrained {made}" in again.stdout


def test_the_line_that_says_how_to_go_on_has_the_flags(
    settings: Settings, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> Any:
        raise CollectionStopped

    monkeypatch.setattr(pipeline, "collect", stopped)
    write_config(settings, Path("c.yml"))
    flags = ["--behaviour", RULE, "--record", "held.csv"]
    result = run("collect", "-c", "c.yml", "--save-path", "d.h5", *flags)
    assert result.exit_code == 130
    how = f"finflow collect --behaviour {RULE} --record held.csv --resume d.h5"
    assert result.stderr.splitlines()[-1] == f"stopped; go on with: {how}"


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--behaviour", "half"], "'half' is not module:function"),
        (["--behaviours", RULE], f"give it as --behaviour {RULE}"),
        (["--only-own"], "leaves no behaviour at all"),
        (["--record", "no.csv"], "no.csv: no such file; give one of weights"),
        (["--resume", "d.h5", "--only-own"], "leave out --only-own"),
        (["--only-own", "--behaviour", RULE, "--behaviours", "anchor"], "leave out --behaviours"),
        (
            ["--only-own", "--record", "held.csv", "--noise", "0", "--episodes", "9"],
            "records alone are left, on which --episodes and --noise would have no effect; leave",
        ),
    ],
)
def test_flags_that_are_refused(settings: Settings, flags: list[str], part: str) -> None:
    config = [] if "--resume" in flags else ["-c", "c.yml"]
    write_config(settings, Path("c.yml"))
    result = run("collect", *config, *flags)
    assert result.exit_code == 1
    assert part in result.stderr
    assert len(result.stderr.splitlines()) == 1
