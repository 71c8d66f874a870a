"""Parse optimizers written as text, such as `optax.adam(1e-3)`; the text is parsed and never run as code.

It may contain names of four libraries, calls, numbers, strings, True, False, None, tuples, lists, and arithmetic of
numbers. For rules in files, `rule.py:mine(1e-2)`, and names without a call, `optax.lion`, see
`experiments.contestants`.
"""

import ast
import operator
from collections.abc import Callable
from typing import Any

import optax

import jaxopt_course as jc
from experiments.arguments import UsageError, is_external
from experiments.contestants import CONTESTANTS, contestant

OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
LARGEST = 1e300
OURS = {"sgd": jc.sgd, "momentum": jc.momentum, "adagrad": jc.adagrad, "rmsprop": jc.rmsprop, "adam": jc.adam}
KERAS_NAMES = {"beta_1": "b1", "beta_2": "b2", "epsilon": "eps", "initial_accumulator_value": "initial"}
KERAS = {"Adagrad": "adagrad", "RMSprop": "rmsprop", "AdamW": "adamw"}
KNOWN = "optax.adam(1e-3), torch.optim.RMSprop(lr=1e-2), keras.optimizers.Adam(1e-3), lecture.adagrad(1e-2), jc.adam()"


def optimizer(text: str, learning_rate: float = 1e-2) -> Any:
    """Make the optimizer that a text describes, for `jc.parity`; a name without a call gets the learning rate.

    Example:
      >>> optimizer("optax.chain(optax.clip(1.0), optax.sgd(1e-2 / 2))").init(0.5)
      (EmptyState(), (EmptyState(), EmptyState()))
    """
    name, call, given = text.strip().partition("(")
    if not call and (name in CONTESTANTS or is_external(name)) and "._" not in name:
        return contestant(name).make(learning_rate)
    is_loaded = ":" in name
    try:
        tree = ast.parse(f"_({given}" if is_loaded else text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"{text!r} is no expression ({error}); write it like {KNOWN}") from None
    if not isinstance(tree, ast.Call) or (is_loaded and not isinstance(tree.func, ast.Name)):
        raise UsageError(f"{text!r} is no call; write it like {KNOWN}")
    made = _loaded(name, tree, text) if is_loaded else _value(tree, text)
    if not (hasattr(made, "update") or isinstance(made, jc.comparison.Stepper)):
        raise UsageError(f"{text!r} is no optimizer but a {type(made).__name__}")
    return made


def _loaded(name: str, call: ast.Call, text: str) -> Any:
    """Call a factory in a file or module."""
    args, keywords = _arguments(call, text)
    try:
        return contestant(name).make(*args, **keywords)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name}: {error}") from error


def _arguments(call: ast.Call, text: str) -> tuple[list[Any], dict[str, Any]]:
    if any(keyword.arg is None for keyword in call.keywords):
        raise UsageError(f"{text!r}: ** is not understood")
    return [_value(arg, text) for arg in call.args], {str(k.arg): _value(k.value, text) for k in call.keywords}


def _value(node: ast.AST, text: str) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.Tuple(elts=items):
            return tuple(_value(item, text) for item in items)
        case ast.List(elts=items):
            return [_value(item, text) for item in items]
        case ast.UnaryOp(op=op, operand=x) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_number(x, text))
        case ast.BinOp(left=x, op=op, right=y) if type(op) in OPERATORS:
            return _arithmetic(OPERATORS[type(op)], _number(x, text), _number(y, text), text)
        case ast.Call(func=function):
            return _call(_name(function, text), *_arguments(node, text), text)
    raise UsageError(f"{text!r}: {ast.unparse(node)} is not understood; write it like {KNOWN}")


def _number(node: ast.AST, text: str) -> float:
    value = _value(node, text)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{text!r}: {ast.unparse(node)} is no number")
    return value


def _arithmetic(operation: Callable[..., Any], x: float, y: float, text: str) -> float:
    """Compute in floating point, so that no power takes forever."""
    try:
        value = operation(float(x), float(y))
    except (OverflowError, ZeroDivisionError) as error:
        raise UsageError(f"{text!r}: {error}") from None
    if isinstance(value, complex) or abs(value) > LARGEST:
        raise UsageError(f"{text!r}: {value} is not a usable number")
    return int(value) if isinstance(x, int) and isinstance(y, int) and value.is_integer() else value


def _name(node: ast.AST, text: str) -> list[str]:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise UsageError(f"{text!r}: only names of optax, torch.optim, keras.optimizers, lecture and jc can be called")
    return [node.id, *reversed(parts)]


def _call(name: list[str], args: list[Any], keywords: dict[str, Any], text: str) -> Any:
    shown = ".".join(name)
    try:
        match name:
            case ["optax", function] if _is_public(optax, function):
                return getattr(optax, function)(*args, **keywords)
            case ["torch", "optim", kind]:
                return _torch(kind, args, keywords)
            case ["lecture", rule] if (rule, "lecture") in jc.conventions.names():
                return _convention(rule, "lecture", args, keywords)
            case ["keras", "optimizers", kind] if kind in KERAS or kind in ("SGD", "Adam"):
                return _keras(kind, args, keywords)
            case ["jc", function] if function in OURS:
                return OURS[function](*args, **keywords)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{shown}: {error}") from error
    raise UsageError(f"{text!r}: there is no {shown} to call; known are {KNOWN}")


def _is_public(module: Any, name: str) -> bool:
    found = getattr(module, name, None)
    return not name.startswith("_") and callable(found) and getattr(found, "__module__", "").startswith("optax.")


def _torch(kind: str, args: list[Any], keywords: dict[str, Any]) -> Any:
    try:
        import torch
    except ImportError:
        raise UsageError("torch is not installed; pip install 'jaxopt_course[peers]'") from None
    found = getattr(torch.optim, kind, None)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise UsageError(f"torch.optim has no optimizer {kind}")
    found([torch.zeros(1, requires_grad=True)], *args, **keywords)  # raises early if an argument is wrong
    return jc.torch_optimizer(lambda params: found(params, *args, **keywords))


def _keras(kind: str, args: list[Any], keywords: dict[str, Any]) -> Any:
    """The hand-written convention, which is proven equal to Keras 3."""
    given = dict(keywords)
    if kind == "SGD":
        names = ["learning_rate", "momentum", "nesterov"]
        given |= dict(zip(names, args, strict=False))
        ahead, rho = given.pop("nesterov", False), given.pop("momentum", 0.0)
        rule = "nesterov" if ahead and rho else "momentum" if rho else "sgd"
        return _convention(rule, "keras", [], given | ({"rho": rho} if rho else {}))
    rule = KERAS.get(kind, "amsgrad" if given.pop("amsgrad", False) else "adam")
    renamed = KERAS_NAMES | ({"rho": "decay", "momentum": "rho"} if rule == "rmsprop" else {})
    return _convention(rule, "keras", args, {renamed.get(name, name): value for name, value in given.items()})


def _convention(rule: str, library: str, args: list[Any], keywords: dict[str, Any]) -> Any:
    convention = jc.conventions.get(rule, library)
    if len(args) > len(convention.defaults):
        raise TypeError(f"takes {', '.join(convention.defaults)}; {len(args)} were given")
    positional = dict(zip(convention.defaults, args, strict=False))
    if twice := positional.keys() & keywords.keys():
        raise TypeError(f"{', '.join(twice)} is given twice")
    return convention.make(**positional, **keywords)
