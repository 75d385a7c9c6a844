"""The vectorised environment for Stable-Baselines3: B portfolios in one process."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from finflow_sb3.config import MarketSettings
from finflow_sb3.envs.batch import BatchStep
from finflow_sb3.envs.infos import LazyInfos
from finflow_sb3.envs.observations import ObservedMarket, Scaler
from finflow_sb3.envs.portfolio import make_batch, make_spaces
from finflow_sb3.market.prices import PriceTable

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PortfolioVecEnv"]

NOT_ENDED = {"TimeLimit.truncated": False}


class PortfolioVecEnv(VecEnv):
    """`PortfolioEnv`, n_envs times, stepped as one batch.

    Takes the same keyword arguments as `PortfolioEnv`, and gives the same numbers, bit for
    bit. Portfolios reset by themselves; `terminal_observation` and `TimeLimit.truncated` stand
    in the infos as SB3 wants them, and `episode` as its Monitor writes it.
    """

    def __init__(
        self,
        prices: str | Path | pd.DataFrame | PriceTable | ObservedMarket = "us20",
        n_envs: int = 16,
        *,
        split: str = "train",
        evaluation: bool = False,
        market: MarketSettings | None = None,
        scaler: Scaler | None = None,
        seed: int | None = None,
        **env_kwargs: Any,
    ):
        self.batch = make_batch(prices, n_envs, split, evaluation, market, scaler, env_kwargs)
        self.market = self.batch.market
        self.layout = self.market.layout
        self.gate_scale = self.batch.settings.gate_scale
        self.render_mode = None
        super().__init__(n_envs, *make_spaces(self.market))
        self._actions: NDArray[Any] = np.zeros((n_envs, self.layout.action_size))
        if seed is not None:
            self.seed(seed)

    def reset(self) -> NDArray[np.float32]:
        for i, seed in enumerate(self._seeds):
            if seed is not None:
                self.batch.rngs[i] = np.random.default_rng(seed)
        self._reset_seeds()
        self.batch.reset()
        self.reset_infos = [self.batch.info(i) for i in range(self.num_envs)]
        return self.batch.observations()

    def step_async(self, actions: NDArray[Any]) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        out = self.batch.step(self._actions)
        dones = out.terminated | out.truncated
        # A step makes new arrays, and a reset copies these first: what is read late is right.
        infos = LazyInfos(self.batch.record(), NOT_ENDED, self.num_envs)
        if dones.any():
            ended = np.flatnonzero(dones)
            self._end(ended, out, infos)
            self.batch.reset(ended)
            out.observations[ended] = self.batch.observations(ended)
        return out.observations, out.rewards, dones, infos

    def _end(self, ended: NDArray[np.int64], out: BatchStep, infos: list[dict[str, Any]]) -> None:
        """Put in the infos of ended episodes what SB3 and its Monitor would."""
        for i, figures in zip(ended.tolist(), self.batch.episodes(ended), strict=True):
            infos[i].update(
                figures,
                terminal_observation=out.observations[i].copy(),
                episode={"r": figures["total_reward"], "l": int(figures["length"]), "t": 0.0},
            )
            infos[i]["TimeLimit.truncated"] = bool(out.truncated[i])

    def close(self) -> None:
        """Nothing is open."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        method = getattr(self, method_name)
        return [method(*method_args, **method_kwargs) for _ in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[Any], indices: int | Iterable[int] | None = None
    ) -> list[bool]:
        from stable_baselines3.common.monitor import Monitor

        # Episode figures are in the infos already: no Monitor is needed on top.
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]
