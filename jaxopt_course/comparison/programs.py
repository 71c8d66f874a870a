"""Examine an optimizer's program for operations that may change its behaviour outside the observed steps.

If gradients, parameters and moments pass only through + - * /, roots and powers, every update is an algebraic function
of them, and two algebraic functions that agree at many generic points are identical. If a value passes through anything
else (a comparison, a clip, a maximum, a sum over entries), that is a doubt, because the operation may have an effect
only at points that were not tried. Tests for an exact zero are allowed, because the probes contain zeros. Operations on
step counters alone are not restricted, because they can be evaluated at any count; the numbers in the program show
which counts to try.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import AnyOptimizer, OptState, Params
from jaxopt_course.comparison.closed_forms import BIG
from jaxopt_course.comparison.rules import Rule, Values

Jaxpr: TypeAlias = Any  # jax.extend.core.Jaxpr
Equation: TypeAlias = Any  # jax.extend.core.JaxprEqn
Operand: TypeAlias = Any  # a variable or a literal of an equation

PARAMS = np.array([0.0, 1.0, -0.5, 10.0, 3.0, 0.0, -2.0, 0.1])
GRADS = np.array(
    [
        [BIG, 1.0, -3e-8, 0.0, 2e3, 5e-3, -0.2, 30.0],
        [BIG, -0.5, 1e-8, 0.0, 1e3, 7e-3, 0.3, -20.0],
        [BIG, 0.3, 2e-8, 1e-4, -5e2, -1e-3, 0.1, 0.0],
    ]
)
DATA_MOVEMENT = {
    "broadcast_in_dim",
    "reshape",
    "squeeze",
    "expand_dims",
    "transpose",
    "copy",
    "copy_p",
    "convert_element_type",
}
DATA_MOVEMENT |= {"stop_gradient", "device_put", "sharding_constraint", "optimization_barrier", "reduce_precision"}
ALGEBRA = {"add", "sub", "mul", "div", "neg", "sqrt", "rsqrt", "cbrt", "square", "integer_pow", "pow", "abs", "add_any"}
ALGEBRA |= {"real", "imag", "conj", *DATA_MOVEMENT}
POSITIVE = {"abs", "square", "integer_pow", "sqrt", "add", "add_any", "mul", "max", *DATA_MOVEMENT}  # keep positivity
COMPARISONS = {"lt", "le", "gt", "ge", "eq", "ne"}
CALLS = {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat", "checkpoint"}
TYPE_CHECKERS = {"jaxtyping", "beartype"}
MOST_THINGS = 2000  # most objects to examine outside a program
LIMITS = {"clamp", "max", "min"}
BRANCHES = {*LIMITS, "select_n", "cond", "while", *COMPARISONS}


class Kind(NamedTuple):
    """What a quantity depends on.

    `counter`: counters; `value`: gradients, parameters or moments; `unknown`: a part of the state that is neither;
    `positive`: it is a leaf or a sum of squares of leaves. A comparison of such a quantity with 0 tests for exact
    zeros, and a comparison with a number whose square overflows tests for the end of the range; a limit at such a
    number changes no other value. `zero_test`: it is the outcome of such a comparison.
    """

    counter: bool = False
    value: bool = False
    unknown: str = ""
    positive: bool = False
    zero_test: bool = False


class Program(NamedTuple):
    """An optimizer as a program on parameters like `params`.

    `state`: before the first step; `counters`: indices of the leaves of `state` that count steps; `ignores_counters`:
    whether no update depends on them; `doubts`: what may change its behaviour; `numbers`: whole numbers in the program
    that may be step counts.
    """

    optimizer: AnyOptimizer
    params: Params
    state: OptState
    counters: tuple[int, ...]
    ignores_counters: bool
    doubts: tuple[str, ...]
    numbers: frozenset[int]

    @property
    def last_count(self) -> int:
        """The largest count to which all its counters can be set."""
        leaves = jax.tree.leaves(self.state)
        whole = [leaves[i] for i in self.counters if jnp.issubdtype(leaves[i].dtype, jnp.integer)]
        return min((int(jnp.iinfo(x.dtype).max) - int(x) - 2 * len(GRADS) for x in whole), default=2**31)


def inspect(optimizer: AnyOptimizer, rule: Rule, params: Params) -> Program:
    """Trace an optimizer and collect what may make it deviate from its rule.

    It is traced on one vector. If it does not accept a vector, it is traced on a tree like `params` whose leaves are
    such vectors.
    """
    before = external_state(optimizer.update)
    try:
        program = _inspect(optimizer, rule, jnp.asarray(PARAMS))
    except Exception:  # an optimizer that fails on a vector may accept the user's tree
        program = _inspect(optimizer, rule, jax.tree.map(lambda _: jnp.asarray(PARAMS), params))
    if external_state(optimizer.update) == before:
        return program
    return program._replace(
        doubts=(*program.doubts, "it keeps something outside its state that changes from step to step")
    )


def _inspect(optimizer: AnyOptimizer, rule: Rule, w: Params) -> Program:
    grads = [jax.tree.map(lambda _, g=g: jnp.asarray(g), w) for g in GRADS]
    states = [optimizer.init(w)]
    for g in grads:
        states.append(optimizer.update(g, states[-1], w)[1])
    closed = jax.make_jaxpr(lambda g, state, w: optimizer.update(g, state, w))(grads[0], states[0], w)
    number = len(jax.tree.leaves(w))
    kinds = _state_kinds(states, closed.jaxpr, number)
    values = [Kind(value=True, positive=True)] * number
    inspector = Inspector(allows_max=rule.amsgrad != "none", allows_sign=bool(rule.sign))
    found = inspector.output_kinds(closed.jaxpr, closed.consts, [*values, *kinds, *values])
    counters = tuple(place for place, kind in enumerate(kinds) if kind.counter)
    own = zip(found[number:], kinds, strict=True)
    ignores_counters = not any(kind.counter for kind in found[:number]) and not any(
        x.counter and not y.counter for x, y in own
    )
    doubts, numbers = tuple(dict.fromkeys(inspector.doubts)), frozenset(inspector.numbers)
    return Program(optimizer, w, states[0], counters, ignores_counters, doubts, numbers)


def _state_kinds(states: list[OptState], jaxpr: Jaxpr, number: int) -> list[Kind]:
    """The `Kind` of each leaf of the state, from its first values; `number` leaves of gradients precede the state."""
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(states[0])]
    columns = zip(*(jax.tree.leaves(state) for state in states), strict=True)
    given = jaxpr.invars[number : len(paths) + number]
    returned = jaxpr.outvars[len(jaxpr.outvars) - len(paths) :]
    kinds = []
    for path, leaves, before, after in zip(paths, columns, given, returned, strict=True):
        if not jnp.issubdtype(leaves[0].dtype, jnp.number):
            kinds.append(Kind(unknown=f"state{path}"))
            continue
        rises = np.diff(np.array([np.asarray(leaf) for leaf in leaves]), axis=0)
        if np.all(rises == 1):
            kinds.append(Kind(counter=True))
        elif before is after:  # returned unchanged
            kinds.append(Kind())
        else:
            kinds.append(
                Kind(value=True, positive=True) if leaves[0].shape == PARAMS.shape else Kind(unknown=f"state{path}")
            )
    return kinds


def external_state(thing: object, seen: dict[int, object] | None = None) -> str:
    """The numbers and containers that a function can reach besides its arguments, as text for comparison.

    A counter in a closure or an attribute is not part of a traced program, so it can only be detected by its changes.
    """
    seen = {} if seen is None else seen
    if id(thing) in seen or len(seen) > MOST_THINGS or isinstance(thing, ModuleType | type):
        return ""
    seen[id(thing)] = thing  # kept alive, so that no other object gets its id
    if isinstance(thing, FunctionType) and str(thing.__module__).split(".")[0] in {"jax", "jaxlib"}:
        return ""  # JAX's caches are not state of the optimizer
    if isinstance(thing, FunctionType) and thing.__globals__.get("__name__", "").split(".")[0] in TYPE_CHECKERS:
        return external_state(getattr(thing, "__wrapped__", None), seen)  # without the type checker's own caches
    if isinstance(thing, FunctionType):
        cells = [cell.cell_contents for cell in thing.__closure__ or () if cell != CellType()]
        return external_state([*cells, *(thing.__defaults__ or ())], seen)
    if isinstance(thing, MethodType | functools.partial):
        parts = [thing.__func__, thing.__self__] if isinstance(thing, MethodType) else [thing.func, *thing.args]
        return external_state(parts, seen)
    if isinstance(thing, list | tuple | set | dict):
        items = [*thing, *thing.values()] if isinstance(thing, dict) else list(thing)
        return f"{len(items)}({','.join(external_state(item, seen) for item in items[:MOST_THINGS])})"
    if isinstance(thing, int | float | str | itertools.count):
        return repr(thing)
    if not hasattr(thing, "__dict__") or type(thing).__module__.split(".")[0] in {"jax", "jaxlib", *TYPE_CHECKERS}:
        return ""
    return external_state(list(vars(thing).values()), seen)


class Inspector:
    """Visit every equation of a program and collect `doubts` and `numbers`."""

    def __init__(self, allows_max: bool, allows_sign: bool):
        self.allowed = {name for name, allowed in (("max", allows_max), ("sign", allows_sign)) if allowed}
        self.doubts: list[str] = []
        self.numbers: set[int] = set()

    def output_kinds(self, jaxpr: Jaxpr, consts: Iterable[Values], given: list[Kind]) -> list[Kind]:
        """The kinds of a program's outputs, from the kinds of its arguments."""
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [Kind()] * len(jaxpr.constvars) + given, strict=True))
        for const in consts:
            self._record_numbers(const)

        def kind(operand: Operand) -> Kind:
            return Kind() if hasattr(operand, "val") else known[operand]

        for equation in live_equations(jaxpr):
            for operand in equation.invars:
                if hasattr(operand, "val"):
                    self._record_numbers(operand.val)
            found = self._equation(equation, [kind(x) for x in equation.invars])
            known |= dict(zip(equation.outvars, found, strict=True))
        return [kind(x) for x in jaxpr.outvars]

    def _equation(self, equation: Equation, kinds: list[Kind]) -> list[Kind]:
        name, inner = equation.primitive.name, list(_inner(equation))
        if name in CALLS and len(inner) == 1:
            return self.output_kinds(*inner[0], kinds)
        if name == "cond" and not kinds[0].value and not kinds[0].unknown:
            branches = [self.output_kinds(*branch, kinds[1:]) for branch in inner]
            return [_combined([kinds[0], *column]) for column in zip(*branches, strict=True)]
        for jaxpr, consts in inner:
            self._record_all_numbers(jaxpr, consts)
        return [self._output_kind(equation, kinds)] * len(equation.outvars)

    def _output_kind(self, equation: Equation, kinds: list[Kind]) -> Kind:
        """The kind of an equation's result; adds a doubt if a value passes through an operation that is not algebra."""
        name, joined = equation.primitive.name, _combined(kinds)
        if joined.unknown:
            self.doubts.append(f"its {joined.unknown} changes in an unknown way")
        if not joined.value or name in self.allowed:
            return joined._replace(positive=joined.value)
        if name in COMPARISONS and any(map(_is_out_of_range, equation.invars)):
            return joined._replace(zero_test=True)
        if name in LIMITS and sum(map(_is_out_of_range, equation.invars)) == len(kinds) - 1:
            return joined._replace(positive=all(k.positive for k in kinds if k.value))
        zeros = [_is_zero(x) for x in equation.invars]
        if name in COMPARISONS and any(zeros) and all(k.positive or zero for k, zero in zip(kinds, zeros, strict=True)):
            return joined._replace(zero_test=True)
        if name == "select_n" and (kinds[0].zero_test or not kinds[0].value):
            return joined
        if name not in ALGEBRA:
            self.doubts.append(_doubt_about(name))
        positive = name in POSITIVE and all(k.positive or not k.value for k in kinds)
        return joined._replace(positive=positive, zero_test=any(k.zero_test for k in kinds) and name in DATA_MOVEMENT)

    def _record_all_numbers(self, jaxpr: Jaxpr, consts: Iterable[Values]) -> None:
        for value in [*consts, *(x.val for eqn in jaxpr.eqns for x in eqn.invars if hasattr(x, "val"))]:
            self._record_numbers(value)
        for equation in jaxpr.eqns:
            for inner in _inner(equation):
                self._record_all_numbers(*inner)

    def _record_numbers(self, value: Values) -> None:
        """Record the numbers that may be a step count: whole numbers, and numbers whose inverse is whole."""
        array = np.asarray(value)
        if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
            return
        self.numbers |= {array.size} if array.size > 1 else set()
        numbers = np.abs(array.astype(float).ravel()[:64])
        numbers = numbers[np.isfinite(numbers) & (numbers > 1e-10)]
        for number in np.concatenate([numbers, 1 / numbers]):
            if 1.5 < number < 2**31 and abs(number - round(number)) < 1e-6 * number:
                self.numbers.add(round(number))


