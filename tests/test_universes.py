"""Training on random sub-universes, and policies on other assets than they were trained on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkers import check_budget
from hypothesis import given, settings
from hypothesis import strategies as st
from markets import batch_of, partial_market, random_actions, small_market
from numpy.typing import NDArray
from pipeline_fixtures import tiny_settings, write_prices

from finflow_sb3.config import EnvSettings
from finflow_sb3.ensembles import load_policies
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.errors import ArtefactError
from finflow_sb3.evaluate_run import evaluate
from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.nets.critics import SetEncoder
from finflow_sb3.nets.experts import LayoutExperts
from finflow_sb3.offline.behaviours import RuleBook
from finflow_sb3.offline.collect import collect_dataset
from finflow_sb3.offline.own_rules import past_of
from finflow_sb3.offline.trades import environment_of, trades
from finflow_sb3.pipeline import train
from finflow_sb3.plain_training import train_plain
from finflow_sb3.training.trained import load_policy

BASES = ("anchors", "drift", "none")
HALF = EnvSettings(asset_dropout=0.5, episode_length=40)
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def dropped(base: str = "anchors", lag: int = 0, **changes: Any) -> EnvSettings:
    return dataclasses.replace(HALF, action_base=base, execution_lag=lag, **changes)


def training(env: EnvSettings, n_envs: int = 16, market: ObservedMarket | None = None) -> Any:
    market = market or small_market(env)
    return batch_of(market, env, n_envs, market.splits.train, evaluation=False)


class TestBatch:
    @pytest.mark.parametrize("base", BASES)
    @pytest.mark.parametrize("lag", [0, 1])
    def test_only_the_universe_is_held(self, base: str, lag: int) -> None:
        batch = training(dropped(base, lag))
        rng = np.random.default_rng(0)
        assert (batch.universes.kept.sum(axis=1) >= 2).all()
        assert 0.3 < batch.universes.kept.mean() < 0.8
        for _ in range(20):
            assert not batch.held[:, :-1][~batch.universes.kept].any()
            batch.step(random_actions(batch.market, 16, rng))
            check_budget(batch.weights)
            assert not batch.weights[:, :-1][~batch.universes.kept].any()

    def test_each_episode_has_a_universe_of_its_own(self) -> None:
        batch = training(HALF)
        before = batch.universes.kept.copy()
        batch.reset(np.array([3]))
        changed = (before != batch.universes.kept).any(axis=1)
        assert changed.tolist() == [i == 3 for i in range(16)]

    def test_the_baseline_is_that_of_the_universe(self) -> None:
        """Equal weights that never pay a fee earn the baseline: their reward is nothing."""
        env = dropped("none", fee=0.0)
        batch = training(env)
        for _ in range(10):
            even = batch.universes.kept / batch.universes.kept.sum(axis=1, keepdims=True)
            step = batch.step_to(np.concatenate([even, np.zeros((16, 1))], axis=1))
            np.testing.assert_allclose(step.rewards, 0.0, atol=1e-6)

    def test_an_evaluation_has_every_asset(self) -> None:
        market = small_market(HALF)
        batch = batch_of(market, HALF)
        assert batch.universes.kept.all()
        place = market.layout.slices["present"]
        assert (batch.observations()[:, place] == 1.0).all()

    def test_assets_may_be_unlisted_too(self) -> None:
        env = HALF
        batch = training(env, market=partial_market(env))
        rng = np.random.default_rng(1)
        for _ in range(39):
            batch.step(random_actions(batch.market, 16, rng))
            there = batch.universes.kept & batch.market.tradable[batch.row - 1]
            assert not batch.weights[:, :-1][~there].any()
            seen = batch.observations()[:, batch.market.layout.slices["present"]]
            np.testing.assert_array_equal(
                seen, batch.universes.kept & batch.market.tradable[batch.row]
            )

    @pytest.mark.parametrize("base", BASES)
    def test_actions_are_inverted_within_the_universe(self, base: str) -> None:
        batch = training(dropped(base))
        wanted = batch.target(0.1 * random_actions(batch.market, 16, np.random.default_rng(2)))
        np.testing.assert_allclose(batch.target(batch.invert(wanted)), wanted, atol=2e-3)

    def test_a_state_goes_on_in_the_same_bits(self) -> None:
        batch, rng = training(HALF), np.random.default_rng(3)
        batch.step(random_actions(batch.market, 16, rng))
        arrays, states = batch.state()
        other = training(HALF)
        other.restore(arrays, states)
        actions = random_actions(batch.market, 16, rng)
        for each in (batch, other):
            each.step(actions)
            each.reset(np.array([0]))
        np.testing.assert_array_equal(batch.observations(), other.observations())

    def test_nothing_is_drawn_without_it(self) -> None:
        plain = EnvSettings(episode_length=40)
        batch = training(plain)
        assert "kept" not in batch.state()[0]
        assert "present" not in batch.market.layout.slices
        drawn = np.random.default_rng(0)
        start = drawn.integers(batch.span.start, batch.span.stop - 40)
        assert batch.row[0] == start
        np.testing.assert_array_equal(batch.held[0], drawn.dirichlet(np.ones(6)))


class TestRules:
    @pytest.mark.parametrize("base", BASES)
    def test_offline_data_stays_within_it(self, base: str) -> None:
        env = dropped(base)
        batch = training(env)
        book = RuleBook(batch, np.arange(16) % 8, np.random.default_rng(0))
        for _ in range(5):
            wanted = batch.tradable_part(book.targets())
            check_budget(wanted)
            assert not wanted[:, :-1][~batch.universes.kept].any()
            batch.step_to(wanted)
        past = past_of(batch, 1)
        np.testing.assert_array_equal(past.tradable, batch.universes.kept[1])
        assert not np.stack(list(past.anchors.values()))[:, :-1][:, ~past.tradable].any()

    @pytest.mark.parametrize("base", BASES)
    @pytest.mark.parametrize("lag", [0, 1])
    def test_trades_are_told_from_a_dataset(self, base: str, lag: int) -> None:
        """`data describe` sees the trades that were made: nothing of what was not there."""
        env, market = dropped(base, lag), small_market(dropped(base, lag))
        settings_ = tiny_settings_collect()
        dataset = collect_dataset(market, env, settings_, seed=0)
        assert environment_of(dataset) == env
        found = trades(dataset, env, 0, 200)
        batch = training(env)
        assert found.turnover.shape == (200,)
        assert np.isfinite(found.turnover).all()
        assert found.turnover.max() <= 2.0 + 1e-9
        assert batch.trade_rate > 0.0


def tiny_settings_collect() -> Any:
    from finflow_sb3.config import CollectSettings

    return CollectSettings(episodes=8, n_envs=8)


def layout_of(n: int, masked: bool, lagged: bool) -> ObservationLayout:
    return ObservationLayout(
        assets=tuple(f"a{i}" for i in range(n)),
        anchors=("volatility", "correlation", "momentum", "defensive", "growth"),
        scalars=("drawdown",),
        action_base="anchors",
        lagged=lagged,
        masked=masked,
    )


def both_ways(
    n: int, kept: NDArray[np.bool_], lagged: bool, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """An observation of n assets of which some are there, and of these alone."""
    rng = np.random.default_rng(seed)
    whole, part = layout_of(n, True, lagged), layout_of(int(kept.sum()), False, lagged)
    wide, small = np.zeros((1, whole.size)), np.zeros((1, part.size))
    for name, features in whole.groups:
        block = rng.normal(size=(n, len(features)))
        wide[0, whole.slices[name]] = block.ravel()
        small[0, part.slices[name]] = block[kept].ravel()
    for name in ("market", "anchor_record", "scalars"):
        block = rng.normal(size=wide[0, whole.slices[name]].shape)
        wide[0, whole.slices[name]], small[0, part.slices[name]] = block, block
    anchors = rng.dirichlet(np.ones(n + 1), size=5)
    within = anchors * np.append(kept, True)
    within /= within.sum(axis=1, keepdims=True)
    wide[0, whole.slices["anchor_weights"]] = anchors[:, :-1].ravel()
    small[0, part.slices["anchor_weights"]] = within[:, :-1][:, kept].ravel()
    for name in ("weights", "pending") if lagged else ("weights",):
        weights = rng.dirichlet(np.ones(n + 1)) * np.append(kept, True)
        weights /= weights.sum()
        wide[0, whole.slices[name]] = weights
        small[0, part.slices[name]] = weights[np.append(kept, True)]
    wide[0, whole.slices["present"]] = kept
    return tuple(torch.tensor(x, dtype=torch.float32) for x in (wide, small))


class TestNetworks:
    @settings(max_examples=20)
    @given(st.lists(st.booleans(), min_size=4, max_size=9), st.booleans(), st.integers(0, 999))
    def test_a_part_of_a_universe_is_a_small_universe(
        self, inside: list[bool], lagged: bool, seed: int
    ) -> None:
        kept = np.array([True, True, *inside])
        n = len(kept)
        wide, small = both_ways(n, kept, lagged, seed)
        nets = []
        for layout in (layout_of(n, True, lagged), layout_of(int(kept.sum()), False, lagged)):
            torch.manual_seed(0)
            experts = LayoutExperts(layout, 6, 6)
            for parameter in experts.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
            nets.append((experts, SetEncoder(2, layout, 6, (8,))))
        (there, their_critic), (here, critic) = nets
        their_critic.load_state_dict(critic.state_dict())
        columns = np.concatenate([np.ones(5, bool), kept, [True]])
        seen, alone = there(wide), here(small)
        torch.testing.assert_close(seen.mean[:, columns], alone.mean, **CLOSE)
        torch.testing.assert_close(seen.gates, alone.gates, **CLOSE)
        action = torch.tanh(seen.mean)[:, None]
        torch.testing.assert_close(
            their_critic(wide, action), critic(small, action[:, :, columns]), **CLOSE
        )

    def test_what_is_not_there_is_not_seen(self) -> None:
        kept = np.array([True, True, True, False, False])
        wide, _ = both_ways(5, kept, False, 0)
        layout = layout_of(5, True, False)
        policy = LayoutExperts(layout, 6, 6)
        for parameter in policy.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        other = wide.clone()
        for name, features in layout.groups:
            block = other[:, layout.slices[name]].view(1, 5, len(features))
            block[:, 3:] = 9.0
        torch.testing.assert_close(policy(other).mean, policy(wide).mean)
        other[:, layout.slices["present"]] = 1.0
        assert not torch.allclose(policy(other).mean, policy(wide).mean)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny training of both phases on sub-universes of six assets."""
    folder = tmp_path_factory.mktemp("universes")
    settings_ = tiny_settings(
        folder, env_kwargs={"asset_dropout": 0.3}, cqsac={"offline_fraction": 0.25}
    )
    finetuned = train(settings_, report=False).finetuned
    assert finetuned is not None
    return finetuned.run


