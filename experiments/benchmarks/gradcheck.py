"""What does checking a gradient cost? `gradcheck` against torch's, and against the time of the necessary evaluations.

Softmax regression with W[10, 784] on one batch of 64, in float64: every one of the 7,840 entries (dense), random
directions (directional), and only `numerical_gradient` (numerical). The floor is one compiled loop that only evaluates
f, at 64 points in parallel: at 15,680 points, as central differences do, and at 7,840. Then (localisation) a gradient
of a million float32 numbers of which one or ten are wrong: seconds from a new function to the report that names exactly
these entries, including tracing and compiling.
"""

import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from experiments.benchmarks import timing

BATCH, CLASSES, IMAGE = 64, 10, (28, 28)
COORDINATES = CLASSES * math.prod(IMAGE)
SIDE_BY_SIDE = 64
CENTRAL, FORWARD = f"floor, {2 * COORDINATES:,}", f"floor, {COORDINATES:,}"
SIDE = 1000  # of the million numbers
LIMIT = 5.0  # seconds


class Problem(NamedTuple):
    """`W[C, D]`, and images[B, D] with their labels; on the host, with floats in float64."""

    W: Any
    images: Any
    labels: Any


class Outcome(NamedTuple):
    title: str
    timings: dict[str, timing.Timing]
    ratios: list[timing.Ratio]
    reference: str  # the contestant that the others are divided by
    evaluations: dict[str, int]  # of f, by the contestants that count them


def main(argv: list[str]) -> int:
    parser = timing.arguments("gradcheck", __doc__ or "", rounds=7)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="(all)")
    options = parser.parse_args(argv)

    import jax

    outcomes = {}
    with jax.enable_x64(True):
        for part in options.only:
            outcomes[part] = PARTS[part](options.rounds)
            jax.clear_caches()

    ratios = [ratio for outcome in outcomes.values() for ratio in outcome.ratios]
    if not options.json:
        for outcome in outcomes.values():
            columns = ["problem", "contestant", "ms", "min ms", f"/ {outcome.reference}", "note"]
            timing.print_table(outcome.title, columns, timing.race_lines(outcome.timings, outcome.reference, scale=1e3))
        timing.print_ratios(ratios)
    timings = [t for outcome in outcomes.values() for t in outcome.timings.values()]
    facts: dict[str, float] = {
        f"evaluations: {part}, {label}": count
        for part, outcome in outcomes.items()
        for label, count in outcome.evaluations.items()
    }
    if timing.installed("torch"):
        import torch

        facts["torch_threads"] = torch.get_num_threads()
    shown = {"rounds": options.rounds, "only": options.only}
    timing.write(timing.document("gradcheck", shown, timings, ratios, facts), options.out, echo=options.json)
    return 0


def dense(rounds: int) -> Outcome:
    problem = load()
    runs, evaluations = check_runs(problem, "dense")
    runs |= {
        "torch": torch_run(problem, fast_mode=False) if timing.installed("torch") else None,
        CENTRAL: floor_run(problem, 2 * COORDINATES),
        FORWARD: floor_run(problem, COORDINATES),
    }
    notes = {CENTRAL: "evaluations in a compiled loop", FORWARD: "the same", "torch": "its slow mode"}
    result = race("dense", runs, rounds, evaluations, notes)
    ratios = [timing.ratio(f"dense: torch / {ours}", result["torch"], result[ours], ">=", 5.0) for ours in evaluations]
    return Outcome(f"All {COORDINATES:,} entries, float64", result, ratios, CENTRAL, evaluations)


def directional(rounds: int) -> Outcome:
    problem = load()
    runs, evaluations = check_runs(problem, "directional")
    fast = "torch fast_mode"
    runs[fast] = torch_run(problem, fast_mode=True) if timing.installed("torch") else None
    result = race("directional", runs, rounds, evaluations, {})
    ratios = [
        timing.ratio(f"directional: {ours} / {fast}", result[ours], result[fast], "<=", 3.0) for ours in evaluations
    ]
    return Outcome("Random directions, float64", result, ratios, "ours", evaluations)


