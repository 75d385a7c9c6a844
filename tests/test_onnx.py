"""Policies as ONNX files: the same weights as in the environment, and what the files say."""

from __future__ import annotations

import dataclasses
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from allocation_fixtures import (
    frame,
    last_day,
    partial_run,
    settings_of,
    shared_folder,
    trained_run,
)
from market_checkers import tiny_arguments
from numpy.typing import NDArray

from finflow_sb3.allocate import allocate
from finflow_sb3.allocation.decision import standing
from finflow_sb3.allocation.market import latest_market
from finflow_sb3.deployment import onnx_file
from finflow_sb3.deployment.inputs import decision_inputs
from finflow_sb3.deployment.network import DecisionNetwork
from finflow_sb3.deployment.onnx_file import export_onnx
from finflow_sb3.ensembles import Policies, load_policies
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.errors import ArtefactError, ConfigError, MissingExtraError
from finflow_sb3.evaluation.backtest import lagged
from finflow_sb3.opening import open_market
from finflow_sb3.plain_training import train_plain

STATES = 1000


def session_of(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@lru_cache(maxsize=2)
def plain_run(algo: str) -> Path:
    """A run of one of SB3's own algorithms, a few steps long."""
    return train_plain(settings_of(shared_folder()), algo, tiny_arguments(algo)).run


def real_states(runs: list[Path], **how: Any) -> tuple[Policies, PortfolioBatch]:
    """Policies, and portfolios on random days of their market that have been traded for a week."""
    policies = load_policies(runs, **how)
    market = open_market(policies.settings, policies.scaler)
    # Outside of training no asset is left out.
    env = dataclasses.replace(lagged(policies.settings.env_kwargs, 0), asset_dropout=0.0)
    seeds: list[int | None] = list(range(STATES))
    batch = PortfolioBatch(market, market.splits.train, STATES, env, seeds=seeds)
    batch.reset()
    rng = np.random.default_rng(0)
    for _ in range(5):
        batch.step(rng.uniform(-1.0, 1.0, size=(STATES, market.layout.action_size)))
    return policies, batch


RUNS: dict[str, tuple[Any, dict[str, Any]]] = {
    "anchors": (lambda: [trained_run()], {}),
    "drift": (lambda: [trained_run(action_base="drift")], {}),
    "none, lagged": (
        lambda: [trained_run(action_base="none", execution_lag=1, reward="differential_sharpe")],
        {},
    ),
    "some left out in training": (lambda: [trained_run(asset_dropout=0.3)], {}),
    "assets that come and go": (lambda: [partial_run()], {}),
    "the mean of two": (lambda: [trained_run(), trained_run(seed=1)], {"shrinkage": 2.0}),
    "the median of three": (
        lambda: [trained_run(), trained_run(seed=1), trained_run(seed=2)],
        {"combination": "median"},
    ),
    "sac": (lambda: [plain_run("sac")], {}),
    "ppo": (lambda: [plain_run("ppo")], {}),
}


EXPORTED = ("drift", "assets that come and go", "the median of three", "ppo")
"""Exporting takes seconds: what the others have is in these, or in `TestFile`."""


def check(found: dict[str, NDArray[Any]], policies: Policies, batch: PortfolioBatch) -> None:
    """Whether outputs are what the policies want in the environment."""
    ensemble = policies.ensemble
    actions = ensemble.actions(batch.observations())
    decision = ensemble.decide(batch, actions)
    assert found["target"].shape == decision.target.shape
    np.testing.assert_allclose(found["target"], decision.target, atol=1e-5)
    if len(policies.members) == 1:
        np.testing.assert_allclose(found["action"], actions[0], atol=1e-5)
    else:
        np.testing.assert_allclose(found["disagreement"], decision.disagreement, atol=1e-5)
        assert decision.disagreement.max() > 1e-3
    # They are decisions: portfolios in different states are told different things.
    assert np.ptp(decision.target, axis=0).max() > 0.005


@pytest.mark.parametrize("name", list(RUNS))
def test_the_network_wants_what_policies_want(name: str) -> None:
    make, how = RUNS[name]
    policies, batch = real_states(make(), **how)
    network = DecisionNetwork(policies).eval()
    inputs = decision_inputs(batch)
    with torch.no_grad():
        found = network(*(torch.from_numpy(inputs[key]) for key in network.shapes))
    check({k: x.numpy() for k, x in zip(network.outputs, found, strict=True)}, policies, batch)


@pytest.mark.parametrize("name", EXPORTED)
def test_the_file_gives_the_same_in_real_states(name: str, tmp_path: Path) -> None:
    make, how = RUNS[name]
    runs = make()
    policies, batch = real_states(runs, **how)
    exported = export_onnx(runs, tmp_path / "policy.onnx", **how)
    assert exported.largest_difference < 1e-5
    session = session_of(exported.path)
    inputs = decision_inputs(batch)
    assert [each.name for each in session.get_inputs()] == list(exported.inputs)
    found = session.run(None, {key: inputs[key] for key in exported.inputs})
    check(dict(zip(exported.outputs, found, strict=True)), policies, batch)


class TestFile:
    @pytest.fixture(scope="class")
    def exported(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return export_onnx(trained_run(), tmp_path_factory.mktemp("onnx") / "policy.onnx").path

    def test_says_what_it_is(self, exported: Path) -> None:
        model = onnx.load(exported)
        onnx.checker.check_model(model)
        facts = {prop.key: prop.value for prop in model.metadata_props}
        policies = load_policies(trained_run())
        assert facts["format"] == "finflow-onnx-1"
        assert facts["action_base"] == "anchors" and float(facts["trade_rate"]) == 0.1
        assert tuple(json.loads(facts["assets"])) == policies.layout.assets
        layout = type(policies.layout).from_dict(json.loads(facts["layout"]))
        assert layout == policies.layout
        assert type(policies.scaler).from_dict(json.loads(facts["scaler"])) == policies.scaler
        assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]

    def test_says_nothing_of_the_machine(self, exported: Path) -> None:
        content = exported.read_bytes()
        for trace in (str(Path(__file__).parents[1]), str(shared_folder()), "site-packages"):
            assert trace.encode() not in content

    @pytest.mark.parametrize("count", [1, 2, 17])
    def test_takes_batches_of_any_size(self, exported: Path, count: int) -> None:
        _, batch = real_states([trained_run()])
        inputs = decision_inputs(batch)
        session = session_of(exported)
        names = [each.name for each in session.get_inputs()]
        whole = session.run(["target"], {k: inputs[k] for k in names})[0]
        some = session.run(["target"], {k: inputs[k][:count] for k in names})[0]
        np.testing.assert_allclose(some, whole[:count], atol=1e-6)

    def test_decides_as_allocate_does(self, exported: Path) -> None:
        run = trained_run()
        found = allocate(run, frame(), cash=50_000, as_of=last_day())
        market = latest_market(run, frame(), last_day())
        weights = np.append(np.zeros(5), 1.0)
        env = load_policies(run).settings.env_kwargs
        batch = standing(market, env, weights, 50_000.0, 50_000.0)
        inputs = decision_inputs(batch)
        session = session_of(exported)
        names = [each.name for each in session.get_inputs()]
        target = session.run(["target"], {k: inputs[k] for k in names})[0][0]
        wanted = {each.asset: each.target for each in found.positions}
        expected = [wanted[asset] for asset in (*market.prices.assets, "CASH")]
        np.testing.assert_allclose(target, expected, atol=1e-5)


def test_a_name_must_end_in_onnx(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a file for ONNX Runtime ends in \.onnx"):
        export_onnx(trained_run(), tmp_path / "policy.zip")


def test_a_missing_extra_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finflow_sb3.deployment.onnx_file.NEEDED", ("onnx", "no_such_module"))
    with pytest.raises(MissingExtraError, match=r"needs no_such_module; pip install .*\[onnx\]"):
        export_onnx(trained_run(), tmp_path / "policy.onnx")


def test_a_file_that_differs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "policy.onnx"
    path.write_bytes(b"old")
    monkeypatch.setattr(onnx_file, "_write", lambda network, _, new: new.write_bytes(b"new"))
    monkeypatch.setattr(onnx_file, "_difference", lambda network, new: 2e-5)
    with pytest.raises(ArtefactError, match="nothing was written"):
        export_onnx(trained_run(), path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
