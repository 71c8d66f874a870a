"""Handling of Ctrl-C and SIGTERM: signals are recorded on arrival and handled between two compiled chunks."""

import os
import signal
import threading
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt, SystemExit):
    """A run was interrupted by a signal, and is saved. If not caught, the exit code is 130, or 143 for SIGTERM.

    `step` is the number of steps taken, all of which are saved; `result` holds all results so far.
    """

    def __init__(self, message: str, signum: int, step: int, result: Any):
        super().__init__(message)
        self.code = 128 + signum
        self.step = step
        self.result = result


class Signals:
    """A context in which SIGINT and SIGTERM are only recorded; `poll` returns the recorded signal.

    A second signal ends the process immediately. A signal that `poll` has not returned is raised again at the end of
    the context. Only the main thread receives signals; in another thread `poll` returns None.
    """

    def __init__(self) -> None:
        self._received = 0
        self._reported = False
        self._polls = 0
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._handlers = {signum: signal.signal(signum, self._note) for signum in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        if self._received and not self._reported:
            signal.raise_signal(self._received)

    def poll(self) -> signal.Signals | None:
        """Return the signal that arrived, or None; all processes of `jax.distributed` get the same answer."""
        self._polls += 1
        received = self._received
        if jax.process_count() > 1:
            received = signal.SIGTERM if _preempted(self._polls) else received
            received = int(np.max(multihost_utils.process_allgather(np.int32(received))))
        self._reported = self._reported or received > 0
        return signal.Signals(received) if received else None

    def _note(self, signum: int, _: Any) -> None:
        if self._received:
            os._exit(128 + signum)
        self._received = signum


def _preempted(polls: int) -> bool:
    """Whether one of several processes received SIGTERM, which `jax.distributed` reports to all at the same poll."""
    try:
        return multihost_utils.reached_preemption_sync_point(polls)
    except RuntimeError:  # the service is off, so the signal reaches `Signals` directly
        return False
