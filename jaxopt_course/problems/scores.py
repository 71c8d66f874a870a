"""Score functions: the lecture's linear classifier `f(x, W) = Wx`, and a network with one hidden layer."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_course.annotations import Array, ArrayLike, Float, Shaped
from jaxopt_course.dtypes import widest

__all__ = ["init_linear", "init_mlp", "linear", "mlp", "standardized"]


def __dir__() -> list[str]:
    return __all__


def linear(params: Any, inputs: Shaped[ArrayLike, "*batch D"]) -> Float[Array, "*batch C"]:
    r"""Class scores of a linear classifier.

    $$f(x, W) = W x, \qquad f(x, W, b) = W x + b$$

    `W` is `[C, D]`, as in the lecture: each row is the template of a class. On a CPU, `inputs @ W.T` with this layout
    is several times faster than `inputs @ W` with `[D, C]`.

    Args:
      params: `W[C, D]`, or `{"W": [C, D], "b": [C]}`; floating point.
      inputs: `[..., D]`, one example per row; flatten images first. Integer inputs (such as uint8 pixels) are cast to
        the dtype of `W`; floating-point ones are promoted with it.

    Returns:
      Scores `[..., C]`.

    Raises:
      ValueError: shapes that do not match, or a tree that has neither of the two forms.

    Example:
      >>> import jax.numpy as jnp
      >>> W = jnp.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
      >>> linear(W, jnp.array([[3.0, 4.0]]))
      Array([[3., 8., 7.]], dtype=float32)
      >>> linear({"W": W, "b": jnp.array([10.0, 0.0, 0.0])}, jnp.array([[3.0, 4.0]]))
      Array([[13.,  8.,  7.]], dtype=float32)

    Source: the lecture's parametric approach; Li, Karpathy, Johnson, CS231n, "Linear Classification".
    """
    W, b = _weights_and_bias(params)
    inputs = jnp.asarray(inputs)
    _check_shapes(W, b, inputs)
    inexact = jnp.issubdtype(inputs.dtype, jnp.inexact)
    dtypes = [leaf.dtype for leaf in (W, b, inputs if inexact else None) if leaf is not None]
    dtype = widest(*dtypes)
    scores = inputs.astype(dtype) @ W.astype(dtype).T
    return scores if b is None else scores + jnp.broadcast_to(b.astype(dtype), scores.shape)


def mlp(
    params: Any, inputs: Shaped[ArrayLike, "*batch D"], *, activation: Callable[[Array], Array] = jax.nn.relu
) -> Float[Array, "*batch C"]:
    r"""Class scores of a network with one hidden layer.

    $$f(x) = W_2\, \phi(W_1 x + b_1) + b_2$$

    Args:
      params: `{"hidden": {"W": [H, D], "b": [H]}, "output": {"W": [C, H], "b": [C]}}`, each as for `linear`.
      inputs: `[..., D]`, one example per row, as for `linear`.
      activation: phi, applied to every entry: `jax.nn.relu`, `jnp.tanh`.

    Returns:
      Scores `[..., C]`.

    Raises:
      ValueError: shapes that do not match, or a tree of another form.

    Example:
      >>> import jax.numpy as jnp
      >>> xor = {
      ...     "hidden": {"W": jnp.array([[1.0, 1.0], [1.0, 1.0]]), "b": jnp.array([0.0, -1.0])},
      ...     "output": {"W": jnp.array([[1.0, -2.0]]), "b": jnp.array([0.0])},
      ... }
      >>> print(mlp(xor, jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]))[:, 0])
      [0. 1. 1. 0.]

    Source: CS231n, "Neural Networks Part 1": `W2 max(0, W1 x)`.
    """
    if not isinstance(params, Mapping) or set(params) != {"hidden", "output"}:
        keys = sorted(map(str, params)) if isinstance(params, Mapping) else type(params).__name__
        raise ValueError(f"mlp: expected parameters {{'hidden': ..., 'output': ...}}, got {keys}")
    return linear(params["output"], activation(linear(params["hidden"], inputs)))


def standardized(
    score_fn: Callable[[Any, Any], Array], mean: Shaped[ArrayLike, " D"], scale: Shaped[ArrayLike, " D"]
) -> Callable[[Any, Any], Array]:
    r"""A score function of raw inputs, which shifts and scales them before it calls another score function.

    $$g(x, W) = f\Bigl(\frac{x - \mu}{\sigma}, W\Bigr)$$

    Images stay uint8 in memory, a quarter of the size of float32, and each minibatch is converted to floating point.

    Args:
      score_fn: `(params, inputs) -> scores`, such as `linear`.
      mean: `[D]`, in units of the inputs, for example from `data.feature_statistics`.
      scale: `[D]`, in units of the inputs, above 0.

    Returns:
      `(params, inputs) -> scores` for inputs `[..., D]` of any real dtype.

    Raises:
      ValueError: a scale that is not above 0, a mean that is not finite, and, when called, inputs with another D.

    Example:
      >>> import jax.numpy as jnp
      >>> pixels = jnp.array([[0, 255], [255, 255]], jnp.uint8)
      >>> score_fn = standardized(linear, jnp.array([127.5, 255.0]), jnp.array([127.5, 1.0]))
      >>> score_fn(jnp.array([[1.0, 0.0], [-1.0, 0.0]]), pixels)
      Array([[-1.,  1.],
             [ 1., -1.]], dtype=float32)

    Source: CS231n, "Setting up the data and the model", data preprocessing: the statistics are of the training data.
    """
    mean, scale = (
        a if jnp.issubdtype(a.dtype, jnp.floating) else a.astype(float) for a in map(jnp.asarray, (mean, scale))
    )
    known = not any(isinstance(a, jax.core.Tracer) for a in (mean, scale))
    if mean.shape != scale.shape or (known and not (jnp.isfinite(mean) & (scale > 0) & jnp.isfinite(scale)).all()):
        raise ValueError(
            f"standardized: need finite means and scales above 0 of one shape, got {mean.shape} and {scale.shape}; "
            "use the scale 1 for a constant feature"
        )
    per_unit = 1 / scale

    def of_raw(params: Any, inputs: Any) -> Array:
        inputs = jnp.asarray(inputs)
        if inputs.shape[-1:] != mean.shape:
            raise ValueError(f"standardized: inputs of shape {inputs.shape} for statistics of {mean.shape} features")
        floats = inputs if jnp.issubdtype(inputs.dtype, jnp.inexact) else mean
        x = inputs.astype(widest(mean.dtype, floats.dtype))
        shift, factor = (jnp.broadcast_to(row.astype(x.dtype), x.shape) for row in (mean, per_unit))
        return score_fn(params, (x - shift) * factor)

    return of_raw


def init_linear(
    key: Array,
    num_classes: int,
    num_features: int,
    *,
    bias: bool = True,
    scale: float = 1e-2,
    dtype: Any = float,
) -> Any:
    """Initial parameters of `linear`: small Gaussian weights, and a bias of zeros.

    Args:
      key: a `jax.random` key.
      num_classes: C, at least 1.
      num_features: D, at least 1.
      bias: return `{"W": [C, D], "b": [C]}`, else the array `W[C, D]` alone.
      scale: standard deviation of the weights, in units of score per unit of input.
      dtype: of the parameters; by default, JAX's default floating dtype.

    Returns:
      The parameters.

    Raises:
      ValueError: fewer than one class or feature.

    Example:
      >>> import jax
      >>> jax.tree.map(lambda leaf: leaf.shape, init_linear(jax.random.key(0), 10, 64))
      {'W': (10, 64), 'b': (10,)}

    Source: the lecture's `W = np.random.randn(10, 3072) * 0.0001`, with a scale for standardised inputs.
    """
    if num_classes < 1 or num_features < 1:
        raise ValueError(f"init_linear: need at least one class and one feature, got {num_classes} and {num_features}")
    W = float(scale) * jax.random.normal(key, (num_classes, num_features), dtype)
    return {"W": W, "b": jnp.zeros(num_classes, dtype)} if bias else W


def init_mlp(
    key: Array,
    num_classes: int,
    num_features: int,
    num_hidden: int = 128,
    *,
    gain: float = 2.0,
    dtype: Any = float,
) -> Any:
    r"""Initial parameters of `mlp`: Gaussian weights of variance `gain` / (number of inputs), and biases of zero.

    Args:
      key: a `jax.random` key.
      num_classes: C, at least 1.
      num_features: D, at least 1.
      num_hidden: H, units of the hidden layer, at least 1.
      gain: 2 preserves the variance from layer to layer with relu, 1 with tanh.
      dtype: of the parameters; by default, JAX's default floating dtype.

    Returns:
      The parameters.

    Raises:
      ValueError: fewer than one class, feature or hidden unit.

    Example:
      >>> import jax
      >>> jax.tree.map(lambda leaf: leaf.shape, init_mlp(jax.random.key(0), 10, 64))
      {'hidden': {'W': (128, 64), 'b': (128,)}, 'output': {'W': (10, 128), 'b': (10,)}}

    Source: He, Zhang, Ren, Sun (2015), "Delving deep into rectifiers", ICCV, eq. 10.
    """
    if min(num_classes, num_features, num_hidden) < 1:
        found = f"{num_classes}, {num_features} and {num_hidden}"
        raise ValueError(f"init_mlp: need at least one class, feature and hidden unit, got {found}")
    hidden, output = jax.random.split(key)
    return {
        "hidden": init_linear(hidden, num_hidden, num_features, scale=(gain / num_features) ** 0.5, dtype=dtype),
        "output": init_linear(output, num_classes, num_hidden, scale=(gain / num_hidden) ** 0.5, dtype=dtype),
    }


def _weights_and_bias(params: Any) -> tuple[Array, Array | None]:
    if isinstance(params, Mapping):
        if set(params) != {"W", "b"}:
            raise ValueError(
                f"linear: expected parameters W or {{'W', 'b'}}, got a mapping with keys {sorted(map(str, params))}"
            )
        W, b = params["W"], params["b"]
    else:
        W, b = params, None
    if not isinstance(W, ArrayLike) or (isinstance(params, Mapping) and not isinstance(b, ArrayLike)):
        raise ValueError(f"linear: expected parameters W or {{'W', 'b'}}, arrays, got {jax.tree.map(type, params)}")
    W, b = jnp.asarray(W), None if b is None else jnp.asarray(b)
    for name, leaf in (("W", W), ("b", b)):
        if leaf is not None and not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(f"linear: parameters must be floating point, {name} is {leaf.dtype}")
    return W, b


def _check_shapes(W: Array, b: Array | None, inputs: Array) -> None:
    if W.ndim != 2:
        raise ValueError(f"linear: W must be [C, D], got shape {W.shape}")
    if b is not None and b.shape != W.shape[:1]:
        raise ValueError(f"linear: b of shape {b.shape} does not match W of shape {W.shape}; expected {W.shape[:1]}")
    if inputs.ndim == 0 or inputs.shape[-1] != W.shape[1]:
        message = f"linear: W of shape {W.shape} does not match inputs of shape {inputs.shape}"
        message += f"; expected inputs [..., {W.shape[1]}]"
        if inputs.ndim and W.shape[1] == inputs.shape[-1] + 1:
            message += (
                ". W has one column more than there are features: if it holds the bias, "
                "pass {'W': W[:, :-1], 'b': W[:, -1]}, or append a column of ones to the inputs"
            )
        elif inputs.ndim > 2:
            message += ". Flatten images first: inputs.reshape(len(inputs), -1)"
        elif inputs.ndim and W.shape[0] == inputs.shape[-1]:
            message += ". W is [C, D], a row for each class: did you pass its transpose?"
        raise ValueError(message)
