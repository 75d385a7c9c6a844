"""n-step returns of stored transitions, in the bits of SB3's `NStepReplayBuffer`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.cqsac.replay_storage import Drawn

__all__ = ["NStepReturns", "n_step_returns"]

Float32 = NDArray[np.float32]


class NStepReturns(NamedTuple):
    """What n steps from each of B transitions come to.

    Attributes
    ----------
    last : int64 [B], slot of the last transition of each return
    rewards : float32 [B, 1], Σ_k γ^k·r_k
    discounts : float32 [B, 1], γ to the number of steps: what the bootstrap is multiplied with
    dones : float32 [B, 1], 1 where the return ends in a terminal state; not by time
    """

    last: NDArray[np.int64]
    rewards: Float32
    discounts: Float32
    dones: Float32


def n_step_returns(
    rewards: Float32,
    dones: Float32,
    timeouts: Float32,
    drawn: Drawn,
    newest: int,
    n_steps: int,
    gamma: float,
    normalize: Callable[[Any], Any],
) -> NStepReturns:
    """Returns that stop where an episode ends, or at the newest transition of its environment.

    Parameters
    ----------
    rewards, dones, timeouts : [slots, n_envs], the whole buffer
    newest : slot that was written last: the one behind it belongs to another time
    normalize : what rewards go through before they are added up
    """
    slots, envs = drawn.slots[:, None], drawn.envs[:, None]
    steps = np.arange(n_steps)[None]
    path = (slots + steps) % len(rewards)
    ended, late = dones[path, envs], timeouts[path, envs]
    # Not marked in `timeouts` itself, as SB3 does: another thread may be reading.
    late = np.where(path == newest % len(rewards), np.logical_or(late, ended == 0.0), late)
    over = np.logical_or(ended, late)
    final = np.where(over.any(axis=1), over.argmax(axis=1), n_steps - 1)
    used = steps <= final[:, None]
    discounts = gamma ** np.arange(n_steps, dtype=np.float32)[None]
    parts = normalize(rewards[path, envs]) * discounts * used
    at = np.arange(len(final)), final
    return NStepReturns(
        path[at],
        parts.sum(axis=1, keepdims=True),
        gamma ** used.sum(axis=1, keepdims=True).astype(np.float32),
        (ended[at] * (1.0 - late[at])).astype(np.float32)[:, None],
    )
