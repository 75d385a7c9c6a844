"""Callbacks that a configuration names: read from a table, passed to SB3, exact across a stop."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from config_helpers import one_line, settled, writer
from pipeline_fixtures import tiny_settings
from stable_baselines3.common import callbacks as sb3

from finflow_sb3 import pipeline
from finflow_sb3.config_callbacks import CALLBACKS, known_callbacks
from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.errors import ConfigError
from finflow_sb3.resuming import resume
from finflow_sb3.training import known_callbacks as made

STOP = {"StopTrainingOnMaxEpisodes": {"max_episodes": 1}}
PATIENT = {"StopTrainingOnNoModelImprovement": {"max_no_improvement_evals": 2}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("EvalCallback", ({"EvalCallback": {}},)),
        ("stable_baselines3.common.callbacks.EvalCallback", ({"EvalCallback": {}},)),
        ("{StopTrainingOnMaxEpisodes: {max_episodes: 1e0}}", (STOP,)),
        (
            "[{StopTrainingOnMaxEpisodes: {max_episodes: 1}}, EvalCallback]",
            (STOP, {"EvalCallback": {}}),
        ),
        (
            "{EvalCallback: {eval_freq: 5, callback_after_eval: {"
            "stable_baselines3.common.callbacks.StopTrainingOnNoModelImprovement: "
            "{max_no_improvement_evals: 2}}}}",
            ({"EvalCallback": {"eval_freq": 5, "callback_after_eval": PATIENT}},),
        ),
        ("[]", ()),
    ],
)
def test_forms_of_the_zoo(tmp_path: Path, text: str, expected: Any) -> None:
    path = writer(tmp_path)(f"default:\n  callback: {text}", "cqsac.yml")
    assert settled(files=[path]).cqsac.callback == expected
    assert settled(params=[f"callback:{text}"]).cqsac.callback == expected


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("EvalCalback", ["'EvalCallback'?"]),
        ("os.system", ["unknown callback 'os.system'"]),
        ("rl_zoo3.callbacks.TrialEvalCallback", ["'EvalCallback'?"]),
        ("StopTrainingOnMaxEpisodes", ["max_episodes is missing"]),
        ("{StopTrainingOnMaxEpisodes: {max_episode: 3}}", ["'max_episodes'?"]),
        ("{StopTrainingOnMaxEpisodes: {max_episodes: 0}}", ["out of range"]),
        ("{EvalCallback: {eval_freq: often}}", ["eval_freq", "not a whole number"]),
        ("{EvalCallback: {callback_after_eval: EvalCallback}}", ["StopTrainingOnNoModel"]),
        ("{CheckpointCallback: {save_freq: 1, save_path: /tmp}}", ["folder in the run"]),
        ("{CheckpointCallback: {save_freq: 1, save_path: ..}}", ["folder in the run"]),
        ("{StopTrainingOnRewardThreshold: {reward_threshold: 1}}", ["callback_on_new_best"]),
        ("LogEveryNTimesteps", ["run.log_interval"]),
        ("ProgressBarCallback", ["shows progress by itself"]),
        ("[EvalCallback, EvalCallback]", ["twice"]),
        ("[[EvalCallback]]", ["neither a name nor a mapping"]),
        ("{EvalCallback: {}, CheckpointCallback: {}}", ["neither a name nor a mapping"]),
        ("3", ["not a list"]),
    ],
)
def test_others_are_refused(text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        settled(params=[f"callback:{text}"])
    for part in ["--param callback", "cqsac.callback", *parts]:
        assert part in one_line(error)


def test_every_known_name_is_one_of_sb3() -> None:
    for name, kind in CALLBACKS.items():
        cls = getattr(sb3, name)
        assert issubclass(cls, sb3.BaseCallback)
        assert {item.name for item in fields(kind)} <= set(inspect.signature(cls).parameters)
    assert known_callbacks([*known_callbacks("EvalCallback"), STOP])[1] == STOP


def test_they_run_and_stop_and_go_on_exactly(tmp_path: Path) -> None:
    """SB3 zip files are written, and the run that was stopped ends as the other did."""
    named = (
        {"CheckpointCallback": {"save_freq": 10, "save_path": "zips"}},
        {"EvalCallback": {"eval_freq": 8, "callback_after_eval": PATIENT}},
    )
    settings = tiny_settings(tmp_path, cqsac={"callback": named, "learning_starts": 100})
    whole = pipeline.finetune(settings)
    assert whole.finished
    assert whole.steps < settings.cqsac.n_timesteps  # two backtests without a better one
    half = pipeline.finetune(settings, stop_at=96)
    assert (half.steps, half.finished) == (96, False)
    resumed = resume(half.run)
    assert resumed.steps == whole.steps
    for name in ("metrics.jsonl", "config.yml"):
        assert (resumed.run / name).read_bytes() == (whole.run / name).read_bytes()
    evaluated = [np.load(run.run / "sb3_eval/evaluations.npz") for run in (whole, resumed)]
    for key in ("timesteps", "results", "ep_lengths"):
        np.testing.assert_array_equal(evaluated[0][key], evaluated[1][key])
    zips = sorted(path.name for path in (whole.run / "zips").iterdir())
    assert zips == [f"rl_model_{n}_steps.zip" for n in (160, 320, 480) if n <= whole.steps]
    model = CQSAC.load(whole.run / "zips" / zips[0], device="cpu")
    assert model.num_timesteps == 160


def test_episodes_end_a_run(tmp_path: Path) -> None:
    settings = tiny_settings(
        tmp_path, cqsac={"callback": (STOP,), "n_timesteps": 1280, "learning_starts": 2000}
    )
    assert pipeline.finetune(settings).steps == 640  # 16 portfolios, 40 days each


@pytest.mark.parametrize(
    "state",
    [
        [],
        [{"n_calls": 1}],
        [{"n_calls": 1, "n_episodes": "many"}],
        [{"n_calls": 1, "n_episodes": 1, "model": None}],
    ],
)
def test_counters_of_other_callbacks_are_refused(state: Any) -> None:
    callbacks = made.KnownCallbacks([sb3.StopTrainingOnMaxEpisodes(3)])
    with pytest.raises(ValueError):
        callbacks.restore(state)
    callbacks.restore([{"n_calls": 5, "n_episodes": 2}])
    assert callbacks.state() == [{"n_calls": 5, "n_episodes": 2}]


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(made, "world_size", lambda: 2)
    market: Any = None
    with pytest.raises(ConfigError, match="one process"):
        made.known_callbacks(settled(params=["callback:EvalCallback"]), market, tmp_path)
    assert made.known_callbacks(settled(), market, tmp_path).callbacks == []
