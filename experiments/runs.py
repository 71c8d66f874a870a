"""The folder of a run: its arguments, data, versions, and all results."""

import csv
import hashlib
import json
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

PACKAGES = ("jaxopt_course", "jax", "jaxlib", "optax", "numpy", "scikit-learn", "matplotlib", "mlxtend")


class Run:
    """A folder with a manifest that is always up to date: `status` is running, done, failed or interrupted."""

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        self.folder, self.manifest = folder, manifest
        self.note()

    def note(self, **entries: Any) -> None:
        """Add entries to the manifest and write it."""
        self.manifest.update(entries)
        scratch = self.folder / "manifest.json.part"
        scratch.write_text(json.dumps(self.manifest, indent=2, default=plain) + "\n")
        scratch.replace(self.folder / "manifest.json")

    def write_csv(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        rows = list(rows)
        with (self.folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else [])
            writer.writeheader()
            writer.writerows(rows)

    def write_jsonl(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        with (self.folder / name).open("w") as file:
            file.writelines(json.dumps(row, default=plain) + "\n" for row in rows)

    def write_arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        np.savez(self.folder / name, **arrays)

    def write_figure(self, name: str, figure: Any, dpi: int = 150) -> Path:
        path = self.folder / "figures" / name
        figure.savefig(path, dpi=dpi)
        return path


@contextmanager
def start_run(name: str, arguments: Mapping[str, Any], folder: Path | None) -> Iterator[Run]:
    """Open the folder of a run; at the end, record in the manifest how the run ended."""
    began, now = time.perf_counter(), datetime.now(UTC)
    folder = folder or Path("runs") / f"{name}-{now:%Y%m%dT%H%M%SZ}"
    if (folder / "manifest.json").exists():
        raise FileExistsError(f"{folder} already holds a run; choose another --out, or remove it")
    run = Run(
        folder,
        {
            "experiment": name,
            "status": "running",
            "started_utc": f"{now:%Y-%m-%dT%H:%M:%SZ}",
            "arguments": dict(arguments),
            "source": git_state(),
            "versions": versions(),
            "device": device(),
        },
    )
    status = "failed"
    try:
        yield run
        status = "done"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    except BaseException as error:
        run.note(error=f"{type(error).__name__}: {error}")
        raise
    finally:
        run.note(status=status, seconds=round(time.perf_counter() - began, 2))


def git_state() -> dict[str, Any] | None:
    """The commit, and whether the working tree differs from it; None outside a checkout."""

    def git(*args: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str | None]:
    def version(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}


def device() -> dict[str, Any]:
    first = jax.devices()[0]
    return {"platform": first.platform, "kind": first.device_kind, "count": jax.device_count()}


def sha256(arrays: Iterable[np.ndarray]) -> str:
    """The SHA-256 of shapes, dtypes and bytes, in order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)  # no copy: it may be large
    return digest.hexdigest()


def plain(value: Any) -> Any:
    """Convert a NumPy or JAX value or a path to a value that JSON supports."""
    if isinstance(value, Path):
        return str(value)
    return np.asarray(value).tolist()


def finite(value: Any) -> Any:
    """Replace infinity and NaN by None, because JSON has no such numbers."""
    if isinstance(value, dict):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
