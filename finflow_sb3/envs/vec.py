"""The vectorised environment for Stable-Baselines3: B portfolios in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from finflow_sb3.config import MarketSettings
from finflow_sb3.envs.observations import ObservedMarket, Scaler
from finflow_sb3.envs.portfolio import make_batch, make_spaces
from finflow_sb3.market.prices import PriceTable

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LazyInfo", "PortfolioVecEnv"]


class LazyInfo(dict[str, Any]):
    """A dictionary that is filled when it is first read: most infos never are.

    What is written before that stands over what is filled in.
    """

    def __init__(self, build: Callable[[], dict[str, Any]], known: dict[str, Any]):
        # Something known has to be in it: `json` takes a dictionary without entries for empty
        # and never asks.
        super().__init__(known)
        self._build: Callable[[], dict[str, Any]] | None = build

    def _fill(self) -> None:
        if self._build is not None:
            build, self._build = self._build, None
            for key, value in build().items():
                super().setdefault(key, value)

    def __getitem__(self, key: str) -> Any:
        if not super().__contains__(key):
            self._fill()
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self._fill()
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        if not super().__contains__(key):
            self._fill()
        return super().get(key, default)

    def __iter__(self) -> Iterator[str]:
        self._fill()
        return super().__iter__()

    def __len__(self) -> int:
        self._fill()
        return super().__len__()

    def keys(self) -> Any:
        self._fill()
        return super().keys()

    def values(self) -> Any:
        self._fill()
        return super().values()

    def items(self) -> Any:
        self._fill()
        return super().items()

    def pop(self, *args: Any) -> Any:
        self._fill()
        return super().pop(*args)

    def setdefault(self, key: str, default: Any = None) -> Any:
        self._fill()
        return super().setdefault(key, default)

    def __delitem__(self, key: str) -> None:
        self._fill()
        super().__delitem__(key)

    def copy(self) -> dict[str, Any]:
        self._fill()
        return dict(super().items())

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __eq__(self, other: object) -> bool:
        self._fill()
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None

    def __repr__(self) -> str:
        return repr(self.copy())

    def __reduce__(self) -> Any:
        return (dict, (self.copy(),))


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
        infos: list[dict[str, Any]] = self._infos()
        observations = out.observations
        if dones.any():
            ended = np.flatnonzero(dones)
            for i in ended:
                infos[i] = self._last_info(int(i), observations[i], bool(out.truncated[i]))
            self.batch.reset(ended)
            observations = observations.copy()
            observations[ended] = self.batch.observations()[ended]
        return observations, out.rewards, dones, infos

    def _infos(self) -> list[dict[str, Any]]:
        """Infos of this step, to be built from the arrays as they are now.

        A step makes new arrays, and a reset copies these first: what is read late is right.
        """
        batch = self.batch
        row, value, weights = batch.row, batch.value, batch.weights
        turnover, cost = batch.turnover, batch.cost
        dates = self.market.prices.dates

        def build(i: int) -> dict[str, Any]:
            return {
                "date": str(dates[row[i]]),
                "row": int(row[i]),
                "value": float(value[i]),
                "weights": weights[i].copy(),
                "turnover": float(turnover[i]),
                "cost": float(cost[i]),
            }

        known = {"TimeLimit.truncated": False}
        return [LazyInfo(lambda i=i: build(i), known) for i in range(self.num_envs)]  # type: ignore[misc]

    def _last_info(
        self, i: int, observation: NDArray[np.float32], truncated: bool
    ) -> dict[str, Any]:
        figures = self.batch.episode(i)
        return {
            **self.batch.info(i),
            **figures,
            "terminal_observation": observation.copy(),
            "TimeLimit.truncated": truncated,
            "episode": {"r": figures["total_reward"], "l": int(figures["length"]), "t": 0.0},
        }

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
