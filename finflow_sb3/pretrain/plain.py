"""Pretraining without a market: losses on held-out episodes, and a policy that acts anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from finflow_sb3.config import OfflineSettings
from finflow_sb3.errors import ArtefactError
from finflow_sb3.files import present
from finflow_sb3.nets.perceptron import PerceptronPolicy
from finflow_sb3.nets.policy import sample_policy
from finflow_sb3.offline.plain import Part, PlainDataset
from finflow_sb3.offline.spaces import Spaces
from finflow_sb3.pretrain.artefact import Artefact, read_artefact
from finflow_sb3.pretrain.choosing import rank_kept
from finflow_sb3.pretrain.learner import Learner
from finflow_sb3.pretrain.run import Judged, PretrainOutcome, Started, run_epochs

__all__ = ["PlainPolicy", "hold_out", "load_plain_policy", "run_plain"]

HELD_OUT = 0.1
JUDGED_AT_A_TIME = 4096


def hold_out(dataset: PlainDataset, seed: int) -> tuple[Part, Part]:
    """Nine tenths of the episodes to learn from, and a tenth that is held out.

    Raises
    ------
    ArtefactError
        If there is but one episode.
    """
    count = dataset.n_episodes
    if count < 2:
        raise ArtefactError(
            f"{dataset.source}: holds one episode, and one is held out for validation; give a "
            "dataset of several"
        )
    held = np.zeros(count, dtype=bool)
    chosen = np.random.default_rng(seed).permutation(count)
    held[chosen[: max(1, round(HELD_OUT * count))]] = True
    return dataset.in_episodes(~held), dataset.in_episodes(held)


def run_plain(
    dataset: PlainDataset,
    settings: OfflineSettings,
    started: Started,
    seed: int,
    device: str = "cpu",
    **callbacks: Any,
) -> PretrainOutcome:
    """Train on a dataset without a market.

    The last epoch is kept; where `fqe_epochs` asks for it, the one of the last few whose fitted
    value is the highest. An epoch's figures are its losses on the tenth of the episodes that is
    held out.

    Parameters
    ----------
    callbacks : `log`, `on_epoch`, `on_best`, `on_step`, `on_checkpoint`, `on_fqe` and `stop` of
        `run_offline`

    Raises
    ------
    ArtefactError
        If there is but one episode.
    """
    learned, held_out = hold_out(dataset, seed)
    return run_epochs(
        learned,
        settings,
        started,
        judge=partial(_judged, started.learner, held_out),
        score=lambda epoch: epoch.number,
        rank=partial(
            rank_kept,
            started.learner,
            dataset=learned,
            layout=None,
            settings=settings,
            seed=seed,
            device=device,
        ),
        by_value=True,
        best_of=partial(_kept, started, dataset.spaces),
        **callbacks,
    )


def _judged(learner: Learner, held_out: Part, policy: nn.Module) -> Judged:
    """Mean losses on all held-out transitions."""
    totals: dict[str, float] = {}
    for index in torch.split(torch.arange(len(held_out)), JUDGED_AT_A_TIME):
        for name, loss in learner.losses_on(held_out.gather(index)).items():
            totals[name] = totals.get(name, 0.0) + loss * len(index) / len(held_out)
    return Judged(totals, ())


def _kept(started: Started, spaces: Spaces) -> Artefact:
    learner = started.learner
    epoch, weights = started.course.kept[0]
    return Artefact(
        algo=learner.algo,
        weights=weights,
        sizes=learner.sizes,
        gate_scale=learner.gate_scale,
        layout=None,
        scaler=None,
        facts={"epoch": epoch.number, "validation": epoch.validation},
        spaces=spaces,
    )


# ------------------------------------------------------------------ acting


@dataclass(frozen=True)
class PlainPolicy:
    """A policy that was learned without a market.

    `predict` is that of Stable-Baselines3's algorithms, whose `evaluate_policy` takes it too.
    """

    name: str
    spaces: Spaces
    network: PerceptronPolicy
    facts: dict[str, Any]

    @torch.no_grad()
    def predict(
        self,
        observation: NDArray[Any],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.float32], Any]:
        """Actions in the environment's own bounds, of one observation or of a batch; and `state`.

        Raises
        ------
        ArtefactError
            If observations have another shape.
        """
        seen, shape = np.asarray(observation, dtype=np.float32), self.spaces.observation_shape
        if seen.shape[-len(shape) :] != shape or seen.ndim > len(shape) + 1:
            raise ArtefactError(f"observations have shape {shape}; these have {seen.shape}")
        out = self.network(torch.from_numpy(seen.reshape(-1, self.spaces.size)))
        scaled = torch.tanh(out.mean) if deterministic else sample_policy(out, 1)[0][:, 0]
        actions = self.spaces.unscaled(scaled.numpy())
        return (actions[0] if seen.ndim == len(shape) else actions), state


def load_plain_policy(run: str | Path) -> PlainPolicy:
    """The policy of a pretraining run without a market, or of the folder of its artefact.

    Raises
    ------
    ArtefactError
        If there is none, it was learned with a market, or its files are not whole.
    """
    folder = Path(run)
    if not (folder / "artefact.json").is_file():
        folder = present(folder / "best")
    artefact = read_artefact(folder)
    if artefact.spaces is None:
        raise ArtefactError(f"{run}: was learned with a market; backtest it with finflow evaluate")
    try:
        with torch.device("meta"):  # sizes are checked against the weights before memory is taken
            network = PerceptronPolicy(
                artefact.spaces.size, artefact.spaces.action_size, artefact.sizes
            )
        network.load_state_dict(artefact.part("policy.experts"), strict=True, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtefactError(f"{folder}: weights do not fit their description ({reason})") from None
    return PlainPolicy(artefact.algo, artefact.spaces, network.eval(), artefact.facts)
