"""Cost of an evaluation in operations, counted in the jaxpr of the objective."""

import math
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr

from jaxopt_course.annotations import Params

BACKWARD = 3  # value and gradient together cost about three times the value


def operations_of(value_fn: Any, params: Params) -> float:
    """Return the operations of an evaluation of value and gradient; loops of unknown length count as one iteration."""
    return BACKWARD * _operations(jax.make_jaxpr(value_fn)(params).jaxpr)


def _operations(jaxpr: Any) -> float:
    return sum(map(_of_equation, jaxpr.eqns), 0.0)


def _of_equation(equation: Any) -> float:
    inner = [_operations(part) for value in equation.params.values() for part in _programs(value)]
    if inner:
        return sum(inner) * equation.params.get("length", 1)
    sizes = sum(math.prod(out.aval.shape) for out in equation.outvars if hasattr(out.aval, "shape"))
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2.0 * sizes * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        return 2.0 * sizes * math.prod(kernel) / max(equation.params["dimension_numbers"].rhs_spec[0], 1)
    return float(sizes)


def _programs(value: Any) -> list[Any]:
    """Return the jaxprs in a parameter of an equation: all branches, but no derivative rules."""
    if isinstance(value, ClosedJaxpr):
        return [value.jaxpr]
    if hasattr(value, "eqns"):
        return [value]
    return [part for item in value for part in _programs(item)] if isinstance(value, tuple | list) else []
