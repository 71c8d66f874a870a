"""The arguments of each command. Standard library only, so that help does not wait for JAX to load."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

DATASETS = ("digits", "mnist5k", "cifar10", "patch10", "synthetic")
OPTIMIZERS = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam_uncorrected", "adam")
BENCHMARKS = ("training", "updates", "gradcheck", "solvers", "neighbors", "sweeps", "devices", "waiting", "all")
SOLVED_BY = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "lbfgs", "newton_cg", "newton")
PATHOLOGIES = ("ravines", "saddles", "minima", "noise", "diagnosis")
MODELS = ("linear", "mlp", "conv")
SPOILS = ("rate", "slow", "batch", "layer", "saddle", "frozen")
LEAST_SEEDS = 3
BATCH_SIZE = 128
PROFILED = (
    "lbfgs",
    "newton",
    "newton_cg",
    "scipy_lbfgsb",
    "scipy_lbfgsb_defaults",
    "scipy_bfgs",
    "scipy_trust_exact",
    "optax_lbfgs",
    "optimistix_bfgs",
    "jaxopt_lbfgs",
    "scipy_tnc",
    "scipy_trust_constr",
    "jaxopt_lbfgsb",
)


FORMS = "optax.NAME, path/to/file.py:FACTORY, package.module:FACTORY"


class UsageError(Exception):
    """An error in the arguments that argparse cannot detect."""


def race(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    images(parser, batch_size=None)
    add("--loss", default="softmax", choices=("softmax", "hinge"), help="(default: %(default)s)")
    add("--model", default="linear", choices=("linear", "mlp"), help="mlp: one hidden layer (default: %(default)s)")
    add("--activation", default="relu", choices=("relu", "tanh"), help="of the mlp (default: %(default)s)")
    problem = "objective(params, batch), init(key), data; optionally grid, eval_fn(params), batch_size"
    add("--problem", type=Path, metavar="FILE", help=f"a Python file that defines another problem: {problem}")
    rules(parser, OPTIMIZERS)
    add("--epochs", type=whole(1), default=30, metavar="E", help="(default: %(default)s)")
    add(
        "--seeds",
        type=whole(LEAST_SEEDS),
        default=5,
        metavar="S",
        help=f"runs at each point of the tuning, at least {LEAST_SEEDS} (default: %(default)s)",
    )
    fresh = "runs of each optimizer at its best point, on seeds that the tuning did not use (default: %(default)s)"
    add("--fresh-seeds", type=whole(2), default=10, metavar="F", help=fresh)
    add("--x64", action="store_true", help="train in float64")
    add("--devices", type=whole(1), metavar="N", help="devices that share the runs (virtual devices on a CPU)")
    add("--checkpoint-dir", type=Path, metavar="DIR", help="save checkpoints there, and resume from there")
    outcome(parser, "race")


def classify(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    images(parser)
    add(
        "--k",
        type=whole(1),
        nargs="+",
        default=[1, 3, 5, 7, 9, 15],
        metavar="K",
        help="numbers of neighbours to choose from (default: 1 3 5 7 9 15)",
    )
    add("--epochs", type=whole(1), default=30, metavar="E", help="of the linear classifiers (default: %(default)s)")
    outcome(parser, "classify")


def gradcheck(parser: argparse.ArgumentParser) -> None:
    images(parser)
    parser.add_argument(
        "--rounds", type=whole(1), default=5, metavar="R", help="samples of each time (default: %(default)s)"
    )
    parser.add_argument(
        "--corpus", action="store_true", help="judge right and wrong functions of the test suite instead, in a table"
    )
    outcome(parser, "gradcheck")


def profiles(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--collection",
        default="mgh",
        choices=("mgh", "cutest", "both", "bounded"),
        help="problems; bounded: CUTEst's with bounds; cutest takes an hour or more; all but mgh need sif2jax "
        "(default: %(default)s)",
    )
    rules(parser, PROFILED, "--solvers", "--optimizers", but=" that fit the collection")
    parser.set_defaults(solvers=None)
    add("--problems", nargs="+", default=[], metavar="NAME", help="of the collection (default: all)")
    add(
        "--max-evals",
        type=whole(1),
        default=10_000,
        metavar="N",
        help="most evaluations of value and gradient on a problem (default: %(default)s)",
    )
    add("--gtol", type=not_negative, default=1e-8, help="tolerance on the gradient (default: %(default)s)")
    outcome(parser, "profiles")


def solve(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    image_set(parser)
    rules(parser, SOLVED_BY, "--methods", "--optimizers", but="; newton only where its Hessian fits")
    add("--l2", type=positive, default=1e-3, metavar="LAMBDA", help="strength of the L2 penalty (default: 1e-3)")
    add(
        "--l1",
        action="store_true",
        help="softmax regression by L-BFGS under an L1 penalty instead, for a path of strengths: which pixels matter",
    )
    add("--max-steps", type=whole(1), default=1000, metavar="N", help="(default: %(default)s)")
    add(
        "--gtol",
        type=not_negative,
        help="tolerance on the largest entry of the gradient (default: 1.5e-8; 3.5e-4 in float32)",
    )
    add("--float32", action="store_true", help="solve in float32; the results are still judged in float64")
    outcome(parser, "solve")


def data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", choices=DATASETS, help="image set: %(choices)s", metavar="NAME")
    folder(parser)
    add(
        "--download",
        action="store_true",
        help="download it first, over https and with a pinned hash (cifar10, 162 MiB)",
    )
    add("--unofficial", action="store_true", help="accept files that are not the official ones (cifar10)")
    add("--picture", type=Path, metavar="FILE", help="write images of each class as a picture")
    add("--json", action="store_true", help="print JSON instead of a table")


def doctor(parser: argparse.ArgumentParser) -> None:
    folder(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def parity(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("a", metavar="A", help="an optimizer as it is written: optax.adam(1e-3), torch.optim.RMSprop(lr=1e-2)")
    add("b", metavar="B", help=f"another: lecture.adagrad(1e-2), rule.py:mine(0.1); or a name: adam, {FORMS}")
    add(
        "--learning-rate",
        type=positive,
        default=1e-2,
        metavar="LR",
        help="for names without a call (default: %(default)s)",
    )
    images(parser)
    add("--steps", type=whole(1), default=50, metavar="N", help="(default: %(default)s)")
    add("--float32", action="store_true", help="step in float32")
    outcome(parser, "parity")


def contract(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    every = f"adam, lbfgs and the others of ours, {FORMS} (default: all of ours and of optax)"
    add("--optimizers", nargs="+", default=[], metavar="NAME", help=every)
    outcome(parser, "contract", seed=False)


def pathologies(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    image_set(parser)
    some_of(parser, "--parts", PATHOLOGIES)
    rules(parser, tuple(name for name in OPTIMIZERS if name != "adam_uncorrected"), but="; noise: those with a theory")
    add(
        "--starts",
        type=whole(10),
        default=1_000_000,
        metavar="N",
        help="starts in the map of basins (default: %(default)s)",
    )
    add("--runs", type=whole(1), default=1000, metavar="R", help="runs from each saddle (default: %(default)s)")
    outcome(parser, "pathologies")


def diagnose(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", choices=DATASETS, help="image set (default: digits)")
    folder(parser)
    add("--model", choices=MODELS, help="(default: mlp)")
    spoiled = (
        "rate x 10 or (slow) / 30, batch of 1, (layer) a bias scaled by 1,000, a start at a saddle, a frozen layer"
    )
    add("--spoil", choices=("nothing", *SPOILS), help=f"{spoiled} (default: rate)")
    every = "every spoil of every model on digits and patch10, in a table; --data, --model, --spoil select from them"
    add("--all", action="store_true", help=every)
    add("--steps", type=whole(20), default=100, metavar="T", help="steps of each run (default: %(default)s)")
    fresh = "runs with and without the advice of the diagnosis, on fresh seeds (default: %(default)s)"
    add("--fresh-seeds", type=whole(2), default=5, metavar="F", help=fresh)
    outcome(parser, "diagnose")


def some_of(parser: argparse.ArgumentParser, flag: str, names: tuple[str, ...], but: str = "") -> None:
    """Add an option that takes some of the names; the default is all."""
    listed = f"of {', '.join(names)} (default: all{but})"
    parser.add_argument(flag, nargs="+", default=list(names), choices=names, metavar="NAME", help=listed)


def rules(parser: argparse.ArgumentParser, names: tuple[str, ...], *flags: str, but: str = "") -> None:
    """Add an option that takes optimizers: some of the names, or any of the `FORMS`; the default is all names."""

    others = [name for name in OPTIMIZERS if name not in names]
    there = "; ".join([", ".join(names), *([", ".join(others)] if others else []), FORMS])

    def name(text: str) -> str:
        if text not in (*names, *others) and not is_external(text):
            raise argparse.ArgumentTypeError(f"no {text!r}; there are {there}")
        return text

    listed = f"of {there} (default: all of the first{but})"
    flags = flags or ("--optimizers",)
    parser.add_argument(*flags, nargs="+", type=name, default=list(names), metavar="NAME", help=listed)


def is_external(name: str) -> bool:
    """Whether the name of an optimizer has one of the `FORMS`."""
    return name.startswith("optax.") or ":" in name


def image_set(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", default="digits", choices=DATASETS, help="image set (default: %(default)s)")
    folder(parser)


def lecture(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--build", action="store_true", help="build the site again, even where it is built")
    add("--no-open", dest="open", action="store_false", help="print where the course is, and open no browser")
    add("--quiet", action="store_true", help="print nothing but errors")


def lab(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, default=Path("lab.html"), metavar="FILE", help="the page (default: %(default)s)")
    state = "what to show at first, in the form of the page's address after #"
    add("--state", default="", metavar="TEXT", help=f"{state}: 'surface=beale&run=adam,learning_rate:0.1'")
    add("--check", action="store_true", help="run the page's mathematics under node too, beside the library's")
    add("--json", action="store_true", help="print the results of --check as JSON instead of a table")


def folder(parser: argparse.ArgumentParser) -> None:
    where = "folder of the files of cifar10 (default: ~/.cache/jaxopt_course)"
    parser.add_argument("--root", type=Path, metavar="DIR", help=where)


def images(parser: argparse.ArgumentParser, batch_size: int | None = BATCH_SIZE) -> None:
    """Add the options of an objective; `batch_size` is None if it may also be set elsewhere."""
    add = parser.add_argument
    image_set(parser)
    help_text = f"examples in a minibatch (default: {BATCH_SIZE})"
    add("--batch-size", type=whole(1), default=batch_size, metavar="B", help=help_text)
    add("--l2", type=not_negative, default=1e-4, metavar="LAMBDA", help="strength of the L2 penalty (default: 1e-4)")


def outcome(parser: argparse.ArgumentParser, name: str, seed: bool = True) -> None:
    """Add the options of the output and of the seed."""
    add = parser.add_argument
    if seed:
        add("--seed", type=whole(0), default=0, help="seed of all random numbers (default: %(default)s)")
    add("--out", type=Path, metavar="DIR", help=f"folder to write (default: runs/{name}-<utc>)")
    add("--json", action="store_true", help="print the results as JSON instead of tables")
    add("--quiet", action="store_true", help="print nothing but errors")


def bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="options of that benchmark, or --help")


def whole(least: int) -> Callable[[str], int]:
    """An argparse type for a whole number that is at least `least`."""

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


def positive(text: str) -> float:
    value = not_negative(text)
    if not value:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value
