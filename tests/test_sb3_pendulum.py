"""Pendulum-v1 is solved within 10,000 steps, with the settings of `benchmarks/pendulum.py`."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def benchmark_file() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "pendulum.py"))


def test_interval_by_hand(benchmark_file: dict[str, Any]) -> None:
    """Student's t with one degree of freedom has its 97.5 % point at 12.706."""
    low, high = benchmark_file["interval"]([1.0, 3.0])
    assert (low, high) == (pytest.approx(2.0 - 12.706, abs=1e-3), pytest.approx(14.706, abs=1e-3))
    assert all(math.isnan(end) for end in benchmark_file["interval"]([1.0]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CQSAC", "CQSAC, MultiExpertPolicy"])
def test_pendulum_is_solved(benchmark_file: dict[str, Any], name: str) -> None:
    assert benchmark_file["returns_of"](name, seed=0) > benchmark_file["SOLVED"]
