"""Who races whom: every first-order rule of ours, and the stock optax call that is the same rule.

Each is `learning rate -> optimizer`, at the lecture's defaults otherwise; the learning rate may be traced.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

import jaxopt_course as jc


class Contestant(NamedTuple):
    label: str
    make: Callable[[Any], optax.GradientTransformationExtraArgs]
    twin: Callable[[Any], optax.GradientTransformation]


def optax_adagrad(learning_rate: Any, eps: Any = 1e-7) -> optax.GradientTransformation:
    """AdaGrad out of optax's RMSProp: a running mean over t steps is the sum over t, and sqrt(t) cancels.

    `optax.adagrad` is another rule: it starts from 0.1 and keeps epsilon inside the root.
    """
    return optax.inject_hyperparams(optax.rmsprop, static_args=("eps_in_sqrt",))(
        learning_rate=lambda t: learning_rate / jnp.sqrt(t.astype(float) + 1),
        decay=lambda t: t.astype(float) / (t.astype(float) + 1),
        eps=lambda t: eps / jnp.sqrt(t.astype(float) + 1),
        eps_in_sqrt=False,
    )


def optax_adam_uncorrected(
    learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-7
) -> optax.GradientTransformation:
    """Adam without bias correction out of optax's: a counter so high that the correction is 1."""
    adam = optax.adam(learning_rate, b1, b2, eps=eps)

    def init(params: Any) -> Any:
        return optax.tree.set(adam.init(params), count=jnp.asarray(2**30, jnp.int32))

    return optax.GradientTransformation(init, adam.update)


CONTESTANTS: dict[str, Contestant] = {
    "sgd": Contestant("SGD", jc.sgd, optax.sgd),
    "momentum": Contestant("Momentum", jc.momentum, lambda lr: optax.sgd(lr, momentum=0.9)),
    "nesterov": Contestant(
        "Nesterov", lambda lr: jc.momentum(lr, nesterov=True), lambda lr: optax.sgd(lr, momentum=0.9, nesterov=True)
    ),
    "adagrad": Contestant("AdaGrad", jc.adagrad, optax_adagrad),
    "rmsprop": Contestant("RMSProp", jc.rmsprop, lambda lr: optax.rmsprop(lr, decay=0.99, eps=1e-7, eps_in_sqrt=False)),
    "adam_uncorrected": Contestant(
        "Adam, no correction", lambda lr: jc.adam(lr, bias_correction=False), optax_adam_uncorrected
    ),
    "adam": Contestant("Adam", jc.adam, lambda lr: optax.adam(lr, eps=1e-7)),
}
