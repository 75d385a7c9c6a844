"""What a run's critic expects: its distribution of discounted rewards, for several decisions.

Critics are kept with pretrained policies, and in the checkpoints of CQSAC's runs; the one beside
the chosen policy is the checkpoint of the same step, whose policy must be the same to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finflow_sb3.cqsac.networks import QuantileCritics
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.errors import ArtefactError
from finflow_sb3.files import present
from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.pretrain.artefact import read_artefact, read_json, read_tensors
from finflow_sb3.runs.checkpoints import CheckpointStore, read_checkpoint
from finflow_sb3.training.trained import cqsac_network

__all__ = ["LEVELS", "Outlook", "critic_of", "outlook"]

Float = NDArray[np.float64]
Weights = Mapping[str, torch.Tensor]
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Outlook:
    """One member's critic on M decisions, the chosen one first.

    Attributes
    ----------
    names : M
    means, deviations : of the pooled quantiles of all its networks, shape [M]
    quantiles : at `LEVELS`, shape [M, 5]
    missed : the part of the portfolio by which no action reaches the decision that is named,
        shape [M]; the critic judged the nearest action
    """

    names: tuple[str, ...]
    means: Float
    deviations: Float
    quantiles: Float
    missed: Float


def critic_of(run: Path) -> QuantileCritics | str:
    """The critic that learned with the run's chosen policy, or why there is none.

    Raises
    ------
    ArtefactError, CheckpointError
        If files that should hold it are not whole.
    """
    best = run if (run / "artefact.json").is_file() else present(run / "best")
    if (best / "artefact.json").is_file():
        artefact = read_artefact(best)
        layout, _ = artefact.of_market(str(best))
        head = {
            "policy": "MultiExpertPolicy",
            "policy_kwargs": {},
            "sizes": artefact.sizes.as_dict(),
            "gate_scale": artefact.gate_scale,
        }
        return _critic(head, layout, artefact.part("critics"), best)
    for folder in (best, present(run / "last")):
        if (folder / "policy.json").is_file():
            return _of_policy(run, folder)
    return f"{run} holds no trained policy"


def _of_policy(run: Path, folder: Path) -> QuantileCritics | str:
    head = read_json(folder / "policy.json")
    algo, step = str(head.get("algo", "cqsac")), head.get("facts", {}).get("step")
    if algo != "cqsac":
        return f"runs of {algo} keep no critic"
    checkpoints = {path.name: path for path in CheckpointStore(run / "checkpoints").all()}
    found = checkpoints.get(f"step_{step:012d}") if isinstance(step, int) else None
    if found is None:
        return f"the checkpoint of step {step}, which held it, is no longer there"
    tensors = dict(read_checkpoint(found).tensors["policy"])
    chosen = read_tensors(folder / "weights.safetensors")
    if any(name not in tensors or not torch.equal(tensors[name], chosen[name]) for name in chosen):
        return f"the checkpoint of step {step} holds another policy than {folder.name}"
    layout = ObservationLayout.from_dict(read_json(folder / "layout.json"))
    weights = {k.removeprefix("critic."): v for k, v in tensors.items() if k.startswith("critic.")}
    return _critic(head, layout, weights, found)


def _critic(
    head: dict[str, Any], layout: ObservationLayout, weights: Weights, where: Path
) -> QuantileCritics:
    try:
        policy, _, _ = cqsac_network({"layout": layout, **head})
        policy.critic.load_state_dict(dict(weights))
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtefactError(
            f"{where}: its critic does not fit its description ({reason})"
        ) from None
    critic: QuantileCritics = policy.critic
    return critic.eval()


@torch.no_grad()
def outlook(critic: QuantileCritics, batch: PortfolioBatch, chosen: NDArray[Any]) -> Outlook:
    """The critic on the chosen action, on holding still, equal weights and each anchor.

    Parameters
    ----------
    batch : of one portfolio, whose present state is judged
    chosen : shape [A]
    """
    market, row = batch.market, int(batch.row[0])
    others: dict[str, Float] = {
        "hold": batch.held[0],
        "equal weight": market.even_weights(row),
    }
    for name, weights in zip(market.anchors.names, market.anchors.at(row), strict=True):
        others[f"anchor {name}"] = weights
    actions, missed = [np.asarray(chosen, dtype=np.float64)], [0.0]
    for weights in others.values():
        action = batch.invert(weights[None])
        actions.append(action[0])
        reached = batch.target(action)[0]
        missed.append(float(0.5 * np.abs(reached - weights).sum()))
    stacked = torch.from_numpy(np.stack(actions)[None].astype(np.float32))
    observation = torch.from_numpy(batch.observations())
    scores = critic.score(observation, stacked)[:, 0]
    pooled = scores.permute(1, 0, 2).reshape(len(actions), -1).numpy().astype(np.float64)
    return Outlook(
        names=("chosen", *others),
        means=pooled.mean(axis=1),
        deviations=pooled.std(axis=1),
        quantiles=np.asarray(np.quantile(pooled, LEVELS, axis=1).T),
        missed=np.array(missed),
    )
