"""Functions that gradient checks have judged wrongly, and others of their kinds: right gradients, and wrong ones.

A right one is told to be wrong, or cannot be told, because of a scale, an offset, a value that is not finite, or the
noise of the function or of its gradient. A wrong one passes because something larger, coarser or unrelated hides it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy import special

Function = Callable[..., Any]
F64, F32, BF16 = jnp.float64, jnp.float32, jnp.bfloat16


class Sample(NamedTuple):
    """A function and a point; `kind` is what makes it hard."""

    kind: str
    name: str
    f: Function
    params: Any
    args: tuple[Any, ...] = ()


def with_gradient(f: Function, gradient: Callable[[Any, Any], Any]) -> Function:
    """f with a reverse mode of one's own: `gradient(x, cotangent)`."""
    g = jax.custom_vjp(lambda x: f(x))  # without f's defaults, which would be taken for arguments
    g.defvjp(lambda x: (f(x), x), lambda x, c: (gradient(x, c),))
    return g


def by_other(f: Function, other: Function) -> Function:
    """f with the reverse mode of another function."""
    return with_gradient(f, lambda x, c: jax.vjp(other, x)[1](c)[0])


def altered(f: Function, alter: Callable[[Any], Any]) -> Function:
    """f with its gradient altered."""
    return with_gradient(f, lambda x, c: alter(jax.vjp(f, x)[1](c)[0]))


def scaled_at(index: Any, factor: float) -> Callable[[Any], Any]:
    return lambda g: g.at[index].multiply(jnp.asarray(factor, g.dtype))


def x(*entries: float, dtype: Any = F64) -> jax.Array:
    return jnp.asarray(entries, dtype)


def line(n: int, dtype: Any = F64) -> jax.Array:
    return jnp.linspace(0.1, 1.0, n).astype(dtype)


def matrix(n: int, dtype: Any = F64) -> jax.Array:
    return (
        (jnp.cos(jnp.arange(n * n, dtype=F64) * 1.7) + 0.3 * jnp.sin(jnp.arange(n * n, dtype=F64)))
        .reshape(n, n)
        .astype(dtype)
    )


def cubes(x: Any) -> Any:
    return jnp.sum(x**3)


def sines(x: Any) -> Any:
    return jnp.sum(jnp.sin(x))


def log_likelihood(p: Any) -> Any:
    return -jnp.sum(jnp.log(p))


def flat_beside_steep(v: Any) -> Any:
    return v[0] ** 2 + 1e-9 * v[1]


def offset(w: Any) -> Any:
    return jnp.sin(w[1]) + w[0] / 1e8


def in_float32(f: Function) -> Function:
    return lambda x: f(x.astype(F32))


def rippled(frequency: float) -> Function:
    return lambda w: jnp.sin(w) + jnp.sin(frequency * w) / frequency


def steep(w: Any) -> Any:
    return jnp.sum(jnp.tanh(1e8 * (w - 1)))


def masked_loss(z: Any) -> Any:
    return -jax.nn.log_softmax(z)[0]


def gaussian_process(log_scale: Any) -> Any:
    """Negative log-likelihood of a Gaussian process with jitter 1e-4."""
    t = jnp.linspace(0, 1, 8).astype(log_scale.dtype)
    K = jnp.exp(-(((t[:, None] - t[None]) / jnp.exp(log_scale[0])) ** 2)) * jnp.exp(log_scale[1])
    L = jnp.linalg.cholesky(K + 1e-4 * jnp.eye(8, dtype=K.dtype))
    alpha = jax.scipy.linalg.solve_triangular(L, jnp.sin(5 * t), lower=True)
    return 0.5 * alpha @ alpha + jnp.sum(jnp.log(jnp.diag(L)))


def log_determinant(W: Any) -> Any:
    return jnp.linalg.slogdet(W @ W.T + 1e-5 * jnp.eye(len(W), dtype=W.dtype))[1]


def layer_norm(x: Any, mean: Function = jnp.mean, var: Function = jnp.var) -> Any:
    return jnp.sum(jnp.cos(0.5 + (x - mean(x)) / jnp.sqrt(var(x) + 1e-3)))


