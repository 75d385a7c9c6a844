"""TensorBoard's event files of a run."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from finflow_sb3.errors import StorageError

__all__ = ["Board"]


class Board:
    """Writes into one folder of event files.

    Parameters
    ----------
    folder : where they go
    step : what a resumed run had done; events after it are of a run that was killed, and are
        not drawn any more
    """

    def __init__(self, folder: Path, step: int | None = None):
        self.folder = folder
        self._hook_before = threading.excepthook
        threading.excepthook = self._hook
        with self._reported():
            # TensorBoard drops events at or after purge_step; the checkpoint's own were drawn
            # before it was taken.
            self._writer: Any = SummaryWriter(
                str(folder),
                purge_step=None if step is None else step + 1,
            )

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        with self._reported():
            for name, number in numbers.items():
                self._writer.add_scalar(name, number, step)

    def text(self, step: int, name: str, text: str) -> None:
        with self._reported():
            self._writer.add_text(name, text, step)

    def histogram(self, step: int, name: str, values: NDArray[np.floating[Any]]) -> None:
        """Values that are not finite are left out: TensorBoard refuses the whole otherwise."""
        finite = values[np.isfinite(values)]
        if finite.size:
            with self._reported():
                self._writer.add_histogram(name, finite, step)

    def hyperparameters(
        self, step: int, settings: Mapping[str, Any], metrics: Mapping[str, float | None]
    ) -> None:
        """Settings and final figures of the HPARAMS tab, in the run's own event file.

        `SummaryWriter.add_hparams` would make a run of its own in a folder below.
        """
        known = {f"final/{name}": value for name, value in metrics.items() if value is not None}
        with self._reported():
            for summary in hparams(dict(settings), known):  # type: ignore[no-untyped-call]
                self._writer.file_writer.add_summary(summary)
            for name, value in known.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        try:
            with self._reported():
                self._writer.close()
        finally:
            if threading.excepthook == self._hook:
                threading.excepthook = self._hook_before

    def _hook(self, failed: threading.ExceptHookArgs) -> None:
        """Keep the traceback of TensorBoard's thread to ourselves: the error is told once."""
        ours = isinstance(failed.thread, _AsyncWriterThread)
        if not (ours and isinstance(failed.exc_value, OSError)):
            self._hook_before(failed)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """TensorBoard writes from a thread: a full disk comes to light at a later call."""
        try:
            yield
        except OSError as error:
            raise StorageError.of(self.folder, error) from error
