"""How far is a training step from the time of the two necessary matrix products?

Softmax regression on 5,000 synthetic images, batches of 128, 10 classes, float32. Every row is the time per step. The
floor is one compiled loop that gathers a batch and multiplies twice, in the layout W[C, D], measured in the same run.
The second floor includes the loss: its value and gradient, and plain descent, without a trace or a test for finite
numbers. On small images, the second floor dominates a step: about ten small kernels of softmax, half a microsecond each
on a CPU.

Apart from the steps: a call of `train` for one step that is compiled already, and one that compiles.
"""

import argparse
import math
import sys
import tempfile
from functools import partial
from typing import Any, NamedTuple

from experiments.benchmarks import timing

BATCH, CLASSES, EXAMPLES, RATE = 128, 10, 5000, 1e-3
LONG = 5
CALL_LIMIT = 0.02  # most seconds of a call beyond its steps
RULES = ("sgd", "adam")


class Problem(NamedTuple):
    """The data, on the host and on the device, and the order of the examples: `plan[S, B]`."""

    images: Any
    labels: Any
    data: Any
    plan: Any

    @property
    def features(self) -> int:
        return self.images.shape[1]


def main(argv: list[str]) -> int:
    parser = timing.arguments("training", __doc__ or "", rounds=7)
    parser.add_argument("--steps", type=timing.at_least_one, default=1000, help="steps of one sample (%(default)s)")
    parser.add_argument(
        "--sizes",
        type=image_shape,
        nargs="+",
        default=[(8, 8), (28, 28), (32, 32, 3)],
        help="image shapes such as 8x8 or 32x32x3 (8x8 28x28 32x32x3)",
    )
    options = parser.parse_args(argv)
    from experiments.contestants import CONTESTANTS

    peak = matmul_flops(options.rounds)
    timings: list[timing.Timing] = []
    ratios: list[timing.Ratio] = []
    lines: list[list[str]] = []
    for shape in options.sizes:
        problem = load(shape, options.steps)
        flops, moved = cost(problem.features)
        for rule in RULES:
            group = f"{rule} {'x'.join(map(str, shape))}"
            _, make, make_twin = CONTESTANTS[rule]
            assert make_twin is not None  # every rule of ours has one
            ours, twin = make(RATE), make_twin(RATE)
            runs = contestants(problem, rule, ours, twin, options.steps)
            result = timing.race(group, runs, options.rounds, per=options.steps, notes=NOTES)
            steps = LONG * options.steps
            runs = {"saved": saved_run(problem, ours, steps), "not saved": train_run(problem, ours, steps)}
            result |= timing.race(group, runs, options.rounds, per=steps, notes=NOTES)
            timings.extend(result.values())
            ratios.extend(targets(group, result))
            calls = whole_calls(group, problem, make, make_twin, options.rounds)
            timings.extend(t for result in calls for t in result.values())
            ratios.extend(call_targets(group, *calls))
            for line, t in zip(timing.race_lines(result, "floor"), result.values(), strict=True):
                rates = [flops / t.median / 1e9, flops / t.median / peak * 100, moved / t.median / 1e9]
                lines.append([*line[:-1], *map(timing.number, rates), line[-1]])

    if not options.json:
        title = f"Training step, batch {BATCH}; a large matrix product does {peak / 1e9:,.0f} GFLOP/s here"
        columns = ["problem", "contestant", "us", "min us", "/ floor", "GFLOP/s", "% of product", "GB/s", "note"]
        timing.print_table(title, columns, lines)
        timing.print_ratios(ratios)
    shown = {"rounds": options.rounds, "steps": options.steps, "sizes": options.sizes}
    facts = {"matmul_flops_per_second": peak}
    timing.write(timing.document("training", shown, timings, ratios, facts), options.out, echo=options.json)
    return 0


def image_shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(map(int, text.split("x")))
    except ValueError:
        shape = ()
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH or HEIGHTxWIDTHxCHANNELS, got {text!r}")
    return shape


def cost(features: int) -> tuple[int, int]:
    """FLOPs of the two products; bytes of the gather, of two reads of the batch, and of W and its gradient."""
    return 4 * BATCH * CLASSES * features, 4 * (4 * BATCH * features + 4 * CLASSES * features)


