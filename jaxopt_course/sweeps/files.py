"""Save a record of numbers, texts and arrays in one file that can be read without executing code from it."""

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

VERSION = 1


def write_record(path: str | os.PathLike[str], kind: str, record: Any) -> None:
    """Write a tree of dicts, lists, tuples, numbers, texts and arrays: a NumPy archive (`.npz`) with a JSON header."""
    arrays: list[np.ndarray] = []
    header = {"kind": kind, "version": VERSION, "record": _encoded(record, arrays)}
    content = io.BytesIO()
    raw: dict[str, Any] = {f"a{i}": np.frombuffer(array.tobytes(), np.uint8) for i, array in enumerate(arrays)}
    np.savez(content, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **raw)
    path = Path(path).expanduser()
    aside = path.with_name(f"{path.name}.part")
    try:
        with aside.open("wb") as file:
            file.write(content.getvalue())
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def read_record(path: str | os.PathLike[str], kind: str) -> Any:
    """Read what `write_record` wrote.

    Raises:
      ValueError: the file is of another kind or version, or it is damaged.
    """
    path = Path(path).expanduser()
    content = path.read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            found = header["kind"], header["version"]
            record = _decoded(header["record"], file) if found == (kind, VERSION) else None
    except Exception as error:  # a parser may raise anything on an unknown file
        raise ValueError(f"{path} is not a {kind} of this library, or it is damaged: {error}") from error
    if found != (kind, VERSION):
        raise ValueError(f"{path} holds a {found[0]} of version {found[1]}, expected a {kind} of version {VERSION}")
    return record


def _encoded(value: Any, arrays: list[np.ndarray]) -> Any:
    """The value as JSON; arrays are appended to `arrays` and represented by their index."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.asarray(value)
        arrays.append(array)
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        return {"array": len(arrays) - 1, "dtype": array.dtype.name, "shape": array.shape, "sha256": digest}
    if isinstance(value, int | float):
        return {"number": repr(value)}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": [[key, _encoded(item, arrays)] for key, item in value.items()]}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_encoded(item, arrays) for item in value]}
    paths = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(value)}
    if "" in paths:
        raise TypeError(f"cannot save {type(value).__name__}")
    return _encoded({path: leaf for path, leaf in paths.items() if hasattr(leaf, "dtype")}, arrays)


def _decoded(value: Any, file: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "array" in value:
        raw = file[f"a{int(value['array'])}"]
        if raw.dtype != np.uint8 or hashlib.sha256(raw.tobytes()).hexdigest() != value["sha256"]:
            raise KeyError("an array was changed")
        return raw.view(jnp.dtype(value["dtype"])).reshape(value["shape"])
    if "number" in value:
        text = value["number"]
        return int(text) if text.lstrip("-").isdigit() else float(text)
    if "dict" in value:
        return {key: _decoded(item, file) for key, item in value["dict"]}
    kind = list if "list" in value else tuple
    return kind(_decoded(item, file) for item in value[kind.__name__])