def _doubt_about(name: str) -> str:
    if name in BRANCHES:
        return f"its program branches on values ({name}), so it may behave differently on other gradients or parameters"
    if name.startswith(("reduce_", "dot", "cum", "arg")):
        return f"in its program an entry's update depends on other entries ({name})"
    return f"its program applies {name} to values, which may behave differently on other values"


def _combined(kinds: list[Kind]) -> Kind:
    unknown = next((kind.unknown for kind in kinds if kind.unknown), "")
    return Kind(any(kind.counter for kind in kinds), any(kind.value for kind in kinds), unknown)


def _is_zero(operand: Operand) -> bool:
    return hasattr(operand, "val") and np.ndim(operand.val) == 0 and float(operand.val) == 0


def _is_out_of_range(operand: Operand) -> bool:
    """Whether an operand is a number whose square is at the end of the dtype's range, as in a guard of that range."""
    if not hasattr(operand, "val") or np.ndim(operand.val) or not jnp.issubdtype(operand.aval.dtype, jnp.floating):
        return False
    return abs(float(operand.val)) >= 2.0 ** (jnp.finfo(operand.aval.dtype).maxexp // 2 - 1)


def live_equations(jaxpr: Jaxpr) -> list[Equation]:
    """The equations whose results are used, in order."""
    needed = {x for x in jaxpr.outvars if not hasattr(x, "val")}
    live = []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(x in needed for x in equation.outvars):
            live.append(equation)
            needed |= {x for x in equation.invars if not hasattr(x, "val")}
    return live[::-1]


def _inner(equation: Equation) -> Iterator[tuple[Jaxpr, list[Values]]]:
    """The programs inside an equation, with their constants."""
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "jaxpr"):
                yield item.jaxpr, item.consts
            elif hasattr(item, "eqns"):
                yield item, []
