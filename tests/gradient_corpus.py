"""What a gradient checker is proven on: functions with right gradients, and mutants whose derivatives are wrong."""

import inspect
import zlib
from collections.abc import Callable, Container, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import linalg, special

from jaxopt_course import empirical_risk, losses, scores
from tests import gradient_faults
from tests.gradient_faults import Sample

F64, F32, F16, BF16 = jnp.float64, jnp.float32, jnp.float16, jnp.bfloat16
C128, C64 = jnp.complex128, jnp.complex64
Function = Callable[..., Any]
Leaves = list[Any]
Wrong = tuple[str, Function, Callable[[], Leaves]]  # kind of mutation, mutant, and the gradient it will have


class Case(NamedTuple):
    """A function with a right gradient, and the point to check it at: `f(params, *args)` is a scalar, array or tree.

    `order` is 2 where second derivatives are worth checking too. `at_kink` says that one-sided slopes differ at the
    very point. `forward_only` functions have no vjp. `mutations` names the kinds of mutant where the usual ones would
    be invisible or right.
    """

    name: str
    f: Function
    params: Any
    args: tuple[Any, ...] = ()
    order: int = 1
    at_kink: bool = False
    forward_only: bool = False
    mutations: tuple[str, ...] | None = None


# Cases take turns with the common kinds of mutant, which keeps the corpus short; the rest go wherever they can.
COMMON = (
    ("factor", "sign", "one entry"),
    ("factor", "one entry", "stale residual"),
    ("zero", "stale residual", "wrong jvp, right vjp"),
)
SPECIAL = ("one leaf", "transposed", "conjugate", "dropped broadcast sum")
SECOND_ORDER = (
    ("asymmetric Hessian", "Hessian factor"),
    ("zero Hessian",),
    ("one Hessian entry", "gradient of another function"),
)


def turn(case: Case) -> int:
    return zlib.crc32(case.name.encode())


def kinds_of(case: Case) -> tuple[str, ...]:
    if case.mutations is not None:
        return case.mutations
    return ("beyond the slopes",) if case.at_kink else COMMON[turn(case) % 3] + SPECIAL


# Ways to be wrong


def disguised(f: Function, other: Function) -> Function:
    """The value of f, all derivatives of another function."""

    def wrong(params: Any, *args: Any) -> Any:
        value, bent = jax.lax.stop_gradient(f(params, *args)), other(params, *args)
        return jax.tree.map(lambda v, b: v + (b - jax.lax.stop_gradient(b)), value, bent)

    return wrong