def localisation(rounds: int) -> Outcome:
    """Each contestant is another function; the one without errors shows the additional cost of the search."""
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.standard_normal((SIDE, SIDE), dtype=np.float32)
    W = x / np.float32(math.sqrt(SIDE))
    inputs = rng.standard_normal((32, SIDE), dtype=np.float32)
    ten = [divmod(int(place), SIDE) for place in rng.choice(SIDE**2, 10, replace=False)]
    one = ten[:1]
    checks: dict[str, tuple[Callable[..., Any], list[tuple[int, int]], tuple[Any, ...]]] = {
        "sines": (sines, [], (x,)),
        "sines, 1 wrong": (sines, one, (x,)),
        "sines, 10 wrong": (sines, ten, (x,)),
        "linear layer, 1 wrong": (linear_layer, one, (W, inputs)),
    }
    evaluations: dict[str, int] = {}

    def run(label: str) -> Any:
        import jaxopt_course as jc

        make, planted, args = checks[label]
        report = jc.gradcheck(make(planted), *args)
        if sorted(entry.index for entry in report.wrong) != sorted(planted) or report.ok is bool(planted):
            raise ValueError(f"{label}: planted at {planted}, but the report says\n{report}")
        evaluations[label] = report.evaluations
        return report

    notes = {
        label: f"; 2k log2(n/k) = {2 * len(planted) * math.log2(SIDE**2 / len(planted)):.0f}"
        for label, (_, planted, _) in checks.items()
        if planted
    }
    result = race("localisation", {label: partial(run, label) for label in checks}, rounds, evaluations, notes)
    limit = timing.Timing("localisation", "limit", (LIMIT,) * rounds)
    ratios = [
        timing.ratio(f"localisation: {label}, seconds / {LIMIT:g}", result[label], limit, "<=", 1.0)
        for label in checks
        if label.endswith(", 1 wrong")
    ]
    title = f"Wrong entries among {SIDE**2:,}, float32, compile included; every report names exactly these"
    return Outcome(title, result, ratios, "sines", evaluations)


def numerical(rounds: int) -> Outcome:
    import jax

    import jaxopt_course as jc

    problem = load()
    batch, W = jax.device_put((problem.images, problem.labels)), jax.device_put(problem.W)
    f = objective()

    def loss(W: Any) -> Any:
        return f(W, batch)

    runs: dict[str, timing.Run | None] = {
        "ours": lambda: jc.numerical_gradient(loss, W),
        CENTRAL: floor_run(problem, 2 * COORDINATES),
        FORWARD: floor_run(problem, COORDINATES),
    }
    notes = {"ours": "central", CENTRAL: "evaluations in a compiled loop", FORWARD: "the same"}
    result = race("numerical", runs, rounds, {}, notes)
    return Outcome(f"numerical_gradient of {COORDINATES:,} coordinates, float64", result, [], CENTRAL, {})


PARTS: dict[str, Callable[[int], Outcome]] = {
    "dense": dense,
    "directional": directional,
    "localisation": localisation,
    "numerical": numerical,
}


def race(
    group: str, runs: Mapping[str, timing.Run | None], rounds: int, evaluations: dict[str, int], notes: dict[str, str]
) -> dict[str, timing.Timing]:
    """`timing.race`, with the numbers of evaluations of f, which are known only after the race, in the notes."""
    result = timing.race(group, runs, rounds, notes={label: note for label, note in notes.items() if runs[label]})
    return {
        label: t._replace(note=f"{evaluations[label]:,} evaluations{t.note}") if label in evaluations else t
        for label, t in result.items()
    }


def load() -> Problem:
    import numpy as np

    import jaxopt_course as jc

    images, labels = jc.data.load("synthetic", image_shape=IMAGE, num_train=BATCH).train
    W = 0.01 * np.random.default_rng(0).standard_normal((CLASSES, images.shape[1]))
    return Problem(W, images.astype(np.float64), labels)


