"""How much time does a sweep save compared with successive runs, and how much memory does it take?

21 learning rates with 5 seeds for each of 7 rules, 30 epochs, including compilation: as one `jc.sweep`; as a Python
loop around a jitted step of optax, made in each run, or made for each rule and rate and shared by its seeds; and as
`jc.train`, run after run. The whole sweep is timed. For the other ways, one rate of each rule with all its seeds is
timed, another rate in each round. Every time is divided by the number of runs. Floor: only the matrix products of the
runs, at the rate that large products reach on this machine.

Memory is that of a process of its own: the peak while 1,000 lanes train, a block at a time, beside what the process
took after its first block, so that the compiler's own memory is not counted. A lane is what XLA says that one takes.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmarks import timing

SEEDS, HIDDEN = 5, 128
MIB = 2**20
STATUS = Path("/proc/self/status")  # Linux


class Problem(NamedTuple):
    """An objective with its start, and the operations of one step's matrix products."""

    name: str
    objective: Callable[..., Any]
    init: Callable[..., Any]
    products: float


def main(argv: list[str]) -> int:
    parser = timing.arguments("sweeps", __doc__ or "", rounds=3)
    parser.add_argument("--rates", type=timing.at_least_one, default=21, help="learning rates (%(default)s)")
    parser.add_argument("--epochs", type=timing.at_least_one, default=30, help="(%(default)s)")
    parser.add_argument("--batch-size", type=timing.at_least_one, default=128, help="(%(default)s)")
    parser.add_argument("--memory", action="store_true", help="print the bytes that 1,000 lanes take, and do no more")
    options = parser.parse_args(argv)
    if options.memory:
        print(*peak_bytes())
        return 0
    timings: list[timing.Timing] = []
    ratios: list[timing.Ratio] = []
    lines: list[list[str]] = []
    for problem in problems(options.batch_size):
        result = raced(problem, options)
        timings.extend(result.values())
        ratios.append(timing.ratio(f"{problem.name}: loop / sweep", result["loop"], result["sweep"], ">=", 20))
        ratios.append(timing.ratio(f"{problem.name}: train / sweep", result["train"], result["sweep"], ">=", 10))
        lines.extend(timing.race_lines(result, "sweep", 1e3))
    facts: dict[str, float] = {}
    if STATUS.exists():
        taken, facts = memory()
        ratios.append(taken)
    if not options.json:
        title = f"{options.rates} rates x {SEEDS} seeds x 7 rules, {options.epochs} epochs, batch {options.batch_size}"
        timing.print_table(title, ["problem", "way", "ms a run", "min ms", "/ sweep", "note"], lines)
        timing.print_ratios(ratios)
        print(
            "memory:",
            ", ".join(f"{name.removesuffix('_bytes')} {value / MIB:,.1f} MiB" for name, value in facts.items()),
        )
    shown = {name: getattr(options, name) for name in ("rounds", "rates", "epochs", "batch_size")}
    timing.write(timing.document("sweeps", shown, timings, ratios, facts), options.out, echo=options.json)
    return 0


def problems(batch_size: int) -> list[Problem]:
    import jax
    import jax.numpy as jnp

    import jaxopt_course as jc

    def scores(params: Any, inputs: Any) -> Any:
        return jc.scores.linear(params["out"], jnp.tanh(jc.scores.linear(params["in"], inputs)))

    def init(key: Any) -> Any:
        keys = jax.random.split(key)
        return {"in": jc.scores.init_linear(keys[0], HIDDEN, 64), "out": jc.scores.init_linear(keys[1], 10, HIDDEN)}

    cross_entropy = jc.losses.softmax_cross_entropy
    return [
        Problem(
            "softmax on 8x8",
            jc.empirical_risk(jc.scores.linear, cross_entropy),
            lambda key: jc.scores.init_linear(key, 10, 64),
            4 * batch_size * 64 * 10,
        ),
        Problem(
            f"MLP 64-{HIDDEN}-10",
            jc.empirical_risk(scores, cross_entropy),
            init,
            batch_size * HIDDEN * (4 * 64 + 6 * 10),
        ),
    ]


