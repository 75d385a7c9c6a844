"""The sorted quantile Huber loss against the definition, hand-computed values and gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sb3_contrib.common.utils import quantile_huber_loss as all_pairs_of_sb3

from finflow_sb3.nets.quantile_huber import _all_pairs, quantile_huber_loss, sort_rows

F32, F64 = torch.float32, torch.float64
SIZES = st.integers(1, 9)
CASES: dict[str, Any] = {
    "shape": st.tuples(SIZES, st.integers(1, 3), SIZES, st.integers(1, 40)),
    "spread": st.sampled_from([0.01, 0.3, 1.0, 30.0, 1e3]),
    "offset": st.sampled_from([0.0, 1.0, -1e4, 1e4]),
    "kind": st.sampled_from(["plain", "ties", "grid", "equal", "falling"]),
    "seed": st.integers(0, 10_000),
}


def draw_case(
    shape: tuple[int, int, int, int], spread: float, offset: float, kind: str, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantiles [B, C, N] and targets [B, M] in double.

    `ties` puts targets on quantiles and on the kinks beside them, `grid` everything on halves,
    `equal` all targets of a row on one number, `falling` targets in falling order.
    """
    b, c, n, m = shape
    generator = torch.Generator().manual_seed(seed)
    quantiles = torch.randn(b, c, n, generator=generator, dtype=F64) * spread + offset
    targets = torch.randn(b, m, generator=generator, dtype=F64) * spread + offset
    if kind == "ties":
        flat = quantiles.reshape(b, -1)
        picked = flat[:, torch.randint(c * n, (m,), generator=generator)]
        targets = picked + torch.randint(-1, 2, (b, m), generator=generator)
    elif kind == "grid":
        quantiles, targets = (quantiles * 2).round() / 2, (targets * 2).round() / 2
    elif kind == "equal":
        targets = targets[:, :1].expand(-1, m)
    elif kind == "falling":
        targets = targets.sort(dim=1, descending=True).values
    return quantiles, targets


def midpoints(n: int) -> torch.Tensor:
    return ((torch.arange(n, dtype=F64) + 0.5) / n).view(1, 1, n, 1)


