"""The linear scores and those of a hidden layer, in every shape and dtype they take; the errors; initial parameters."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_course import scores
from tests import references_losses as references

C, D = 3, 4


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


W, b = draw(C, D), draw(C, seed=1)


@pytest.mark.parametrize("bias", [None, b], ids=["W", "W and b"])
@pytest.mark.parametrize("batch", [(), (5,), (2, 1, 3), (0,)])
def test_equals_the_loop_for_any_leading_dimensions(bias: np.ndarray | None, batch: tuple[int, ...]) -> None:
    inputs = draw(*batch, D, seed=2)
    params = W if bias is None else {"W": W, "b": bias}
    found = scores.linear(params, inputs)
    assert found.shape == (*batch, C)
    expected = [references.linear(W, bias, x) for x in inputs.reshape(-1, D)]
    np.testing.assert_allclose(np.reshape(found, (-1, C)), np.reshape(expected, (-1, C)), rtol=1e-13, atol=1e-15)


def test_square_weights_are_not_transposed() -> None:
    """With C = D a wrong layout raises nothing."""
    square, x = draw(3, 3), draw(3, seed=1)
    np.testing.assert_allclose(scores.linear(square, x), square @ x, rtol=1e-14)


def test_jit_vmap_and_gradient() -> None:
    params, inputs = {"W": W, "b": b}, draw(5, D, seed=2)
    expected = inputs @ W.T + b
    np.testing.assert_allclose(jax.jit(scores.linear)(params, inputs), expected, rtol=1e-13)
    np.testing.assert_allclose(jax.jit(jax.vmap(scores.linear, (None, 0)))(params, inputs), expected, rtol=1e-13)
    ensemble = {"W": np.stack([W, -W]), "b": np.stack([b, -b])}
    np.testing.assert_allclose(
        jax.jit(jax.vmap(scores.linear, (0, None)))(ensemble, inputs), [expected, -expected], rtol=1e-13
    )
    jacobian = jax.jit(jax.jacobian(scores.linear))(params, inputs[0])  # d s_c / d W_kl = [c = k] x_l
    np.testing.assert_allclose(jacobian["W"], np.einsum("ck,l->ckl", np.eye(C), inputs[0]), atol=1e-15)
    np.testing.assert_array_equal(jacobian["b"], np.eye(C))


@pytest.mark.parametrize(
    ("of_params", "of_inputs", "of_scores"),
    [
        ("float32", "float32", "float32"),
        ("bfloat16", "float32", "float32"),
        ("float32", "bfloat16", "float32"),
        ("float16", "bfloat16", "float32"),
        ("float64", "float32", "float64"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float32", "uint8", "float32"),
        ("bfloat16", "uint8", "bfloat16"),
        ("float32", "int64", "float32"),
        ("float32", "bool", "float32"),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_dtypes(of_params: str, of_inputs: str, of_scores: str, bias: bool) -> None:
    pixels = np.array([[0, 1, 255, 3], [200, 100, 7, 255]])
    inputs = jnp.asarray(pixels).astype(of_inputs)
    params = {"W": jnp.asarray(W, of_params), "b": jnp.asarray(b, of_params)}
    found = scores.linear(params if bias else params["W"], inputs)
    assert found.dtype == of_scores
    truth = np.asarray(inputs, np.float64) @ np.asarray(params["W"], np.float64).T
    truth = truth + np.asarray(params["b"], np.float64) if bias else truth
    rounding = 4 * float(jnp.finfo(found.dtype).eps) * 255
    np.testing.assert_allclose(np.asarray(found, np.float64), truth, atol=rounding, rtol=0)


def test_numpy_pixels_of_8_bits_do_not_wrap() -> None:
    found = scores.linear(np.ones((1, 4), np.float32), np.full((2, 4), 255, np.uint8))
    np.testing.assert_array_equal(found, [[1020.0], [1020.0]])


@pytest.mark.parametrize(
    ("params", "inputs", "said"),
    [
        (np.zeros((10, 3073)), np.zeros((5, 3072)), r"(10, 3073).*(5, 3072).*bias.*column of ones"),
        (np.zeros((64, 10)), np.zeros((5, 64)), r"(64, 10).*(5, 64).*transpose"),
        (np.zeros((10, 192)), np.zeros((5, 8, 8, 3)), r"(10, 192).*(5, 8, 8, 3).*Flatten images first"),
        (np.zeros((10, 64)), np.zeros((5, 8, 8)), r"(10, 64).*(5, 8, 8).*Flatten images first"),
        (np.zeros((10, 64)), np.zeros((5, 60)), r"(10, 64).*(5, 60).*expected inputs [..., 64]"),
        (np.zeros((10, 64)), np.array(1.0), r"(10, 64).*().*expected inputs [..., 64]"),
        (np.zeros(64), np.zeros((5, 64)), r"W must be [C, D], got shape (64,)"),
        (np.zeros((1, 10, 64)), np.zeros((5, 64)), r"W must be [C, D], got shape (1, 10, 64)"),
        ({"W": np.zeros((10, 64)), "b": np.zeros(64)}, np.zeros((5, 64)), r"b of shape (64,).*(10, 64).*(10,)"),
        ({"W": np.zeros((10, 64)), "b": np.zeros((10, 1))}, np.zeros((5, 64)), r"b of shape (10, 1).*expected (10,)"),
        ({"W": np.zeros((10, 64))}, np.zeros((5, 64)), r"expected parameters W or {'W', 'b'}.*['W']"),
        ({"w": np.zeros((10, 64)), "b": np.zeros(10)}, np.zeros((5, 64)), r"expected parameters.*['b', 'w']"),
        ({"W": np.zeros((10, 64)), "b": np.zeros(10), "c": 0}, np.zeros((5, 64)), r"expected parameters.*'c'"),
        ({"W": np.zeros((10, 64)), 0: np.zeros(10)}, np.zeros((5, 64)), r"expected parameters W or {'W', 'b'}"),
        ({"W": np.zeros((10, 64)), "b": None}, np.zeros((5, 64)), r"expected parameters W or {'W', 'b'}"),
        ((np.zeros((10, 64)), np.zeros(10)), np.zeros((5, 64)), r"expected parameters W or {'W', 'b'}"),
        (None, np.zeros((5, 64)), r"expected parameters W or {'W', 'b'}"),
    ],
)
def test_what_does_not_fit_says_what_was_expected(own_errors: None, params: Any, inputs: np.ndarray, said: str) -> None:
    pattern = ".*".join(re.escape(part) for part in said.split(".*"))
    with pytest.raises(ValueError, match=f"linear: .*{pattern}"):
        scores.linear(params, inputs)
    with pytest.raises(ValueError, match=f"linear: .*{pattern}"):
        jax.eval_shape(lambda inputs: scores.linear(params, inputs), inputs)


def test_only_weights_one_column_too_wide_hint_at_the_bias(own_errors: None) -> None:
    for columns in (62, 63, 66):
        with pytest.raises(ValueError, match="expected inputs") as caught:
            scores.linear(np.zeros((10, columns)), np.zeros((5, 64)))
        assert "bias" not in str(caught.value)


@pytest.mark.parametrize(
    ("params", "leaf"),
    [
        (np.zeros((C, D), np.int32), "W is int32"),
        (np.zeros((C, D), bool), "W is bool"),
        ({"W": np.zeros((C, D)), "b": np.zeros(C, np.int64)}, "b is int64"),
        ({"W": np.zeros((C, D), np.uint8), "b": np.zeros(C)}, "W is uint8"),
    ],
)
def test_integer_parameters_are_named(own_errors: None, params: Any, leaf: str) -> None:
    with pytest.raises(TypeError, match=f"linear: parameters must be floating point, {leaf}"):
        scores.linear(params, np.zeros((5, D)))


# The initial parameters


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("dtype", "expected"), [(None, "float64"), (jnp.float32, "float32"), (jnp.bfloat16, "bfloat16")]
)
def test_initial_shapes_and_dtypes(bias: bool, dtype: Any, expected: str) -> None:
    options = {} if dtype is None else {"dtype": dtype}
    params = scores.init_linear(jax.random.key(0), 10, 64, bias=bias, **options)
    leaves = params if bias else {"W": params}
    shapes = {"W": (10, 64), "b": (10,)} if bias else {"W": (10, 64)}
    assert {name: leaf.shape for name, leaf in leaves.items()} == shapes
    assert {str(leaf.dtype) for leaf in leaves.values()} == {expected}
    if bias:
        np.testing.assert_array_equal(leaves["b"], np.zeros(10))
    found = scores.linear(params, jnp.zeros((2, 64), leaves["W"].dtype))
    assert found.shape == (2, 10)


def test_initial_parameters_are_float32_unless_x64_is_on() -> None:
    with jax.enable_x64(False):
        params = scores.init_linear(jax.random.key(0), 2, 3)
    assert {str(leaf.dtype) for leaf in params.values()} == {"float32"}


@pytest.mark.parametrize("scale", [1e-2, 3.0])
def test_initial_weights_are_gaussian_of_that_scale(scale: float) -> None:
    options = {} if scale == 1e-2 else {"scale": scale}  # 1e-2 is what nothing said means
    weights = np.asarray(scores.init_linear(jax.random.key(0), 10, 10_000, bias=False, **options)) / scale
    error = 1 / np.sqrt(weights.size)
    assert abs(weights.mean()) < 4 * error
    assert abs(weights.std() - 1) < 4 * error
    assert abs((np.abs(weights) < 1).mean() - 0.6827) < 4 * error
    assert abs((weights**4).mean() - 3) < 40 * error
    assert np.unique(weights).size == weights.size


def test_the_key_alone_decides_the_initial_weights() -> None:
    first, again, other = (scores.init_linear(jax.random.key(seed), C, D)["W"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).all()


def test_an_ensemble_is_a_vmap_over_keys() -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    ensemble = jax.vmap(lambda key: scores.init_linear(key, C, D))(keys)
    for i, key in enumerate(keys):
        np.testing.assert_array_equal(ensemble["W"][i], scores.init_linear(key, C, D)["W"])


@pytest.mark.parametrize(("num_classes", "num_features"), [(0, 4), (3, 0), (-1, 4)])
def test_no_classes_or_features(own_errors: None, num_classes: int, num_features: int) -> None:
    with pytest.raises(ValueError, match=f"init_linear: .* got {num_classes} and {num_features}"):
        scores.init_linear(jax.random.key(0), num_classes, num_features)


# A hidden layer


@pytest.mark.parametrize("activation", [None, jnp.tanh], ids=["relu", "tanh"])
@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_a_hidden_layer_is_what_its_formula_says(activation: Any, batch: tuple[int, ...]) -> None:
    params = scores.init_mlp(jax.random.key(0), C, D, 7)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # so that the biases count
    inputs = draw(*batch, D, seed=2)
    found = scores.mlp(params, inputs) if activation is None else scores.mlp(params, inputs, activation=activation)
    W1, b1, W2, b2 = (np.asarray(params[layer][name]) for layer in ("hidden", "output") for name in ("W", "b"))
    phi = np.tanh if activation is jnp.tanh else lambda x: np.maximum(x, 0)
    expected = np.einsum("ch,...h->...c", W2, phi(np.einsum("hd,...d->...h", W1, inputs) + b1)) + b2
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(jax.jit(scores.mlp)(params, inputs), scores.mlp(params, inputs), rtol=1e-12, atol=1e-14)


def test_a_hidden_layer_keeps_the_variance_from_layer_to_layer() -> None:
    params = scores.init_mlp(jax.random.key(0), 50, 1000, 2000, dtype=jnp.float32)
    assert params["hidden"]["W"].std() == pytest.approx((2 / 1000) ** 0.5, rel=0.01)
    assert params["output"]["W"].std() == pytest.approx((2 / 2000) ** 0.5, rel=0.02)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    inputs = jax.random.normal(jax.random.key(1), (100, 1000), jnp.float32)
    assert scores.mlp(params, inputs).std() == pytest.approx(2**0.5, rel=0.1)  # two layers, and one relu between


def test_a_hidden_layer_says_what_it_expected(own_errors: None) -> None:
    params = scores.init_mlp(jax.random.key(0), C, D, 7)
    for wrong, said in (({"W": W, "b": b}, "got ['W', 'b']"), (W, "got ndarray"), ({**params, "x": 0}, "'x'")):
        with pytest.raises(ValueError, match=re.escape(said)):
            scores.mlp(wrong, np.zeros((5, D)))
    with pytest.raises(ValueError, match=r"W of shape \(7, 4\) does not match inputs of shape \(5, 3\)"):
        scores.mlp(params, np.zeros((5, 3)))
    for sizes in ((0, 4, 7), (3, 0, 7), (3, 4, 0)):
        with pytest.raises(ValueError, match="init_mlp: need at least one class, feature and hidden unit"):
            scores.init_mlp(jax.random.key(0), *sizes)
