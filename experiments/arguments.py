"""What each command takes. Standard library only: help must not wait for a compiler to load."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

DATASETS = ("digits", "mnist5k", "synthetic")
OPTIMIZERS = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam_uncorrected", "adam")
BENCHMARKS = ("training", "updates", "gradcheck")
LEAST_SEEDS = 3


class UsageError(Exception):
    """Arguments that are each legal but make no sense together."""


def race(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    images(parser)
    add("--loss", default="softmax", choices=("softmax", "hinge"), help="(default: %(default)s)")
    add(
        "--optimizers",
        nargs="+",
        default=list(OPTIMIZERS),
        choices=OPTIMIZERS,
        metavar="NAME",
        help=f"of {', '.join(OPTIMIZERS)} (default: all)",
    )
    add("--epochs", type=whole(1), default=30, metavar="E", help="(default: %(default)s)")
    add(
        "--seeds",
        type=whole(LEAST_SEEDS),
        default=5,
        metavar="S",
        help=f"runs at each learning rate, at least {LEAST_SEEDS} (default: %(default)s)",
    )
    add("--x64", action="store_true", help="train in float64")
    outcome(parser, "race")


def gradcheck(parser: argparse.ArgumentParser) -> None:
    images(parser)
    parser.add_argument(
        "--rounds", type=whole(1), default=5, metavar="R", help="samples of a time (default: %(default)s)"
    )
    outcome(parser, "gradcheck")


def images(parser: argparse.ArgumentParser) -> None:
    """What an objective is made of."""
    add = parser.add_argument
    add("--data", default="digits", choices=DATASETS, help="image set (default: %(default)s)")
    add("--root", type=Path, metavar="DIR", help="folder of the image set, for sets that are files")
    add("--batch-size", type=whole(1), default=128, metavar="B", help="examples in a minibatch (default: %(default)s)")
    add("--l2", type=not_negative, default=1e-4, metavar="LAMBDA", help="strength of the L2 penalty (default: 1e-4)")


def outcome(parser: argparse.ArgumentParser, name: str) -> None:
    """Where it goes, and how it can be had again."""
    add = parser.add_argument
    add("--seed", type=whole(0), default=0, help="of everything random (default: %(default)s)")
    add("--out", type=Path, metavar="DIR", help=f"folder to write (default: runs/{name}-<utc>)")
    add("--json", action="store_true", help="print the results as JSON instead of tables")
    add("--quiet", action="store_true", help="print nothing but errors")


def bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="options of that benchmark, or --help")


def whole(least: int) -> Callable[[str], int]:
    """An argparse type: a whole number that is not below `least`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"expected a whole number >= {least}, got {text!r}")
        return value

    return parse


def not_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a finite number >= 0, got {text!r}")
    return value
