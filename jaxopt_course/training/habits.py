"""Arguments of SciPy, jaxopt and torch solvers, and their equivalents in `minimize`."""

from typing import Any

EQUIVALENTS = {
    "args": "pass the objective's further arguments as one tree, data=...",
    "jac": "gradients are computed by JAX; for a custom rule, use jax.custom_jvp or jax.custom_vjp on the objective",
    "hess": "Hessians are computed by JAX; use jc.newton() or jc.newton_cg()",
    "hessp": "Hessian products are computed by JAX; use jc.newton_cg()",
    "method": "the optimizer is the second argument: jc.lbfgs(), jc.newton(), jc.newton_cg(), any of optax's",
    "tol": "gtol= is for the largest entry of the gradient, ftol= for the value, xtol= for the parameters",
    "tolerance_grad": "gtol=",
    "tolerance_change": "ftol= for the value, xtol= for the parameters",
    "options": "budgets and tolerances are arguments of their own: max_steps=, max_evals=, gtol=, ftol=, xtol=",
    "maxiter": "max_steps=",
    "max_iter": "max_steps=",
    "maxfun": "max_evals=",
    "max_eval": "max_evals=",
    "constraints": "only bounds= and l1= are supported; for general constraints use scipy.optimize, or a penalty",
    "hyperparams_prox": "l1=",
    "l1reg": "l1=",
    "init_params": "the start is the third argument, params",
    "x0": "the start is the third argument, params",
    "fun": "the objective is the first argument",
    "value_and_grad": (
        "gradients are computed by JAX; for a custom rule, use jax.custom_jvp or jax.custom_vjp on the objective"
    ),
    "history_size": "jc.lbfgs(memory_size=...)",
    "maxcor": "jc.lbfgs(memory_size=...)",
    "maxls": "jc.lbfgs(line_search=functools.partial(jc.strong_wolfe, max_evals=...))",
    "line_search_fn": "jc.lbfgs(line_search=...)",
    "stepsize": "the learning rate belongs to the optimizer: jc.sgd(0.1)",
    "lr": "the learning rate belongs to the optimizer: jc.sgd(0.1)",
    "learning_rate": "the learning rate belongs to the optimizer: jc.sgd(0.1)",
    "implicit_diff": "implicit=",
    "jit": "every solve is compiled",
    "disp": "print(result) says how it ended; progress=True shows a bar",
    "verbose": "print(result) says how it ended; progress=True shows a bar",
}


def check_unknown_arguments(unknown: dict[str, Any]) -> None:
    """Raise TypeError for arguments that `minimize` does not have, with their equivalent."""
    if not unknown:
        return
    name = next(iter(unknown))
    instead = f"; instead: {EQUIVALENTS[name]}" if name in EQUIVALENTS else ""
    raise TypeError(f"minimize: there is no argument {name!r}{instead}")
