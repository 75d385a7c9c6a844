"""Studies of trials that train: what they try, what they come to, and what is written."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState
from pipeline_fixtures import write_prices, write_tiny
from tuning_fixtures import ONE, space, told, trials_of, tunable
from typer.testing import CliRunner

from finflow_sb3.cli.app import app
from finflow_sb3.config import Settings
from finflow_sb3.config_files import read_config, resolve
from finflow_sb3.errors import ConfigError
from finflow_sb3.opening import open_market
from finflow_sb3.pipeline import pretrain
from finflow_sb3.tuning import trials
from finflow_sb3.tuning.outcome import Tuned
from finflow_sb3.tuning.spaces import with_values
from finflow_sb3.tuning.study import tune
from finflow_sb3.zoo_values import parse_yaml


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tune")


@pytest.fixture(scope="module")
def settings(work: Path) -> Settings:
    return tunable(work)


@pytest.fixture(scope="module")
def pretrained(settings: Settings) -> Path:
    return pretrain(settings).run


@pytest.fixture(scope="module")
def tuned(work: Path, pretrained: Path, settings: Settings) -> Tuned:
    return tune(settings, 6, work / "six", pretrained=pretrained, space=space(work))


class TestStudy:
    def test_ends_with_what_was_asked_for(self, tuned: Tuned) -> None:
        assert tuned.finished == 6
        states = [t.state for t in trials_of(tuned)]
        assert len(states) == 6
        assert states.count(TrialState.PRUNED) == tuned.pruned
        assert len({t.values[0] for t in trials_of(tuned) if t.values}) > 1
        assert tuned.values["sharpe"] >= tuned.default["sharpe"]
        assert {path.name for path in tuned.files} >= {"trials.csv", "best.yml", "history.png"}
        assert len(pd.read_csv(tuned.out / "trials.csv")) == 6

    def test_the_first_trial_is_the_settings_as_they_are(
        self, tuned: Tuned, settings: Settings
    ) -> None:
        first = trials_of(tuned)[0]
        assert first.params["cqsac.gamma"] == settings.cqsac.gamma
        assert first.state == TrialState.COMPLETE

    def test_a_stop_and_another_worker_change_no_trial(
        self, tuned: Tuned, work: Path, pretrained: Path, settings: Settings
    ) -> None:
        """The same seed gives the same trials, in one go or in two."""
        asked: dict[str, Any] = {"pretrained": pretrained, "space": space(work)}
        part = tune(settings, 2, work / "parts", **asked)
        assert part.finished == 2
        whole = tune(settings, 6, work / "parts", **asked)
        assert told(trials_of(whole)) == told(trials_of(tuned))
        again = tune(settings, 6, work / "parts", **asked)
        assert told(trials_of(again)) == told(trials_of(tuned))

    def test_values_reach_the_training(
        self, work: Path, pretrained: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of every trial, and every validation is judged."""
        seen: list[Settings] = []
        finetune = trials.finetune

        def spied(own: Settings, *rest: Any, **named: Any) -> Any:
            seen.append(own)
            return finetune(own, *rest, **named)

        monkeypatch.setattr(trials, "finetune", spied)
        found = tune(
            settings, 3, work / "spied", pretrained=pretrained, space=space(work), pruner="none"
        )
        tried = [
            {"env_kwargs.trade_rate": s.env_kwargs.trade_rate, "cqsac.gamma": s.cqsac.gamma}
            for s in seen
        ]
        assert tried == [t.params for t in trials_of(found)]
        assert len({each["cqsac.gamma"] for each in tried}) == 3
        # At the start, in the middle and at the end; the best so far.
        assert [list(t.intermediate_values) for t in trials_of(found)] == [[0, 1, 2]] * 3
        assert [t.intermediate_values[2] for t in trials_of(found)] == [
            pytest.approx(t.values[0]) for t in trials_of(found)
        ]

    def test_the_best_trains_as_the_trial_did(
        self, tuned: Tuned, settings: Settings, pretrained: Path
    ) -> None:
        """By itself, and over the settings of the pretrained run."""
        best = next(t for t in trials_of(tuned) if t.number == tuned.best)
        wanted, _ = with_values(settings, best.params, "cqsac")
        assert wanted != settings
        wanted = wanted.replace(evaluation={"trials": 6})
        path = tuned.out / "best.yml"
        assert resolve(algo="cqsac", files=[path], environ={}) == wanted
        assert tuned.train == f"finflow finetune --pretrained {pretrained} -c {path}"
        base = read_config(pretrained / "config.yml")
        found = resolve(algo="cqsac", base=base, files=[path], environ={})
        split = {"train_end": None, "validation_end": None}
        assert found.replace(market=split) == wanted

    def test_test_days_have_no_part_in_it(
        self, tuned: Tuned, work: Path, pretrained: Path, settings: Settings, tmp_path: Path
    ) -> None:
        """Other prices after validation, and every trial has the same values."""
        prices = pd.read_csv(settings.market.prices, index_col=0)
        market = open_market(settings)
        cut = market.splits.test.start
        prices.iloc[cut:] *= np.linspace(1.0, 3.0, len(prices) - cut)[:, None] ** 2
        prices.iloc[cut:, ::2] = prices.iloc[cut:, ::2].to_numpy()[::-1]
        prices.to_csv(tmp_path / "prices.csv")
        other = settings.replace(market={"prices": str(tmp_path / "prices.csv")})
        found = tune(other, 4, tmp_path / "out", pretrained=pretrained, space=space(work))
        assert told(trials_of(found)) == told(trials_of(tuned))[:4]

    def test_days_that_the_pretrained_run_learned_from_judge_nothing(
        self, work: Path, pretrained: Path, settings: Settings, tmp_path: Path
    ) -> None:
        for fraction in (0.5, 0.3):
            moved = settings.replace(market={"train_fraction": fraction})
            with pytest.raises(ConfigError, match=r"was trained on days up to 20.*judged from 20"):
                tune(moved, 1, tmp_path / "out", pretrained=pretrained, space=space(work))
        assert not (tmp_path / "out").exists()

    def test_other_settings_are_refused_by_name(
        self, tuned: Tuned, work: Path, pretrained: Path, settings: Settings
    ) -> None:
        asked: dict[str, Any] = {"pretrained": pretrained, "space": space(work)}
        other = settings.replace(cqsac={"tau": 0.01})
        with pytest.raises(ConfigError, match="other settings of cqsac"):
            tune(other, 6, tuned.out, **asked)
        with pytest.raises(ConfigError, match="other seeds"):
            tune(settings, 6, tuned.out, seeds=2, **asked)
        with pytest.raises(ConfigError, match="other objectives"):
            tune(settings, 6, tuned.out, objectives=["cvar"], **asked)

    def test_several_objectives_make_a_front(
        self, work: Path, pretrained: Path, settings: Settings
    ) -> None:
        names = ("return", "cvar", "calmar")
        found = tune(
            settings,
            5,
            work / "front",
            objectives=names,
            pretrained=pretrained,
            space=space(work),
            sampler="random",
        )
        values = {t.number: t.values for t in trials_of(found)}
        assert found.pruned == 0
        for number, own in values.items():
            beaten = any(
                all(a >= b for a, b in zip(other, own, strict=True)) and other != own
                for other in values.values()
            )
            assert (number in found.front) == (not beaten)
        assert values[found.best][0] == max(values[n][0] for n in found.front)
        files = {p.name for p in (found.out / "front").iterdir()}
        assert files == {f"trial_{n}.yml" for n in found.front}

    def test_files_of_beaten_trials_go(self, work: Path, settings: Settings) -> None:
        """A study goes on, and of the front that it had some are beaten."""
        asked: dict[str, Any] = {"algo": "iql", "objectives": ["return", "cvar"]}
        asked |= {"space": space(work, ONE), "out": work / "beaten"}
        first = tune(settings, 1, **asked)
        folder = work / "beaten" / "front"
        assert [path.name for path in folder.iterdir()] == ["trial_0.yml"]
        study = optuna.load_study(study_name=first.study, storage=first.storage)
        (trial,) = study.trials
        values = [x + 1.0 for x in trial.values]
        study.add_trial(
            optuna.trial.create_trial(
                params=trial.params, distributions=trial.distributions, values=values
            )
        )
        again = tune(settings, 2, **asked)
        assert again.front == (1,)
        assert [path.name for path in folder.iterdir()] == ["trial_1.yml"]

    @pytest.mark.parametrize(("sampler", "pruner"), [("gp", "hyperband"), ("random", "none")])
    def test_samplers_and_pruners(
        self, work: Path, pretrained: Path, settings: Settings, sampler: Any, pruner: Any
    ) -> None:
        found = tune(
            settings,
            3,
            work / sampler,
            pretrained=pretrained,
            space=space(work),
            sampler=sampler,
            pruner=pruner,
        )
        assert found.finished == 3

    @pytest.mark.parametrize("algo", ["cqsac", "iql", "td3bc", "ppo"])
    def test_algorithms(self, work: Path, settings: Settings, algo: str) -> None:
        """Of the whole pipeline, of one phase, and of SB3's; over seeds and folds."""
        arguments = {"n_timesteps": 160, "n_steps": 10, "batch_size": 40} if algo == "ppo" else None
        found = tune(settings, 2, work / algo, algo=algo, seeds=2, top=2, arguments=arguments)
        cells = [t.user_attrs["cells"] for t in trials_of(found) if t.values]
        assert all(len(each) == 2 for each in cells)
        assert all(each[0]["sharpe"] != each[1]["sharpe"] for each in cells)
        mean = np.mean([cell["sharpe"] for cell in cells[0]])
        assert trials_of(found)[0].values == [pytest.approx(mean)]

    def test_sizes_of_networks_are_tried_in_both_phases(
        self, work: Path, settings: Settings
    ) -> None:
        sizes = space(
            work,
            "iql.n_quantiles: {choices: [4, 6, 8]}\n"
            "iql.policy_kwargs.critic_hidden: {choices: [[8], [6, 6], [12]]}\n",
        )
        found = tune(settings, 2, work / "sizes", space=sizes)
        first, second = trials_of(found)
        assert first.params == {"iql.n_quantiles": 4, "iql.policy_kwargs.critic_hidden": "[8]"}
        assert first.params != second.params
        assert {first.state, second.state} == {TrialState.COMPLETE}


