"""Ctrl-C and SIGTERM: the first one stops at the next whole step, the second one at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["Stop", "stop_on_signal"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Stop:
    """Whether a signal has asked to stop; looked at where nothing is half done."""

    asked: bool = False


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Within the block, signals ask instead of ending the process.

    A signal that the process was started to ignore (`nohup`) stays ignored, and outside of the
    main thread, where Python takes no signals, nothing changes.

    Raises
    ------
    KeyboardInterrupt
        At the second signal.
    """
    stop = Stop()

    def ask(number: int, frame: Any) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {n: signal.getsignal(n) for n in SIGNALS}
    taken = [n for n, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in taken:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number in taken:
            signal.signal(number, before[number])
