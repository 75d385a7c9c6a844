"""Fitted Q evaluation: d3rlpy's own update, and a value that is known in closed form."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from d3rlpy.dataset import Transition, TransitionMiniBatch
from d3rlpy.models.q_functions import MeanQFunctionFactory
from d3rlpy.ope import FQE, FQEConfig
from learning_fixtures import TINY, small_dataset, trained_iql
from torch import Tensor, nn

from finflow_sb3.network_sizes import NetworkSizes
from finflow_sb3.offline.transitions import TransitionBatch
from finflow_sb3.pretrain.fqe import FQEOptions, PolicyValue, PolicyValueFit, fitted_values
from finflow_sb3.pretrain.modules import LayoutEncoderFactory

# ------------------------------------------------------------------- a known process

STATES, GAMMA = 5, 0.8
PAYS = np.array([0.0, 0.5, -1.0, 2.0, 1.0])


class Output(NamedTuple):
    mean: Tensor


class Tabular(nn.Module):
    """A policy over one-hot states: the action tanh(mean) of each."""

    def __init__(self, actions: list[float]):
        super().__init__()
        self.means = torch.atanh(torch.tensor(actions))[:, None]

    def forward(self, x: Tensor) -> Output:
        return Output(x @ self.means)


class Ring:
    """Five states in a ring. Action a ∈ (−1, 1) goes right with probability (1 + a)/2, else left,
    and earns PAYS[s] + 0.5·a; from state 4 on the episode ends. States and actions are uniform.
    """

    def __init__(self, count: int = 20_000, seed: int = 0):
        rng = np.random.default_rng(seed)
        state = rng.integers(STATES, size=count)
        action = rng.uniform(-1.0, 1.0, size=count)
        right = rng.uniform(size=count) < (1.0 + action) / 2.0
        after = (state + np.where(right, 1, -1)) % STATES
        self.state = torch.from_numpy(state)
        self.batch = TransitionBatch(
            nn.functional.one_hot(self.state, STATES).float(),
            torch.from_numpy(action).float()[:, None],
            torch.from_numpy(PAYS[state] + 0.5 * action).float()[:, None],
            nn.functional.one_hot(torch.from_numpy(after), STATES).float(),
            torch.from_numpy(state == 4).float()[:, None],
        )

    def __len__(self) -> int:
        return len(self.state)

    def gather(self, index: Tensor) -> TransitionBatch:
        return TransitionBatch(*(part[index] for part in self.batch))

    @property
    def starts(self) -> np.ndarray:
        """Transitions from state 0 stand for episodes' starts."""
        return np.flatnonzero(self.state.numpy() == 0)[:50]


def true_values(actions: list[float]) -> np.ndarray:
    """V = (I − γP)⁻¹ r, where nothing follows state 4."""
    a, moves = np.array(actions), np.zeros((STATES, STATES))
    for s in range(STATES - 1):
        moves[s, (s + 1) % STATES] += (1.0 + a[s]) / 2.0
        moves[s, (s - 1) % STATES] += (1.0 - a[s]) / 2.0
    return np.linalg.solve(np.eye(STATES) - GAMMA * moves, PAYS + 0.5 * a)


POLICIES = {
    "right": [0.8, 0.8, 0.8, 0.8, 0.0],
    "left": [-0.8, -0.8, -0.8, -0.8, 0.0],
    "mixed": [0.5, -0.9, 0.9, -0.2, 0.3],
}
OPTIONS = FQEOptions(
    steps=300,
    batch_size=256,
    gamma=GAMMA,
    learning_rate=5e-3,
    target_interval=8,
    sizes=NetworkSizes(critic_hidden=(32, 32)),
)


@pytest.fixture(scope="module")
def estimates() -> dict[str, float]:
    """Values of all policies at state 0."""
    ring = Ring()
    policies = [Tabular(actions) for actions in POLICIES.values()]
    found = fitted_values(policies, ring, None, OPTIONS)
    assert found is not None
    return {name: each.value for name, each in zip(POLICIES, found, strict=True)}


@pytest.mark.parametrize("name", POLICIES)
def test_a_known_value_is_found(estimates: dict[str, float], name: str) -> None:
    """Within 0.15; the policies are worth 0.34, 1.02 and 2.27, and 0 is what Q starts from."""
    assert estimates[name] == pytest.approx(true_values(POLICIES[name])[0], abs=0.15)