def theirs(quantiles: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """sb3-contrib's, all pairs; in double with τ in double."""
    tau = midpoints(quantiles.shape[2]) if quantiles.dtype == F64 else None
    return all_pairs_of_sb3(quantiles, targets[:, None], tau, sum_over_quantiles=False)


def value_and_gradient(loss: Any, quantiles: torch.Tensor) -> tuple[float, torch.Tensor]:
    """The loss, and its gradient for every quantile times the number of quantiles: of size 1."""
    leaf = quantiles.clone().requires_grad_()
    value = loss(leaf)
    value.backward()
    assert leaf.grad is not None
    return float(value.detach()), leaf.grad * leaf.numel()


@settings(max_examples=150)
@given(**CASES)
@example(shape=(1, 1, 1, 1), spread=1.0, offset=0.0, kind="ties", seed=0)
@example(shape=(3, 2, 5, 1), spread=1e3, offset=1e4, kind="grid", seed=1)
@example(shape=(2, 2, 1, 40), spread=0.01, offset=-1e4, kind="equal", seed=2)
def test_equal_to_all_pairs_in_double(
    shape: tuple[int, int, int, int], spread: float, offset: float, kind: str, seed: int
) -> None:
    quantiles, targets = draw_case(shape, spread, offset, kind, seed)
    value, gradient = value_and_gradient(lambda q: quantile_huber_loss(q, targets), quantiles)
    expected, slope = value_and_gradient(lambda q: theirs(q, targets), quantiles)
    assert value == pytest.approx(expected, rel=1e-9, abs=1e-9)
    torch.testing.assert_close(gradient, slope, rtol=0, atol=1e-9)


@settings(max_examples=150)
@given(**CASES)
def test_equal_to_all_pairs_in_single(
    shape: tuple[int, int, int, int], spread: float, offset: float, kind: str, seed: int
) -> None:
    """Within 1e-6 of the size of the numbers; of what float32 holds, so far from zero too."""
    quantiles, targets = (x.float() for x in draw_case(shape, spread, offset, kind, seed))
    value, gradient = value_and_gradient(lambda q: quantile_huber_loss(q, targets), quantiles)
    assert gradient.dtype == F32
    expected, slope = value_and_gradient(lambda q: theirs(q, targets), quantiles)
    assert value == pytest.approx(expected, rel=1e-6, abs=1e-6)
    torch.testing.assert_close(gradient, slope, rtol=0, atol=1e-6)


@settings(max_examples=50)
@given(**CASES)
def test_sorted_form_equals_the_compiled_one(
    shape: tuple[int, int, int, int], spread: float, offset: float, kind: str, seed: int
) -> None:
    quantiles, targets = draw_case(shape, spread, offset, kind, seed)
    value, gradient = value_and_gradient(lambda q: quantile_huber_loss(q, targets), quantiles)
    expected, slope = value_and_gradient(lambda q: _all_pairs(q, targets), quantiles)
    assert value == pytest.approx(expected, rel=1e-9, abs=1e-9)
    torch.testing.assert_close(gradient, slope, rtol=0, atol=1e-9)


def test_by_hand() -> None:
    """Quantiles 0 and 2 at τ = ¼ and ¾, targets 3 and ½.

    q = 0: δ = 3 and ½, ¼·2.5 + ¼·0.125. q = 2: δ = 1 and −1½, ¾·0.5 + ¼·1. Slopes −w·clip(δ).
    """
    quantiles = torch.tensor([[[0.0, 2.0]]], dtype=F64)
    targets = torch.tensor([[3.0, 0.5]], dtype=F64)
    value, gradient = value_and_gradient(lambda q: quantile_huber_loss(q, targets), quantiles)
    assert value == pytest.approx((0.625 + 0.03125 + 0.375 + 0.25) / 4, abs=1e-15)
    # The gradient is of the mean over four pairs, times two quantiles.
    expected = torch.tensor([[[-0.375 / 2, -0.5 / 2]]], dtype=F64)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("shape", [(2, 2, 4, 6), (1, 1, 1, 1), (3, 1, 5, 2)])
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_gradcheck(shape: tuple[int, int, int, int], spread: float) -> None:
    quantiles, targets = draw_case(shape, spread, 0.0, "plain", 0)
    assert torch.autograd.gradcheck(
        lambda q: 100.0 * quantile_huber_loss(q, targets), (quantiles.requires_grad_(),)
    )


def test_gradient_takes_the_factor_of_what_follows() -> None:
    quantiles, targets = draw_case((2, 2, 3, 4), 1.0, 0.0, "plain", 0)
    _, plain = value_and_gradient(lambda q: quantile_huber_loss(q, targets), quantiles)
    _, scaled = value_and_gradient(lambda q: -7.0 * quantile_huber_loss(q, targets), quantiles)
    torch.testing.assert_close(scaled, -7.0 * plain)


def test_no_gradient_to_the_targets() -> None:
    quantiles, targets = draw_case((2, 2, 3, 4), 1.0, 0.0, "plain", 0)
    for loss in (quantile_huber_loss, _all_pairs):
        wanted = targets.clone().requires_grad_()
        target = wanted.detach() if loss is _all_pairs else wanted
        loss(quantiles.clone().requires_grad_(), target).backward()
        assert wanted.grad is None


def test_targets_said_to_be_sorted_are_not_sorted_again() -> None:
    quantiles, targets = draw_case((3, 2, 4, 7), 1.0, 0.0, "plain", 0)
    rising = targets.sort(dim=1).values
    expected = quantile_huber_loss(quantiles, targets)
    torch.testing.assert_close(
        quantile_huber_loss(quantiles, rising, targets_sorted=True), expected, rtol=0, atol=0
    )
    unsorted = quantile_huber_loss(quantiles, targets, targets_sorted=True)
    assert not torch.isclose(unsorted, expected), "the flag would do nothing"


def test_arguments_stay_as_they_were() -> None:
    quantiles, targets = draw_case((3, 2, 4, 7), 1.0, 0.0, "falling", 0)
    before = targets.clone()
    quantile_huber_loss(quantiles, targets)
    assert torch.equal(targets, before)


@pytest.mark.parametrize("where", [0, 3, 6])
@pytest.mark.parametrize("which", ["target", "quantile"])
def test_a_nan_gives_nan(where: int, which: str) -> None:
    quantiles, targets = draw_case((2, 1, 7, 7), 1.0, 0.0, "plain", 0)
    (targets[0] if which == "target" else quantiles[0, 0])[where] = math.nan
    value, gradient = value_and_gradient(lambda q: quantile_huber_loss(q, targets), quantiles)
    assert math.isnan(value)
    assert gradient.isnan().any(), "an update would go on as if nothing were wrong"


@settings(max_examples=50)
@given(
    rows=SIZES,
    columns=st.integers(1, 60),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([F32, F64]),
)
def test_rows_sort_as_torch_sorts_them(
    rows: int, columns: int, seed: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(rows, columns, generator=generator, dtype=dtype) * 3).round()
    x[0, -1], x[-1, 0] = math.inf, -math.inf
    before = x.clone()
    found = sort_rows(x.requires_grad_())
    assert not found.requires_grad and found.dtype == dtype
    assert torch.equal(found, torch.sort(x, dim=1).values)
    assert torch.equal(x, before)


def test_sort_puts_nan_last_and_takes_any_strides() -> None:
    x = torch.tensor([[math.nan, 2.0, 1.0], [3.0, -1.0, math.nan]])
    found = sort_rows(x)
    assert found[:, :2].tolist() == [[1.0, 2.0], [-1.0, 3.0]] and found[:, 2].isnan().all()
    wide = torch.randn(6, 4).T
    assert torch.equal(sort_rows(wide), torch.sort(wide, dim=1).values)
