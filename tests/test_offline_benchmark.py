"""`benchmarks/offline.py`: both sides run, and compute the same."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from d3rlpy.logging import NoopAdapterFactory
from learning_fixtures import TINY, small_dataset

from finflow_sb3.config import Settings


@pytest.fixture(scope="module")
def offline() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "offline.py"))


@pytest.fixture(scope="module")
def settings(offline: dict[str, Any]) -> Settings:
    found: Settings = offline["settings_of"](16, 8).replace(iql={"policy_kwargs": TINY})
    return found


def test_losses_are_equal(offline: dict[str, Any], settings: Settings) -> None:
    apart, own = offline["compare"](settings, small_dataset(), batches=3)
    assert apart < 1e-5 and own < 1e-5


def test_d3rlpys_fit_runs_on_the_same_data(offline: dict[str, Any], settings: Settings) -> None:
    data = small_dataset()
    buffer, peer = offline["buffer_of"](data), offline["peer_of"](settings, data)
    # d3rlpy leaves out the last step of an episode that time ended.
    assert buffer.transition_count == len(data) - data.timeout.sum()
    (epoch,) = peer.fit(buffer, 2, 2, logger_adapter=NoopAdapterFactory(), show_progress=False)
    assert set(epoch[1]) >= {"q_loss", "v_loss", "actor_loss"}