def test_the_known_values() -> None:
    """By hand for the deterministic walk 0 → 1 → 2 → 3 → 4: Σ γᵏ·(pay + 0.5)."""
    walk = sum(GAMMA**k * (PAYS[k] + 0.5) for k in range(4)) + GAMMA**4 * PAYS[4]
    assert true_values([1.0, 1.0, 1.0, 1.0, 0.0])[0] == pytest.approx(walk)


# ------------------------------------------------------------------- d3rlpy's own


def whole(batch: TransitionBatch) -> TransitionMiniBatch:
    """A batch as d3rlpy makes it of single transitions."""
    rows = zip(*(part.numpy() for part in batch), strict=True)
    return TransitionMiniBatch.from_transitions(
        [
            Transition(o, a, r, n, a, float(t[0]), 1, np.zeros((1, 1), dtype=np.float32))
            for o, a, r, n, t in rows
        ]
    )


def q_values(fit: Any, batch: TransitionBatch) -> Tensor:
    with torch.no_grad():
        values: Tensor = fit.impl.predict_value(batch.observations, batch.actions)
    return values


@pytest.mark.parametrize("critic", [0, 1])
def test_an_update_is_d3rlpys_own(critic: int) -> None:
    """The algorithm itself, evaluated by d3rlpy on the same batches, gives the same Q."""
    algo, data = trained_iql(), small_dataset()
    sizes = NetworkSizes.from_kwargs(TINY)
    options = FQEOptions(
        steps=12, gamma=0.95, learning_rate=1e-2, n_critics=2, target_interval=3, sizes=sizes
    )
    layout = data.layout
    ours = PolicyValueFit(algo.experts, layout, layout.size, layout.action_size, options)
    config = FQEConfig(
        learning_rate=1e-2,
        encoder_factory=LayoutEncoderFactory(layout, layout.action_size, sizes),
        q_func_factory=MeanQFunctionFactory(),
        gamma=0.95,
        target_update_interval=3,
    )
    theirs = FQE(algo, config)
    theirs.create_impl((layout.size,), layout.action_size)
    weights = ours.fits[critic].impl.modules
    theirs.impl.modules.q_funcs.load_state_dict(weights.q_funcs.state_dict())
    theirs.impl.modules.targ_q_funcs.load_state_dict(weights.targ_q_funcs.state_dict())
    everything = data.gather(torch.arange(len(data)))
    before = q_values(theirs, everything)
    generator = torch.Generator().manual_seed(0)
    for _ in range(options.steps):
        batch = data.gather(torch.randint(len(data), (32,), generator=generator))
        batch = batch._replace(terminals=(batch.rewards > 1.0).float())
        ours.update_on(batch)
        theirs.update(whole(batch))
    after = q_values(theirs, everything)
    assert float((after - before).abs().max()) > 0.01
    torch.testing.assert_close(q_values(ours.fits[critic], everything), after, atol=1e-5, rtol=0)


# ------------------------------------------------------------------- runs


def small_fit(stop: Any = None, on_step: Any = None) -> tuple[PolicyValue, ...] | None:
    data = small_dataset()
    options = FQEOptions(steps=5, batch_size=32, n_critics=2, sizes=NetworkSizes.from_kwargs(TINY))
    policies = [trained_iql(updates).experts for updates in (0, 30)]
    return fitted_values(policies, data, data.layout, options, on_step, stop)


def test_a_seed_gives_the_same_bits() -> None:
    steps: list[tuple[int, int]] = []
    first = small_fit(on_step=lambda *at: steps.append(at))
    torch.manual_seed(12345)
    assert first == small_fit()
    assert steps == [(i, 10) for i in range(1, 11)]
    assert first is not None and first[0].value != first[1].value


def test_it_stops_when_asked() -> None:
    asked = iter([False] * 6 + [True])
    assert small_fit(stop=lambda: next(asked)) is None
    assert next(asked, None) is None


def test_policies_stay_as_they_are() -> None:
    algo, data = trained_iql(), small_dataset()
    before = {name: tensor.clone() for name, tensor in algo.experts.state_dict().items()}
    options = FQEOptions(steps=3, batch_size=16, sizes=NetworkSizes.from_kwargs(TINY))
    (found,) = fitted_values([algo.experts], data, data.layout, options) or ()
    assert found.error is None
    assert all(torch.equal(before[k], v) for k, v in algo.experts.state_dict().items())
