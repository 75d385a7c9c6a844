"""The kept epochs of pretraining, judged (and without a market chosen) by fitted Q evaluation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from finflow_sb3.evaluation.ranking import RankedEpoch, Ranking, ranking
from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.offline.transitions import Transitions
from finflow_sb3.pretrain.course import Kept
from finflow_sb3.pretrain.fqe import FQEOptions, fitted_values
from finflow_sb3.pretrain.learner import Learner, OfflineSettings
from finflow_sb3.runs.metrics_log import MetricsLog

__all__ = ["best_by_value", "rank_kept", "write_ranking"]


def rank_kept(
    learner: Learner,
    kept: Sequence[Kept],
    dataset: Transitions,
    layout: ObservationLayout | None,
    settings: OfflineSettings,
    seed: int,
    device: str = "cpu",
    on_step: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Ranking | None:
    """Evaluate the kept epochs' policies on the data that they were learned from.

    Batch size, discount, widths and the number of critics are pretraining's own.

    Parameters
    ----------
    layout, on_step, stop : as for `fitted_values`

    Returns
    -------
    in the order of `kept`; None where it was stopped
    """
    options = FQEOptions(
        steps=settings.fqe_steps,
        batch_size=settings.batch_size,
        gamma=settings.gamma,
        n_critics=learner.sizes.n_critics,
        sizes=learner.sizes,
        seed=seed,
        device=device,
    )
    policies = [_policy(learner, each.weights) for each in kept]
    values = fitted_values(policies, dataset, layout, options, on_step, stop)
    if values is None:
        return None
    return ranking(
        [
            RankedEpoch(
                each.epoch.number, found.value, found.error, each.epoch.validation.get("sharpe")
            )
            for each, found in zip(kept, values, strict=True)
        ],
        options.steps,
        options.gamma,
    )


def _policy(learner: Learner, weights: Mapping[str, Tensor]) -> nn.Module:
    """The policy network of an artefact's weights."""
    start = "policy.experts."
    policy = copy.deepcopy(learner.experts)
    policy.load_state_dict(
        {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}, strict=True
    )
    return policy


def best_by_value(kept: Sequence[Kept], found: Ranking) -> Kept:
    """The kept epoch of the highest value: what to take where there is no market to test in."""
    return next(each for each in kept if each.epoch.number == found.best.epoch)


def write_ranking(log: MetricsLog, step: int, found: Ranking) -> None:
    """A line of kind `fqe` for each epoch."""
    for each in found.epochs:
        log.write(
            step,
            kind="fqe",
            epoch=each.epoch,
            value=each.value,
            error=each.error,
            validation_sharpe=each.sharpe,
        )
