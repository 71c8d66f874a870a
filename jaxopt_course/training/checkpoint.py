"""Checkpoints of a run in a folder: resuming from the newest one, and saving in the background."""

import errno
import os
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxopt_course.annotations import PyTree
from jaxopt_course.training.checkpoint_file import (
    CheckpointError,
    checkpoint_files,
    load_safetensors,
    read_checkpoint,
    write_checkpoint,
)
from jaxopt_course.training.checks import whole_number
from jaxopt_course.training.identity import Identity, differences, not_compared, setting_differences
from jaxopt_course.training.steps import Carry

try:
    import fcntl
except ImportError:  # Windows does not have these locks
    fcntl = None  # type: ignore[assignment]


class CheckpointWriteError(OSError):
    """A checkpoint could not be written. If raised by `train`, `result` holds all results of the run so far."""

    result: Any = None


class Saved(NamedTuple):
    """The contents of a checkpoint from which a run continues."""

    step: int
    carry: Carry
    history: dict[str, np.ndarray]


class Checkpoints:
    """The checkpoints of one run in one folder, written by a thread while the run continues. A context manager.

    `saved` is the checkpoint from which the run continues, None for a new run; `save` starts writing, and `wait` waits
    until the checkpoint is on the disk.

    A checkpoint of another run is refused. Data and parameters of up to `identity.COMPARED_FIRST_BYTES` are compared on
    entry. Larger ones are compared by a thread while the run continues: before anything is written, and at the latest
    when the context ends. A result that mixes two runs is therefore neither saved nor returned.

    Args:
      folder: created if it does not exist; `~` is the home directory. A finished run can be read from a read-only
        folder.
      identity: the facts that must be the same when the run is resumed.
      carry: the initial carry, for the structure, dtypes and placement of its leaves.
      keep: number of newest checkpoints to keep.
      resume: continue from the newest complete checkpoint; if False, the folder must not contain any.
    """

    def __init__(self, folder: str | os.PathLike[str], identity: Identity, carry: Carry, *, keep: int, resume: bool):
        load_safetensors()
        self.folder = Path(folder).expanduser()
        self.identity = identity
        self.saved: Saved | None = None
        self._start, self._resume, self._keep = carry, resume, whole_number("train", "keep", keep, 1)
        self._writes = jax.process_index() == 0  # only one of several processes writes
        self._lock: int | None = None
        self._not_writable: OSError | None = None
        self._pool = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._waiting: tuple[int, dict[str, np.ndarray]] | None = None  # not yet taken by the thread
        self._mutex = threading.Lock()
        self._unverified: tuple[Path, dict[str, Any]] | None = None
        self._newest: int | None = None

    def __enter__(self) -> "Checkpoints":
        try:
            if self._writes:
                self._open_folder()
            self.saved = self._load()
        except BaseException:
            self._close()
            raise
        self._newest = self.saved.step if self.saved else None
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            self.wait()
            if error is None or hasattr(error, "result"):
                self._verify()
        finally:
            self._close()

    def check_writable(self) -> None:
        """Raise CheckpointWriteError if the folder is read-only, before steps are taken that could not be saved."""
        if error := self._not_writable:
            message = f"train: checkpoint_dir is read-only, and the run is not finished ({error.strerror})"
            raise CheckpointWriteError(error.errno, message, str(self.folder)) from error

    def save(self, step: int, carry: Carry, history: dict[str, np.ndarray]) -> None:
        """Copy the arrays now and write them in the background; do nothing if this step is already saved.

        Raises:
          CheckpointWriteError: the previous save failed.
          CheckpointError: the run was resumed from a checkpoint of another run.
        """
        if step == self._newest:
            return
        self._newest = step
        if not self._writes:
            return
        self.check_writable()
        arrays = {**_named(carry), **{f"history/{name}": rows for name, rows in history.items()}}
        copies = {name: np.array(array, order="C", copy=True) for name, array in arrays.items()}
        if not self._replace_waiting(step, copies):
            self.wait()
            self._waiting = step, copies
            self._pending = self._pool.submit(self._write_waiting)

    def wait(self) -> None:
        """Wait until everything saved is on the disk, and raise the error of the background thread, if any."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _replace_waiting(self, step: int, copies: dict[str, np.ndarray]) -> bool:
        """Replace a save that still waits for the hashes of large data by a newer one, and return whether it did."""
        with self._mutex:
            waits = self._waiting is not None and not self.identity.is_small and not self.identity.is_known
            if waits:
                self._waiting = step, copies
            return waits

    def _write_waiting(self) -> None:
        run = self.identity.facts()
        self._verify()
        with self._mutex:
            assert self._waiting is not None
            (step, arrays), self._waiting = self._waiting, None
        try:
            write_checkpoint(self.folder, step, run, arrays)
            for old in checkpoint_files(self.folder)[: -self._keep]:
                old.unlink()
        except OSError as error:
            message = f"train: the checkpoint of step {step} could not be written: {error.strerror or error}"
            raise CheckpointWriteError(error.errno, message, str(self.folder)) from error

    def _open_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            message = "train: checkpoint_dir must be a folder, but this is a file"
            raise NotADirectoryError(errno.ENOTDIR, message, str(error.filename or self.folder)) from error
        except OSError as error:
            raise OSError(
                error.errno, f"train: checkpoint_dir cannot be created: {error.strerror}", str(self.folder)
            ) from error
        try:
            self._lock = _locked(self.folder)
            for leftover in self.folder.glob("*.safetensors.part"):
                leftover.unlink()
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            self._not_writable = error

    def _close(self) -> None:
        self.identity.cancel()
        self._pool.shutdown()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _load(self) -> Saved | None:
        """Return the checkpoint to continue from, the same in all processes."""
        with _first_process_first(self._writes):
            found = checkpoint_files(self.folder)
            if found and not self._resume:
                raise FileExistsError(
                    f"train: {self.folder} holds {len(found)} checkpoints, the newest {found[-1].name}; "
                    "pass resume=True to continue from it, or another checkpoint_dir to start a new run"
                )
            saved = self._newest_usable(found)
        if jax.process_count() > 1:
            step = np.int32(saved.step if saved else 0)
            multihost_utils.assert_equal(step, f"train: not all processes see the same files in {self.folder}")
        return saved and saved._replace(carry=jax.tree.map(_placed, saved.carry, self._start))

    def _newest_usable(self, found: list[Path]) -> Saved | None:
        """Return the newest checkpoint that is complete and of this run, on the host; None if there are no checkpoints.

        Newer checkpoints that are refused are named in a warning and renamed to `*.refused`.
        """
        refused: list[tuple[Path, CheckpointError]] = []
        for path in reversed(found):
            try:
                saved = self._read(path)
            except CheckpointError as error:
                refused.append((path, error))
                continue
            for bad, why in refused:
                warnings.warn(f"{why}; set aside, continuing from step {saved.step}", RuntimeWarning, stacklevel=2)
                if self._writes and self._not_writable is None:
                    bad.rename(f"{bad}.refused")
            if self.identity.is_small:
                self._verify()
            return saved
        if refused:
            raise CheckpointError(
                f"train: no checkpoint in {self.folder} can be resumed. For a new run, pass another checkpoint_dir.\n"
                + "\n".join(f"- {why}" for _, why in refused)
            )
        return None

    def _read(self, path: Path) -> Saved:
        facts, arrays = read_checkpoint(path)
        self._compare(path, facts["run"], all_facts=self.identity.is_small)
        wanted = _named(self._start)
        history = {name.removeprefix("history/"): arrays.pop(name) for name in [*arrays] if name.startswith("history/")}
        if missing := sorted({*wanted} ^ {*arrays}):
            where = "this run" if missing[0] in arrays else "the checkpoint"
            raise CheckpointError(f"{path} is of another tree: {where} has no {missing[0]}")
        for name, leaf in wanted.items():
            theirs, ours = (f"{a.dtype.name}{list(a.shape)}" for a in (arrays[name], leaf))
            if theirs != ours:
                raise CheckpointError(f"{path} does not match: its {name} is {theirs}, here it is {ours}")
        on_host = jax.tree.unflatten(jax.tree.structure(self._start), [arrays[name] for name in wanted])
        self._unverified = path, facts["run"]
        return Saved(facts["step"], on_host, history)

    def _compare(self, path: Path, run: dict[str, Any], *, all_facts: bool) -> None:
        try:
            if all_facts:
                found = differences(run, self.identity.facts())
            else:
                found = "; ".join(setting_differences(run["settings"], self.identity.settings))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise CheckpointError(f"{path} is not a checkpoint of this library: its facts are malformed") from error
        if found:
            raise CheckpointError(f"{path} is of another run: {found}")

    def _verify(self) -> None:
        """Compare all facts with the checkpoint that the run continued from, and warn of what cannot be compared."""
        if self._unverified is None:
            return
        path, run = self._unverified
        self._compare(path, run, all_facts=True)
        self._unverified = None
        for gap in not_compared(self.identity.facts()):
            warnings.warn(f"train: continuing from {path}, assumed the same run: {gap}", RuntimeWarning, stacklevel=2)


def _named(carry: Carry) -> dict[str, Any]:
    """Return the leaves by path, with random keys as integer arrays."""
    paths = jax.tree_util.tree_leaves_with_path(carry)
    return {f"carry{jax.tree_util.keystr(path)}": _numbers(leaf) for path, leaf in paths}


def _numbers(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _placed(array: np.ndarray, like: Any) -> PyTree:
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like))
    return jax.device_put(np.array(array), like.sharding)


@contextmanager
def _first_process_first(is_first: bool) -> Iterator[None]:
    """Let the first of several processes rename refused files before the others read the folder."""
    if jax.process_count() == 1:
        yield
        return
    wait = partial(multihost_utils.sync_global_devices, "the first has looked at the checkpoints")
    if not is_first:
        wait()
    try:
        yield
    finally:
        if is_first:
            wait()


def _locked(folder: Path) -> int:
    """Lock the folder until the lock is closed or the process ends: two runs in one folder would delete files."""
    lock = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise CheckpointError(f"train: another run is writing to {folder}; choose another checkpoint_dir") from error
    return lock