def detached(f: Function) -> Function:
    return lambda x: jax.lax.stop_gradient(f(x))


def clipped(x: Any) -> Any:
    return jnp.sum(jnp.clip(x, 0, 1) ** 2)


def cross_entropy(z: Any) -> Any:
    return jax.nn.logsumexp(z) - z[0]


def mean_of_tree(p: Any) -> Any:
    return jnp.mean(jnp.tanh(p["W"] @ line(3, p["W"].dtype) + p["b"]) ** 2)


TREE = {"W": matrix(3), "b": x(0.1, -0.2, 0.3)}

RIGHT = [
    # The unit of an entry
    Sample("scale", "offset of 1e8 beside a sine", offset, x(1e8, 0.3)),
    Sample("scale", "offset of -1e12 beside a sine", lambda w: jnp.sin(w[1]) + w[0] / 1e12, x(-1e12, 0.3)),
    Sample("scale", "sine at 1e8", sines, x(1e8, 3e7)),
    Sample("scale", "cosine at 1e6", lambda w: jnp.cos(w), x(1e6)),
    Sample("scale", "tanh(1e8 (w - 1)) at 1", steep, x(1.0)),
    Sample("scale", "logistic of width 1e-7", lambda w: jax.nn.sigmoid((w - 2) * 1e7), x(2.0)),
    Sample("scale", "flat beside steep", flat_beside_steep, x(1.0, 1e9)),
    Sample("scale", "likelihood of small probabilities", log_likelihood, x(1e-9, 0.5, 0.5)),
    Sample("scale", "entries of 1e-12 and 1", sines, x(1e-12, 1.0)),
    Sample("scale", "logarithm at 1e-200", lambda w: jnp.log(w), x(1e-200, 1e200)),
    Sample("scale", "norm of 1e-170", lambda w: jnp.linalg.norm(w * 1e170), x(3e-170, 4e-170)),
    Sample("scale", "entropy with small entries", lambda p: -jnp.sum(p * jnp.log(p)), x(1e-8, 0.3, 0.7)),
    Sample(
        "scale", "Rosenbrock in other units", lambda w: 100 * (w[1] / 1e9 - (w[0] / 1e3) ** 2) ** 2, x(-1200.0, 1e9)
    ),
    Sample("scale", "quadratic of 1e-20", lambda w: 1e-20 * jnp.sum((w - 3) ** 2), x(1.0, 2.0)),
    Sample("scale", "zeros", lambda w: jnp.sum(jnp.exp(w) * jnp.arange(1.0, 4.0)), x(0.0, 0.0, 0.0)),
    Sample("scale", "a zero beside 1e8", lambda w: jnp.sin(w[0]) + w[1] * 1e-8, x(0.0, 1e8)),
    Sample("scale", "at a minimum of height 7", lambda w: 7 + jnp.sum((w - 1) ** 2), x(1.0, 1.0)),
    # Oscillations
    Sample("ripples", "w^2 with ripples of 1e-6", lambda w: w**2 + jnp.sin(1e6 * w) / 1e6, x(1.0)),
    Sample("ripples", "sine with ripples of 1e-9", rippled(1e9), x(1.0)),
    Sample("ripples", "sine with ripples of 1e-4", rippled(1e4), x(1.0)),
    Sample("ripples", "sine with ripples of 2^-20", rippled(2.0**20), x(0.7)),
    # What is not finite and does not matter
    Sample("not finite", "masked logits", masked_loss, x(1.0, 2.0, -jnp.inf, 0.5)),
    Sample("not finite", "mean without NaN", lambda z: jnp.nanmean(z**2), x(1.0, 2.0, jnp.nan, 0.5)),
    Sample("not finite", "largest without NaN", lambda z: jnp.nanmax(z) ** 2, x(1.0, 2.5, jnp.nan)),
    Sample("not finite", "bounds of infinity", lambda b: jnp.sum(jnp.clip(line(3), b[0], b[1]) ** 2), x(0.2, jnp.inf)),
    Sample("not finite", "power at the end of its domain", lambda z: jnp.sum(z**1.5), x(0.0, 1.0, 2.0)),
    # Noise of the function or its gradient
    Sample("noise", "tail of erfinv", special.erfinv, x(0.999999, 0.5, -0.99)),
    Sample("noise", "farther tail of erfinv", lambda z: jnp.sum(special.erfinv(z)), x(0.9999999)),
    Sample("noise", "normal quantiles", lambda z: jnp.sum(special.ndtri(z)), x(1e-10, 1e-3, 0.9999)),
    Sample("noise", "log-gamma of large numbers", lambda z: jnp.sum(special.gammaln(z)), x(1e5, 30.0)),
    Sample("noise", "log of a sum of exponentials less itself", lambda z: jnp.sum(jnp.expm1(z) / z), x(1e-6, 0.3)),
    Sample("noise", "large constant", lambda z: 1e6 + sines(z), line(5)),
    Sample("noise", "Gaussian process", gaussian_process, x(-1.0, 0.3)),
    Sample("noise", "log determinant near singular", log_determinant, matrix(4)),
    Sample(
        "noise",
        "Hilbert matrix",
        lambda b: jnp.linalg.solve(1 / (jnp.arange(5.0)[:, None] + jnp.arange(1.0, 6.0)[None]), b),
        line(5),
    ),
    # float32
    Sample("float32", "float32 leaf of 1e-24", lambda w: sines(w * 1e24), x(1e-24, 2e-24, dtype=F32)),
    Sample("float32", "float32 leaf of 1e-30", lambda w: jnp.sum(w), x(1e-30, 2e-30, dtype=F32)),
    Sample("float32", "float32 leaf of 1e20", lambda w: jnp.sum(jnp.log(w)), x(1e20, 2e20, dtype=F32)),
    Sample("float32", "float32 leaf of 1e30", lambda w: jnp.linalg.norm(w / 1e30), x(3e30, 4e30, dtype=F32)),
    Sample("float32", "float32 Gaussian process", gaussian_process, x(-1.0, 0.3, dtype=F32)),
    Sample("float32", "float32 Gaussian process from 0", gaussian_process, x(0.0, 0.0, dtype=F32)),
    Sample("float32", "insists on a float32 Gaussian process", in_float32(gaussian_process), x(-2.0, 0.3)),
    Sample("float32", "float32 log determinant", log_determinant, matrix(4, F32)),
    Sample("float32", "float32 tail of erfinv", lambda z: jnp.sum(special.erfinv(z)), x(0.9999, 0.999999, dtype=F32)),
    Sample("float32", "float32 cross entropy", cross_entropy, x(4.0, 0.0, -5.0, 1.0, dtype=F32)),
    Sample("float32", "insists on float32, 300", in_float32(lambda x: jnp.sum(jnp.tanh(x) ** 2)), line(300)),
    Sample("float32", "insists on float32, 5", in_float32(sines), line(5)),
    Sample("float32", "float32 masked logits", masked_loss, x(1.0, 2.0, -jnp.inf, 0.5, dtype=F32)),
    Sample("float32", "float32 layer norm", layer_norm, line(9, F32)),
    Sample("float32", "float32 offset", offset, x(1e8, 0.3, dtype=F32)),
    Sample("bfloat16", "bfloat16 cubes", cubes, line(6, BF16)),
    Sample("bfloat16", "bfloat16 cross entropy", cross_entropy, x(1.0, 0.0, -1.0, dtype=BF16)),
    Sample("bfloat16", "bfloat16 likelihood", log_likelihood, x(0.1, 0.5, 0.4, dtype=BF16)),
    Sample("bfloat16", "bfloat16 clip", clipped, x(-0.5, 0.25, 0.75, 2.0, dtype=BF16)),
]


