"""What a pretraining run writes while it learns, with a market or without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from finflow_sb3.config import OfflineSettings, Settings
from finflow_sb3.evaluation.ranking import Ranking
from finflow_sb3.parallel import any_of
from finflow_sb3.pretrain.artefact import write_artefact
from finflow_sb3.pretrain.course import Tensors
from finflow_sb3.pretrain.run import PretrainOutcome
from finflow_sb3.results import Pretrained, Watch
from finflow_sb3.run_notes import forget_ranking, note_ranking
from finflow_sb3.runs.checkpoints import Checkpoint, CheckpointStore
from finflow_sb3.runs.folder import RunFolder
from finflow_sb3.runs.provenance import provenance
from finflow_sb3.runs.status import StatusFile
from finflow_sb3.stopping import stop_on_signal
from finflow_sb3.training.recording import Recording, recording

__all__ = ["PretrainingRecord", "pretraining_record"]


@dataclass(frozen=True)
class PretrainingRecord:
    """An open record.

    Attributes
    ----------
    callbacks : those of `run_offline`, which write and ask whether to stop
    """

    settings: Settings
    own: OfflineSettings
    folder: RunFolder
    record: Recording
    watch: Watch
    callbacks: dict[str, Any]

    def end(
        self, outcome: PretrainOutcome, dataset: Path | str, untrained: dict[str, float]
    ) -> Pretrained:
        """What the run has come to; its last entries are written."""
        validation = {} if outcome.best is None else outcome.best.validation
        self.record.status.stopping = not outcome.finished
        if outcome.fqe is not None:
            self._note(outcome.fqe, len(outcome.epochs))
        if outcome.finished:
            self.record.log.hyperparameters(self.settings.flat(), validation)
        return Pretrained(
            run=self.folder.path,
            dataset=dataset,
            steps=outcome.steps,
            finished=outcome.finished,
            best_epoch=None if outcome.best is None else outcome.best.number,
            validation=validation,
            untrained=untrained,
            fqe=outcome.fqe,
        )

    def _note(self, found: Ranking, epochs: int) -> None:
        note_ranking(self.folder, found)
        judged, wanted = len(found.epochs), min(self.own.fqe_epochs, epochs)
        if judged < wanted:
            self.watch.remark(
                f"Judged {judged} of {wanted} epochs: weights of the others were not kept, as "
                "fqe_epochs was raised, or validation began anew, after they had ended."
            )


@contextmanager
def pretraining_record(
    settings: Settings,
    own: OfflineSettings,
    folder: RunFolder,
    total: int,
    watch: Watch,
    checkpoint: Checkpoint | None = None,
    stop_at: int | None = None,
) -> Iterator[PretrainingRecord]:
    """Open the records of a run, as they were at a checkpoint where it goes on from one.

    Parameters
    ----------
    own : settings of the algorithm
    total : gradient steps
    stop_at : stop with a checkpoint after this one
    """
    store = CheckpointStore(folder.checkpoints, settings.run.max_checkpoints)
    forget_ranking(folder)
    if checkpoint is not None:
        store.go_on_from(checkpoint)
    with (
        recording(settings, folder, "pretraining", total, checkpoint) as record,
        stop_on_signal() as ask,
    ):
        log = record.log

        def keep(step: int, tensors: Tensors, state: dict[str, Any]) -> None:
            log.sync()
            store.write(step, tensors, {**state, **provenance(settings, log.size)})

        callbacks = {
            "log": log,
            "on_epoch": watch.epoch,
            "on_best": lambda artefact: write_artefact(artefact, folder.best),
            "on_step": record.status.before(
                lambda step: watch.progress("pretraining", step, total)
            ),
            "on_checkpoint": keep,
            "on_fqe": partial(_evaluating, record.status, watch),
            "stop": lambda step: any_of(ask.asked or (stop_at is not None and step >= stop_at)),
        }
        yield PretrainingRecord(settings, own, folder, record, watch, callbacks)


def _evaluating(status: StatusFile, watch: Watch, done: int, total: int) -> None:
    """Fitted Q evaluation goes on: the steps of pretraining stay what they are."""
    status.update(status.total)
    watch.progress("judging", done, total)
