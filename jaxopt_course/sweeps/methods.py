"""The methods that a sweep compares: factories of optimizers with their points, checked before compilation."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxopt_course.annotations import AnyOptimizer, Array, Params, PyTree
from jaxopt_course.sweeps.points import Points, product
from jaxopt_course.training.checks import check_optimizer_argument

Factory = Callable[..., AnyOptimizer]


class Method(NamedTuple):
    """A factory, which is called as `factory(**point)` with traced numbers, and the points to try."""

    label: str
    factory: Factory
    points: Points


def methods_of(caller: str, optimizers: Any, grid: Any) -> tuple[Method, ...]:
    """Convert the arguments `optimizers` and `grid` of `sweep` to methods.

    Raises:
      TypeError: an optimizer is not a factory, or a factory does not accept a hyperparameter of the grid or needs
        another one.
      ValueError: the labels do not match, there are no methods, or `Points` or `product` rejects the values.
    """
    factories = _factories(caller, optimizers)
    grids = _grids(caller, grid, [*factories])
    methods = tuple(Method(label, factory, grids[label]) for label, factory in factories.items())
    for method in methods:
        _check_signature(caller, method)
    return methods


def _factories(caller: str, optimizers: Any) -> dict[str, Factory]:
    if not isinstance(optimizers, Mapping):
        optimizers = {_name_of(optimizers): optimizers}
    if not optimizers:
        raise ValueError(f"{caller}: there are no optimizers; give a factory such as jc.adam, or {{label: factory}}")
    for label, factory in optimizers.items():
        if not isinstance(label, str):
            raise TypeError(f"{caller}: a label must be a string, got {label!r:.60}")
        if not callable(factory):
            made = hasattr(factory, "init") and hasattr(factory, "update")
            hint = (
                "it is an optimizer already made; pass the factory itself, such as jc.adam"
                if made
                else "it is not a function"
            )
            raise TypeError(f"{caller}: optimizers[{label!r}] must be a factory: hyperparameters -> optimizer; {hint}")
    return dict(optimizers)


def _name_of(factory: Any) -> str:
    function = getattr(factory, "func", factory)  # of a partial
    name = getattr(function, "__name__", type(function).__name__)
    return "optimizer" if name == "<lambda>" else name


def _grids(caller: str, grid: Any, labels: list[str]) -> dict[str, Points]:
    if not isinstance(grid, Mapping):
        raise TypeError(
            f"{caller}: grid must be {{name: values}}, such as {{'learning_rate': [0.01, 0.1]}}, "
            f"or points such as those of sweeps.random; got a {type(grid).__name__}"
        )
    if not grid:
        raise ValueError(f"{caller}: the grid is empty; name at least one hyperparameter with its values")
    of_labels = [isinstance(part, Mapping) for part in grid.values()]
    if not any(of_labels):
        points = _points(caller, "grid", grid)
        return dict.fromkeys(labels, points)
    if not all(of_labels) or {*grid} != {*labels}:
        raise ValueError(
            f"{caller}: a grid for each method needs the labels of the optimizers, {labels}, each with "
            f"{{name: values}}; got {[*grid]}"
        )
    return {label: _points(caller, f"grid[{label!r}]", grid[label]) for label in labels}


def _points(caller: str, where: str, grid: Mapping[str, Any]) -> Points:
    try:
        if not grid:
            raise ValueError("points: there is no hyperparameter; name at least one")
        return grid if isinstance(grid, Points) else product(**grid)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{caller}: {where}: {str(error).removeprefix('points: ')}") from error


def _check_signature(caller: str, method: Method) -> None:
    """Raise TypeError if the factory does not accept a hyperparameter, or needs one that the grid does not have."""
    try:
        parameters = inspect.signature(method.factory).parameters
    except (TypeError, ValueError):  # some callables have none
        return
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    taken = [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for name in method.points:
        if name not in taken and not open_ended:
            raise TypeError(f"{caller}: {method.label} has no hyperparameter {name}; it takes {', '.join(taken)}")
    for name in taken:
        if parameters[name].default is inspect.Parameter.empty and name not in method.points:
            raise TypeError(
                f"{caller}: {method.label} needs {name}, which the grid does not have; add values for it, "
                f"or fix it with functools.partial"
            )


def check_method(caller: str, method: Method, params: Params) -> None:
    """Raise if the factory rejects a value or a traced value, or does not make an optimizer for these parameters."""
    points = method.points
    for name, values in points.items():
        for index in {int(values.argmin()), int(values.argmax())}:  # legal values form an interval
            _check_made(caller, method, _made(caller, method, points.at(index), name))
    for name in points:

        def init(traced: Array, params: Params, name: str = name) -> PyTree:
            return method.factory(**{**points.at(0), name: traced}).init(params)

        try:
            jax.eval_shape(init, weakly_typed(points[name])[0], params)
        except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
            raise TypeError(
                f"{caller}: {method.label} decides by {name} what it computes, so {name} cannot vary inside one "
                f"compiled program; make a method for each value, such as functools.partial(factory, {name}="
                f"{points.at(0)[name]})"
            ) from error


def _made(caller: str, method: Method, point: dict[str, Any], name: str) -> AnyOptimizer:
    try:
        return method.factory(**point)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{caller}: {method.label} refuses {name}={point[name]}: {error}") from error


def _check_made(caller: str, method: Method, made: Any) -> None:
    try:
        check_optimizer_argument(caller, made)
    except TypeError as error:
        raise TypeError(
            f"{caller}: the factory of {method.label} must return an optimizer with init and update, "
            f"got {type(made).__name__}"
        ) from error


def weakly_typed(values: np.ndarray | Array) -> Array:
    """Weakly typed values, which take the dtype of the array they are combined with, like Python numbers."""
    blank = lax.full(values.shape, 0 if values.dtype.kind == "i" else 0.0)
    return blank.at[:].set(jnp.asarray(values).astype(blank.dtype))
