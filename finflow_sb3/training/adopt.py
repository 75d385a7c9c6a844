"""The first checkpoint of a run whose model was trained elsewhere."""

from __future__ import annotations

from stable_baselines3.common.logger import configure

from finflow_sb3.config import Settings
from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.runs.checkpoints import CheckpointStore
from finflow_sb3.runs.folder import RunFolder
from finflow_sb3.runs.metrics_log import MetricsLog
from finflow_sb3.training.callbacks import TrainingCallback
from finflow_sb3.training.finetune import keep_policy
from finflow_sb3.training.guard import Guard

__all__ = ["adopt"]


def adopt(
    model: CQSAC, settings: Settings, market: ObservedMarket, folder: RunFolder
) -> dict[str, float]:
    """Validate the model as it is, keep its policy, and write what a resumed run goes on from.

    Portfolios start anew, and the replay buffer is empty.

    Returns
    -------
    dict
        The validation's figures.
    """
    assert model.env is not None
    model._last_obs = model.env.reset()  # type: ignore[assignment]
    model._update_current_progress_remaining(model.num_timesteps, settings.cqsac.n_timesteps)
    model.set_logger(configure(None, []))

    def keep(figures: dict[str, float]) -> None:
        target = folder.best if settings.run.save_best else folder.last
        keep_policy(model, market, target, figures, settings)

    board = folder.tensorboard if settings.run.tensorboard else None
    with MetricsLog(folder.metrics, board) as log:
        store = CheckpointStore(folder.checkpoints, settings.run.max_checkpoints)
        guard = Guard(settings.monitor, model, log)
        callback = TrainingCallback(market, settings, log, guard, store, on_best=keep)
        callback.init_callback(model)
        callback.finish()
    return callback.last_validation