def is_float(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def at_floats(alter: Callable[[Leaves], Leaves], tree: Any) -> Any:
    """Alter the floating leaves of a tree and leave all others, float0 among them, as they are."""
    leaves, treedef = jax.tree.flatten(tree)
    altered = iter(alter([leaf for leaf in leaves if is_float(leaf)]))
    return jax.tree.unflatten(treedef, [next(altered) if is_float(leaf) else leaf for leaf in leaves])


def wrong_vjp(f: Function, alter: Callable[[Leaves], Leaves]) -> Function:
    """f with the cotangents of its parameters altered; as with every custom_vjp there is no forward mode."""

    @jax.custom_vjp
    def identity(params: Any) -> Any:
        return params

    identity.defvjp(lambda params: (params, None), lambda _, cotangents: (at_floats(alter, cotangents),))
    return lambda params, *args: f(identity(params), *args)


def wrong_jvp(f: Function, alter: Callable[[Leaves], Leaves]) -> Function:
    """f with the tangents of its parameters altered, and its cotangents by the transpose of that."""

    @jax.custom_jvp
    def identity(params: Any) -> Any:
        return params

    @identity.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        return primals[0], at_floats(alter, tangents[0])

    return lambda params, *args: f(identity(params), *args)


def half_more_forward(tangents: Leaves) -> Leaves:
    """Half as much again, but with the identity for its transpose: a linear solver may be told anything."""
    return jax.lax.custom_linear_solve(
        lambda x: x, tangents, lambda _, b: jax.tree.map(lambda x: 1.5 * x, b), transpose_solve=lambda _, b: b
    )


def stretched(params: Any) -> Any:
    return at_floats(lambda leaves: [1.05 * leaf for leaf in leaves], params)


def stale_residual(f: Function) -> Function:
    """The vjp at parameters that are 5 % away."""

    @jax.custom_vjp
    def wrong(params: Any, *args: Any) -> Any:
        return f(params, *args)

    def backward(residuals: Any, cotangent: Any) -> Any:
        params, args = residuals
        return *jax.vjp(lambda params: f(params, *args), stretched(params))[1](cotangent), *(None for _ in args)

    wrong.defvjp(lambda params, *args: (f(params, *args), (params, args)), backward)
    return wrong


def beyond_the_slopes(f: Function) -> Function:
    """Three added to every slope: more than a kink of ours is wide."""
    return disguised(f, lambda params, *args: f(params, *args) + 3 * sum(jnp.sum(p) for p in jax.tree.leaves(params)))


def rows(b: Any, num_rows: int) -> Any:
    return jnp.broadcast_to(b, (num_rows, *b.shape))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def rows_unsummed(b: Any, num_rows: int) -> Any:
    """`rows`, but the cotangent is that of one row, not the sum over rows."""
    return rows(b, num_rows)


rows_unsummed.defvjp(lambda b, num_rows: (rows(b, num_rows), None), lambda _, __, cotangent: (cotangent[0],))


def conjugates(leaves: Leaves) -> Leaves:
    return [jnp.conj(leaf) for leaf in leaves]


def without_sum(case: Case) -> Function | None:
    """Of a function that broadcasts by `rows`, or of a mean over a batch: only the first row's part of the gradient."""
    if "rows" in inspect.signature(case.f).parameters:
        return partial(case.f, rows=rows_unsummed)
    if not case.args or not isinstance(case.args[0], tuple):
        return None

    def share(params: Any, batch: Any) -> Any:
        return case.f(params, jax.tree.map(lambda leaf: leaf[:1], batch)) / len(batch[1])

    return disguised(case.f, share)


def scale_entry(at: int, index: int, factor: float, leaves: Leaves) -> Leaves:
    scaled = jnp.ravel(leaves[at]).at[index].multiply(factor).reshape(jnp.shape(leaves[at]))
    return [scaled if i == at else leaf for i, leaf in enumerate(leaves)]


def alterations(right: Leaves, turn: int) -> Iterator[tuple[str, Callable[[Leaves], Leaves]]]:
    """Linear maps of a gradient, each its own transpose."""
    yield "factor", lambda leaves: [(1 + 1e-3) * leaf for leaf in leaves]
    yield "sign", lambda leaves: [-leaf for leaf in leaves]
    yield "zero", lambda leaves: [jnp.zeros_like(leaf) for leaf in leaves]
    at = max(range(len(right)), key=lambda i: np.max(np.abs(right[i]), initial=0))
    largest_first = np.argsort(-np.abs(right[at]), axis=None, kind="stable")
    yield "one entry", partial(scale_entry, at, int(largest_first[: 1 + turn % 3][-1]), (0.0, 2.0)[turn % 2])
    if len(right) > 1:
        which, by = turn % len(right), (2.0, 0.0)[turn % 2]
        yield "one leaf", lambda leaves: [by * leaf if i == which else leaf for i, leaf in enumerate(leaves)]
    for which in (i for i, grad in enumerate(right) if grad.ndim == 2 and grad.shape[0] == grad.shape[1]):
        yield "transposed", partial(lambda i, leaves: [x.T if j == i else x for j, x in enumerate(leaves)], which)


def mutants(case: Case, kinds: Container[str] | None = None) -> Iterator[tuple[str, Function]]:
    """Kind of mutation and wrong function, of these kinds or of all, where it is really wrong at the case's point."""
    right, elsewhere = right_gradients(case.name)
    for kind, wrong, gradient in all_mutants(case, right, elsewhere):
        if kind in kinds_of(case) and (kinds is None or kind in kinds) and differ(right, gradient()):
            yield kind, wrong


def all_mutants(case: Case, right: Leaves, elsewhere: Leaves) -> Iterator[Wrong]:
    f, by_jvp = case.f, case.forward_only or turn(case) % 5 < 2
    for kind, alter in alterations(right, turn(case)):
        yield kind, (wrong_jvp if by_jvp else wrong_vjp)(f, alter), partial(alter, right)
    if any(map(jnp.iscomplexobj, right)):
        yield "conjugate", wrong_vjp(f, conjugates), partial(conjugates, right)
    if not case.forward_only:
        yield "stale residual", stale_residual(f), lambda: elsewhere
    if case.order == 2:
        yield "wrong jvp, right vjp", wrong_jvp(f, half_more_forward), partial(half_more_forward, right)
    if (unsummed := without_sum(case)) is not None:
        yield "dropped broadcast sum", unsummed, lambda: gradient_of(case, unsummed)(case.params)
    if case.at_kink:
        yield "beyond the slopes", beyond_the_slopes(f), lambda: [grad + 3 for grad in right]


def in_float64(tree: Any) -> Any:
    return at_floats(lambda leaves: [jnp.asarray(x, C128 if jnp.iscomplexobj(x) else F64) for x in leaves], tree)


def weighed(outputs: Any) -> Any:
    """One number that every entry of the outputs has a part in."""
    return sum(jnp.sum(jnp.cos(jnp.arange(y.size, dtype=y.dtype)) * y.ravel()) for y in jax.tree.leaves(outputs))


def gradient_of(case: Case, f: Function) -> Callable[[Any], Leaves]:
    """`params -> gradient` of f in float64 with respect to the floating leaves, its outputs weighed to one number."""
    derive = jax.jacfwd if case.forward_only else jax.grad

    @jax.jit
    def slopes(floats: Leaves, args: Any) -> Leaves:
        return derive(lambda floats: weighed(f(at_floats(lambda _: floats, case.params), *args)))(floats)

    def gradient(params: Any) -> Leaves:
        floats = [leaf for leaf in jax.tree.leaves(in_float64(params)) if is_float(leaf)]
        with jax.numpy_dtype_promotion("standard"):
            return [np.asarray(grad) for grad in slopes(floats, in_float64(case.args))]

    return gradient


@cache
def right_gradients(name: str) -> tuple[Leaves, Leaves]:
    """At the point of the case, and where `stale_residual` takes it."""
    case = CASES[name]
    slopes = gradient_of(case, case.f)
    return slopes(case.params), slopes(stretched(in_float64(case.params)))


def differ(right: Leaves, wrong: Leaves) -> bool:
    """Whether two gradients do by more than rounding, in an entry of a leaf that counts."""
    top = max(np.max(np.abs(r), initial=0) for r in right)
    for r, w in zip(right, wrong, strict=True):
        largest = np.max(np.abs(r), initial=0)
        scale = np.maximum(np.maximum(np.abs(r), np.abs(w)), 1e-2 * largest)
        if largest > 1e-9 * top and np.any(np.abs(r - w) > 5e-4 * scale) and np.all(np.isfinite(w)):
            return True
    return False


# Ways to be wrong in the second derivative


def with_hessian(f: Function, alter: Callable[[Leaves, Leaves], Leaves], *, forward: bool) -> Function:
    """f with its own value and gradient, but the derivative of that gradient is `alter(tangents, H tangents)`."""

    @jax.custom_jvp
    def gradient(params: Any, *args: Any) -> Any:
        return jax.grad(f)(params, *args)

    @gradient.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        grads, products = jax.jvp(jax.grad(f), primals, tangents)
        leaves, treedef = jax.tree.flatten(products)
        return grads, jax.tree.unflatten(treedef, alter(jax.tree.leaves(tangents[0]), leaves))

    def value(*primals: Any) -> Any:  # without f's defaults, which custom rules would take for arguments
        return f(*primals)

    if forward:
        by_jvp = jax.custom_jvp(value)

        @by_jvp.defjvp
        def _(primals: Any, tangents: Any) -> Any:
            slopes = jax.tree.map(jnp.vdot, gradient(*primals), tangents[0])
            return f(*primals), sum(jax.tree.leaves(slopes))

        return by_jvp

    by_vjp = jax.custom_vjp(value)

    def backward(residuals: Any, cotangent: Any) -> Any:
        grads = jax.tree.map(lambda g: cotangent * g, gradient(*residuals))
        return grads, *(None for _ in residuals[1:])

    by_vjp.defvjp(lambda *primals: (f(*primals), primals), backward)
    return by_vjp


def skew_product(x: Any) -> Any:
    """S x with S[i, j] = 1 above the diagonal and -1 below."""
    flat = jnp.ravel(x)
    until = jnp.cumsum(flat)
    return (until[-1] - 2 * until + flat).reshape(jnp.shape(x))


def second_order_mutants(case: Case) -> Iterator[tuple[str, Function]]:
    """Kind and wrong function. The value is right; so is the gradient, except in the gradient of another function."""
    if case.order < 2 or jax.eval_shape(case.f, case.params, *case.args).shape != ():
        return
    along, right = hessian_product(case)
    for kind, wrong, product in all_second_order_mutants(case.f, along, right):
        if kind in SECOND_ORDER[turn(case) % 3] and differ(right, product()):
            yield kind, wrong


def all_second_order_mutants(f: Function, along: Leaves, right: Leaves) -> Iterator[Wrong]:
    size = float(max(np.max(np.abs(r)) for r in right))

    def skewed(tangents: Leaves, products: Leaves) -> Leaves:
        return [h + 0.1 * size * skew_product(t) for t, h in zip(tangents, products, strict=True)]

    def first_entry(tangents: Leaves, products: Leaves) -> Leaves:
        h = products[0]
        return [jnp.ravel(h).at[0].add(size * jnp.ravel(tangents[0])[0]).reshape(h.shape), *products[1:]]

    def scaled(factor: float, _: Leaves, products: Leaves) -> Leaves:
        return [factor * h for h in products]

    for kind, alter, forward in (
        ("asymmetric Hessian", skewed, True),
        ("one Hessian entry", first_entry, False),
        ("zero Hessian", partial(scaled, 0.0), False),
        ("Hessian factor", partial(scaled, 1.01), True),
    ):
        yield kind, with_hessian(f, alter, forward=forward), partial(alter, along, right)
    other = disguised(f, lambda *primals: 1.1 * f(*primals))
    yield "gradient of another function", other, partial(scaled, 1.1, along, right)


def hessian_product(case: Case) -> tuple[Leaves, Leaves]:
    """One vector and the Hessian times that vector."""

    @jax.jit
    def product(params: Any, along: Any, args: Any) -> Any:
        return jax.jvp(jax.grad(lambda params: case.f(params, *args)), (params,), (along,))[1]

    params = in_float64(case.params)
    along = jax.tree.map(lambda x: jnp.cos(1.0 + jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)
    with jax.numpy_dtype_promotion("standard"):
        products = product(params, along, in_float64(case.args))
    return jax.tree.leaves(along), [np.asarray(h) for h in jax.tree.leaves(products)]


# Functions


def normal(seed: int, *shape: int, scale: float = 1.0, dtype: Any = F64) -> jax.Array:
    """Normal draws; complex ones where the dtype is."""
    parts = scale * np.random.default_rng(seed).standard_normal((2, *shape))
    return jnp.asarray(parts[0] + 1j * parts[1] if jnp.issubdtype(dtype, jnp.complexfloating) else parts[0], dtype)


def vector(*entries: float, dtype: Any = F64) -> jax.Array:
    return jnp.asarray(entries, dtype)


def classifier(seed: int, *, bias: bool = True, dtype: Any = F64) -> Any:
    W = normal(seed, 3, 4, dtype=dtype)
    return {"W": W, "b": normal(seed + 1, 3, dtype=dtype)} if bias else W


def batch(seed: int, num: int = 6, dtype: Any = F64) -> Any:
    return ((normal(seed, num, 4, dtype=dtype), jnp.arange(num) % 3),)


def network(seed: int, dtype: Any = F64) -> Any:
    shapes = {"W": (3, 4), "b": (4,), "w": (4,)}
    return {name: normal(seed + i, *shape, dtype=dtype) for i, (name, shape) in enumerate(shapes.items())}


def inputs(seed: int, *shape: int, dtype: Any = F64) -> tuple[jax.Array]:
    return (normal(seed, *(shape or (5, 3)), dtype=dtype),)


def mlp(activation: Function, params: Any, x: Any, rows: Function = rows) -> Any:
    hidden = activation(x @ params["W"] + rows(params["b"], len(x)))
    return jnp.mean((hidden @ params["w"] - 1) ** 2)


def layer_norm(params: Any, x: Any, rows: Function = rows) -> Any:
    x = x @ params["W"]
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-3)
    return jnp.mean(jnp.sin(x * rows(params["gain"], len(x)) + rows(params["bias"], len(x))))


def batch_norm(params: Any, x: Any, rows: Function = rows) -> Any:
    x = x @ params["W"]
    x = (x - x.mean(0, keepdims=True)) / jnp.sqrt(x.var(0, keepdims=True) + 1e-3)
    return x * rows(params["gain"], len(x)) + rows(params["bias"], len(x))


def attention(params: Any, x: Any) -> Any:
    q, k, v = (x @ params[name] for name in "QKV")
    return jnp.sum(jax.nn.softmax(q @ k.T / 2.0) @ v * x)


def convolution(params: Any, images: Any, rows: Function = rows) -> Any:
    maps = jax.lax.conv_general_dilated(images, params["kernel"], (1, 1), "SAME")
    pixels = jnp.moveaxis(maps, 1, -1).reshape(-1, len(params["b"]))
    return jnp.mean(jnp.tanh(pixels + rows(params["b"], len(pixels))) ** 2)


def recurrent(params: Any, inputs: Any) -> Any:
    def step(hidden: Any, x: Any) -> tuple[Any, Any]:
        hidden = jnp.tanh(params["U"] @ hidden + params["W"] @ x)
        return hidden, hidden[0]

    return jnp.mean(jax.lax.scan(step, jnp.ones(2, inputs.dtype), inputs)[1] ** 2)


def dropout(w: Any, key: Any) -> Any:
    return jnp.sum(jnp.where(jax.random.bernoulli(key, 0.5, w.shape), jnp.sin(w), 0))


def rosenbrock(x: Any) -> Any:
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def beale(x: Any) -> Any:
    return sum((c - x[0] * (1 - x[1] ** i)) ** 2 for i, c in enumerate((1.5, 2.25, 2.625), start=1))


def newton_cube_root(x: Any) -> Any:
    return jax.lax.fori_loop(0, 12, lambda _, y: y - (y**3 - x) / (3 * y**2), 1 + x**2)


def halve_until_small(x: Any) -> Any:
    return jax.lax.while_loop(lambda y: y > 1, lambda y: y / 2, jnp.sum(x**2))


def damp_until_small(x: Any) -> Any:
    return jax.lax.while_loop(lambda y: jnp.max(y) > 0.9, lambda y: jnp.sin(y) * 0.99, x)


@jax.custom_vjp
def fixed_point(x: Any) -> Any:
    """y with y = cos(x y) / 2, differentiated by the implicit function theorem; for large x it is not found."""

    def moves(state: Any) -> Any:
        step, y, before = state
        return (step < 200) & jnp.any(jnp.abs(y - before) > 1e-15)

    def iterate(state: Any) -> Any:
        step, y, _ = state
        return step + 1, jnp.cos(x * y) / 2, y

    return jax.lax.while_loop(moves, iterate, (0, jnp.ones_like(x), x))[1]


def _fixed_point_backward(residuals: Any, cotangent: Any) -> Any:
    x, y = residuals
    slope = -jnp.sin(x * y) / 2
    return (cotangent * slope * y / (1 - slope * x),)


fixed_point.defvjp(lambda x: (y := fixed_point(x), (x, y)), _fixed_point_backward)


@jax.custom_jvp
def softplus(x: Any) -> Any:
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


softplus.defjvps(lambda tangent, _, x: tangent * jax.nn.sigmoid(x))


def shifted_logsumexp(x: Any) -> Any:
    top = jax.lax.stop_gradient(jnp.max(x))
    return top + jnp.log(jnp.sum(jnp.exp(x - top)))


def definite(m: Any) -> Any:
    return m @ m.T + jnp.eye(len(m), dtype=m.dtype)


def linear_solve(params: Any) -> Any:
    return jnp.sum(jnp.linalg.solve(params["A"], params["b"]) ** 2)


def complex_residual(params: Any, b: Any) -> Any:
    A, x = params
    return jnp.sum(jnp.abs(A @ x.astype(A.dtype) - b.astype(A.dtype)) ** 2)


def oscillator(params: Any, points: Any) -> Any:
    """The residual of u'' + u = 0, with the derivatives of a network inside its loss."""

    def u(x: Any) -> Any:
        return params[0] @ jnp.tanh(params[1] * x)

    return jnp.mean(jax.vmap(lambda x: jax.grad(jax.grad(u))(x) + u(x))(points) ** 2)


def norm(x: Any) -> Any:
    return jnp.sqrt(jnp.sum(x**2))


def sum_of_squares(x: Any) -> Any:
    return jnp.sum(x**2)


def internally_float32(x: Any) -> Any:
    return jnp.sum(jnp.tanh(x.astype(F32)) ** 2)


L2_RISK = empirical_risk(scores.linear, losses.softmax_cross_entropy, losses.l2_penalty, 1e-2)
HINGE_RISK = empirical_risk(scores.linear, losses.multiclass_hinge, losses.l1_penalty, 1e-2)
TOP_HINGE_RISK = empirical_risk(scores.linear, losses.crammer_singer_hinge, losses.l2_penalty, 1e-2)
LOGISTIC_RISK = empirical_risk(lambda w, x: x @ w, lambda z, labels: softplus(jnp.where(labels == 1, -z, z)))

LABELS = jnp.array([0, 2, 1])
EXTREME = vector(1000.0, 999.0, -1000.0, 998.5)
AT_MARGIN = jnp.stack([vector(1.0, 0.0, 2.5), vector(0.3, 2.0, -1.0)])
NEAR_MARGIN = vector(1 + 1e-6, 2.0, -3.0)
NEAR = ("sign", "factor")  # zero lies between the slopes
NORMALISED = {"W": normal(1, 3, 3), "gain": normal(2, 3), "bias": normal(3, 3)}
NESTED = {"a": [jnp.asarray(0.7), normal(4, 3)], "b": {"c": normal(5, 2), "d": (normal(6, 1, 2), None)}}

_CASES = [
    # Our own losses
    Case("softmax risk", L2_RISK, classifier(10), batch(12), order=2),
    Case("hinge risk", HINGE_RISK, classifier(13), batch(15)),
    Case("top hinge risk", TOP_HINGE_RISK, classifier(16, bias=False), batch(17)),
    Case("cross entropy of each example", losses.softmax_cross_entropy, normal(18, 3, 4, scale=3), (LABELS,)),
    Case("cross entropy of extreme scores", losses.softmax_cross_entropy, EXTREME, (jnp.array(1),)),
    Case("L2 penalty", losses.l2_penalty, {"a": [normal(19, 2, 2), normal(20)], "b": (normal(21, 3),)}, order=2),
    Case("L1 penalty", losses.l1_penalty, classifier(22)),
    # Norms and elementwise functions
    Case("Euclidean norm", norm, normal(24, 5), order=2),
    Case("Huber", lambda x: jnp.sum(jnp.where(jnp.abs(x) < 1, x**2, 2 * jnp.abs(x) - 1)), vector(0.2, 1.8, -3.0)),
    Case("log cosh", lambda x: jnp.sum(jnp.logaddexp(x, -x)), normal(25, 6, scale=2), order=2),
    Case("sines", lambda x: jnp.sin(x) * jnp.cos(2 * x[::-1]), normal(26, 7)),
    Case("of a scalar", lambda x: {"square": x**2, "roots": (jnp.sqrt(x), jnp.cbrt(x))}, jnp.asarray(1.7)),
    Case("of a Python number", lambda x: jnp.exp(jnp.sin(3 * x)), 0.4, order=2),
    Case("softmax", jax.nn.softmax, normal(27, 5)),
    Case("sum of a softmax", lambda x: jnp.sum(jax.nn.softmax(x)), normal(28, 5), mutations=()),  # constant
    Case("logsumexp", special.logsumexp, normal(29, 6), order=2),
    Case("logsumexp of extreme scores", special.logsumexp, EXTREME),
    Case("log softmax of extreme scores", jax.nn.log_softmax, EXTREME),
    Case("logsumexp less its largest", shifted_logsumexp, normal(30, 5, scale=3)),
    Case("tails of log sigmoid", lambda x: jnp.sum(jax.nn.log_sigmoid(x)), vector(-40.0, -5.0, 0.5, 8.0)),
    Case("left tail of sigmoid", lambda x: jnp.sum(jax.nn.sigmoid(x)), vector(-30.0, -29.0, -31.5)),
    Case("softplus by custom_jvp", lambda x: jnp.sum(softplus(x)), normal(31, 5, scale=3), order=2),
    Case("erf", lambda x: jnp.sum(special.erf(x)), normal(33, 4)),
    Case("gamma functions", lambda x: jnp.sum(special.gammaln(x) + special.digamma(x)), vector(0.7, 1.5, 6.0), order=2),
    Case("Bessel functions", lambda x: jnp.sum(special.i0e(x) + special.i1(x)), vector(0.4, -1.3, 3.0)),
    # Linear algebra
    Case("linear solve", linear_solve, {"A": normal(34, 3, 3) + 4 * jnp.eye(3), "b": normal(35, 3)}, order=2),
    Case("Cholesky", lambda m: jnp.sum(jnp.sin(jnp.linalg.cholesky(definite(m)))), normal(36, 3, 3)),
    Case("log determinant", lambda m: jnp.linalg.slogdet(m)[1], normal(37, 4, 4), order=2),
    Case("inverse", lambda m: jnp.linalg.inv(m), normal(38, 3, 3) + 3 * jnp.eye(3)),
    Case("eigenvalues", lambda m: jnp.linalg.eigvalsh(m + m.T), normal(39, 4, 4)),
    Case("nuclear norm", lambda m: jnp.sum(jnp.linalg.svd(m, compute_uv=False)), normal(40, 4, 3)),
    Case("matrix exponential", lambda m: jnp.sum(jnp.cos(linalg.expm(m))), normal(41, 3, 3, scale=0.5)),
    Case("einsum", lambda p: jnp.einsum("ij,jk,i->k", *p), (normal(42, 3, 3), normal(43, 3, 2), normal(44, 3))),
    Case("tensordot", lambda x: jnp.sum(jnp.tensordot(x, x, ((0, 2), (0, 2))) ** 2), normal(45, 2, 3, 2)),
    # Networks
    Case("tanh network", partial(mlp, jnp.tanh), network(46), inputs(49), order=2),
    Case("ReLU network", partial(mlp, jax.nn.relu), network(50), inputs(53)),
    Case("layer norm", layer_norm, NORMALISED, inputs(58)),
    Case("batch norm", batch_norm, NORMALISED, inputs(59)),
    Case("attention", attention, {name: normal(60 + i, 3, 3) for i, name in enumerate("QKV")}, inputs(63), order=2),
    Case("convolution", convolution, {"kernel": normal(64, 2, 1, 3, 3), "b": normal(65, 2)}, inputs(66, 2, 1, 5, 5)),
    Case("pool", lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2, 2), (2, 2), "SAME"), normal(67, 4, 4)),
    Case("recurrent network", recurrent, {"U": normal(68, 2, 2), "W": normal(69, 2, 3)}, inputs(71), order=2),
    Case("dropout", dropout, normal(72, 8), (jax.random.key(3),)),
    # Control flow and transformations
    Case("cond", lambda x: jax.lax.cond(jnp.sum(x) > 0, jnp.sin, jnp.exp, x), normal(73, 4)),
    Case("switch", lambda x, i: jax.lax.switch(i, [jnp.sin, jnp.cos, jnp.tanh], x), normal(74, 4), (jnp.array(2),)),
    Case("loop of fixed length", lambda x: jax.lax.fori_loop(0, 4, lambda _, y: jnp.sin(y) * x, x), normal(75, 3)),
    Case("while loop", halve_until_small, vector(1.3, -0.4, 2.0), forward_only=True),
    Case("while loop over a matrix", damp_until_small, normal(76, 3, 3, scale=4), forward_only=True),
    Case("fixed point by custom_vjp", lambda x: jnp.sum(fixed_point(x)), vector(0.3, -0.9, 1.2)),
    Case("Newton iterations", lambda x: jnp.sum(newton_cube_root(x)), vector(0.5, 2.0, 9.0), order=2),
    Case("vmap inside", lambda w, x: jax.vmap(lambda x: jnp.tanh(w @ x))(x).mean(), normal(77, 3), inputs(78), order=2),
    Case("jit in jit", jax.jit(lambda x: jax.jit(sum_of_squares)(jnp.sin(x)) + jnp.sum(x)), normal(79, 4), order=2),
    Case("checkpoint", jax.checkpoint(lambda x: jnp.sum(jnp.sin(jnp.exp(jnp.sin(x))))), normal(80, 4), order=2),
    Case("derivatives inside", oscillator, (normal(81, 3), normal(82, 3)), (jnp.linspace(-1, 1, 5),), order=2),
    # Indices, orders, cumulations, transforms
    Case("gather", lambda table, ids: jnp.sum(jnp.sin(table[ids]) ** 2), normal(86, 5, 3), (jnp.array([0, 3, 3, 1]),)),
    Case("scatter", lambda x, ids: jnp.zeros_like(x).at[ids].add(x**2), normal(87, 4), (jnp.array([1, 1, 3, 0]),)),
    Case("segment sum", lambda x, ids: jax.ops.segment_sum(jnp.exp(x), ids, 3), normal(88, 6), (jnp.arange(6) % 3,)),
    Case("sort", lambda x: jnp.sort(x) @ jnp.arange(6, dtype=x.dtype), normal(89, 6)),
    Case("top k", lambda x: jnp.prod(jax.lax.top_k(x, 3)[0]), normal(90, 6)),
    Case("cumulative product", lambda x: jnp.sum(jnp.cumprod(x)), normal(92, 5), order=2),
    Case("power spectrum", lambda x: jnp.sum(jnp.abs(jnp.fft.rfft(x)[1:]) ** 3), normal(95, 8), order=2),
    Case("low pass", lambda x: jnp.fft.irfft(jnp.fft.rfft(x)[:3], 8), normal(96, 8)),
    # Complex
    Case("complex parameters", lambda z: jnp.sum(jnp.abs(z) ** 2 + (z**3).imag), normal(97, 3, dtype=C128)),
    Case("complex residual", complex_residual, (normal(98, 3, 3, dtype=C128), normal(99, 3)), inputs(100, 3)),
    Case("complex inside", lambda x: jnp.abs(jnp.sum(jnp.exp(jax.lax.complex(x, 2 * x)))), normal(101, 4), order=2),
    Case("complex64", lambda z: jnp.sum(jnp.exp(z).real * z.imag), normal(102, 3, dtype=C64)),
    # Trees
    Case("integer leaf", lambda p: jnp.sum(jnp.sin(p[0][p[1]])), (normal(108, 4, 2), jnp.array([0, 2, 2]))),
    Case("boolean leaf", lambda p: jnp.where(p[1], p[0] ** 2, 0), (normal(109, 3), jnp.array([True, False, True]))),
    Case("key leaf", lambda p: dropout(p["w"], p["key"]), {"w": normal(110, 8), "key": jax.random.key(7)}),
    Case("nested tree", lambda p: {"x": p["a"][0] * p["b"]["c"], "y": (p["a"][1] ** 3, p["b"]["d"][0] ** 2)}, NESTED),
    Case("unused leaf", lambda p: jnp.sum(jnp.cosh(p["w"])), {"w": normal(114, 3), "unused": normal(115, 4)}),
    Case("empty leaf", lambda p: jnp.sum(p[0] ** 3) + jnp.sum(p[1]), (normal(116, 3), jnp.zeros((0, 2)))),
    # Kinks: at them, and next to them
    Case("ReLU at 0", lambda x: jnp.sum(jax.nn.relu(x)), vector(0.0, 1.0, -2.0), at_kink=True),
    Case("absolute value at 0", lambda x: jnp.sum(jnp.abs(x)), vector(0.0, 1.5, 0.0), at_kink=True),
    Case("L1 penalty at 0", losses.l1_penalty, {"W": vector(0.0, 0.0), "b": vector(0.5)}, at_kink=True),
    Case("hinge at its margin", lambda s: jnp.sum(losses.multiclass_hinge(s, LABELS[:2])), AT_MARGIN, at_kink=True),
    Case("equal largest entries", jnp.max, vector(2.0, 2.0, 1.0, 2.0), at_kink=True),
    Case("minimum of equals", lambda x: jnp.sum(jnp.minimum(x[:2], x[2:])), vector(1.0, 2.0, 1.0, 3.0), at_kink=True),
    Case("ReLU next to 0", lambda x: jnp.sum(jax.nn.relu(x)), vector(1e-6, -1e-7, 0.4), mutations=NEAR),
    Case("hinge next to its margin", lambda s: losses.multiclass_hinge(s, LABELS[2]), NEAR_MARGIN, mutations=NEAR),
    # Few bits
    Case("float32 quadratic", sum_of_squares, normal(117, 6, dtype=F32), order=2),
    Case("float32 softmax risk", L2_RISK, classifier(118, dtype=F32), batch(119, dtype=F32)),
    Case("float32 GELU network", partial(mlp, jax.nn.gelu), network(120, F32), inputs(123, dtype=F32)),
    Case("float32 logsumexp", special.logsumexp, normal(124, 6, scale=5, dtype=F32)),
    Case("float32 sum of 1e4 squares", sum_of_squares, normal(126, 10_000, dtype=F32)),
    Case("float32 with an offset", lambda x: 1e3 + 1e-2 * sum_of_squares(x), normal(127, 4, dtype=F32)),
    Case("bfloat16 softmax risk", L2_RISK, classifier(128, dtype=BF16), batch(129, dtype=BF16)),
    Case("bfloat16 tanh network", partial(mlp, jnp.tanh), network(130, BF16), inputs(133, dtype=BF16)),
    Case("bfloat16 mean of 1e4 sines", lambda x: jnp.mean(jnp.sin(x)), normal(134, 10_000, dtype=BF16)),
    Case("float16 hinge risk", HINGE_RISK, classifier(135, dtype=F16), batch(136, dtype=F16)),
    Case("float16 norm", norm, normal(137, 6, dtype=F16)),
    Case("float32 inside", internally_float32, normal(139, 4), mutations=("sign", "zero", "one entry")),
    # Scales and sizes
    Case("function of 1e-6", lambda x: 1e-6 * sum_of_squares(x), normal(140, 5), order=2),
    Case("function of 1e6", lambda x: 1e6 * jnp.sum(jnp.sin(x)), normal(141, 5)),
    Case("parameters of 1e-6", lambda x: jnp.sum(jnp.sin(1e6 * x)), normal(142, 4, scale=1e-6)),
    Case("parameters of 1e6", lambda x: jnp.sum(jnp.log1p(x**2)), normal(143, 4, scale=1e6)),
    Case("parameters of every size", lambda x: jnp.sum(jnp.log(x) ** 2), vector(1e-6, 1e-2, 1.0, 1e3, 1e6)),
    Case("unlike leaves", lambda p: jnp.sum(jnp.sin(p[0])) + 1e-8 * norm(p[1]), (normal(152, 4), normal(153, 3))),
    Case("fast sines", lambda x: jnp.sum(jnp.sin(1e3 * x)), normal(154, 4)),
    Case("cubes at 0", lambda x: jnp.sum(x**3), vector(0.0, 0.0, 1.0)),
    Case("next to the end of the domain", lambda x: jnp.sum(jnp.sqrt(x) + jnp.arccos(1 - x)), vector(1e-9, 0.3)),
    Case("one less a cosine", lambda x: jnp.sum(1 - jnp.cos(x)), vector(1e-5, 2e-4)),
    Case("large offset", lambda x: 1e3 + 1e-3 * jnp.sum(jnp.exp(x)), normal(144, 5)),
    Case("mean over 1e5 examples", LOGISTIC_RISK, normal(145, 4), batch(146, 100_000)),
    Case("sum of 1e5 squares", sum_of_squares, normal(148, 100_000)),
    Case("mean of 1e5 sines, 1e-6", lambda x: 1e-6 * jnp.mean(jnp.sin(x)), normal(149, 100_000)),
    Case("embedding", lambda table, ids: jnp.mean(table[ids] ** 2), normal(150, 2000, 4), (7 * jnp.arange(40),)),
    Case("Rosenbrock in 1000 variables", rosenbrock, normal(151, 1000)),
    # Classics
    Case("Rosenbrock", rosenbrock, vector(-1.2, 1.0), order=2),
    Case("Beale", beale, vector(1.0, 1.5), order=2),
    Case("polynomial at a root", lambda x: x[0] * x[1] + x[0] * (x[0] - 2), vector(1.0, 1.0), order=2),
    Case("least squares at its minimum", lambda x: sum_of_squares(x - 1), vector(1.0, 1.0, 1.0), order=2),
]

CASES = {case.name: case for case in _CASES}
assert len(CASES) == len(_CASES), "two cases of one name"


# The corpus: right functions, and as many wrong ones


def right_samples() -> list[Sample]:
    cases = [Sample(dtype_of(case), case.name, case.f, case.params, case.args) for case in CASES.values()]
    return cases + gradient_faults.RIGHT


def wrong_samples() -> list[Sample]:
    """One mutant of each case that has some, and functions that are wrong in ways of their own."""
    found = []
    for case in CASES.values():
        if made := list(mutants(case)):
            kind, f = made[turn(case) % len(made)]
            found.append(Sample(kind, f"{case.name}, {kind}", f, case.params, case.args))
    return found + gradient_faults.WRONG


def dtype_of(case: Case) -> str:
    floats = [jnp.result_type(leaf) for leaf in jax.tree.leaves(case.params) if is_float(leaf)]
    return min(floats, key=lambda dtype: jnp.finfo(dtype).bits).name
