r"""The lecture's first-order rules in historical order: each rule changes a few lines of the one before.

An optimizer is a pair of pure functions. Its factory takes only hyperparameters and is independent of the problem:

    init(params) -> state
    update(grads, state, params) -> (updates, state)        then    params + updates

It is an `optax.GradientTransformationExtraArgs`, so it composes with `optax.chain`, `optax.MultiSteps`, schedules,
clipping, decay, and with every loop that takes an optax optimizer. Properties of all rules:

- `learning_rate` is a number, a traced scalar, or a schedule `count -> learning rate` with `count` 0 at first; every
  other hyperparameter is a number or a traced scalar. A sweep is therefore a `vmap` and does not recompile.
- A number out of range raises ValueError when the optimizer is made; traced values and schedules are not checked.
  A learning rate of 0 is legal. Derivatives with respect to hyperparameters are finite, even at 0.
- The same plain numbers give the same optimizer object, so that `jit` reuses the function compiled for it.
- State is a NamedTuple of arrays whose structure, shapes, dtypes and shardings never change; moments are sharded like
  the parameters. For 16-bit parameters, moments and all arithmetic are in float32; updates have the parameters' dtype.
  For complex parameters, the square of g is |g|^2.
- Squares do not overflow: AdaGrad, RMSProp and Adam clip gradient entries (for complex ones, the real and the imaginary
  part) to 2^63, or 2^511 for 64-bit parameters. Without this, one such entry would stop its parameter for ever.
  Infinite and NaN gradients give NaN. Squares that underflow count as the smallest normal number, 1e-38 in float32.
  With the default epsilon this is an error below 1e-12; with epsilon 0, entries below 1e-19 give updates that are too
  short.
- Parameters that are not floating point raise TypeError; gradients that do not match the parameters or the state raise
  ValueError. Both name the leaf. A parameter whose gradient is None has no update, so that `update` accepts a whole
  Equinox model.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from jaxopt_course.annotations import Array, Optimizer, Params, PyTree, Updates
from jaxopt_course.optimizers.hyperparameters import (
    Number,
    Rate,
    cached_factory,
    decay_rate,
    learning_rate_at,
    not_negative,
)
from jaxopt_course.optimizers.leaves import map_leaves, next_count, start_count, zero_moments
from jaxopt_course.optimizers.separable import Separable
from jaxopt_course.optimizers.squares import clipped, one_minus_power, safe_sqrt, saturated, square


class SGDState(NamedTuple):
    """`count`: steps taken, int32, if the learning rate is a schedule, else None."""

    count: Array | None  # type: ignore[assignment]  # optax's name; tuple.count is not used

    @property
    def takes_penalties(self) -> bool:
        """Whether the optimizer can set parameters to exactly 0."""
        return True


@cached_factory
def sgd(learning_rate: Rate) -> Optimizer:
    r"""Gradient descent; stochastic gradient descent if the gradient is that of a minibatch.

    $$w \leftarrow w - \eta g$$

    With bounds or an L1 penalty, which `minimize` passes, this is proximal gradient descent: the step ends at the
    minimizer x of h(x) + |x - (w - eta g)|^2 / (2 eta).

    Args:
      learning_rate: eta, a number, traced scalar or schedule; units of parameter^2 per unit of loss.

    Returns:
      The optimizer; its state is `SGDState`.

    Raises:
      ValueError: a learning rate that is negative or not finite.

    Example:
      >>> import jax, optax
      >>> f = lambda w: w[0] ** 2 + 25.0 * w[1] ** 2
      >>> optimizer, w = sgd(0.03), jax.numpy.array([4.0, 1.0])
      >>> state = optimizer.init(w)
      >>> for _ in range(50):
      ...     updates, state = optimizer.update(jax.grad(f)(w), state)
      ...     w = optax.apply_updates(w, updates)
      >>> f"{f(jax.numpy.array([4.0, 1.0])):.1f} -> {f(w):.3f}"
      '41.0 -> 0.033'

    Source: the lecture's "SGD"; Robbins and Monro (1951), "A stochastic approximation method", eq. 6.
    """
    rate = learning_rate_at(learning_rate)

    def init(params: Params) -> SGDState:
        return SGDState(start_count(params, learning_rate))

    def update(
        grads: Updates, state: SGDState, params: Params = None, separable: Separable | None = None, **_: Any
    ) -> tuple[Updates, SGDState]:
        def rule(g, lr):
            return (-lr * g,)

        (updates,) = map_leaves(rule, grads, (), (rate(state.count),), params)
        if separable is not None:
            updates = optax.tree.sub(
                separable.proximal(optax.apply_updates(params, updates), rate(state.count)), params
            )
        return updates, SGDState(next_count(state.count))

    return Optimizer(init, update)


class MomentumState(NamedTuple):
    """`count`: as in `SGDState`; `trace`: the velocity v, like the parameters."""

    count: Array | None  # type: ignore[assignment]  # optax's name; tuple.count is not used
    trace: PyTree


@cached_factory
def momentum(learning_rate: Rate, rho: Number = 0.9, nesterov: bool = False) -> Optimizer:
    r"""SGD with a velocity, a decaying sum of past gradients; Nesterov's form looks one step ahead.

    $$v \leftarrow \rho v + g, \qquad w \leftarrow w - \eta v \qquad (v_0 = 0)$$

    With `nesterov=True` the step is $w \leftarrow w - \eta (g + \rho v)$ with the new v. This is the lecture's
    rearranged form $w \leftarrow w - \rho v_{old} + (1 + \rho) v_{new}$ for a velocity that contains the factor
    $-\eta$. Here the learning rate is outside the velocity; under a schedule the two forms differ.

    Args:
      learning_rate: eta, a number, traced scalar or schedule.
      rho: friction, in [0, 1).
      nesterov: whether to use Nesterov's form.

    Returns:
      The optimizer; its state is `MomentumState`.

    Raises:
      ValueError: a hyperparameter out of range.

    Example:
      >>> import jax, optax
      >>> f = lambda w: w[0] ** 2 + 25.0 * w[1] ** 2
      >>> optimizer, w = momentum(0.03, rho=0.7), jax.numpy.array([4.0, 1.0])
      >>> state = optimizer.init(w)
      >>> for _ in range(50):
      ...     updates, state = optimizer.update(jax.grad(f)(w), state)
      ...     w = optax.apply_updates(w, updates)
      >>> f"{f(jax.numpy.array([4.0, 1.0])):.1f} -> {f(w):.6f}"
      '41.0 -> 0.000001'

    Source: the lecture's "SGD + Momentum"; Polyak (1964), "Some methods of speeding up the convergence of iteration
    methods", eq. 9; Nesterov's form after Sutskever et al. (2013), eqs. 3-4, as CS231n rearranges it.
    """
    rate, rho = learning_rate_at(learning_rate), decay_rate("rho", rho)

    def init(params: Params) -> MomentumState:
        return MomentumState(start_count(params, learning_rate), zero_moments(params))

    def update(grads: Updates, state: MomentumState, params: Params = None, **_: Any) -> tuple[Updates, MomentumState]:
        def rule(g, v, lr, rho):
            v = rho * v + g
            return -lr * (g + rho * v if nesterov else v), v

        updates, trace = map_leaves(rule, grads, (state.trace,), (rate(state.count), rho), params)
        return updates, MomentumState(next_count(state.count), trace)

    return Optimizer(init, update)


class AdagradState(NamedTuple):
    """`count`: as in `SGDState`; `sum_of_squares`: s, like the parameters, real."""

    count: Array | None  # type: ignore[assignment]  # optax's name; tuple.count is not used
    sum_of_squares: PyTree


@cached_factory
def adagrad(learning_rate: Rate, eps: Number = 1e-7) -> Optimizer:
    r"""SGD with a learning rate for each coordinate: eta divided by the root of the sum of its squared gradients.

    $$s \leftarrow s + g^2, \qquad w \leftarrow w - \eta \frac{g}{\sqrt{s} + \epsilon} \qquad (s_0 = 0)$$

    `optax.adagrad` is a different rule: it starts at s = 0.1 and adds epsilon inside the root.

    Args:
      learning_rate: eta, a number, traced scalar or schedule; units of parameter.
      eps: epsilon, units of gradient, not negative.

    Returns:
      The optimizer; its state is `AdagradState`.

    Raises:
      ValueError: a hyperparameter out of range.

    Example:
      >>> import jax, optax
      >>> f = lambda w: w[0] ** 2 + 25.0 * w[1] ** 2
      >>> optimizer, w = adagrad(1.0), jax.numpy.array([4.0, 1.0])
      >>> state = optimizer.init(w)
      >>> for _ in range(50):
      ...     updates, state = optimizer.update(jax.grad(f)(w), state)
      ...     w = optax.apply_updates(w, updates)
      >>> f"{f(jax.numpy.array([4.0, 1.0])):.1f} -> {f(w):.4f}"
      '41.0 -> 0.0000'

    Source: the lecture's "AdaGrad"; Duchi, Hazan, Singer (2011), "Adaptive subgradient methods", JMLR 12, fig. 1.
    """
    rate, eps = learning_rate_at(learning_rate), not_negative("eps", eps)

    def init(params: Params) -> AdagradState:
        return AdagradState(start_count(params, learning_rate), zero_moments(params, real=True))

    def update(grads: Updates, state: AdagradState, params: Params = None, **_: Any) -> tuple[Updates, AdagradState]:
        def rule(g, s, lr, eps):
            s = saturated(s + square(g))
            return -lr * (clipped(g) / (safe_sqrt(s) + eps)), s

        updates, s = map_leaves(rule, grads, (state.sum_of_squares,), (rate(state.count), eps), params)
        return updates, AdagradState(next_count(state.count), s)

    return Optimizer(init, update)


class RMSPropState(NamedTuple):
    """`count`: as in `SGDState`; `nu`: s, the moving mean of squares, like the parameters, real."""

    count: Array | None  # type: ignore[assignment]  # optax's name; tuple.count is not used
    nu: PyTree


@cached_factory
def rmsprop(learning_rate: Rate, decay: Number = 0.99, eps: Number = 1e-7) -> Optimizer:
    r"""AdaGrad with an exponential moving mean of the squared gradients instead of their sum.

    $$s \leftarrow \beta s + (1 - \beta) g^2, \qquad w \leftarrow w - \eta \frac{g}{\sqrt{s} + \epsilon}
      \qquad (s_0 = 0)$$

    `optax.rmsprop` is this rule with `eps_in_sqrt=False`.

    Args:
      learning_rate: eta, a number, traced scalar or schedule; units of parameter.
      decay: beta, in [0, 1).
      eps: epsilon, units of gradient, not negative.

    Returns:
      The optimizer; its state is `RMSPropState`.

    Raises:
      ValueError: a hyperparameter out of range.

    Example:
      >>> import jax, optax
      >>> f = lambda w: w[0] ** 2 + 25.0 * w[1] ** 2
      >>> optimizer, w = rmsprop(0.05, decay=0.9), jax.numpy.array([4.0, 1.0])
      >>> state = optimizer.init(w)
      >>> for _ in range(100):
      ...     updates, state = optimizer.update(jax.grad(f)(w), state)
      ...     w = optax.apply_updates(w, updates)
      >>> f"{f(jax.numpy.array([4.0, 1.0])):.1f} -> {f(w):.1f}"
      '41.0 -> 0.0'

    Source: the lecture's "RMSProp"; Tieleman and Hinton (2012), "Neural networks for machine learning", lecture 6.5,
    slide 29.
    """
    rate, decay, eps = learning_rate_at(learning_rate), decay_rate("decay", decay), not_negative("eps", eps)

    def init(params: Params) -> RMSPropState:
        return RMSPropState(start_count(params, learning_rate), zero_moments(params, real=True))

    def update(grads: Updates, state: RMSPropState, params: Params = None, **_: Any) -> tuple[Updates, RMSPropState]:
        def rule(g, s, lr, decay, eps):
            s = decay * s + (1 - decay) * square(g)
            return -lr * (clipped(g) / (safe_sqrt(s) + eps)), s

        updates, nu = map_leaves(rule, grads, (state.nu,), (rate(state.count), decay, eps), params)
        return updates, RMSPropState(next_count(state.count), nu)

    return Optimizer(init, update)


class AdamState(NamedTuple):
    """`count`: steps taken, int32; `mu` and `nu`: the moving means of g and of its square, like the parameters."""

    count: Array  # type: ignore[assignment]  # optax's name; tuple.count is not used
    mu: PyTree
    nu: PyTree


@cached_factory
def adam(
    learning_rate: Rate = 1e-3, b1: Number = 0.9, b2: Number = 0.999, eps: Number = 1e-7, bias_correction: bool = True
) -> Optimizer:
    r"""Momentum and RMSProp combined; the bias correction compensates that both moving means start at zero.

    $$m \leftarrow \beta_1 m + (1 - \beta_1) g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2) g^2
      \qquad (m_0 = v_0 = 0)$$
    $$w \leftarrow w - \eta \frac{\hat m}{\sqrt{\hat v} + \epsilon}, \qquad
      \hat m = \frac{m}{1 - \beta_1^t}, \quad \hat v = \frac{v}{1 - \beta_2^t}, \quad t = 1, 2, \ldots$$

    Without `bias_correction`, m and v replace their corrected forms: the lecture's "almost" Adam, whose first steps are
    too long.

    Args:
      learning_rate: eta, a number, traced scalar or schedule; units of parameter.
      b1: beta_1, in [0, 1).
      b2: beta_2, in [0, 1).
      eps: epsilon, units of gradient, not negative; the default is the lecture's 1e-7, that of optax and torch is 1e-8.
      bias_correction: whether to correct the bias of both means.

    Returns:
      The optimizer; its state is `AdamState`.

    Raises:
      ValueError: a hyperparameter out of range.

    Example:
      >>> import jax, optax
      >>> f = lambda w: w[0] ** 2 + 25.0 * w[1] ** 2
      >>> optimizer, w = adam(0.2), jax.numpy.array([4.0, 1.0])
      >>> state = optimizer.init(w)
      >>> for _ in range(100):
      ...     updates, state = optimizer.update(jax.grad(f)(w), state)
      ...     w = optax.apply_updates(w, updates)
      >>> f"{f(jax.numpy.array([4.0, 1.0])):.1f} -> {f(w):.3f}"
      '41.0 -> 0.001'

    Source: the lecture's "Adam (almost)" and "Adam (full form)"; Kingma and Ba (2015), "Adam: a method for stochastic
    optimization", algorithm 1.
    """
    rate, eps = learning_rate_at(learning_rate), not_negative("eps", eps)
    b1, b2 = decay_rate("b1", b1), decay_rate("b2", b2)

    def init(params: Params) -> AdamState:
        return AdamState(jnp.zeros((), jnp.int32), zero_moments(params), zero_moments(params, real=True))

    def update(grads: Updates, state: AdamState, params: Params = None, **_: Any) -> tuple[Updates, AdamState]:
        t = optax.safe_increment(state.count)
        c1, c2 = (one_minus_power(b1, t), one_minus_power(b2, t)) if bias_correction else (1.0, 1.0)

        def rule(g, m, v, lr, b1, b2, eps, c1, c2):
            m = b1 * m + (1 - b1) * clipped(g)
            v = b2 * v + (1 - b2) * square(g)
            return -lr * ((m / c1) / (safe_sqrt(v / c2) + eps)), m, v

        updates, mu, nu = map_leaves(rule, grads, state[1:], (rate(state.count), b1, b2, eps, c1, c2), params)
        return updates, AdamState(t, mu, nu)

    return Optimizer(init, update)
