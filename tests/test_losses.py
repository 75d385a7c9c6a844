"""Losses against integrals, hand-computed values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finflow_sb3.nets.distributions import sample
from finflow_sb3.nets.losses import (
    balance_loss,
    conservative_penalty,
    log_uniform_density,
    prior_loss,
)

F64 = torch.float64


def log_integral(slope: float, temperature: float) -> float:
    """T·log ∫ exp(c·a/T) da over [-1, 1] = T·log(T·(e^{c/T} − e^{−c/T})/c)."""
    c = slope / temperature
    return temperature * math.log((math.exp(c) - math.exp(-c)) / c)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("slope", [0.5, 3.0])
def test_penalty_of_a_linear_q_is_its_integral(slope: float, temperature: float) -> None:
    """Midpoints of [-1, 1] as uniform samples: the estimate is the integral itself."""
    count = 20_000
    actions = (torch.arange(count, dtype=F64) + 0.5) / count * 2.0 - 1.0
    density = torch.full((1, count), log_uniform_density(1), dtype=F64)
    q = (slope * actions)[None]
    data_q = torch.tensor([slope * 0.25], dtype=F64)
    found = conservative_penalty(q, density, data_q, temperature)
    assert float(found) == pytest.approx(log_integral(slope, temperature) - slope * 0.25, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_penalty_from_policy_samples_is_the_same_integral(temperature: float) -> None:
    """Samples of a wide policy, weighted by their density, estimate the same integral."""
    torch.manual_seed(0)
    zeros = torch.zeros(1, 1, 1, dtype=F64)
    actions, density = sample(zeros, zeros, torch.randn(1, 200_000, 1, dtype=F64))
    found = conservative_penalty(
        2.0 * actions[:, :, 0], density, torch.zeros(1, dtype=F64), temperature
    )
    assert float(found) == pytest.approx(log_integral(2.0, temperature), abs=0.02)


def test_penalty_by_hand() -> None:
    """Two samples of density 1/2 each: log((e^{1}/0.5 + e^{0}/0.5)/2) − Q(s, a)."""
    q = torch.tensor([[1.0, 0.0]], dtype=F64)
    density = torch.full((1, 2), math.log(0.5), dtype=F64)
    found = conservative_penalty(q, density, torch.tensor([0.3], dtype=F64))
    assert float(found) == pytest.approx(math.log((math.e / 0.5 + 1 / 0.5) / 2) - 0.3, abs=1e-12)


def test_penalty_is_a_mean_over_critics_and_batch() -> None:
    torch.manual_seed(0)
    q, density, data = torch.randn(2, 3, 5), torch.randn(3, 5), torch.randn(2, 3)
    parts = [
        conservative_penalty(q[c, b][None], density[b][None], data[c, b][None])
        for c in range(2)
        for b in range(3)
    ]
    torch.testing.assert_close(conservative_penalty(q, density, data), torch.stack(parts).mean())


def test_penalty_gradient_pushes_samples_down_and_data_up() -> None:
    """∂/∂Q_j is the softmax over samples, ∂/∂Q(s, a) is −1, each over the batch's size."""
    torch.manual_seed(0)
    q = torch.randn(2, 4, dtype=F64, requires_grad=True)
    data = torch.randn(2, dtype=F64, requires_grad=True)
    density = torch.randn(2, 4, dtype=F64)
    conservative_penalty(q, density, data, temperature=2.0).backward()
    assert q.grad is not None and data.grad is not None
    torch.testing.assert_close(q.grad, torch.softmax(q.detach() / 2.0 - density, dim=1) / 2)
    torch.testing.assert_close(data.grad, torch.full((2,), -0.5, dtype=F64))


@given(shift=st.floats(-50, 50), seed=st.integers(0, 100))
def test_penalty_ignores_the_level_of_q(shift: float, seed: int) -> None:
    torch.manual_seed(seed)
    q, density, data = (
        torch.randn(3, 4).double(),
        torch.randn(3, 4).double(),
        torch.randn(3).double(),
    )
    before = conservative_penalty(q, density, data, 1.5)
    torch.testing.assert_close(conservative_penalty(q + shift, density, data + shift, 1.5), before)


@pytest.mark.parametrize("size", [1, 3, 26])
def test_uniform_density(size: int) -> None:
    assert log_uniform_density(size) == pytest.approx(math.log(0.5**size))


@pytest.mark.parametrize("k", [2, 5, 8])
def test_balance_of_uniform_and_of_one(k: int) -> None:
    uniform = torch.full((7, k), 1.0 / k, dtype=F64)
    one_hot = torch.nn.functional.one_hot(torch.full((7,), 1), k).double()
    assert float(balance_loss(uniform.mean(dim=0))) == pytest.approx(0.0, abs=1e-12)
    assert float(balance_loss(one_hot.mean(dim=0))) == pytest.approx(k - 1.0)


def test_balance_is_of_the_mean_gate() -> None:
    """Experts may take turns: each state one expert, all used alike over the batch."""
    assert float(balance_loss(torch.eye(5, dtype=F64).mean(dim=0))) == pytest.approx(0.0, abs=1e-12)
    half = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=F64)  # mean (0.75, 0.25)
    assert float(balance_loss(half.mean(dim=0))) == pytest.approx(2 * (0.5625 + 0.0625) - 1)


@given(seed=st.integers(0, 1000), k=st.integers(2, 8))
def test_balance_lies_between_its_ends(seed: int, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gates = torch.softmax(5 * torch.randn(6, k, generator=generator, dtype=F64), dim=1)
    assert -1e-9 <= float(balance_loss(gates.mean(dim=0))) <= k - 1 + 1e-9


def test_prior_by_hand() -> None:
    mean = torch.tensor([[0.0, 0.0], [math.atanh(0.5), math.atanh(-0.2)]], dtype=F64)
    assert float(prior_loss(mean)) == pytest.approx((0.25 + 0.04) / 2)
