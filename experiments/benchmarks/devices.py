"""Do training, a sweep and nearest neighbour use all cores of the host, for any number of devices?

The same work is run on one device, on eight devices (of the host, each with a share of its cores), and by two processes
with one device each. One device already distributes large products over all cores, so the best possible ratio to one
device on one host is 1. A larger ratio is the cost of dividing the work and of the communication between devices. The
results are compared too: the largest difference from those of one device, relative to the largest entry.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.benchmarks import timing

ROOT = Path(__file__).parents[2]
DEVICES = 8
TARGET = 1.15  # largest accepted ratio to the time of one device
SAME = 1e-4  # largest accepted relative difference of results in float32
SIDE, CHANNELS, EXAMPLES, BATCH, STEPS = 32, 3, 4096, 1024, 100
LANES, NEIGHBOURS, TESTS = 32, 8192, 1024
WORK = ("train", "sweep", "nearest neighbour")


def main(argv: list[str]) -> int:
    parser = timing.arguments("devices", __doc__ or "", rounds=7)
    parser.add_argument("--worker", nargs=2, type=int, metavar=("WHO", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        print(json.dumps(measured(options.rounds, *options.worker)))
        return 0
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    (one_process,) = answers([started(options.rounds, DEVICES, 0, 0)])
    two_processes, _ = answers([started(options.rounds, 1, who, port) for who in (0, 1)])
    timings: list[timing.Timing] = []
    ratios: list[timing.Ratio] = []
    lines, facts = [], {}
    for work in WORK:
        alone, split = (timing.Timing(work, label, tuple(one_process[work][label])) for label in ("one", "all"))
        both = timing.Timing(work, "two processes", tuple(two_processes[work]["all"]))
        contestants = (alone, split._replace(label=f"{DEVICES} devices"), both)
        timings += contestants
        differences = ("", one_process[work]["difference"], two_processes[work]["difference"])
        for other, difference in zip(contestants[1:], differences[1:], strict=True):
            name = f"{work}: {other.label}"
            ratios.append(timing.ratio(f"{name} / one device", other, alone, "<=", TARGET))
            facts[f"{name}, difference"] = float(difference)
        for line, difference in zip(
            timing.race_lines({t.label: t for t in contestants}, "one", 1e3), differences, strict=True
        ):
            lines.append([*line[:-1], f"{difference:.1e}" if difference != "" else ""])
    if not options.json:
        title = f"{os.cpu_count()} cores as one device, as {DEVICES}, and by two processes"
        timing.print_table(title, ["work", "on", "ms", "min ms", "/ one device", "difference"], lines)
        timing.print_ratios(ratios)
    document = timing.document("devices", {"rounds": options.rounds}, timings, ratios, facts)
    timing.write(document, options.out, echo=options.json)
    if wrong := [name for name, difference in facts.items() if not difference <= SAME]:
        print(f"bench devices: answers differ: {', '.join(wrong)}", file=sys.stderr)
    return int(bool(wrong))


def started(rounds: int, devices: int, who: int, port: int) -> subprocess.Popen[str]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-m", "experiments", "bench", "devices", "--rounds", str(rounds)]
    return subprocess.Popen(
        [*command, "--worker", str(who), str(port)], env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def answers(processes: list[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    printed = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise OSError("bench devices: a process failed; its messages are above")
    return [json.loads(text.splitlines()[-1]) for text in printed]


def measured(rounds: int, who: int, port: int) -> dict[str, Any]:
    """Seconds of each piece of work on one device of this process (`one`) and on all (`all`), and how they differ."""
    import jax
    import numpy as np

    if port:
        jax.distributed.initialize(f"localhost:{port}", 2, who)
    mesh = jax.make_mesh((jax.device_count(),), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    found = {}
    for work, make in zip(WORK, (training, sweeping, neighbours), strict=True):
        runs = {"one": make(None), "all": make(mesh)}
        one, everywhere = (np.asarray(run(), float) for run in runs.values())
        difference = float(np.abs(one - everywhere).max() / max(np.abs(one).max(), 1e-30))
        # Two processes synchronize only by their messages, so each piece of work is timed separately.
        timed = {label: timing.race(work, {label: run}, rounds)[label] for label, run in runs.items()} if port else (
            timing.race(work, runs, rounds)
        )  # fmt: skip
        found[work] = {label: t.seconds for label, t in timed.items()} | {"difference": difference}
    return found


def problem() -> tuple[Any, Any, Any]:
    """A linear objective, its data, and a start, in float32."""
    import jax

    import jaxopt_course as jc

    images, labels = jc.data.load("synthetic", image_shape=(SIDE, SIDE, CHANNELS), num_train=EXAMPLES).train
    objective = jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy)
    return objective, (images, labels), jc.scores.init_linear(jax.random.key(0), 10, images.shape[1])


def training(mesh: Any) -> Callable[[], Any]:
    import jax

    import jaxopt_course as jc

    objective, data, params = problem()

    def run() -> Any:
        result = jc.train(
            objective, rule, params, data, key=jax.random.key(1), batch_size=BATCH, num_steps=STEPS, mesh=mesh,
            progress=False,
        )  # fmt: skip
        return result.params["W"]

    rule = jc.adam(1e-3)
    return run


def sweeping(mesh: Any) -> Callable[[], Any]:
    import jax
    import numpy as np

    import jaxopt_course as jc

    objective, data, params = problem()
    rates = np.logspace(-5, -3, LANES)

    def run() -> Any:
        swept = jc.sweep(
            objective, jc.adam, {"learning_rate": rates}, params, data, key=jax.random.key(1), num_seeds=1,
            batch_size=BATCH // 8, num_steps=STEPS, mesh=mesh, progress=False,
        )  # fmt: skip
        return swept.loss("adam")

    return run


def neighbours(mesh: Any) -> Callable[[], Any]:
    """Nearest neighbour; each device has all training images and a share of the test images."""
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    import jaxopt_course as jc

    rng = np.random.default_rng(0)
    images, tests = (rng.integers(0, 256, (n, SIDE * SIDE * CHANNELS), np.uint8) for n in (NEIGHBOURS, TESTS))
    model = jc.nearest_neighbor.train(images, rng.integers(0, 10, NEIGHBOURS))
    if mesh is None:
        return lambda: jc.nearest_neighbor.neighbors(model, tests, k=5)[1]

    split, whole = PartitionSpec("devices"), PartitionSpec()

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=(whole, split), out_specs=split, check_vma=False)
    def shared(model: Any, tests: Any) -> Any:
        return jc.nearest_neighbor.neighbors(model, tests, k=5)[1]

    def place(array: Any, spec: Any) -> Any:
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: array[index])

    placed = jax.tree.map(lambda leaf: place(leaf, whole), model), place(tests, split)
    together = jax.jit(lambda found: found, out_shardings=NamedSharding(mesh, whole))
    return lambda: together(shared(*placed))
