"""A progress bar on stderr, where somebody is there to see it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(caller: str, progress: bool | None, total: int) -> Iterator[Callable[[int, float], None]]:
    """A function that shows `(step, loss)`; it does nothing where no bar is wanted or rich is not installed."""
    wanted = progress if progress is not None else sys.stderr.isatty()
    try:
        if wanted:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError as error:
        if progress:
            raise ImportError(f"{caller}: progress=True needs the package rich: pip install rich") from error
        wanted = False
    if not wanted:
        yield lambda step, loss: None
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.4g}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(caller, total=total, loss=float("nan"))
        yield lambda step, loss: bar.update(task, completed=step, loss=loss)
