"""Several policies that decide together, and the runs that they come from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markets import batch_of, small_market
from pipeline_fixtures import tiny_settings, write_prices, write_tiny
from typer.testing import CliRunner

from finflow_sb3 import ensemble_training
from finflow_sb3.cli.app import app
from finflow_sb3.config import EnvSettings
from finflow_sb3.ensemble_training import TrainedEnsemble, continue_ensemble, train_ensemble
from finflow_sb3.ensembles import load_policies, members_of
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.errors import ArtefactError, ConfigError
from finflow_sb3.evaluate_run import evaluate
from finflow_sb3.evaluation.backtest import backtest
from finflow_sb3.evaluation.ensemble import Ensemble
from finflow_sb3.pipeline import train
from finflow_sb3.results import Watch

BASES = ("anchors", "drift", "none")


def acts(market: ObservedMarket, count: int, scale: float = 0.5) -> tuple[Any, ...]:
    """Policies that are linear in the observation, each with numbers of its own."""
    size, width = market.layout.size, market.layout.action_size
    matrices = [
        np.random.default_rng(i).normal(scale=0.1, size=(size, width)) for i in range(count)
    ]
    return tuple(lambda seen, m=m: scale * np.tanh(seen @ m) for m in matrices)


@pytest.fixture(scope="module", params=BASES)
def setting(request: pytest.FixtureRequest) -> tuple[ObservedMarket, EnvSettings]:
    env = EnvSettings(action_base=request.param)
    return small_market(env), env


@pytest.fixture
def batch(setting: tuple[ObservedMarket, EnvSettings]) -> PortfolioBatch:
    market, env = setting
    return batch_of(market, env, 3, market.splits.train, evaluation=False)


class TestDecision:
    def test_the_mean_is_that_of_the_weights(self, setting: Any, batch: PortfolioBatch) -> None:
        ensemble = Ensemble(acts(setting[0], 3))
        actions = ensemble.actions(batch.observations())
        wanted = np.stack([batch.target(a) for a in actions])
        found = ensemble.decide(batch, actions)
        np.testing.assert_allclose(found.target, wanted.mean(axis=0), atol=1e-15)
        apart = np.abs(wanted - wanted.mean(axis=0)).sum(axis=2).mean(axis=0) / 2
        np.testing.assert_allclose(found.disagreement, apart, atol=1e-15)
        assert (found.disagreement > 0.0).all()

    def test_the_median_leaves_one_of_three_out(self, setting: Any, batch: PortfolioBatch) -> None:
        first, _, wild = acts(setting[0], 3, scale=1.0)
        ensemble = Ensemble((first, first, wild), "median")
        found = ensemble.decide(batch, ensemble.actions(batch.observations()))
        np.testing.assert_allclose(found.target, found.members[0], atol=1e-12)

    @pytest.mark.parametrize(
        ("scores", "weights"),
        [
            ((1.0, 3.0), (0.25, 0.75)),
            ((-1.0, 0.5), (0.0, 1.0)),
            ((-1.0, -2.0), (0.5, 0.5)),
        ],
    )
    def test_validation_weighs_by_positive_scores(
        self, setting: Any, batch: PortfolioBatch, scores: Any, weights: Any
    ) -> None:
        ensemble = Ensemble(acts(setting[0], 2), "validation", scores)
        np.testing.assert_allclose(ensemble.weights, weights)
        found = ensemble.decide(batch, ensemble.actions(batch.observations()))
        wanted = np.tensordot(weights, found.members, axes=1)
        np.testing.assert_allclose(found.target, wanted, atol=1e-15)

    @given(shrinkage=st.floats(0.0, 5.0), seed=st.integers(0, 2**16))
    def test_shrinkage_goes_less_of_the_way(self, shrinkage: float, seed: int) -> None:
        market = small_market()
        made = batch_of(market, None, 2, market.splits.train, evaluation=False, seed=seed)
        members = acts(market, 3)
        free = Ensemble(members)
        actions = free.actions(made.observations())
        full = free.decide(made, actions)
        found = Ensemble(members, shrinkage=shrinkage).decide(made, actions)
        distance = np.abs(full.target - made.held).sum(axis=1) / 2
        trust = np.maximum(0.0, 1.0 - shrinkage * full.disagreement / distance)
        np.testing.assert_allclose(found.trust, trust, atol=1e-12)
        way = made.held + trust[:, None] * (full.target - made.held)
        np.testing.assert_allclose(found.target, way, atol=1e-12)
        np.testing.assert_allclose(found.target.sum(axis=1), 1.0, atol=1e-12)
        assert (found.idle == (trust == 0.0)).all()

    @pytest.mark.parametrize("lag", [0, 1])
    @pytest.mark.parametrize("combination", ["mean", "median", "validation"])
    def test_members_that_agree_are_one(self, setting: Any, lag: int, combination: Any) -> None:
        """Their ensemble is each of them, with shrinkage too: there is no disagreement."""
        market, env = setting
        (act,) = acts(market, 1)
        ensemble = Ensemble((act, act), combination, (1.0, 1.0), shrinkage=2.0)
        span = market.splits.test
        alone, both = (backtest(market, span, env, p, "p", lag) for p in (act, ensemble))
        np.testing.assert_allclose(both.returns, alone.returns, atol=1e-13)
        np.testing.assert_allclose(both.weights, alone.weights, atol=1e-12)
        assert both.disagreement is not None
        np.testing.assert_allclose(both.disagreement, 0.0, atol=1e-12)
        assert alone.disagreement is None

    def test_without_any_trust_nothing_is_traded(self, setting: Any) -> None:
        market, env = setting
        ensemble = Ensemble(acts(market, 2), shrinkage=1e9)
        for lag in (0, 1):
            curve = backtest(market, market.splits.test, env, ensemble, "p", lag)
            assert curve.turnover.max() == 0.0

    def test_the_order_of_members_does_not_matter(self, setting: Any) -> None:
        market, env = setting
        members = acts(market, 3)
        there, back = (
            backtest(market, market.splits.test, env, Ensemble(m), "p")
            for m in (members, members[::-1])
        )
        np.testing.assert_allclose(there.returns, back.returns, atol=1e-13)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"acts": ()}, "no member"),
            ({"combination": "mode"}, "not one of mean, median, validation"),
            ({"combination": "validation"}, "validation Sharpe"),
            ({"shrinkage": -1.0}, "not a number from 0 on"),
            ({"shrinkage": float("nan")}, "not a number from 0 on"),
            ({"shrinkage": "1"}, "not a number from 0 on"),
        ],
    )
    def test_refused(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            Ensemble(**{"acts": (lambda x: x, lambda x: x), **arguments})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedEnsemble:
    folder = tmp_path_factory.mktemp("ensemble")
    return train_ensemble(tiny_settings(folder), 2, combination="median", shrinkage=0.5)


class TestRuns:
    def test_seeds_are_trained_and_act_together(self, trained: TrainedEnsemble) -> None:
        assert trained.finished
        assert trained.seeds == (0, 1)
        assert [load_policies(run).settings.run.seed for run in trained.members] == [0, 1]
        assert trained.evaluated is not None
        found = trained.evaluated.measures
        assert {"ensemble", "member 1: cqsac", "member 2: cqsac", "equal_weight"} <= set(found)
        assert (trained.run / "report" / "index.html").is_file()
        policies = load_policies(trained.run)
        assert (policies.combination, policies.shrinkage) == ("median", 0.5)
        assert policies.runs == tuple(
            trained.run / p
            for p in json.loads((trained.run / "members.json").read_text())["members"]
        )

    def test_a_member_is_what_its_seed_gives_alone(
        self, trained: TrainedEnsemble, tmp_path: Path
    ) -> None:
        alone = train(tiny_settings(tmp_path, run={"seed": 1}), report=False).finetuned
        assert alone is not None
        weights = [run / "best" / "weights.safetensors" for run in (trained.members[1], alone.run)]
        assert weights[0].read_bytes() == weights[1].read_bytes()

    def test_the_folder_may_be_moved(self, trained: TrainedEnsemble, tmp_path: Path) -> None:
        logs = shutil.copytree(trained.run.parent.parent, tmp_path / "moved")
        there = logs / "ensemble" / trained.run.name
        assert all(logs in p.resolve().parents for p in members_of(there))
        assert evaluate(there).measures == evaluate(trained.run).measures

    def test_several_runs_get_a_folder(self, trained: TrainedEnsemble) -> None:
        found = evaluate(trained.members, combination="validation")
        assert found.run not in trained.members
        members = [path.resolve() for path in members_of(found.run)]
        assert members == [path.resolve() for path in trained.members]
        assert load_policies(found.run).combination == "validation"

    def test_one_run_is_itself(self, trained: TrainedEnsemble) -> None:
        alone = load_policies(trained.members[0])
        assert alone.policy is alone.members[0].act
        assert evaluate([trained.members[0]]).run == trained.members[0]

    def test_refused(self, trained: TrainedEnsemble, tmp_path: Path) -> None:
        first, second = trained.members
        with pytest.raises(ConfigError, match="more than once"):
            load_policies([first, first])
        with pytest.raises(ConfigError, match="none is given"):
            load_policies([])
        other = Path(shutil.copytree(second, tmp_path / "other"))
        text = (other / "config.yml").read_text()
        (other / "config.yml").write_text(text.replace("fee: 0.001", "fee: 0.002"))
        with pytest.raises(ArtefactError, match=r"other: has env_kwargs\.fee 0\.002.*0\.001"):
            load_policies([first, other])
        (other / "config.yml").write_text(text.replace("lambda_turn: 0.0", "lambda_turn: 1.0"))
        assert len(load_policies([first, other]).members) == 2

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"members": "all"}, "lists no runs"),
            ({"combination": "mode"}, "combination: 'mode' is not one of mean, median"),
            ({"combination": ["mean"]}, r"combination: \['mean'\] is not one of"),
            ({"shrinkage": "x"}, "shrinkage: 'x' is not a number from 0 on"),
            ({"shrinkage": None}, "shrinkage: None is not a number"),
            ({"shrinkage": True}, "shrinkage: True is not a number"),
            ({"shrinkage": float("nan")}, "shrinkage: nan is not a number"),
        ],
    )
    def test_a_file_of_members_is_checked(
        self, trained: TrainedEnsemble, tmp_path: Path, content: dict[str, Any], message: str
    ) -> None:
        members = [str(run) for run in trained.members]
        text = json.dumps({"members": members, **content})
        (tmp_path / "members.json").write_text(text)
        with pytest.raises(ArtefactError, match=f"members.json: {message}"):
            load_policies(tmp_path)

    def test_two_are_needed(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no ensemble"):
            train_ensemble(tiny_settings(tmp_path), 1)
        assert not (tmp_path / "logs").exists()


class Stops(Watch):
    """Ends the process's work at the n-th run that starts, as a kill would."""

    def __init__(self, at: int, later: bool):
        self.at, self.later, self.count = at, later, 0

    def started(self, run: Path) -> None:
        self.count += 1
        if self.count == self.at and not self.later:
            raise KeyError("killed")

    def progress(self, stage: str, done: int, total: int) -> None:
        if self.later and self.count == self.at and stage == "fine-tuning" and done > total / 2:
            raise KeyError("killed")


