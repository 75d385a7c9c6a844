"""Box spaces of an environment that is not ours, as numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.errors import ArtefactError

__all__ = ["ActionRange", "Spaces", "spaces_of"]

ActionRange = tuple[float | Sequence[float], float | Sequence[float]]
"""Lowest and highest action, for all dimensions or for each."""

# What single precision rounds off is no action outside of the box.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Spaces:
    """Shapes of observations and actions, and the bounds of the latter.

    Attributes
    ----------
    observation_shape, action_shape : as the environment has them; here they are flat
    low, high : bounds of the actions, flat
    """

    observation_shape: tuple[int, ...]
    action_shape: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        sizes = {len(self.low), len(self.high), self.action_size}
        if len(sizes) > 1 or self.action_size < 1 or self.size < 1:
            raise ArtefactError(f"action bounds {self.low} and {self.high} do not fit {self}")
        if not all(
            math.isfinite(b - a) and a < b for a, b in zip(self.low, self.high, strict=True)
        ):
            raise ArtefactError(
                f"action bounds {list(self.low)} and {list(self.high)} enclose no box; a policy "
                "of squashed Gaussians needs finite ones"
            )

    @property
    def size(self) -> int:
        """Of a flat observation."""
        return math.prod(self.observation_shape)

    @property
    def action_size(self) -> int:
        return math.prod(self.action_shape)

    def scaled(self, actions: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
        """Actions [N, A] in [-1, 1], and how many of the N lay outside of the box."""
        middle, half = self._middle_and_half()
        scaled = (actions - middle) / half
        outside = np.abs(scaled) > 1.0 + ROUNDING
        return scaled.clip(-1.0, 1.0).astype(np.float32), int(outside.any(axis=1).sum())

    def unscaled(self, scaled: NDArray[np.float32]) -> NDArray[np.float32]:
        """The environment's actions [B, *action_shape] for [B, A] in [-1, 1]."""
        middle, half = self._middle_and_half()
        actions = middle + half * scaled
        return np.asarray(actions.reshape(-1, *self.action_shape), dtype=np.float32)

    def _middle_and_half(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        low, high = np.array(self.low), np.array(self.high)
        return (low + high) / 2.0, (high - low) / 2.0

    def as_dict(self) -> dict[str, Any]:
        return {name: list(value) for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Spaces:
        """From what `as_dict` gave.

        Raises
        ------
        ArtefactError
            If something is missing or of another kind.
        """
        try:
            return cls(
                tuple(int(n) for n in content["observation_shape"]),
                tuple(int(n) for n in content["action_shape"]),
                tuple(float(x) for x in content["low"]),
                tuple(float(x) for x in content["high"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ArtefactError(f"the spaces are not whole ({error})") from None


def spaces_of(
    source: str, observations: Any, actions: Any, largest: float, action_range: ActionRange | None
) -> Spaces:
    """Spaces of a dataset whose format has no bounds of actions.

    Parameters
    ----------
    observations, actions : arrays [N, ...] that have the shapes and types of all
    largest : max |action|
    action_range : their bounds; without them actions have to lie in [-1, 1], d3rlpy's convention,
        but for what single precision rounds off

    Raises
    ------
    ArtefactError
        If observations are images, actions are discrete, or go beyond [-1, 1] without a range.
    """
    if observations.ndim > 3 and observations.dtype == np.uint8:
        raise ArtefactError(f"{source}: its observations are images; the networks take flat ones")
    if actions.dtype.kind != "f":
        raise ArtefactError(f"{source}: its actions are discrete; the offline phase needs a Box")
    if action_range is None and largest > 1.0 + ROUNDING:
        raise ArtefactError(
            f"{source}: its actions reach ±{largest:.6g}, and the file has no bounds; give those "
            "of the environment, as in --action-range -2 2"
        )
    shape = tuple(actions.shape[1:]) or (1,)
    low, high = (
        np.broadcast_to(np.ravel(np.asarray(bound, dtype=np.float64)), math.prod(shape))
        for bound in action_range or (-1.0, 1.0)
    )
    observed = tuple(observations.shape[1:]) or (1,)
    return Spaces(observed, shape, tuple(low.tolist()), tuple(high.tolist()))
