"""Ctrl-C and SIGTERM: noted at once, obeyed between two compiled chunks, when nothing is half done."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt, SystemExit):
    """A run was asked to end, and has saved itself. Where nobody catches it the exit code is 130, of SIGTERM 143.

    `step` is the number of steps taken, all of them saved; `result` holds everything so far.
    """

    def __init__(self, message: str, signum: int, step: int, result: Any):
        super().__init__(message)
        self.code = 128 + signum
        self.step = step
        self.result = result


@contextmanager
def noted_signals(num_processes: int) -> Iterator[Callable[[], int]]:
    """Within, SIGINT and SIGTERM are noted: the function says which, or 0, and in all processes alike.

    A second one ends the process at once; one that nobody asked for is delivered at the end. Only the main thread gets
    signals; elsewhere there are none to note.
    """
    noted, told, asked = 0, False, 0

    def note(signum: int, _: Any) -> None:
        nonlocal noted
        if noted:
            os._exit(128 + signum)
        noted = signum

    def which() -> int:
        nonlocal told, asked
        asked, say = asked + 1, noted
        if num_processes > 1:
            say = signal.SIGTERM if _preempted(asked) else noted
            say = int(np.max(multihost_utils.process_allgather(np.int32(say))))
        told = told or say > 0
        return say

    if threading.current_thread() is not threading.main_thread():
        yield which
        return
    before = {signum: signal.signal(signum, note) for signum in SIGNALS}
    try:
        yield which
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        if noted and not told:
            signal.raise_signal(noted)


def _preempted(asked: int) -> bool:
    """Of several processes one was sent SIGTERM: `jax.distributed` catches it, and tells all at the same asking."""
    try:
        return multihost_utils.reached_preemption_sync_point(asked)
    except RuntimeError:  # its service is switched off, and ours gets the signal
        return False