def raced(problem: Problem, options: Any) -> dict[str, timing.Timing]:
    """Seconds per run, for the sweep and for successive runs."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import jaxopt_course as jc
    from experiments.contestants import CONTESTANTS

    data = jax.tree.map(jnp.asarray, jc.data.load("digits").train)
    rates = np.logspace(-4, 0, options.rates)
    length = {"batch_size": options.batch_size, "num_epochs": options.epochs}
    runs_of_a_round = SEEDS * len(CONTESTANTS)
    round_of = dict.fromkeys(("loop", "loop, shared", "train"), 0)

    def next_rate(way: str) -> float:
        round_of[way] += 1
        return float(rates[round_of[way] % len(rates)]) * (1 + 1e-6 * round_of[way])  # never compiled before

    def sweep() -> Any:
        factories = {name: (lambda learning_rate, make=c.make: make(learning_rate)) for name, c in CONTESTANTS.items()}
        grid = {"learning_rate": rates}
        return jc.sweep(
            problem.objective, factories, grid, problem.init, data, key=jax.random.key(0), num_seeds=SEEDS, **length
        ).loss("adam")  # fmt: skip

    def train() -> Any:
        rate, ends = next_rate("train"), []
        for contestant in CONTESTANTS.values():
            optimizer = contestant.make(rate)
            for key in jax.random.split(jax.random.key(1), SEEDS):
                start = problem.init(key)
                run = jc.train(problem.objective, optimizer, start, data, key=key, progress=False, **length)
                ends.append(problem.objective(run.params, data))
        return ends

    def loop(shared: bool) -> Any:
        rate, keys = next_rate("loop, shared" if shared else "loop"), jax.random.split(jax.random.key(1), SEEDS)
        groups = [keys] if shared else keys[:, None]
        return [
            problem.objective(params, data)
            for contestant in CONTESTANTS.values()
            for group in groups
            for params in loop_of_steps(problem, twin_of(contestant)(rate), data, group, options)
        ]

    floor = problem.products * options.epochs * (len(data[0]) // options.batch_size) / product_rate()
    ways = {"sweep": sweep, "loop": lambda: loop(False), "loop, shared": lambda: loop(True), "train": train}
    runs = dict.fromkeys(ways, runs_of_a_round) | {"sweep": options.rates * runs_of_a_round}
    result = timing.race(problem.name, ways, options.rounds, per=runs)
    note = "matrix products alone, no compile"
    return result | {"floor": timing.Timing(problem.name, "floor", (floor,) * options.rounds, note)}


def twin_of(contestant: Any) -> Callable[..., Any]:
    """The optax factory of the same rule; all of our rules have one."""
    assert contestant.twin is not None
    return contestant.twin


def loop_of_steps(problem: Problem, optimizer: Any, data: Any, keys: Any, options: Any) -> list[Any]:
    """Final parameters of each seed, by a Python loop around one jitted step as in optax's documentation."""
    import jax
    import optax

    import jaxopt_course as jc

    @jax.jit
    def step(params: Any, state: Any, row: Any) -> Any:
        batch = jax.tree.map(lambda leaf: leaf[row], data)
        value, grads = jax.value_and_grad(problem.objective)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    ends = []
    for key in keys:
        plan = jc.data.minibatches(key, len(data[0]), options.batch_size, options.epochs)
        params = problem.init(key)
        state = optimizer.init(params)
        for row in jax.device_get(plan.full.reshape(-1, options.batch_size)):
            params, state, _ = step(params, state, row)
        ends.append(params)
    return ends


def product_rate() -> float:
    """Operations per second of a large matrix product."""
    import jax
    import jax.numpy as jnp

    a = jnp.ones((1024, 1024))
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    return 2 * 1024**3 / min(timing.stopwatch(lambda: product(a)) for _ in range(10))


LANES, POINTS = 100, 200  # lanes at once, and points for each of 5 seeds


def memory() -> tuple[timing.Ratio, dict[str, float]]:
    """Peak memory of 1,000 lanes, divided by the expected memory of their blocks and the data."""
    command = [sys.executable, "-m", "experiments", "bench", "sweeps", "--memory"]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc gives freed arrays back to the system
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    peak, lane, data = map(float, done.stdout.split())
    value = peak / (LANES * lane + data)
    facts = {"peak_bytes": peak, "lane_bytes": lane, "data_bytes": data}
    return timing.Ratio("memory of 1,000 lanes", value, "<=", 1.3, value, value, value), facts


def peak_bytes() -> tuple[float, float, float]:
    """Bytes: the peak while 1,000 lanes train, relative to the process after one block; one lane; the data."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import jaxopt_course as jc
    from jaxopt_course.sweeps import lanes as engine
    from jaxopt_course.sweeps.methods import weakly_typed

    data = jax.tree.map(jnp.asarray, jc.data.load("digits").train)
    wide = 1024

    def scores(params: Any, inputs: Any) -> Any:
        return jnp.tanh(inputs @ params["A"]) @ params["B"]

    def init(key: Any) -> Any:
        return {"A": jax.random.normal(key, (64, wide)) / 8, "B": jnp.zeros((wide, 10))}

    objective = jc.empirical_risk(scores, jc.losses.softmax_cross_entropy)

    def sweep(points: int, lanes: int) -> None:
        jc.sweep(
            objective, jc.adam, {"learning_rate": np.logspace(-4, 0, points)}, init, data, key=jax.random.key(0),
            num_seeds=5, batch_size=64, num_steps=20, lanes=lanes,
        )  # fmt: skip

    sweep(POINTS // 10, LANES)  # one block: compiles everything
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    sweep(POINTS, LANES)
    peak = resident("VmHWM") - before
    start = jax.tree.map(lambda leaf: leaf[None], init(jax.random.key(0)))
    point, layout = {"learning_rate": weakly_typed(np.array([0.1]))}, engine.Layout()
    carry = engine.begin(jc.adam, point, start, layout=layout)
    plan = jc.data.minibatches(jax.random.key(0), len(data[0]), 64, 1).full.reshape(1, -1, 64)
    compiled = engine.advance.lower(
        (objective, jc.adam), point, carry, data, plan, np.int32(0), np.int32(20), has_aux=False, layout=layout
    ).compile()
    sizes: Any = compiled.memory_analysis()
    shared = sum(leaf.nbytes for leaf in jax.tree.leaves(data))
    lane = sizes.temp_size_in_bytes + sizes.argument_size_in_bytes - shared
    return peak, lane, shared


def resident(which: str) -> float:
    """Memory of this process in bytes: `VmRSS` is the current value, `VmHWM` the peak so far."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    return 1024 * float(lines[which].split()[0])
