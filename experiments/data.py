"""Describe an image set: number of images, classes, source, and a picture. It can download CIFAR-10."""

import argparse
import json
import sys
from typing import Any

import numpy as np

import jaxopt_course as jc
from experiments.arguments import UsageError
from experiments.report import Table, print_blocks
from experiments.runs import sha256
from jaxopt_course.data import cifar

IN_A_ROW = 16


def run(args: argparse.Namespace) -> int:
    """Download if requested, read, print, and write a picture if requested."""
    if args.download:
        if args.name != "cifar10":
            raise UsageError(f"--download is for cifar10; {args.name} needs no file")
        print(f"{cifar.download(args.root)} is there", file=sys.stderr)
    options = {"official": False} if args.unofficial else {}
    if options and args.name != "cifar10":
        raise UsageError(f"--unofficial is for cifar10; {args.name} needs no file")
    dataset = jc.data.load(args.name, root=args.root, raw=True, **options)
    facts = describe(dataset)
    if args.picture is not None:
        picture(dataset).savefig(args.picture, dpi=150)
        facts["picture"] = str(args.picture)
    if args.json:
        print(json.dumps(facts))
    else:
        print_blocks(*blocks(facts))
    return 0


def describe(dataset: jc.data.Dataset) -> dict[str, Any]:
    """Statistics of the raw pixels."""
    parts = {}
    for name, (pixels, labels) in (("train", dataset.train), ("test", dataset.test)):
        counts = np.bincount(labels, minlength=len(dataset.class_names))
        parts[name] = {
            "images": len(pixels),
            "of_each_class": dict(zip(dataset.class_names, counts.tolist(), strict=True)),
            "lowest_pixel": int(pixels.min()),
            "mean_pixel": round(float(pixels.mean()), 2),
            "highest_pixel": int(pixels.max()),
            "bytes": pixels.nbytes,
        }
    return {
        "name": dataset.name,
        "source": dataset.source,
        "image_shape": list(dataset.image_shape),
        "class_names": list(dataset.class_names),
        **parts,
        "sha256": sha256([*dataset.train, *dataset.test]),
    }


def blocks(facts: dict[str, Any]) -> list[Table | str]:
    shape = " x ".join(map(str, facts["image_shape"]))
    rows = []
    for name in ("train", "test"):
        part = facts[name]
        counts = part["of_each_class"].values()
        each = f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
        pixels = f"{part['lowest_pixel']} to {part['highest_pixel']}"
        size = f"{part['bytes'] / 2**20:,.1f}"
        rows.append([name, f"{part['images']:,}", each, pixels, f"{part['mean_pixel']:.1f}", size])
    columns = ["part", "images", "of each class", "pixels", "mean", "MiB"]
    return [
        Table(columns, rows, f"{facts['name']}: {shape} pixels, {len(facts['class_names'])} classes"),
        f"classes: {', '.join(facts['class_names'])}",
        f"source: {facts['source']}",
        f"SHA-256 of pixels and labels: {facts['sha256']}",
        *([f"picture: {facts['picture']}"] if "picture" in facts else []),
    ]


def picture(dataset: jc.data.Dataset) -> Any:
    """A figure of the first training images of each class."""
    pixels, labels = dataset.train
    classes = range(len(dataset.class_names))
    rows = [pixels[labels == number][:IN_A_ROW].reshape(-1, *dataset.image_shape) for number in classes]
    title = f"{dataset.name}: training images of each class"
    return jc.plots.image_grid(rows, names=dataset.class_names, top=float(pixels.max()), title=title)
