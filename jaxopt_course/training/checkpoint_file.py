"""A checkpoint file: either complete or absent, and refused if its contents do not match its name.

A checkpoint is one safetensors file whose name contains the number of steps and the SHA-256 of its bytes. It is written
to a temporary name, synced and renamed. orbax gives weaker guarantees: if a bit of an array file is flipped, it
restores wrong numbers without an error; it casts to another dtype without being asked; it does not sync; and it blocks
the loop for 10 to 20 ms.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxopt_course.extras import missing

VERSION = 2  # version 1 did not record the objective, the optimizer, the start and most of the data
NAME = re.compile(r"step-(\d{12})-([0-9a-f]{64})\.safetensors")


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file and the reason."""


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*.safetensors") if NAME.fullmatch(path.name))


def write_checkpoint(folder: Path, step: int, run: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write a complete file; if that fails, leave no file behind."""
    leaves = {name: [array.dtype.name, list(array.shape)] for name, array in arrays.items()}
    facts = {"version": VERSION, "step": step, "run": run, "leaves": leaves}
    raw = {name: array.reshape(-1).view(np.uint8) for name, array in arrays.items()}
    content = load_safetensors().numpy.save(raw, metadata={"jaxopt_course": json.dumps(facts)})
    path = folder / f"step-{step:012d}-{hashlib.sha256(content).hexdigest()}.safetensors"
    aside = path.with_suffix(".safetensors.part")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        _sync(folder)
    except OSError:
        aside.unlink(missing_ok=True)  # frees the space on a full disk
        raise


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return facts and arrays of a file. The hash is verified before anything is parsed.

    Raises:
      CheckpointError: a file that is incomplete, changed, of another version, or not a checkpoint.
    """
    match = NAME.fullmatch(path.name)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if match is None or digest != match[2]:
            raise CheckpointError(f"{path} is incomplete or changed: its SHA-256 is {digest}, not the one in its name")
        with load_safetensors().safe_open(path, framework="numpy") as file:
            facts = json.loads(file.metadata()["jaxopt_course"])
            _check_version(path, facts["version"])
            raw = {name: file.get_tensor(name) for name in facts["leaves"]}
            extra = {*file.keys()} - {*raw}
        if extra or facts["step"] != int(match[1]) or not isinstance(facts["run"], dict):
            raise ValueError("its contents are inconsistent")
        leaves = {name: _typed(raw[name], *facts["leaves"][name]) for name in raw}
    except CheckpointError:
        raise
    except Exception as error:  # parsers raise many kinds of errors for untrusted files
        raise CheckpointError(f"{path} is not a checkpoint of this library: {type(error).__name__}: {error}") from error
    return facts, leaves


def load_safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise missing("train: checkpoint_dir", error) from error
    return safetensors


def _check_version(path: Path, version: Any) -> None:
    if version != VERSION:
        reason = "; version 1 does not record the objective, the optimizer and all of the data" if version == 1 else ""
        raise CheckpointError(f"{path} has version {version}, but this library reads version {VERSION}{reason}")


def _typed(raw: np.ndarray, dtype: str, shape: list[int]) -> np.ndarray:
    return raw.view(jnp.dtype(dtype)).reshape(shape)


def _sync(folder: Path) -> None:
    """Sync a folder: a rename is on the disk only after its folder is synced."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
