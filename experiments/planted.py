"""Gradients with planted bugs, and the verdicts of the gradient checkers of torch and JAX on them.

Each bug is written once, for jax.numpy and for torch; `xp` is one of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import timing

PIXELS = 64  # most pixels of an image that are used


class Planted(NamedTuple):
    """A function, a point, and a derivative written by hand, which may be wrong: `pullback(xp, w, cotangent)`."""

    name: str
    at: np.ndarray
    value: Callable[[Any, Any], Any]
    pullback: Callable[[Any, Any, Any], Any]
    by_jvp: bool = False  # define a JVP; for elementwise functions, whose JVP has the same formula

    def in_jax(self) -> Callable[[jax.Array], jax.Array]:
        def value(w: jax.Array) -> jax.Array:
            return self.value(jnp, w)

        if self.by_jvp:
            f = jax.custom_jvp(value)
            f.defjvp(lambda primals, tangents: (value(*primals), self.pullback(jnp, *primals, *tangents)))
            return f
        g = jax.custom_vjp(value)
        g.defvjp(lambda w: (value(w), w), lambda w, cotangent: (self.pullback(jnp, w, cotangent),))
        return g

    def in_torch(self) -> Callable[[Any], Any]:
        import torch

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, w: Any) -> Any:
                ctx.save_for_backward(w)
                return self.value(torch, w)

            @staticmethod
            def backward(ctx: Any, cotangent: Any) -> Any:
                (w,) = ctx.saved_tensors
                return self.pullback(torch, w, cotangent)

        return Function.apply

    def is_right(self) -> bool:
        """Whether the derivative by hand equals that of autodiff."""

        @jax.jit
        def both(w: jax.Array) -> tuple[jax.Array, jax.Array]:
            out, pullback = jax.vjp(lambda w: self.value(jnp, w), w)
            return self.pullback(jnp, w, jnp.ones_like(out)), pullback(jnp.ones_like(out))[0]

        found, truth = both(jnp.asarray(self.at))
        return bool(jnp.linalg.norm(found - truth) <= 1e-9 * jnp.linalg.norm(truth))


def softmax(xp: Any, scores: Any, y: Any) -> tuple[Any, Any]:
    """Losses [N], and their slopes in the scores [N, C]."""
    weights = xp.exp(scores)
    total = xp.sum(weights, 1, keepdims=True)
    return xp.log(total)[:, 0] - xp.sum(scores * y, 1), weights / total - y


def hinge(xp: Any, scores: Any, y: Any) -> tuple[Any, Any]:
    """Losses [N], and their slopes in the scores [N, C]."""
    gaps = scores - xp.sum(scores * y, 1, keepdims=True) + 1
    over = xp.where((gaps > 0) & (y == 0), xp.ones_like(gaps), xp.zeros_like(gaps))
    return xp.sum(over * gaps, 1), over - y * xp.sum(over, 1, keepdims=True)


def planted(W: np.ndarray, x: np.ndarray, y: np.ndarray, l2: float) -> list[Planted]:
    """Right gradients of a classifier, and gradients with typical bugs.

    `W` [C, D]: the point; `x` [N, D]: images; `y` [N, C]: their classes, one-hot. In the gradients, `d` [N, C] is the
    derivative of the losses with respect to the scores.
    """
    every = -(-W.shape[1] // PIXELS)
    W, x = W[:, ::every], x[:, ::every]
    classes, middle = len(W), W.shape[1] // 2
    square = slice(middle - classes // 2, middle - classes // 2 + classes)

    def classifier(name: str, loss: Any, gradient: Callable[..., Any], pixels: slice = slice(None)) -> Planted:
        def forward(xp: Any, w: Any) -> tuple[Any, Any, Any, Any]:
            inputs, one_hot = xp.asarray(x[:, pixels].copy()), xp.asarray(y)
            return inputs, one_hot, *loss(xp, inputs @ w.T, one_hot)

        def value(xp: Any, w: Any) -> Any:
            return xp.mean(forward(xp, w)[2]) + l2 * xp.sum(w * w)

        def pullback(xp: Any, w: Any, cotangent: Any) -> Any:
            inputs, one_hot, _, d = forward(xp, w)
            return cotangent * gradient(xp, w, inputs, d, one_hot)

        return Planted(name, W[:, pixels].copy(), value, pullback)

    def right(xp: Any, W: Any, x: Any, d: Any, y: Any) -> Any:
        return d.T @ x / len(x) + 2 * l2 * W

    shifted = np.roll(np.arange(classes), 1)
    but_last = np.where(np.arange(classes) < classes - 1, 1.0, 0.0)[None]
    normal = np.random.default_rng(0).standard_normal(2000)
    but_one = np.where(np.arange(400) == 123, 0.0, 1.0)
    with_zero = np.where(np.arange(20) == 3, 0.0, normal[:20])
    return [
        classifier("none, softmax", softmax, right),
        classifier("wrong sign", softmax, lambda *a: -right(*a)),
        classifier("factor 2", softmax, lambda *a: 2 * right(*a)),
        classifier("factor 1.001", softmax, lambda *a: 1.001 * right(*a)),
        classifier("last example only", softmax, lambda xp, W, x, d, y: right(xp, W, x[-1:], d[-1:], y)),
        classifier("1/N missing", softmax, lambda xp, W, x, d, y: d.T @ x + 2 * l2 * W),
        classifier("penalty forgotten", softmax, lambda xp, W, x, d, y: d.T @ x / len(x)),
        classifier(f"transposed, {classes} x {classes}", softmax, lambda *a: right(*a).T, square),
        classifier("labels off by one", softmax, lambda xp, W, x, d, y: right(xp, W, x, d + y - y[:, shifted], y)),
        classifier("last class left out", softmax, lambda xp, W, x, d, y: right(xp, W, x, d * xp.asarray(but_last), y)),
        classifier("none, hinge", hinge, right),
        classifier("right class forgotten, hinge", hinge, lambda xp, W, x, d, y: right(xp, W, x, d * (1 - y), y)),
        Planted(
            "zero, of 1e-6 sum w^2", normal[:100], lambda xp, w: 1e-6 * xp.sum(w * w), lambda xp, w, ct: 0 * ct * w
        ),
        Planted(
            "1 of 400 entries zero, sin",
            normal[:400],
            lambda xp, w: xp.sin(w),
            lambda xp, w, ct: ct * xp.asarray(but_one) * xp.cos(w),
        ),
        Planted(
            "JVP zero, sin, float32",
            normal.astype(np.float32),
            lambda xp, w: xp.sin(w),
            lambda xp, w, ct: 0 * ct,
            by_jvp=True,
        ),
        Planted(
            "none, relu at its kink",
            with_zero,
            lambda xp, w: xp.where(w > 0, w, xp.zeros_like(w)),
            lambda xp, w, ct: xp.where(w > 0, ct, xp.zeros_like(w)),
        ),
    ]


class Judgement(NamedTuple):
    """The verdict of another library's check on a gradient; `passes` is None if it is not installed."""

    passes: bool | None
    said: str = ""

    def cell(self, right: bool) -> str:
        if self.passes is None:
            return self.said
        return ("passes" if self.passes else "fails") + ("" if self.passes == right else " (wrong)")


def ask_torch(case: Planted, fast: bool) -> Judgement:
    if not timing.installed("torch"):
        return Judgement(None, "not installed")
    import torch
    from torch.autograd.gradcheck import GradcheckError

    w, threads = torch.tensor(case.at.astype(float), requires_grad=True), torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # fast_mode draws from the global generator
        torch.set_num_threads(1)  # thousands of short calls
        try:
            return Judgement(torch.autograd.gradcheck(case.in_torch(), (w,), fast_mode=fast))
        except GradcheckError as error:
            return Judgement(False, " ".join(str(error).split()))
        finally:
            torch.set_num_threads(threads)


def ask_jax(case: Planted) -> Judgement:
    from jax.test_util import check_grads

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        try:
            check_grads(case.in_jax(), (jnp.asarray(case.at),), order=1, modes=["fwd" if case.by_jvp else "rev"])
        except AssertionError as error:
            return Judgement(False, " ".join(str(error).split()))
    return Judgement(True)


PEERS: dict[str, Callable[[Planted], Judgement]] = {
    "torch": lambda case: ask_torch(case, fast=False),
    "torch_fast": lambda case: ask_torch(case, fast=True),
    "jax": ask_jax,
}
