"""A trained policy from disk, ready to act, of any kind of run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.envs.observations import Scaler
from finflow_sb3.errors import ArtefactError, ConfigError
from finflow_sb3.files import present
from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.nets.experts import LayoutExperts, make_experts
from finflow_sb3.nets.mean_rows import load_mean
from finflow_sb3.pretrain.artefact import read_artefact, read_json, read_tensors, require_sealed
from finflow_sb3.pretrain.run import policy_act
from finflow_sb3.training.build import activation
from finflow_sb3.training.plain_model import plain_policy

__all__ = ["TrainedPolicy", "cqsac_network", "load_policy"]


@dataclass(frozen=True)
class TrainedPolicy:
    """A policy and what it was trained on.

    Attributes
    ----------
    name : "iql", "td3bc", "cqsac" or one of `plain_model.CLASSES`
    act : observations float32 [B, layout.size] → deterministic actions [B, A]
    facts : epoch or step, validation figures
    action : as `act`, of tensors and with gradients
    experts : the network of experts behind a gate, where the policy is one
    """

    name: str
    act: Callable[[NDArray[np.float32]], NDArray[Any]]
    layout: ObservationLayout
    scaler: Scaler
    facts: dict[str, Any]
    action: Callable[[Tensor], Tensor]
    experts: LayoutExperts | None = None


def load_policy(run: Path, universe: ObservationLayout | None = None) -> TrainedPolicy:
    """The best policy of a run.

    Parameters
    ----------
    universe : layout of other assets that it is to act on; its own if not given

    Raises
    ------
    ArtefactError
        If the run holds none, its files are not whole, or its networks are tied to their assets.
    """
    if (run / "artefact.json").is_file():
        return _from_artefact(run, universe)
    best = present(run / "best")
    if (best / "artefact.json").is_file():
        return _from_artefact(best, universe)
    for folder in (best, present(run / "last")):
        if (folder / "policy.json").is_file():
            return _from_policy(folder, universe)
    raise ArtefactError(f"{run}: holds no trained policy; train it further or give another run")


def _from_artefact(folder: Path, universe: ObservationLayout | None) -> TrainedPolicy:
    artefact = read_artefact(folder)
    own, scaler = artefact.of_market(str(folder))
    layout = _moved(own, universe, folder)
    experts = make_experts(
        layout.size, layout.action_size, layout, artefact.sizes, artefact.gate_scale
    )
    if artefact.has_sigma:
        _load(experts.load_state_dict, artefact.part("policy.experts"), folder)
    else:
        _load(partial(load_mean, experts), artefact.part("policy_mean.experts"), folder)
    experts.eval()
    found = experts if isinstance(experts, LayoutExperts) else None
    return TrainedPolicy(
        name=artefact.algo,
        act=policy_act(experts),
        layout=layout,
        scaler=scaler,
        facts=artefact.facts,
        action=lambda observations: torch.tanh(experts(observations).mean),
        experts=found,
    )


def _moved(
    own: ObservationLayout, universe: ObservationLayout | None, what: Path
) -> ObservationLayout:
    """The layout to build networks on: they share their weights over assets, so of any number."""
    if universe is None:
        return own
    universe.require_like(own, str(what))
    return universe


def _from_policy(folder: Path, universe: ObservationLayout | None) -> TrainedPolicy:
    require_sealed(folder)
    head = read_json(folder / "policy.json")
    own = ObservationLayout.from_dict(read_json(folder / "layout.json"))
    if universe is not None and head.get("sizes") is None:
        raise ArtefactError(
            f"{folder}: its networks are tied to the {own.n_assets} assets that they were trained "
            "on; only MultiExpertPolicy acts on other universes"
        )
    layout = _moved(own, universe, folder)
    scaler = Scaler.from_dict(read_json(folder / "scaler.json"))
    try:
        algo, facts = str(head.get("algo", "cqsac")), dict(head["facts"])
        policy, acting, prefix = (
            cqsac_network({"layout": layout, **head})
            if algo == "cqsac"
            else plain_policy(head, *_spaces(layout))
        )
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise ArtefactError(f"{folder}: policy.json is not whole ({error})") from None
    weights = read_tensors(folder / "weights.safetensors")
    _load(acting.load_state_dict, {k.removeprefix(prefix): v for k, v in weights.items()}, folder)
    policy.set_training_mode(False)

    def act(observations: NDArray[np.float32]) -> NDArray[Any]:
        actions, _ = policy.predict(observations, deterministic=True)
        return np.asarray(actions)

    def action(observations: Tensor) -> Tensor:
        # What `predict` does without gradients: bounds of actions are ±1.
        actions: Tensor = policy._predict(observations, deterministic=True)
        return actions.clamp(-1.0, 1.0)

    experts = getattr(acting, "experts", None)
    found = experts if isinstance(experts, LayoutExperts) else None
    return TrainedPolicy(algo, act, layout, scaler, facts, action, found)


def cqsac_network(head: dict[str, Any]) -> tuple[Any, Any, str]:
    """The network of CQSAC that a `policy.json` and its layout describe, weights still to load.

    Returns
    -------
    policy with its critics, the part of it that acts, and the prefix of that part's names

    Raises
    ------
    KeyError, TypeError, ValueError
        If the description is not whole.
    """
    layout, kwargs = head["layout"], dict(head["policy_kwargs"])
    if head["sizes"] is not None:
        kwargs |= {**head["sizes"], "layout": layout, "gate_scale": head["gate_scale"]}
    if isinstance(kwargs.get("activation_fn"), str):
        kwargs["activation_fn"] = activation(kwargs["activation_fn"])
    observation, action = _spaces(layout)
    policy: Any = CQSAC.policy_aliases[head["policy"]](observation, action, lambda _: 0.0, **kwargs)
    return policy, policy.actor, "actor."


def _spaces(layout: ObservationLayout) -> tuple[spaces.Box, spaces.Box]:
    observation = spaces.Box(-np.inf, np.inf, (layout.size,), dtype=np.float32)
    return observation, spaces.Box(-1.0, 1.0, (layout.action_size,), dtype=np.float32)


def _load(
    load: Callable[[dict[str, Tensor]], Any], weights: dict[str, Tensor], folder: Path
) -> None:
    try:
        load(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtefactError(f"{folder}: weights do not fit their description ({reason})") from None
