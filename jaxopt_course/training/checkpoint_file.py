"""One checkpoint as a file: complete or not there, and refused where it is not what its name says.

A checkpoint is one safetensors file whose name holds the number of steps and the SHA-256 of its bytes. It is written
aside, synced and renamed. orbax does less where it matters here: with a bit flipped in an array file it restores the
wrong numbers in silence, it casts to another dtype unasked, it does not sync, and it holds the loop up for 10 to 20 ms.
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

VERSION = 2  # 1 did not know the objective, the optimizer, the start and most of the data
NAME = re.compile(r"step-(\d{12})-([0-9a-f]{64})\.safetensors")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which file, and why."""


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*.safetensors") if NAME.fullmatch(path.name))


def write_checkpoint(folder: Path, step: int, run: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write a complete file, or leave none behind."""
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
        aside.unlink(missing_ok=True)  # gives a full disk its space back
        raise


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Facts and arrays of a file. Nothing in it is parsed before its hash is right.

    Raises:
      CheckpointError: a file that is torn, changed, of another version, or no checkpoint.
    """
    match = NAME.fullmatch(path.name)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if match is None or digest != match[2]:
            raise CheckpointError(f"{path} is torn or was changed: its SHA-256 is {digest}, not the one in its name")
        with load_safetensors().safe_open(path, framework="numpy") as file:
            facts = json.loads(file.metadata()["jaxopt_course"])
            _check_version(path, facts["version"])
            raw = {name: file.get_tensor(name) for name in facts["leaves"]}
            extra = {*file.keys()} - {*raw}
        if extra or facts["step"] != int(match[1]) or not isinstance(facts["run"], dict):
            raise ValueError("it contradicts itself")
        leaves = {name: _typed(raw[name], *facts["leaves"][name]) for name in raw}
    except CheckpointError:
        raise
    except Exception as error:  # whatever a file from elsewhere makes a parser raise
        raise CheckpointError(f"{path} is no checkpoint of this library: {type(error).__name__}: {error}") from error
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
        raise CheckpointError(f"{path} is of version {version}, this library reads version {VERSION}{reason}")


def _typed(raw: np.ndarray, dtype: str, shape: list[int]) -> np.ndarray:
    return raw.view(jnp.dtype(dtype)).reshape(shape)


def _sync(folder: Path) -> None:
    """A rename is on the disk only once its folder is synced."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