@pytest.mark.parametrize(("at", "later"), [(1, False), (4, False), (4, True)])
def test_a_stop_changes_nothing(
    trained: TrainedEnsemble,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    later: bool,
) -> None:
    """At the first run's start; where the second's fine-tuning starts; in the middle of it."""
    monkeypatch.setattr(ensemble_training, "evaluate", lambda *_, **__: None)
    with pytest.raises(KeyError, match="killed"):
        train_ensemble(tiny_settings(tmp_path), 2, watch=Stops(at, later))
    (folder,) = (tmp_path / "logs" / "ensemble").iterdir()
    with pytest.raises(ArtefactError, match="not all of its seeds"):
        load_policies(folder)
    found = continue_ensemble(folder)
    assert found.finished
    for own, other in zip(found.members, trained.members, strict=True):
        weights = [run / "best" / "weights.safetensors" for run in (own, other)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    assert continue_ensemble(folder) == found


def invoke(*words: object, code: int = 0) -> Any:
    done = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, [str(w) for w in words])
    assert done.exit_code == code, done.stderr
    return done


class TestCommand:
    def test_trains_evaluates_and_goes_on(self, tmp_path: Path) -> None:
        prices = write_prices(tmp_path / "prices.csv")
        file = write_tiny(tmp_path / "tiny.yml", prices, tmp_path / "logs")
        done = invoke("train", "--seeds", 2, "--combine", "validation", "-c", file, "--json")
        found = json.loads(done.stdout)
        assert found["seeds"] == [0, 1]
        assert load_policies(found["run"]).combination == "validation"
        again = json.loads(invoke("train", "--resume", found["run"], "--json").stdout)
        assert again["members"] == found["members"]
        shown = invoke("evaluate", *found["members"], "--combine", "median", "--shrink", 1.5)
        assert "Ensemble" in shown.stdout
        assert "Member 2: CQSAC" in shown.stdout

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("train", "--combine", "median"), "--combine: concerns several runs"),
            (("train", "--algo", "sac", "--seeds", "3"), "leave out --seeds"),
            (("evaluate", "nowhere", "nowhere"), "more than once"),
            (("evaluate", "nowhere", "elsewhere"), "nowhere: no such run"),
        ],
    )
    def test_refused(self, words: tuple[str, ...], message: str) -> None:
        done = invoke(*words, code=1)
        assert message in " ".join(done.stderr.split())

    def test_what_is_fixed_is_refused(self, trained: TrainedEnsemble) -> None:
        done = invoke("train", "--resume", trained.run, "--seeds", 3, code=1)
        assert "leave out --seeds" in " ".join(done.stderr.split())
