"""`bench NAME`: pass the rest of the command line to that benchmark."""

import argparse
import importlib


def run(args: argparse.Namespace) -> int:
    return importlib.import_module(f"experiments.benchmarks.{args.name}").main(args.rest)
