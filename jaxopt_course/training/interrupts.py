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
    noted, told = 0, False

    def note(signum: int, _: Any) -> None:
        nonlocal noted
        if noted:
            os._exit(128 + signum)
        noted = signum

    def which() -> int:
        nonlocal told
        say = noted if num_processes == 1 else int(np.max(multihost_utils.process_allgather(np.int32(noted))))
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
