"""What does one update cost? Every first-order rule against optax and torch: run time, compile time, memory traffic.

Three trees of float32 parameters: one leaf of 32M, the 161 leaves of ResNet-50, and a linear classifier, for which 1000
updates run in one call. Updates are short compared with compiling and get three times as many rounds. The traffic
column is the number of bytes that the rule must move (gradients read; parameters and state read and written) divided by
its time, as a fraction of the rate of a copy of 32M numbers in the same run. The linear classifier stays in cache and
exceeds 100 %.
"""

import sys
from collections.abc import Callable
from typing import Any

from experiments.benchmarks import timing

RATE = 1e-3
LARGE = 32 * 2**20
TREES = ("leaf", "resnet50", "linear")
UPDATES_A_CALL = {"leaf": 1, "resnet50": 1, "linear": 1000}
RECONSTRUCTIONS = ("adagrad", "adam_uncorrected")  # optax has no such rule; the twin is built from parts of optax
RECONSTRUCTION = "optax: a reconstruction"


def main(argv: list[str]) -> int:
    parser = timing.arguments("updates", __doc__ or "", rounds=7)
    parser.add_argument("--rules", nargs="+", metavar="RULE", help="names in experiments.contestants (all)")
    parser.add_argument("--trees", nargs="+", choices=TREES, default=TREES, help="(all)")
    options = parser.parse_args(argv)

    import jax

    from experiments.contestants import CONTESTANTS

    rules = options.rules or list(CONTESTANTS)
    if unknown := set(rules) - set(CONTESTANTS):
        parser.error(f"unknown rules {sorted(unknown)}; there are {', '.join(CONTESTANTS)}")

    bandwidth = copy_bandwidth(options.rounds)
    timings: list[timing.Timing] = []
    ratios: list[timing.Ratio] = []
    lines: list[list[str]] = []
    for tree in options.trees:
        shapes = shapes_of(tree)
        for rule in rules:
            _, ours, twin = CONTESTANTS[rule]
            assert twin is not None  # every rule of ours has one
            makers = {"ours": ours, "optax": twin}
            note = RECONSTRUCTION if rule in RECONSTRUCTIONS else ""
            compiles = timing.race(f"{rule}, {tree}, compile", compile_runs(makers, shapes), options.rounds)
            runs = update_runs(makers, rule, shapes, UPDATES_A_CALL[tree])
            speeds = timing.race(
                f"{rule}, {tree}, update",
                runs,
                3 * options.rounds,
                per=UPDATES_A_CALL[tree],
                notes={"optax": note} if note else None,
            )
            traffic = bytes_moved(makers["ours"], shapes) / speeds["ours"].median / bandwidth
            timings += [*speeds.values(), *compiles.values()]
            measured = (("update", speeds, 1.02), ("compile", compiles, 0.5 if tree == "resnet50" else 1.02))
            pair = [
                timing.ratio(f"{rule}, {tree}, {what}: ours / optax", result["ours"], result["optax"], "<=", target)
                for what, result, target in measured
            ]
            ratios += pair
            lines.append(line(tree, rule, speeds, compiles, pair, traffic, note))
            del runs
            jax.clear_caches()

    if not options.json:
        title = f"One update; a copy of {LARGE:,} numbers moves {bandwidth / 1e9:.1f} GB/s here"
        columns = ["tree", "rule", "ours us", "optax us", "/ optax", "torch us"]
        columns += ["compile ms", "optax ms", "/ optax", "% of copy", "note"]
        timing.print_table(title, columns, lines)
        timing.print_ratios(ratios)
    shown = {"rounds": options.rounds, "rules": rules, "trees": list(options.trees)}
    facts = {"copy_bytes_per_second": bandwidth}
    timing.write(timing.document("updates", shown, timings, ratios, facts), options.out, echo=options.json)
    return 0


def line(
    tree: str,
    rule: str,
    speeds: dict[str, timing.Timing],
    compiles: dict[str, timing.Timing],
    ratios: list[timing.Ratio],
    traffic: float,
    note: str,
) -> list[str]:
    torch = speeds.get("torch")
    return [
        tree,
        rule,
        timing.number(speeds["ours"].median * 1e6),
        timing.number(speeds["optax"].median * 1e6),
        timing.number(ratios[0].value, 3),
        "" if torch is None else torch.note or timing.number(torch.median * 1e6),
        timing.number(compiles["ours"].median * 1e3),
        timing.number(compiles["optax"].median * 1e3),
        timing.number(ratios[1].value, 3),
        timing.number(traffic * 100, 0),
        note,
    ]


def shapes_of(tree: str) -> dict[str, tuple[int, ...]]:
    if tree == "linear":
        return {"W": (10, 3072), "b": (10,)}
    return resnet50() if tree == "resnet50" else {"w": (LARGE,)}