class TestOtherUniverses:
    def test_both_phases_train_on_sub_universes(self, run: Path) -> None:
        assert load_policy(run).layout.masked
        found = evaluate(run)
        assert not any("Another universe" in note for note in found.notes)

    @pytest.mark.parametrize("assets", ["ABCDEFGHI", "XYZ", "FEDCBA"])
    def test_a_policy_acts_on_any_assets(self, run: Path, tmp_path: Path, assets: str) -> None:
        prices = write_prices(tmp_path / "others.csv", assets)
        before = (run / "report").exists()
        found = evaluate(run, str(prices))
        (note,) = (note for note in found.notes if "Another universe" in note)
        known = len(set(assets) & set("ABCDEF"))
        assert f"trained on 6 assets, of which {known} are among these {len(assets)}" in note
        assert found.report == run / "report-others-csv" / "index.html"
        assert (run / "report").exists() == before
        assert np.isfinite(found.measures["cqsac"]["lag_0"]["sharpe"])

    def test_weights_are_the_same_everywhere(self, run: Path, tmp_path: Path) -> None:
        policies = load_policies(run)
        layout = dataclasses.replace(policies.layout, assets=tuple("UVWXYZABC"))
        assert policies.on(policies.layout) is policies
        moved = policies.on(layout)
        assert moved.layout == layout
        assert moved.scaler == policies.scaler

    def test_what_does_not_carry_over_is_refused(self, run: Path, tmp_path: Path) -> None:
        policies = load_policies(run)
        other = dataclasses.replace(policies.layout, assets=("A", "B", "C"))
        with pytest.raises(ArtefactError, match="action_base"):
            policies.on(dataclasses.replace(other, action_base="none"))
        with pytest.raises(ArtefactError, match="market"):
            policies.on(dataclasses.replace(other, market=("volatility",)))
        small = tiny_settings(tmp_path)
        plain = train_plain(small, "sac", {"n_timesteps": 80, "learning_starts": 40})
        with pytest.raises(ArtefactError, match="tied to the 6 assets"):
            load_policy(plain.run, other)


def test_batches_without_dropout_keep_their_universe() -> None:
    market = small_market()
    assert PortfolioBatch(market, market.splits.train, 2, EnvSettings()).tradable() is None
