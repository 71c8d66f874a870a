"""Compilation of the checked function, once and quickly, and the precision in which it computes."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import ArrayLike, PyTree
from jaxopt_course.gradients.subject import Arguments, Function, Leaves, NeverEqual, Subject, arithmetic, as_run

SMALL = 10_000  # up to this many numbers in the arguments, compile time matters more than run time
MEDIUM = 100_000  # up to this many, plain fusions run as fast as others
QUICK = (("xla_backend_optimization_level", 0), ("xla_llvm_disable_expensive_passes", True))
PLAIN_FUSIONS = (("xla_cpu_use_fusion_emitters", False),)  # they compile in a third of the time


def compiled(function: Function, args: Arguments, *static: object) -> Function:
    """Return the function with its first arguments fixed, compiled once for a subject.

    A small function is compiled without expensive passes, which would take longer than running it.
    """
    options = _options(args.num_coordinates + sum(leaf.size for leaf in args.data))
    if not isinstance(args.subject.f, NeverEqual):
        return _cached_program(function, options, args.subject, args.parts, *static)
    programs, key = args.subject.f.programs, (function, *static)
    if key not in programs:
        programs[key] = _jitted(function, options, args.subject, args.parts, *static)
    return programs[key]


def _options(size: int) -> tuple[tuple[str, int | bool], ...]:
    quick = QUICK if size <= SMALL else ()
    return (*quick, *PLAIN_FUSIONS) if size <= MEDIUM and _knows_plain_fusions() else quick


@lru_cache(maxsize=1)
def _knows_plain_fusions() -> bool:
    """Whether the installed version of XLA has the option `PLAIN_FUSIONS`."""
    try:
        jax.jit(lambda: jnp.zeros(()), compiler_options=dict(PLAIN_FUSIONS))()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _jitted(function: Function, options: tuple[tuple[str, int | bool], ...], *static: object) -> Function:
    return jax.jit(partial(function, *static), compiler_options=dict(options) or None)


_cached_program = lru_cache(maxsize=64)(_jitted)


def uncompiled(function: Function, args: Arguments, *static: object) -> Function:
    return partial(function, args.subject, args.parts, *static)


def spacing(args: Arguments, precise: bool) -> float:
    """Return the relative spacing of the least precise dtype through which the result of f passes."""
    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in (*args.moving, *args.data))
    with arithmetic(precise):
        fresh = isinstance(args.subject.f, NeverEqual)  # a function that is not jitted is not cached
        return (_coarsest_spacing.__wrapped__ if fresh else _coarsest_spacing)(
            args.subject, precise, len(args.moving), shapes
        )


@lru_cache(maxsize=256)
def _coarsest_spacing(
    subject: Subject, precise: bool, num_moving: int, shapes: tuple[jax.ShapeDtypeStruct, ...]
) -> float:
    def outputs(*leaves: ArrayLike) -> Leaves:
        return subject.outputs(as_run(list(leaves[:num_moving]), precise), as_run(list(leaves[num_moving:]), precise))

    widest = max(_eps(np.dtype(float) if precise else shape.dtype) for shape in shapes[:num_moving])
    try:
        jaxpr = jax.make_jaxpr(outputs)(*shapes)
    except Exception:  # f needs concrete values and cannot be traced
        return widest
    return max(widest, *(_eps(aval.dtype) for aval in jaxpr.out_avals), _coarsest_rounding(jaxpr.jaxpr))


def _coarsest_rounding(jaxpr: PyTree) -> float:
    """Return the coarsest spacing to which an operation rounds more precise numbers."""
    coarsest = 0.0
    for equation in jaxpr.eqns:
        ins = [_eps(v.aval.dtype) for v in equation.invars if _is_float(v)]
        outs = [_eps(v.aval.dtype) for v in equation.outvars if _is_float(v)]
        if ins and outs and max(outs) > min(ins):
            coarsest = max(coarsest, *outs)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                coarsest = max(coarsest, _coarsest_rounding(inner))
    return coarsest


def _is_float(variable: PyTree) -> bool:
    return hasattr(variable.aval, "dtype") and jnp.issubdtype(variable.aval.dtype, jnp.inexact)


def _eps(dtype: np.dtype) -> float:
    return float(jnp.finfo(dtype).eps)