def resnet50() -> dict[str, tuple[int, ...]]:
    """The 161 parameters of ResNet-50, 25,557,032 numbers: 53 convolutions, 53 batch norms, one linear layer."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv_and_norm(name: str, kernel: int, inputs: int, outputs: int) -> None:
        shapes[f"{name}.conv"] = (kernel, kernel, inputs, outputs)
        shapes[f"{name}.scale"] = shapes[f"{name}.bias"] = (outputs,)

    conv_and_norm("stem", 7, 3, 64)
    inputs = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            name = f"stage{stage}.block{block}"
            conv_and_norm(f"{name}.reduce", 1, inputs, width)
            conv_and_norm(f"{name}.spatial", 3, width, width)
            conv_and_norm(f"{name}.expand", 1, width, 4 * width)
            if block == 0:
                conv_and_norm(f"{name}.shortcut", 1, inputs, 4 * width)
            inputs = 4 * width
    return shapes | {"fc.W": (inputs, 1000), "fc.b": (1000,)}


def copy_bandwidth(rounds: int) -> float:
    """Bytes per second of reading and writing 32M float32 numbers, in place or not, whichever is faster."""
    import jax
    import jax.numpy as jnp

    def scale(x: Any) -> Any:
        return x * 1.0000001

    x = jnp.ones(LARGE)
    jitted, donating = jax.jit(scale), jax.jit(scale, donate_argnums=0)
    held = [jnp.ones(LARGE)]

    def in_place() -> Any:
        held[0] = donating(held[0])
        return held[0]

    result = timing.race("copy", {"out of place": lambda: jitted(x), "in place": in_place}, rounds)
    return 2 * 4 * LARGE / min(t.median for t in result.values())


def bytes_moved(make: Callable[[Any], Any], shapes: dict[str, tuple[int, ...]]) -> int:
    """Bytes: gradients are read; parameters and state are read and written."""
    import jax

    params = abstract(shapes)
    state = jax.eval_shape(make(RATE).init, params)
    sizes = [sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) for tree in (params, state)]
    return 3 * sizes[0] + 2 * sizes[1]


def abstract(shapes: dict[str, tuple[int, ...]]) -> Any:
    import jax
    import jax.numpy as jnp

    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


def update_once(optimizer: Any) -> Callable[[Any, Any, Any], Any]:
    """A new function `(params, state, grads) -> (params, state)` at every call."""
    import optax

    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return update


def update_often(optimizer: Any, times: int) -> Callable[[Any, Any, Any], Any]:
    """Many updates in one call; gradients are scaled in every update, or XLA would square them once in advance."""
    import jax
    from jax import lax

    update = update_once(optimizer)

    def updates(params: Any, state: Any, grads: Any) -> Any:
        def body(i: Any, carry: Any) -> Any:
            scale = 1 + i.astype(float) / times
            params, state = carry
            return update(params, state, jax.tree.map(lambda g: g * scale, grads))

        return lax.fori_loop(0, times, body, (params, state))

    return updates


def compile_runs(
    makers: dict[str, Callable[[Any], Any]], shapes: dict[str, tuple[int, ...]]
) -> dict[str, timing.Run | None]:
    import jax

    params = abstract(shapes)

    def compiling(make: Callable[[Any], Any]) -> timing.Run:
        state = jax.eval_shape(make(RATE).init, params)
        return timing.compiling(lambda: update_once(make(RATE)), params, state, params, donate_argnums=(0, 1))

    return {label: compiling(make) for label, make in makers.items()}


def update_runs(
    makers: dict[str, Callable[[Any], Any]], rule: str, shapes: dict[str, tuple[int, ...]], times: int
) -> dict[str, timing.Run | None]:
    import numpy as np

    rng = np.random.default_rng(0)
    grads = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    runs: dict[str, timing.Run | None] = {label: jax_run(make(RATE), grads, times) for label, make in makers.items()}
    if not timing.installed("torch"):
        return runs | {"torch": None}
    return runs | torch_runs(rule, grads, times)


def jax_run(optimizer: Any, grads: dict[str, Any], times: int) -> timing.Run:
    """Each run continues from the end of the previous one, because parameters and state are donated."""
    import jax
    import jax.numpy as jnp

    device_grads = jax.tree.map(jnp.asarray, grads)
    params = jax.tree.map(jnp.ones_like, device_grads)
    update = update_once(optimizer) if times == 1 else update_often(optimizer, times)
    jitted = jax.jit(update, donate_argnums=(0, 1))
    held = [(params, optimizer.init(params))]

    def run() -> Any:
        held[0] = jitted(*held[0], device_grads)
        return held[0]

    return run


def torch_runs(rule: str, grads: dict[str, Any], times: int) -> dict[str, timing.Run | None]:
    """torch's rule with the fused kernel, or foreach if there is none; empty if torch has no such rule."""
    import jax
    import torch

    makers: dict[str, Callable[[Any], Any]] = {
        "sgd": lambda p: torch.optim.SGD(p, RATE, fused=True),
        "momentum": lambda p: torch.optim.SGD(p, RATE, momentum=0.9, fused=True),
        "nesterov": lambda p: torch.optim.SGD(p, RATE, momentum=0.9, nesterov=True, fused=True),
        "adagrad": lambda p: torch.optim.Adagrad(p, RATE, eps=1e-7, **adagrad_kernel),
        "rmsprop": lambda p: torch.optim.RMSprop(p, RATE, alpha=0.99, eps=1e-7, foreach=True),
        "adam": lambda p: torch.optim.Adam(p, RATE, eps=1e-7, fused=True),
    }
    if rule not in makers:
        return {}
    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    adagrad_kernel = {"fused": True} if device == "cpu" else {"foreach": True}
    params = [torch.ones(grad.shape, device=device, requires_grad=True) for grad in grads.values()]
    for param, grad in zip(params, grads.values(), strict=True):
        param.grad = torch.from_numpy(grad).to(device)
    optimizer = makers[rule](params)

    def run() -> None:
        for _ in range(times):
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return {"torch": run}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