class TestCommand:
    def run(self, *words: object) -> Any:
        return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(
            app, [str(w) for w in words]
        )

    def test_prints_and_goes_on(self, tmp_path: Path, pretrained: Path, work: Path) -> None:
        command = [
            "tune",
            "--pretrained",
            pretrained,
            "--space",
            space(work),
            "--out",
            tmp_path / "o",
        ]
        first = self.run(*command, "--n-trials", 2, "--json")
        assert first.exit_code == 0, first.stderr
        found = json.loads(first.stdout)
        assert found["finished"] == 2
        assert "trial   0 complete" in first.stderr
        more = self.run(*command, "--n-trials", 3)
        assert more.exit_code == 0, more.stderr
        assert "3 trials finished" in more.stdout
        trains = f"finflow finetune --pretrained {pretrained} -c {tmp_path / 'o' / 'best.yml'}"
        assert f"Train with it: {trains}" in more.stdout
        best = parse_yaml((tmp_path / "o" / "best.yml").read_text(), "best")
        assert list(best) == ["finflow/US20-v0"]

    def test_plain_algorithms(self, tmp_path: Path) -> None:
        prices = write_prices(tmp_path / "prices.csv")
        file = write_tiny(tmp_path / "tiny.yml", prices, tmp_path / "logs")
        done = self.run(
            "tune", "--algo", "a2c", "-c", file, "--n-timesteps", 200, "--n-trials", 1, "--top", 1
        )
        assert done.exit_code == 0, done.stderr
        (out,) = (tmp_path / "logs" / "tune").iterdir()
        best = parse_yaml((out / "best.yml").read_text(), "best")
        assert best["algo"] == "a2c"
        assert best["finflow/US20-v0"]["n_timesteps"] == 200
        assert f"Train with it: finflow train --algo a2c -c {out / 'best.yml'}" in done.stdout

    def test_what_is_added_to_a_range_is_said(self, tmp_path: Path) -> None:
        prices = write_prices(tmp_path / "prices.csv")
        file = write_tiny(tmp_path / "tiny.yml", prices, tmp_path / "logs")
        given = ["-c", file, "-p", "expectile:0.99", "--n-trials", 1, "--top", 1]
        done = self.run("tune", "--algo", "iql", *given)
        assert done.exit_code == 0, done.stderr
        assert "iql.expectile: 0.99 is added to the packaged range." in done.stderr
        assert "Train with it: finflow pretrain --algo iql -c " in done.stdout

    def test_errors_are_one_line(self, tmp_path: Path) -> None:
        done = self.run("tune", "--objective", "sharp", "--out", tmp_path / "o")
        assert done.exit_code == 1
        assert "error: --objective: 'sharp' is not known" in done.stderr


def test_one_seed_has_no_interval(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "tuned.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--tuned", "best.yml", "--seeds", "1"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(script), run_name="__main__")
    assert "two seeds at least" in capsys.readouterr().err