def objective() -> Callable[..., Any]:
    """A new function at every call, which has not been compiled yet."""
    import jaxopt_course as jc

    return jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy)


def check_runs(problem: Problem, mode: str) -> tuple[dict[str, timing.Run | None], dict[str, int]]:
    """One jitted f for all checks, as for a function that is checked on many batches; and a new f for each check."""
    import jax

    import jaxopt_course as jc

    batch, W = jax.device_put((problem.images, problem.labels)), jax.device_put(problem.W)
    kept = jax.jit(objective())
    evaluations = {"ours": 0, "ours, with compile": 0}

    def run(label: str, make: Callable[[], Any]) -> timing.Run:
        def check() -> Any:
            report = jc.gradcheck(make(), W, batch, mode=mode).raise_if_failed()
            evaluations[label] = report.evaluations
            return report

        return check

    makers: dict[str, Callable[[], Any]] = {"ours": lambda: kept, "ours, with compile": lambda: jax.jit(objective())}
    return {label: run(label, make) for label, make in makers.items()}, evaluations


def torch_run(problem: Problem, *, fast_mode: bool) -> timing.Run:
    import jax
    import torch

    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    images, labels = torch.from_numpy(problem.images).to(device), torch.from_numpy(problem.labels).long().to(device)
    W = torch.from_numpy(problem.W).to(device).requires_grad_()

    def loss(W: Any) -> Any:
        return torch.nn.functional.cross_entropy(images @ W.T, labels)

    ours, theirs = float(objective()(problem.W, (problem.images, problem.labels))), float(loss(W.detach()))
    if not math.isclose(ours, theirs, rel_tol=1e-12):
        raise ValueError(f"not the same function: {ours} and torch's {theirs}")
    return lambda: torch.autograd.gradcheck(loss, (W,), fast_mode=fast_mode)


def floor_run(problem: Problem, evaluations: int) -> timing.Run:
    """Evaluate only f, each time at another point; the number of points is rounded up to whole chunks."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    batch, W = jax.device_put((problem.images, problem.labels)), jax.device_put(problem.W)
    f = objective()

    @jax.jit
    def loop(W: Any, batch: Any) -> Any:
        def chunk(i: Any, total: Any) -> Any:
            shifts = 1e-9 * (i * SIDE_BY_SIDE + jnp.arange(SIDE_BY_SIDE))
            return total + jax.vmap(lambda shift: f(W + shift, batch))(shifts).sum()

        return lax.fori_loop(0, -(-evaluations // SIDE_BY_SIDE), chunk, jnp.zeros(()))

    return lambda: loop(W, batch)


def sines(wrong: list[tuple[int, int]]) -> Callable[[Any], Any]:
    """The sum of sin(x), with a gradient that is zero at the given wrong places."""
    import jax
    import jax.numpy as jnp

    @jax.custom_vjp
    def f(x: Any) -> Any:
        return jnp.sum(jnp.sin(x))

    f.defvjp(lambda x: (f(x), x), lambda x, g: (zeroed(g * jnp.cos(x), wrong),))
    return f


def linear_layer(wrong: list[tuple[int, int]]) -> Callable[[Any, Any], Any]:
    """The mean of tanh(x W^T)^2, with a layer that omits some weights from its gradient."""
    import jax
    import jax.numpy as jnp

    @jax.custom_vjp
    def layer(W: Any, x: Any) -> Any:
        return x @ W.T

    def backward(kept: Any, g: Any) -> Any:
        W, x = kept
        return zeroed(g.T @ x, wrong), g @ W

    layer.defvjp(lambda W, x: (layer(W, x), (W, x)), backward)
    return lambda W, x: jnp.mean(jnp.tanh(layer(W, x)) ** 2)


def zeroed(gradient: Any, places: list[tuple[int, int]]) -> Any:
    for i, j in places:
        gradient = gradient.at[i, j].set(0.0)
    return gradient


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
