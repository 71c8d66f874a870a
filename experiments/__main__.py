"""`python -m experiments NAME ...`: the command line. Commands are imported when they run, so that help is fast."""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from experiments import arguments
from jaxopt_course.extras import missing


class Command(NamedTuple):
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    module: str  # has run(args) -> exit code


COMMANDS = {
    "race": Command(
        "every optimizer on real images, each at its best learning rate and beside its optax twin",
        arguments.race,
        "experiments.race",
    ),
    "classify": Command(
        "nearest neighbour against softmax and the SVM on real images: accuracy, training time and prediction time",
        arguments.classify,
        "experiments.classify",
    ),
    "solve": Command(
        "softmax regression and the SVM on real images, full batch, by every method, beside the known optimum",
        arguments.solve,
        "experiments.solve",
    ),
    "gradcheck": Command(
        "numerical against analytic gradients on real images: entry by entry, by step, by cost, and on planted bugs",
        arguments.gradcheck,
        "experiments.gradcheck",
    ),
    "profiles": Command(
        "second-order solvers beside their peers on collections of test problems: problems solved, and at what cost",
        arguments.profiles,
        "experiments.profiles",
    ),
    "parity": Command(
        "two optimizers in lock step on real images: where they first differ, and which convention is the cause",
        arguments.parity,
        "experiments.parity",
    ),
    "contract": Command(
        "check every optimizer of ours and of optax against the contract: a grid of clauses that passed and failed",
        arguments.contract,
        "experiments.contract",
    ),
    "lecture": Command(
        "the course of the site, opened in a browser, and built first where it is not there",
        arguments.lecture,
        "experiments.lecture",
    ),
    "pathologies": Command(
        "ravines, saddles, local minima and noise: what they cost each optimizer, beside the theory; planted diagnoses",
        arguments.pathologies,
        "experiments.pathologies",
    ),
    "diagnose": Command(
        "a run with a planted problem: what jc.diagnose finds, and whether its advice helps",
        arguments.diagnose,
        "experiments.diagnose",
    ),
    "lab": Command(
        "a page to play with every optimizer on every surface, without a network", arguments.lab, "experiments.lab"
    ),
    "data": Command(
        "the contents of an image set, with a picture; CIFAR-10 is downloaded on request",
        arguments.data,
        "experiments.data",
    ),
    "doctor": Command(
        "what this machine has, and what is missing for which command", arguments.doctor, "experiments.doctor"
    ),
    "bench": Command(f"benchmarks ({', '.join(arguments.BENCHMARKS)})", arguments.bench, "experiments.bench"),
}
EXIT_CODES = "exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 terminated"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__, epilog=EXIT_CODES)
    commands = parser.add_subparsers(dest="command", metavar="NAME", title="experiments")
    for name, command in COMMANDS.items():
        command.add_arguments(
            commands.add_parser(name, help=command.summary, description=command.summary, epilog=EXIT_CODES)
        )
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    try:
        return importlib.import_module(COMMANDS[args.command].module).run(args)
    except arguments.UsageError as error:
        print(f"python -m experiments {args.command}: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"python -m experiments {args.command}: failed: {missing('the command', error)}", file=sys.stderr)
        return 1
    except (ImportError, OSError, ValueError, FloatingPointError) as error:
        print(f"python -m experiments {args.command}: failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print(f"python -m experiments {args.command}: interrupted {interrupt}".rstrip(), file=sys.stderr)
        return getattr(interrupt, "code", 130)


if __name__ == "__main__":
    sys.exit(main())
