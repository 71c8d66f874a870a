"""A training run on disk: complete or not there, and refused where it is not what it says it is.

A checkpoint is one safetensors file whose name holds the number of steps and the SHA-256 of its bytes. It is written
aside, synced and renamed. orbax does less where it matters here: with a bit flipped in an array file it restores the
wrong numbers in silence, it casts to another dtype unasked, it does not sync, and it holds the loop up for 10 to 20 ms.
"""

import hashlib
import json
import os
import re
import signal
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxopt_course.training.interrupts import Interrupted, noted_signals
from jaxopt_course.training.steps import Carry

try:
    import fcntl
except ImportError:  # no such locks on Windows
    fcntl = None  # type: ignore[assignment]

VERSION = 1
NAME = re.compile(r"step-(\d{12})-([0-9a-f]{64})\.safetensors")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; it says which file, and why."""


class Saved(NamedTuple):
    """What a run goes on from."""

    step: int
    carry: Carry
    history: dict[str, np.ndarray]


class Checkpoints:
    """The checkpoints of one run in one folder, written by a thread while the run goes on. A context manager.

    `run` holds what must be the same when the run is resumed, as JSON; `keep` is how many of the newest stay; `writes`
    is False in all but one of several processes: these only read.
    """

    def __init__(self, folder: str | os.PathLike[str], run: dict[str, Any], keep: int, *, writes: bool = True):
        _safetensors()
        if keep < 1:
            raise ValueError(f"train: keep must be at least 1, got {keep}")
        self.folder, self.run, self.keep, self.writes = Path(folder), run, keep, writes
        self.pool = ThreadPoolExecutor(1)
        self.pending: Future[None] | None = None
        if writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = _locked(self.folder)
            for leftover in self.folder.glob("*.safetensors.part"):
                leftover.unlink()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            self.pool.shutdown()
            if self.writes:
                os.close(self.lock)

    def begin(self, carry: Carry, resume: bool) -> Saved | None:
        """What to go on from, the same in all processes; None at the beginning, which `resume=False` insists on."""
        with _first_alone(self.writes):
            if not resume:
                self.insist_on_none()
            saved = self.latest(carry)
        if jax.process_count() > 1:
            step = np.int32(saved.step if saved else 0)
            multihost_utils.assert_equal(step, f"train: not all processes see the same files in {self.folder}")
        return saved and saved._replace(carry=jax.tree.map(_placed, saved.carry, carry))

    def insist_on_none(self) -> None:
        """FileExistsError where there are checkpoints."""
        if found := _files(self.folder):
            raise FileExistsError(
                f"train: {self.folder} holds {len(found)} checkpoints, the newest {found[-1].name}; "
                "resume=True goes on from it, another checkpoint_dir begins anew"
            )

    def latest(self, carry: Carry) -> Saved | None:
        """The newest that is whole and of this run, on the host; None in an empty folder.

        The ones that are refused on the way are named in a warning and set aside as `*.refused`. CheckpointError when
        there is none but those.
        """
        refused = []
        for path in reversed(_files(self.folder)):
            try:
                saved = self._read(path, carry)
            except CheckpointError as error:
                refused.append((path, error))
                continue
            for bad, why in refused:
                warnings.warn(f"{why}; set aside, going on from step {saved.step}", RuntimeWarning, stacklevel=2)
                if self.writes:
                    bad.rename(f"{bad}.refused")
            return saved
        if refused:
            listed = "\n".join(f"- {why}" for _, why in refused)
            raise CheckpointError(
                f"train: no checkpoint in {self.folder} can be resumed. Choose another checkpoint_dir to begin anew.\n"
                + listed
            )
        return None

    def save(self, step: int, carry: Carry, history: dict[str, np.ndarray]) -> None:
        """Copy now, write meanwhile. What went wrong with the one before is raised here."""
        self.wait()
        if self.writes:
            arrays = {**_named(carry), **{f"history/{name}": rows for name, rows in history.items()}}
            copies = {name: np.array(array, order="C", copy=True) for name, array in arrays.items()}
            self.pending = self.pool.submit(self._write, step, copies)

    def wait(self) -> None:
        """Until what was saved is on the disk."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()

    def _write(self, step: int, arrays: dict[str, np.ndarray]) -> None:
        leaves = {name: [array.dtype.name, list(array.shape)] for name, array in arrays.items()}
        facts = {"version": VERSION, "step": step, "run": self.run, "leaves": leaves}
        raw = {name: array.reshape(-1).view(np.uint8) for name, array in arrays.items()}
        content = _safetensors().numpy.save(raw, metadata={"jaxopt_course": json.dumps(facts)})
        path = self.folder / f"step-{step:012d}-{hashlib.sha256(content).hexdigest()}.safetensors"
        aside = path.with_suffix(".safetensors.part")
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        _sync(self.folder)
        for old in _files(self.folder)[: -self.keep]:
            old.unlink()

    def _read(self, path: Path, carry: Carry) -> Saved:
        facts, arrays = _load(path)
        for name in sorted({*facts["run"], *self.run}):
            theirs, ours = facts["run"].get(name), self.run.get(name)
            if theirs != ours:
                raise CheckpointError(f"{path} is of another run: its {name} is {theirs}, here it is {ours}")
        wanted = _named(carry)
        history = {name.removeprefix("history/"): arrays.pop(name) for name in [*arrays] if name.startswith("history/")}
        if missing := sorted({*wanted} ^ {*arrays}):
            where = "this run" if missing[0] in arrays else "the checkpoint"
            raise CheckpointError(f"{path} is of another tree: {where} has no {missing[0]}")
        for name, leaf in wanted.items():
            theirs, ours = (f"{a.dtype.name}{list(a.shape)}" for a in (arrays[name], leaf))
            if theirs != ours:
                raise CheckpointError(f"{path} does not fit: its {name} is {theirs}, here it is {ours}")
        on_host = jax.tree.unflatten(jax.tree.structure(carry), [arrays[name] for name in wanted])
        return Saved(facts["step"], on_host, history)


