"""A progress bar on stderr."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jaxopt_course.extras import missing


def is_bar_wanted(caller: str, progress: bool | None) -> bool:
    """Whether to show a bar: `progress` is True, or it is None, stderr is a terminal and rich is installed."""
    wanted = progress if progress is not None else sys.stderr.isatty()
    if wanted:
        try:
            import rich  # noqa: F401
        except ImportError as error:
            if progress:
                raise missing(f"{caller}: progress=True", error) from error
            return False
    return wanted


@contextmanager
def progress_bar(
    caller: str, progress: bool | None, total: int, name: str = "loss"
) -> Iterator[Callable[[int, float], None]]:
    """Yield a function that shows `(step, loss)`; it does nothing if no bar is wanted."""
    if not is_bar_wanted(caller, progress):
        yield lambda step, loss: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(name + " {task.fields[loss]:.4g}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(caller, total=total, loss=float("nan"))
        yield lambda step, loss: bar.update(task, completed=step, loss=loss)