def zeroed_second(g: Any) -> Any:
    return g.at[1].set(0)


WRONG = [
    # Cotangents
    Sample("cotangent", "ignores it", with_gradient(cubes, lambda x, c: 3 * x**2), x(1.0, 2.0, 0.5)),
    Sample("cotangent", "float32 ignores it", with_gradient(cubes, lambda x, c: 3 * x**2), x(1.0, 2.0, dtype=F32)),
    Sample("cotangent", "bfloat16 ignores it", with_gradient(cubes, lambda x, c: 3 * x**2), x(1.0, 2.0, dtype=BF16)),
    Sample("cotangent", "its absolute value", with_gradient(sines, lambda x, c: jnp.abs(c) * jnp.cos(x)), line(4)),
    Sample("cotangent", "its square", with_gradient(sines, lambda x, c: c**2 * jnp.cos(x)), line(4)),
    Sample("cotangent", "its sign", with_gradient(sines, lambda x, c: jnp.sign(c) * jnp.cos(x)), line(4)),
    Sample("cotangent", "clipped to 0", with_gradient(sines, lambda x, c: jnp.maximum(c, 0) * jnp.cos(x)), line(4)),
    Sample(
        "cotangent",
        "of one entry",
        with_gradient(sines, lambda x, c: (c * jnp.cos(x)).at[2].set(jnp.cos(x[2]))),
        line(4),
    ),
    Sample(
        "cotangent",
        "of each output, ignored",
        with_gradient(jnp.sin, lambda x, c: jnp.where(c != 0, jnp.cos(x), 0)),
        line(4),
    ),
    Sample(
        "cotangent",
        "only the largest",
        with_gradient(
            lambda x: matrix(3) @ x, lambda x, c: matrix(3).T @ jnp.where(jnp.abs(c) == jnp.max(jnp.abs(c)), c, 0)
        ),
        line(3),
    ),
    # Hidden by larger entries
    Sample(
        "hidden", "two signs beside 1e9", altered(log_likelihood, lambda g: g * x(1.0, -1.0, -1.0)), x(1e-9, 0.5, 0.5)
    ),
    Sample("hidden", "zero for a flat entry", altered(flat_beside_steep, zeroed_second), x(1.0, 1e9)),
    Sample(
        "hidden",
        "sign of 1e-9 of the largest",
        altered(lambda v: v @ x(1.0, 1e-9, 2.0), scaled_at(1, -1.0)),
        x(1.0, 1.0, 1.0),
    ),
    Sample(
        "hidden",
        "factor on 1e-6 of the largest",
        altered(lambda v: sines(v * x(1.0, 1e-6, 2.0)), scaled_at(1, 1.01)),
        line(3),
    ),
    Sample("hidden", "zero for 1e-12 of the largest", altered(lambda v: v @ x(1.0, 1e-12), zeroed_second), x(1.0, 1.0)),
    Sample(
        "hidden",
        "float32 sign of 1e-6",
        altered(lambda v: v @ jnp.asarray([1.0, 1e-6], F32), scaled_at(1, -1.0)),
        x(1.0, 1.0, dtype=F32),
    ),
    Sample(
        "hidden",
        "3e-6 in one of 1,100",
        altered(lambda x: jnp.sum(jnp.exp(2 * x) + x), scaled_at(7, 1 + 3e-6)),
        line(1100),
    ),
    Sample(
        "hidden",
        "1e-4 in one of 2,000",
        altered(lambda x: jnp.sum(jnp.exp(2 * x) + x), scaled_at(7, 1 + 1e-4)),
        line(2000),
    ),
    Sample("hidden", "1e-5 in one of 300", altered(sines, scaled_at(100, 1 + 1e-5)), line(300)),
    Sample("hidden", "beside an offset", altered(offset, scaled_at(1, -1.0)), x(1e8, 0.3)),
    Sample("hidden", "the offset itself", altered(offset, scaled_at(0, 2.0)), x(1e8, 0.3)),
    Sample(
        "hidden", "small probability", altered(lambda p: -jnp.sum(p * jnp.log(p)), scaled_at(0, 0.9)), x(1e-8, 0.3, 0.7)
    ),
    Sample(
        "hidden",
        "float32 leaf of 1e20",
        altered(lambda w: jnp.sum(jnp.log(w)), scaled_at(0, -1.0)),
        x(1e20, 2e20, dtype=F32),
    ),
    Sample(
        "hidden",
        "float32 leaf of 1e-24",
        altered(lambda w: sines(w * 1e24), scaled_at(1, 1.001)),
        x(1e-24, 2e-24, dtype=F32),
    ),
    # Ripples
    Sample("ripples", "1e6 forgotten", by_other(lambda w: w**2 + jnp.sin(1e6 * w) / 1e6, lambda w: w**2), x(1.0)),
    Sample("ripples", "1e9 forgotten", by_other(rippled(1e9), jnp.sin), x(1.0)),
    Sample("ripples", "2^20 forgotten", by_other(rippled(2.0**20), jnp.sin), x(0.7)),
    Sample("ripples", "2^30 pi forgotten", by_other(rippled(jnp.pi * 2.0**30), jnp.sin), x(1.0)),
    Sample(
        "ripples",
        "1e9 in one of 300 forgotten",
        by_other(lambda w: sines(w) + jnp.sin(1e9 * w[70]) / 1e9, sines),
        line(300),
    ),
    # Not finite
    Sample(
        "not finite",
        "mean without NaN",
        altered(lambda z: jnp.nanmean(z**2), lambda g: g / 2),
        x(1.0, 2.0, jnp.nan, 0.5),
    ),
    Sample("not finite", "masked logits", altered(masked_loss, scaled_at(1, 0.99)), x(1.0, 2.0, -jnp.inf, 0.5)),
    # Common slips
    Sample("slip", "detached mean", by_other(layer_norm, lambda x: layer_norm(x, mean=detached(jnp.mean))), line(9)),
    Sample("slip", "detached variance", by_other(layer_norm, lambda x: layer_norm(x, var=detached(jnp.var))), line(9)),
    Sample(
        "slip",
        "float32 detached variance",
        by_other(layer_norm, lambda x: layer_norm(x, var=detached(jnp.var))),
        line(9, F32),
    ),
    Sample("slip", "straight through a clip", by_other(clipped, lambda x: jnp.sum(x**2)), x(-0.5, 0.25, 2.0)),
    Sample(
        "slip",
        "bfloat16 straight through a clip",
        by_other(clipped, lambda x: jnp.sum(x**2)),
        x(-0.5, 0.25, 2.0, dtype=BF16),
    ),
    Sample("slip", "dead unit passes", by_other(lambda x: jnp.sum(jax.nn.relu(x)), lambda x: jnp.sum(x)), x(-1.0, 2.0)),
    Sample("slip", "label forgotten", by_other(cross_entropy, jax.nn.logsumexp), x(1.0, 0.0, -1.0)),
    Sample(
        "slip", "bfloat16 label forgotten", by_other(cross_entropy, jax.nn.logsumexp), x(1.0, 0.0, -1.0, dtype=BF16)
    ),
    Sample(
        "slip",
        "softmax without cross terms",
        with_gradient(lambda x: jax.nn.softmax(x), lambda x, c: c * jax.nn.softmax(x) * (1 - jax.nn.softmax(x))),
        line(4),
    ),
    Sample("slip", "mean for a sum", by_other(sines, lambda x: jnp.mean(jnp.sin(x))), line(5)),
    Sample("slip", "rolled by one", altered(sines, lambda g: jnp.roll(g, 1)), line(5)),
    Sample("slip", "two entries swapped", altered(sines, lambda g: g[jnp.array([0, 2, 1, 3])]), line(4)),
    Sample("slip", "leaf of biases doubled", altered(mean_of_tree, lambda g: g | {"b": 2 * g["b"]}), TREE),
    Sample("slip", "weights transposed", altered(mean_of_tree, lambda g: g | {"W": g["W"].T}), TREE),
    Sample("slip", "epsilon forgotten", by_other(lambda x: jnp.sqrt(jnp.sum(x**2) + 1e-3), jnp.linalg.norm), line(3)),
    Sample("slip", "Gaussian process, half", altered(gaussian_process, lambda g: g / 2), x(-1.0, 0.3)),
    Sample(
        "slip", "float32 Gaussian process, one", altered(gaussian_process, scaled_at(1, 1.05)), x(-1.0, 0.3, dtype=F32)
    ),
    Sample("slip", "log determinant, transposed", altered(log_determinant, jnp.transpose), matrix(4)),
    Sample("slip", "insists on float32, sign", altered(in_float32(sines), scaled_at(2, -1.0)), line(5)),
]
