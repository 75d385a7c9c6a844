"""Search spaces, folds and objectives: what is tried and judged, and what is refused by name."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from pipeline_fixtures import tiny_settings

from finflow_sb3.config import Settings
from finflow_sb3.config_files import resolve
from finflow_sb3.config_keys import ALGORITHMS
from finflow_sb3.errors import ConfigError
from finflow_sb3.evaluation.metrics import measures
from finflow_sb3.opening import open_market
from finflow_sb3.tuning.folds import folds_of
from finflow_sb3.tuning.objectives import MEASURES, scores
from finflow_sb3.tuning.spaces import around, defaults, read_space, with_values
from finflow_sb3.tuning.study import tune


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return tiny_settings(tmp_path_factory.mktemp("tune"))


class TestFolds:
    def test_each_is_judged_before_the_next(self, settings: Settings) -> None:
        market = open_market(settings)
        found = folds_of(settings, market, 3)
        markets = [open_market(each) for each in found]
        spans = [each.splits for each in markets]
        assert spans[-1] == market.splits
        for before, after in itertools.pairwise(spans):
            assert before.test.start == after.validation.start
        assert max(s.validation.stop for s in spans) <= market.splits.test.start
        assert len({s.train.start for s in spans}) == 1

    def test_too_many_are_refused(self, settings: Settings) -> None:
        with pytest.raises(ConfigError, match="--folds: 9 do not fit"):
            folds_of(settings, open_market(settings), 9)

    def test_one_may_train_on_less_than_it_is_judged_by(self, settings: Settings) -> None:
        short = settings.replace(market={"train_fraction": 0.2, "validation_fraction": 0.5})
        market = open_market(short)
        assert len(market.splits.train) < len(market.splits.validation)
        (only,) = folds_of(short, market, 1)
        assert open_market(only).splits == market.splits
        with pytest.raises(ConfigError, match="--folds: 2 do not fit"):
            folds_of(short, market, 2)


class TestSpaces:
    @pytest.mark.parametrize("algo", ALGORITHMS)
    def test_packaged_ones_hold_the_defaults(self, algo: str) -> None:
        """And both ends of every range are values that training takes."""
        from finflow_sb3.config_arguments import algorithm_arguments
        from finflow_sb3.config_keys import PLAIN_ALGORITHMS

        settings = resolve(algo=algo, params=[], environ={})
        own = algorithm_arguments(algo, environ={}) if algo in PLAIN_ALGORITHMS else None
        space = read_space(algo, settings)
        assert around(space, defaults(space, settings, own)) == space
        assert len(space.first(2).ranges) == 2

    def test_packaged_ones_are_widened_to_the_settings(self, settings: Settings) -> None:
        remarks: list[str] = []
        own = settings.replace(cqsac={"batch_size": 64, "alpha_init": 0.5, "gamma": 0.5})
        space = read_space("cqsac", own)
        found = around(space, defaults(space, own), remark=remarks.append).ranges
        assert found["cqsac.batch_size"].choices == (64, 128, 256, 512)
        assert (found["cqsac.alpha_init"].low, found["cqsac.alpha_init"].high) == (0.001, 0.5)
        assert (found["cqsac.gamma"].low, found["cqsac.gamma"].high) == (0.5, 0.999)
        assert "cqsac.batch_size: 64 is added to the packaged range." in remarks
        assert not any("tau" in remark for remark in remarks)

    @pytest.mark.parametrize(
        ("name", "value", "shown"),
        [
            ("actor_lr", None, "None"),
            ("cql_alpha", 0.0, "0.0"),
            ("learning_rate", "lin_3e-4", "lin"),
        ],
    )
    def test_what_no_range_can_hold_is_refused(
        self, settings: Settings, name: str, value: Any, shown: str
    ) -> None:
        own = settings.replace(cqsac={name: value})
        space = read_space("cqsac", own)
        with pytest.raises(ConfigError, match=rf"cqsac.{name} is .?{shown}.*--space FILE"):
            around(space, defaults(space, own))

    def test_what_contradicts_a_packaged_range_is_refused(self, settings: Settings) -> None:
        own = settings.replace(cqsac={"ent_coef": 0.1, "alpha_init": None})
        with pytest.raises(ConfigError, match=r"cqsac.alpha_init: 0.001 is short.*--space FILE"):
            read_space("cqsac", own)

    def test_an_own_one_has_to_hold_the_settings(self, settings: Settings, tmp_path: Path) -> None:
        path = tmp_path / "space.yml"
        path.write_text("cqsac.tau: {low: 0.1, high: 0.2}")
        with pytest.raises(ConfigError, match=r"cqsac.tau is 0.005 in the settings.* widen"):
            tune(settings, 1, tmp_path / "out", space=path)

    def test_sizes_are_those_of_both_phases(self, settings: Settings, tmp_path: Path) -> None:
        path = tmp_path / "space.yml"
        path.write_text(
            "iql.n_quantiles: {choices: [4, 8]}\n"
            "iql.policy_kwargs.critic_hidden: {choices: [[8], [16, 16]]}\n"
        )
        space = read_space("cqsac", settings, path)
        assert defaults(space, settings) == {
            "iql.n_quantiles": 4,
            "iql.policy_kwargs.critic_hidden": "[8]",
        }
        values = {"iql.n_quantiles": 8, "iql.policy_kwargs.critic_hidden": "[16, 16]"}
        found, _ = with_values(settings, values, "cqsac")
        before = settings.cqsac.policy_kwargs
        assert found.iql.n_quantiles == 8
        assert found.iql.policy_kwargs == {**settings.iql.policy_kwargs, "critic_hidden": [16, 16]}
        assert found.cqsac.policy_kwargs == {**before, "n_quantiles": 8, "critic_hidden": [16, 16]}

    def test_a_size_in_the_mapping_counts(self, settings: Settings) -> None:
        own = settings.replace(iql={"policy_kwargs": {"n_quantiles": 6}})
        space = read_space("iql", own)
        assert defaults(space, own)["iql.n_quantiles"] == 6
        found, _ = with_values(own, {"iql.n_quantiles": 8}, "iql")
        assert found.iql.policy_kwargs == {"n_quantiles": 8}

    def test_sizes_of_plain_algorithms(self) -> None:
        arguments = {"policy_kwargs": {"n_critics": 3, "n_quantiles": 25}}
        _, found = with_values(
            resolve(algo="tqc", environ={}), {"tqc.policy_kwargs.n_quantiles": 50}, "tqc", arguments
        )
        assert found["policy_kwargs"] == {"n_critics": 3, "n_quantiles": 50}

    def test_pretrained_leaves_the_offline_phase_out(self, settings: Settings) -> None:
        names = read_space("cqsac", settings, pretrained=True).ranges
        assert names
        assert all(name.startswith("cqsac.") for name in names)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("cqsac.gama: {low: 0, high: 1}", "gama.*gamma"),
            ("market.max_gap: {low: 1, high: 5}", "no setting of cqsac's training"),
            ("cqsac.gamma: {low: 0.5, high: 2.0}", "gamma.*2"),
            ("cqsac.gamma: {low: 0.9, high: 0.1}", "low 0.9 has to be under high 0.1"),
            ("cqsac.gamma: {low: 0.9, high: 0.9}", "low 0.9 has to be under high 0.9"),
            ("cqsac.gamma: {low: 0.9, high: .inf}", "have to be numbers"),
            ("cqsac.tau: {low: 0.1, high: 0.2, log: 'no'}", "log is true or false, not 'no'"),
            ("cqsac.batch_size: {low: 16, high: 64, step: 0.5}", "whole number over 0, not 0.5"),
            ("cqsac.batch_size: {low: 16, high: 64, step: 0}", "whole number over 0, not 0"),
            ("cqsac.batch_size: {low: 16, high: 64, step: true}", "whole number over 0, not True"),
            ("cqsac.batch_size: {low: 16, high: 64, step: 128}", "steps of 128 do not lead"),
            ("cqsac.batch_size: {low: 16, high: 64, step: 15}", "steps of 15 do not lead"),
            ("cqsac.gamma: {low: 0.5, high: 0.9, step: -0.1}", "a number over 0, not -0.1"),
            ("cqsac.gamma: {low: 0.5, high: 0.9, step: 0.3}", "steps of 0.3 do not lead"),
            ("cqsac.batch_size: {low: 16.0, high: 64}", "not a whole number"),
            ("cqsac.batch_size: {choices: [64, 64]}", "64 stands twice"),
            ("iql.policy_kwargs.critic_hidden: {choices: [[8], [8]]}", r"\[8\] stands twice"),
            ("iql.policy_kwargs.critic_hidden: {choices: [[8], {a: 1}]}", "is no number, text"),
            ("iql.policy_kwargs.critic_hidden: {choices: [[8], [a]]}", "critic_hidden"),
            ("iql.policy_kwargs.critc: {low: 1, high: 8}", "critc.*did you mean"),
            ("iql.policy_kwargs: {choices: [1, 2]}", "write section.name, or section.policy_kw"),
            ("iql.gamma.low: {low: 0.1, high: 0.2}", "write section.name, or section.policy_kw"),
            ("iql.policy_kwargs.n_quantiles: {low: 2, high: 8}", "write iql.n_quantiles"),
            ("cqsac.policy_kwargs.n_quantiles: {low: 2, high: 8}", "write iql.n_quantiles"),
            ("cqsac.policy_kwargs.gate_hidden: {low: 2, high: 8}", "write iql.policy_kwargs.gate"),
            ("env_kwargs.fee: {low: 0.0, high: 0.001}", "fee is what trials are judged by"),
            ("env_kwargs.execution_lag: {choices: [0, 1]}", "lag is what trials are judged by"),
            ("env_kwargs.action_base: {choices: [none, drift]}", "what trials are judged by"),
            ("cqsac.tau: {low: 0.0, high: 0.1, log: true}", "cqsac.tau"),
            ("cqsac.tau: 0.1", "neither"),
            ("cqsac.tau: {low: 0.1, hihg: 0.2}", "neither"),
            ("cqsac.tau: {low: a, high: 0.2}", "have to be numbers"),
            ("cqsac.batch_size: {choices: [64]}", "two values or more"),
            ("cqsac.batch_size: {choices: [64, 1]}", "batch_size"),
            ("- cqsac.tau", "no mapping"),
            ("{}", "names no setting"),
        ],
    )
    def test_refused(self, settings: Settings, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "space.yml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=message) as caught:
            read_space("cqsac", settings, path)
        assert "space.yml" in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "text",
        [
            "iql.expectile: {low: 0.5, high: 0.9}",
            "iql.n_quantiles: {low: 4, high: 8}",
            "iql.policy_kwargs.critic_hidden: {choices: [[8], [16]]}",
            "env_kwargs.gate_scale: {low: 1.0, high: 9.0}",
        ],
    )
    def test_a_setting_of_pretraining_is_refused_after_it(
        self, settings: Settings, tmp_path: Path, text: str
    ) -> None:
        path = tmp_path / "space.yml"
        path.write_text(text)
        with pytest.raises(ConfigError, match="--pretrained has done"):
            read_space("cqsac", settings, path, pretrained=True)

    def test_values_are_put_where_they_belong(self, settings: Settings) -> None:
        found, _ = with_values(settings, {"cqsac.gamma": 0.5, "iql.tau": 0.1}, "cqsac")
        assert (found.cqsac.gamma, found.iql.tau) == (0.5, 0.1)
        _, arguments = with_values(settings, {"sac.gamma": 0.5}, "sac", {"tau": 0.2})
        assert (arguments["gamma"], arguments["tau"]) == (0.5, 0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_trials": 0}, "--n-trials: 0 is less than one"),
        ({"seeds": 0}, "--seeds"),
        ({"objectives": ["sharp"]}, "--objective: 'sharp' is not known.*sharpe"),
        ({"objectives": ["cvar", "cvar"]}, "each objective once"),
        ({"sampler": "grid"}, "--sampler"),
        ({"pruner": "all"}, "--pruner"),
        ({"algo": "iql", "pretrained": "run"}, "--pretrained: seeds cqsac"),
        ({"pretrained": "run", "folds": 2}, "--folds: earlier folds"),
        ({"storage": "mysql://here"}, "--storage"),
    ],
)
def test_refused(settings: Settings, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tune(settings, **{"n_trials": 1, "out": tmp_path / "out", **changes})
    assert not (tmp_path / "out").exists()


def test_objectives_are_measures_that_rise() -> None:
    assert scores(dict.fromkeys(MEASURES.values(), 1.0), list(MEASURES)) == (1.0,) * 5
    assert scores({"sharpe": float("nan")}, ["sharpe"]) is None
    assert set(MEASURES.values()) <= set(measures.__doc__.replace("`", " ").split())
