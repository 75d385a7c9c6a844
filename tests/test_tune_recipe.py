"""Trials as files for `-c`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from finflow_sb3.config import Settings
from finflow_sb3.config_arguments import algorithm_arguments, checked_arguments
from finflow_sb3.config_files import resolve
from finflow_sb3.tuning.recipe import write_recipe
from finflow_sb3.tuning.spaces import with_values
from finflow_sb3.tuning.trials import TrialPlan
from finflow_sb3.zoo_values import parse_yaml


class TestRecipe:
    """A file that trains as a trial did, whatever was given for it."""

    def plan(self, settings: Settings, algo: str, **arguments: Any) -> TrialPlan:
        return TrialPlan(algo, (settings,), 1, ("sharpe",), arguments=arguments)

    @pytest.mark.parametrize(
        "given",
        [
            {"learning_rate": 1e-3},
            {"actor_lr": None, "learning_rate": "lin_3e-4"},
            {"ent_coef": 0.1, "alpha_init": None},
            {"cql_target_action_gap": 1.0, "cql_alpha_final": None},
            {"critic_lr": 1e-3, "policy_kwargs": {"n_quantiles": 16}},
        ],
    )
    def test_settings_that_say_the_same(self, tmp_path: Path, given: dict[str, Any]) -> None:
        own = resolve(algo="cqsac", preset="volatile", environ={}).replace(
            cqsac=given, market={"prices": "other.csv"}, env_kwargs={"fee": 0.002}
        )
        path = tmp_path / "best.yml"
        write_recipe(path, "A title", self.plan(own, "cqsac"), own, {"cqsac.gamma": 0.9}, 9)
        found = resolve(algo=None, files=[path], environ={})
        assert found == own.replace(cqsac={"gamma": 0.9}, evaluation={"trials": 9})

    def test_sizes_of_both_phases(self, tmp_path: Path) -> None:
        own = resolve(algo="cqsac", environ={})
        values = {"iql.n_quantiles": 16, "iql.policy_kwargs.critic_hidden": "[64, 64]"}
        path = tmp_path / "best.yml"
        write_recipe(path, "A title", self.plan(own, "cqsac"), own, values, 1)
        found = resolve(algo=None, files=[path], environ={})
        assert found == with_values(own, values, "cqsac")[0]
        assert found.cqsac.policy_kwargs == {"n_quantiles": 16, "critic_hidden": [64, 64]}

    def test_arguments_of_plain_algorithms(self, tmp_path: Path) -> None:
        """Those that SB3 has too, where the packaged file says otherwise."""
        own = resolve(algo="sac", environ={}).replace(run={"seed": 7})
        given = {**algorithm_arguments("sac", environ={}), "batch_size": 64, "buffer_size": 10**6}
        plan, path = self.plan(own, "sac", **given), tmp_path / "best.yml"
        write_recipe(path, "A title", plan, own, {"sac.gamma": 0.9}, 9)
        settings = resolve(algo="sac", files=[path], environ={})
        assert settings == own.replace(evaluation={"trials": 9})
        found = algorithm_arguments("sac", files=[path], environ={})
        wanted = checked_arguments("sac", {**given, "gamma": 0.9})
        assert checked_arguments("sac", found) == wanted
        assert set(parse_yaml(path.read_text(), "best")["finflow/US20-v0"]) == {
            *("batch_size", "buffer_size", "gamma"),
            *("run", "evaluation"),
        }

    def test_the_command_line_has_no_password_in_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = ["finflow", "tune", "--storage", "postgresql://me:secret@host/db"]
        words += ["--storage=postgresql://host/db?user=me&password=secret"]
        words += ["--study-name", "a b\nfinflow/US20-v0: {}", "-p", "tau:0.01"]
        monkeypatch.setattr(sys, "argv", words)
        own, path = resolve(algo="cqsac", environ={}), tmp_path / "best.yml"
        write_recipe(path, "A title", self.plan(own, "cqsac"), own, {"cqsac.gamma": 0.9}, 9)
        first, second, *rest = path.read_text().splitlines()
        assert "secret" not in path.read_text()
        assert first == "# A title"
        assert second == (
            "# finflow tune --storage postgresql://me@host/db "
            "'--storage=postgresql://host/db?user=me' "
            "--study-name 'a b finflow/US20-v0: {}' -p tau:0.01"
        )
        assert not any(line.startswith("#") for line in rest)