def load(shape: tuple[int, ...], steps: int) -> Problem:
    import jax

    import jaxopt_course as jc

    images, labels = jc.data.load("synthetic", image_shape=shape, num_train=EXAMPLES).train
    epochs = math.ceil(steps / (EXAMPLES // BATCH))
    plan = jc.data.minibatches(jax.random.key(0), EXAMPLES, BATCH, epochs).full.reshape(-1, BATCH)[:steps]
    return Problem(images, labels, jax.device_put((images, labels)), plan)


NOTES = {
    "ours": "train: compiled chunks, shuffling, trace",
    "ours, uint8": "the same, images standardised inside the step",
    "ours, streamed": "uint8, at most a fifth of it on the device",
    "saved": "train, a checkpoint every 1,000 steps",
    "not saved": f"train, {LONG} times the steps",
    "optax, same loop": "train with optax's rule",
    "ours, one call": "train_steps over the whole plan, jitted",
    "optax, usual": "Python loop, jitted step, W[D, C], shuffled ahead",
    "torch eager": "nn.Linear, fused",
    "floor": "gather and two products, W[C, D]",
    "floor, loss": "the same with the loss: value, gradient, descent",
}


def contestants(problem: Problem, rule: str, ours: Any, twin: Any, steps: int) -> dict[str, timing.Run | None]:
    return {
        "ours": train_run(problem, ours, steps),
        "ours, uint8": pixels_run(problem, ours, steps, 1.0),
        "ours, streamed": pixels_run(problem, ours, steps, 0.2),
        "optax, same loop": train_run(problem, twin, steps),
        "ours, one call": train_steps_run(problem, ours),
        "optax, usual": optax_run(problem, twin, steps),
        "torch eager": torch_run(problem, rule, steps) if timing.installed("torch") else None,
        "floor": floor_run(problem),
        "floor, loss": loss_run(problem),
    }


def targets(group: str, result: dict[str, timing.Timing]) -> list[timing.Ratio]:
    ours = result["ours"]
    return [
        timing.ratio(f"{group}: ours / floor", ours, result["floor"], "<=", 1.15 if "x3" in group else 1.25),
        timing.ratio(f"{group}: ours / floor with the loss", ours, result["floor, loss"], "<=", 1.25),
        timing.ratio(f"{group}: torch / ours", result["torch eager"], ours, ">=", 3.0),
        timing.ratio(f"{group}: ours / optax in the same loop", ours, result["optax, same loop"], "<=", 1.0),
        timing.ratio(f"{group}: uint8 / float", result["ours, uint8"], ours, "<=", 1.0),
        timing.ratio(f"{group}: saved / not saved", result["saved"], result["not saved"], "<=", 1.02),
    ]


def whole_calls(
    group: str, problem: Problem, make: Any, make_twin: Any, rounds: int
) -> tuple[dict[str, timing.Timing], dict[str, timing.Timing]]:
    """A call for one step that is compiled already, and one with a new optimizer, which compiles."""
    again = {"ours": train_run(problem, make(RATE), 1), "optax, same loop": train_run(problem, make_twin(RATE), 1)}
    anew = {
        "ours": lambda: train_run(problem, make(RATE), 1)(),
        "optax, same loop": lambda: train_run(problem, make_twin(RATE), 1)(),
    }
    return timing.race(f"{group}, call", again, 3 * rounds), timing.race(f"{group}, compile", anew, rounds)


def call_targets(group: str, calls: dict[str, timing.Timing], compiles: dict[str, timing.Timing]) -> list[timing.Ratio]:
    ours, twin = compiles["ours"], compiles["optax, same loop"]
    limit = calls["ours"]._replace(seconds=(CALL_LIMIT,) * len(calls["ours"].seconds))
    return [
        timing.ratio(f"{group}: a call of one step / {CALL_LIMIT * 1e3:g} ms", calls["ours"], limit, "<=", 1.0),
        timing.ratio(f"{group}: compiling, ours / optax in the same loop", ours, twin, "<=", 1.02),
    ]


def train_run(problem: Problem, optimizer: Any, steps: int, score_fn: Any = None, data: Any = None) -> Any:
    """`train` with its arguments; more options may be given at the call."""
    import jax

    import jaxopt_course as jc

    return partial(
        jc.train,
        jc.empirical_risk(score_fn or jc.scores.linear, jc.losses.softmax_cross_entropy),
        optimizer,
        jc.scores.init_linear(jax.random.key(0), CLASSES, problem.features),
        problem.data if data is None else data,
        key=jax.random.key(1),
        batch_size=BATCH,
        num_steps=steps,
        progress=False,
    )


def pixels_run(problem: Problem, optimizer: Any, steps: int, share: float) -> timing.Run:
    """Images as uint8, on the device all at once or a share at a time."""
    import jax
    import numpy as np

    import jaxopt_course as jc

    pixels = np.clip(problem.images * 32 + 128, 0, 255).astype(np.uint8)
    score_fn = jc.scores.standardized(jc.scores.linear, *jc.data.feature_statistics(pixels))
    data = (pixels, problem.labels)
    if share == 1:
        return train_run(problem, optimizer, steps, score_fn, jax.device_put(data))
    limit = int(share * sum(leaf.nbytes for leaf in data))
    return partial(train_run(problem, optimizer, steps, score_fn, data), max_data_bytes=limit)


def saved_run(problem: Problem, optimizer: Any, steps: int) -> timing.Run:
    """Training with a checkpoint every 1,000 steps, in a new folder for each run."""
    run = train_run(problem, optimizer, steps)

    def saved() -> Any:
        with tempfile.TemporaryDirectory() as folder:
            return run(checkpoint_dir=folder, checkpoint_every=1000)

    return saved


def train_steps_run(problem: Problem, optimizer: Any) -> timing.Run:
    import jax

    import jaxopt_course as jc

    objective = jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy)
    params = jc.scores.init_linear(jax.random.key(0), CLASSES, problem.features)

    @jax.jit
    def whole(params: Any, data: Any, plan: Any) -> Any:
        carry = jc.training.init_carry(optimizer, params)
        return jc.training.train_steps(objective, optimizer, carry, data, plan)

    return lambda: whole(params, problem.data, problem.plan)


def optax_run(problem: Problem, optimizer: Any, steps: int) -> timing.Run:
    """A Python loop over slices of arrays that were shuffled before, outside the measured time."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    order = np.random.default_rng(0).permutation(EXAMPLES)
    images, labels = problem.images[order], problem.labels[order]
    start = {"W": jnp.zeros((problem.features, CLASSES)), "b": jnp.zeros(CLASSES)}

    def loss(params: Any, x: Any, y: Any) -> Any:
        logits = x @ params["W"] + params["b"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(params: Any, state: Any, x: Any, y: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, x, y)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    def run() -> Any:
        params, state = start, optimizer.init(start)
        for i in range(steps):
            first = i % (EXAMPLES // BATCH) * BATCH
            params, state, _ = step(params, state, images[first : first + BATCH], labels[first : first + BATCH])
        return params

    return run


def torch_run(problem: Problem, rule: str, steps: int) -> timing.Run:
    """The eager loop from torch's tutorials, with the fused optimizer and batches indexed from one tensor."""
    import jax
    import torch

    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    images = torch.from_numpy(problem.images).to(device)
    labels = torch.from_numpy(problem.labels).long().to(device)
    make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[rule]

    def run() -> None:
        model = torch.nn.Linear(problem.features, CLASSES, device=device)
        optimizer = make(model.parameters(), lr=RATE, fused=True)
        for i in range(steps):
            first = i % (EXAMPLES // BATCH) * BATCH
            if first == 0:
                order = torch.randperm(EXAMPLES, device=device)
            batch = order[first : first + BATCH]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def floor_run(problem: Problem) -> timing.Run:
    """Descent on half the sum of squared scores: a gather, two products, and a subtraction that links the steps."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    @jax.jit
    def loop(W: Any, images: Any, plan: Any) -> Any:
        def step(i: Any, W: Any) -> Any:
            x = images.at[plan[i]].get(mode="clip")
            return W - 1e-6 * (x @ W.T).T @ x

        return lax.fori_loop(0, plan.shape[0], step, W)

    W = jnp.full((CLASSES, problem.features), 0.01)
    return lambda: loop(W, problem.data[0], problem.plan)


def loss_run(problem: Problem) -> timing.Run:
    import jax
    from jax import lax

    import jaxopt_course as jc

    objective = jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy)

    @jax.jit
    def loop(params: Any, data: Any, plan: Any) -> Any:
        def step(i: Any, carry: Any) -> Any:
            params, total = carry
            batch = jax.tree.map(lambda leaf: leaf.at[plan[i]].get(mode="clip"), data)
            value, grads = jax.value_and_grad(objective)(params, batch)
            return jax.tree.map(lambda w, g: w - RATE * g, params, grads), total + value

        return lax.fori_loop(0, plan.shape[0], step, (params, 0.0))

    params = jc.scores.init_linear(jax.random.key(0), CLASSES, problem.features)
    return lambda: loop(params, problem.data, problem.plan)


def matmul_flops(rounds: int) -> float:
    """FLOPs per second of one large float32 matrix product, the best of several."""
    import jax
    import jax.numpy as jnp

    size = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((size, size))
    product = jax.jit(jnp.matmul)
    return 2 * size**3 / timing.race("peak", {"product": lambda: product(a, a)}, rounds)["product"].best


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