@contextmanager
def kept(
    folder: str | os.PathLike[str], run: dict[str, Any], keep: int, carry: Carry, *, resume: bool
) -> Iterator[tuple[Saved | None, Callable[..., None]]]:
    """What a run goes on from, and a function that saves it: where it is due, and when a signal came, which ends it.

    `save_if(due, step, carry, history, said, result)`: `history()` is what to save beside the carry, `said(name)` the
    message of the `Interrupted` that a signal of that name becomes, and `result()` what it holds.
    """
    with (
        Checkpoints(folder, run, keep, writes=jax.process_index() == 0) as files,
        noted_signals(jax.process_count()) as signalled,
    ):
        saved = files.begin(carry, resume)
        newest = saved.step if saved else None

        def save_if(
            due: bool,
            step: int,
            carry: Carry,
            history: Callable[[], dict[str, np.ndarray]],
            said: Callable[[str], str],
            result: Callable[[], Any],
        ) -> None:
            nonlocal newest
            signum = signalled()
            if step != newest and (due or signum):
                files.save(step, carry, history())
                newest = step
            if signum:
                files.wait()
                raise Interrupted(said(signal.Signals(signum).name), signum, step, result())

        yield saved, save_if


def _files(folder: Path) -> list[Path]:
    """Of the folder's checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*.safetensors") if NAME.fullmatch(path.name))


def _load(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Facts and arrays of a file that is what its name says; nothing of it is looked at before its hash is right."""
    match = NAME.fullmatch(path.name)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if match is None or digest != match[2]:
            raise CheckpointError(f"{path} is torn or was changed: its SHA-256 is {digest}, not the one in its name")
        with _safetensors().safe_open(path, framework="numpy") as file:
            facts = json.loads(file.metadata()["jaxopt_course"])
            if facts["version"] != VERSION:
                raise CheckpointError(f"{path} is of version {facts['version']}, this one reads {VERSION}")
            raw = {name: file.get_tensor(name) for name in facts["leaves"]}
            extra = {*file.keys()} - {*raw}
        if extra or facts["step"] != int(match[1]) or not isinstance(facts["run"], dict):
            raise ValueError("it contradicts itself")
        leaves = {name: _typed(raw[name], *facts["leaves"][name]) for name in raw}
    except CheckpointError:
        raise
    except Exception as error:  # whatever a file from elsewhere can make a parser say
        raise CheckpointError(f"{path} is no checkpoint of this library: {type(error).__name__}: {error}") from error
    return facts, leaves


def _typed(raw: np.ndarray, dtype: str, shape: list[int]) -> np.ndarray:
    return raw.view(jnp.dtype(dtype)).reshape(shape)


def _named(carry: Carry) -> dict[str, Any]:
    """The leaves by path, random keys as their numbers."""
    paths = jax.tree_util.tree_leaves_with_path(carry)
    return {f"carry{jax.tree_util.keystr(path)}": _numbers(leaf) for path, leaf in paths}


def _numbers(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _placed(array: np.ndarray, like: Any) -> Any:
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like))
    return jax.device_put(np.array(array), like.sharding)


@contextmanager
def _first_alone(is_first: bool) -> Iterator[None]:
    """Of several processes the first sets files aside before the others look."""
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
    """Held until it is closed, or the process ends: two runs in one folder would delete each other's files."""
    lock = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise CheckpointError(f"train: another run is writing to {folder}; choose another checkpoint_dir") from error
    return lock


def _sync(folder: Path) -> None:
    """A rename is on the disk only when its folder is."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "train: checkpoints need the package safetensors: pip install safetensors, "
            f"or this project's extra: pip install 'jaxopt_course[checkpoints]' ({error})"
        ) from error
    return safetensors
