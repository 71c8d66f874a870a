"""The empirical risk by hand, under JAX's transformations, and at scikit-learn's optimum; the accuracy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_course import accuracy, data, empirical_risk, losses, scores
from tests import references_losses as references

N, C, D = 12, 3, 4
RNG = np.random.default_rng(0)
BATCH = RNG.standard_normal((N, D)), RNG.integers(0, C, N)
W = RNG.standard_normal((C, D))
LOSSES = {
    "multiclass_hinge": losses.multiclass_hinge,
    "crammer_singer_hinge": losses.crammer_singer_hinge,
    "softmax_cross_entropy": losses.softmax_cross_entropy,
}
regularised = empirical_risk(scores.linear, losses.softmax_cross_entropy, losses.l2_penalty, 0.1)


def test_by_hand(own_errors: None) -> None:
    batch = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([0, 1])
    weights = np.array([[3.0, 1.0], [1.0, 1.0]])  # scores (3, 1) and (2, 2): losses 0 and 1
    assert jax.jit(empirical_risk(scores.linear, losses.multiclass_hinge))(weights, batch) == 0.5
    for strength, penalty, expected in (  # an integer is a number too, though no float to the shape checker
        (0.25, losses.l2_penalty, 0.5 + 0.25 * 12),
        (0.5, losses.l1_penalty, 0.5 + 0.5 * 6),
        (0, losses.l1_penalty, 0.5),
        (2, losses.l1_penalty, 12.5),
        (jnp.asarray(2, jnp.float32), losses.l1_penalty, 12.5),
    ):
        objective = jax.jit(empirical_risk(scores.linear, losses.multiclass_hinge, penalty, strength))
        assert objective(weights, batch) == expected


@pytest.mark.parametrize("name", LOSSES)
def test_is_the_mean_over_examples_plus_the_penalty(name: str) -> None:
    params = {"W": W, "b": np.array([0.5, 0.0, -0.5])}
    objective = jax.jit(empirical_risk(scores.linear, LOSSES[name], losses.l2_penalty, 0.3))
    each = getattr(references, name)(BATCH[0] @ W.T + params["b"], BATCH[1])
    expected = sum(each) / N + 0.3 * ((W**2).sum() + 0.5)  # the bias counts
    np.testing.assert_allclose(objective(params, BATCH), expected, rtol=1e-14)


def test_any_score_function_loss_and_penalty() -> None:
    objective = empirical_risk(
        lambda params, inputs: inputs * params, lambda s, y: (s - y) ** 2, lambda params: jnp.abs(params), 3.0
    )
    assert objective(jnp.array(2.0), (np.array([1.0, 2.0]), np.array([1.0, 5.0]))) == 1 + 6


def test_jit_vmap_and_eager_agree() -> None:
    expected = regularised(W, BATCH)
    np.testing.assert_allclose(jax.jit(regularised)(W, BATCH), expected, rtol=1e-14)
    stack = np.stack([W, 2 * W, np.zeros_like(W)])
    lanes = jax.jit(jax.vmap(regularised, (0, None)))(stack, BATCH)
    np.testing.assert_allclose(lanes, [jax.jit(regularised)(w, BATCH) for w in stack], rtol=1e-14)


def test_gradient_and_hessian_are_the_textbook_ones() -> None:
    inputs, labels = BATCH
    p = np.exp(inputs @ W.T)
    p /= p.sum(1, keepdims=True)
    gradient = (p - np.eye(C)[labels]).T @ inputs / N + 0.2 * W
    np.testing.assert_allclose(jax.jit(jax.grad(regularised))(W, BATCH), gradient, rtol=1e-12, atol=1e-15)
    curvature = np.einsum("nc,ck->nck", p, np.eye(C)) - np.einsum("nc,nk->nck", p, p)
    hessian = np.einsum("nck,nd,nl->cdkl", curvature, inputs, inputs) / N
    hessian += 0.2 * np.einsum("ck,dl->cdkl", np.eye(C), np.eye(D))
    np.testing.assert_allclose(jax.jit(jax.hessian(regularised))(W, BATCH), hessian, rtol=1e-12, atol=1e-14)


def test_hinge_has_the_curvature_of_its_penalty_alone() -> None:
    objective = empirical_risk(scores.linear, losses.multiclass_hinge, losses.l2_penalty, 0.3)
    hessian = np.reshape(jax.jit(jax.hessian(objective))(W, BATCH), (C * D, C * D))
    np.testing.assert_allclose(hessian, 0.6 * np.eye(C * D), atol=1e-15)


def test_a_sweep_over_strengths_is_a_vmap() -> None:
    def risk(strength: Any) -> Any:
        return empirical_risk(scores.linear, losses.softmax_cross_entropy, losses.l2_penalty, strength)(W, BATCH)

    strengths = np.array([0.0, 1e-3, 1.0, 30.0])
    swept, slopes = jax.jit(jax.vmap(jax.value_and_grad(risk)))(strengths)
    data_loss = float(empirical_risk(scores.linear, losses.softmax_cross_entropy)(W, BATCH))
    np.testing.assert_allclose(swept, data_loss + strengths * (W**2).sum(), rtol=1e-14)
    np.testing.assert_allclose(slopes, np.full(4, (W**2).sum()), rtol=1e-14)
    assert np.isnan(jax.jit(risk)(np.nan))  # what is traced is legal, whatever its value


def test_16_bit_parameters_give_a_float32_risk() -> None:
    objective = empirical_risk(scores.linear, losses.softmax_cross_entropy, losses.l2_penalty, 0.1)
    for dtype in (jnp.bfloat16, jnp.float16):
        narrow, inputs = jnp.asarray(W, dtype), jnp.asarray(BATCH[0], dtype)
        risk, gradient = jax.jit(jax.value_and_grad(objective))(narrow, (inputs, BATCH[1]))
        assert risk.dtype == jnp.float32
        assert gradient.dtype == dtype
        wide = jax.jit(objective)(np.asarray(narrow, float), (np.asarray(inputs, float), BATCH[1]))
        np.testing.assert_allclose(risk, wide, rtol=float(jnp.finfo(dtype).eps))


def test_under_jit_a_bad_label_makes_the_risk_nan() -> None:
    labels = BATCH[1].copy()
    labels[5] = C
    assert np.isnan(jax.jit(regularised)(W, (BATCH[0], labels)))


@pytest.mark.parametrize(
    ("penalty", "strength", "said"),
    [
        (None, 0.1, "strength = 0.1 without a penalty"),
        (None, -0.1, "strength = -0.1 without a penalty"),
        (None, np.nan, "strength = nan without a penalty"),
        (losses.l2_penalty, -1e-3, "not negative, got -0.001"),
        (losses.l2_penalty, -1, "not negative, got -1"),
        (losses.l2_penalty, np.nan, "got nan"),
        (losses.l2_penalty, np.inf, "must be finite.*got inf"),
        (losses.l2_penalty, jnp.array(-2.0), "not negative, got -2.0"),
    ],
)
def test_strengths_that_are_none(own_errors: None, penalty: Any, strength: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"empirical_risk: .*{said}"):
        empirical_risk(scores.linear, losses.softmax_cross_entropy, penalty, strength)


@pytest.mark.parametrize(
    ("loss_fn", "batch", "said"),
    [
        (lambda s, y: losses.softmax_cross_entropy(s, y).mean(), BATCH, r"shape \(\) for labels of shape \(12,\)"),
        (lambda s, y: losses.softmax_cross_entropy(s, y)[:, None], BATCH, r"shape \(12, 1\) for labels of shape"),
        (lambda s, y: s, BATCH, r"shape \(12, 3\) for labels of shape \(12,\)"),
        (losses.softmax_cross_entropy, (BATCH[0][:0], BATCH[1][:0]), "the batch is empty"),
        (losses.multiclass_hinge, (BATCH[0][:0], BATCH[1][:0]), "the batch is empty"),
    ],
)
def test_losses_that_are_not_one_for_each_example(own_errors: None, loss_fn: Any, batch: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"empirical_risk: .*{said}"):
        jax.jit(empirical_risk(scores.linear, loss_fn))(W, batch)


def test_eager_bad_labels_and_shapes_surface_from_where_they_are_found(own_errors: None) -> None:
    with pytest.raises(ValueError, match=r"softmax_cross_entropy: .*labels\[2\] = 3"):
        regularised(W, (BATCH[0][:3], np.array([0, 1, C])))
    with pytest.raises(ValueError, match=r"softmax_cross_entropy: labels of shape \(11,\)"):
        regularised(W, (BATCH[0], BATCH[1][:-1]))
    with pytest.raises(ValueError, match=r"linear: .*transpose"):
        regularised(W.T, BATCH)


@pytest.mark.parametrize("strength", [1e-3, 1e-1])
def test_minimum_is_that_of_logistic_regression(strength: float) -> None:
    """scikit-learn minimises C * sum(cross-entropy) + sum(W^2) / 2, ours times C * N if C = 1 / (2 * strength * N)."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    optimize = pytest.importorskip("scipy.optimize")
    inputs, labels = data.load("digits").train
    inputs, num = inputs.astype(np.float64), len(labels)
    risk = empirical_risk(scores.linear, losses.softmax_cross_entropy, losses.l2_penalty, strength)
    value_and_grad = jax.jit(jax.value_and_grad(lambda w: risk(w.reshape(10, 64), (inputs, labels))))

    def on_host(w: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = value_and_grad(w)
        return float(value), np.asarray(gradient)

    options = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-16, "gtol": 1e-8, "maxcor": 30}
    ours = optimize.minimize(on_host, np.zeros(640), jac=True, method="L-BFGS-B", options=options)
    model = linear_model.LogisticRegression(C=1 / (2 * strength * num), fit_intercept=False, tol=1e-9, max_iter=5000)
    theirs = model.fit(inputs, labels).coef_
    value, gradient = on_host(theirs.ravel())
    assert np.abs(gradient).max() < 1e-7  # their optimum is a stationary point of our objective
    np.testing.assert_allclose(ours.fun, value, rtol=1e-8)
    np.testing.assert_allclose(ours.x.reshape(10, 64), theirs, atol=1e-4)
    assert ours.fun < on_host(np.zeros(640))[0] / 2


# Accuracy


@pytest.mark.parametrize(
    ("rows", "labels", "expected"),
    [
        ([[0.2, 0.8], [0.9, 0.1], [0.6, 0.4], [0.3, 0.7]], [1, 0, 1, 1], 0.75),
        ([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]], [0, 1], 1.0),  # of those that tie, the first
        ([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]], [1, 2], 0.0),
        ([[np.nan, 1.0], [0.0, 1.0]], [0, 1], 0.5),  # argmax would say 0
        ([[0.0, np.nan], [0.0, 1.0]], [1, 1], 0.5),
        ([[np.nan, np.nan], [np.nan, 1.0]], [0, 1], 0.0),
        ([[-np.inf, -np.inf], [np.inf, 0.0]], [0, 0], 1.0),
        ([[0.0]], [0], 1.0),
    ],
)
def test_accuracy_by_hand(rows: list[list[float]], labels: list[int], expected: float) -> None:
    assert jax.jit(accuracy)(np.array(rows), np.array(labels)) == expected


def test_accuracy_over_any_leading_dimensions() -> None:
    table, labels = RNG.standard_normal((4, 5, C)), RNG.integers(0, C, (4, 5))
    expected = (table.argmax(-1) == labels).mean(1)
    np.testing.assert_allclose(accuracy(table, labels), expected.mean(), rtol=1e-15)
    np.testing.assert_allclose(jax.jit(jax.vmap(accuracy))(table, labels), expected, rtol=1e-15)
    assert accuracy(table[0, 0], np.array(table[0, 0].argmax())) == 1


def test_accuracy_counts_past_the_range_of_its_types() -> None:
    """256 classes and more with labels of 8 bits; more right answers than bfloat16 can count."""
    table = np.zeros((2, 300))
    table[:, 261] = 1
    assert accuracy(table, np.array([5, 5], np.uint8)) == 0
    ones = jnp.asarray(np.tile([[0.0, 1.0]], (1001, 1)), jnp.bfloat16)
    labels = np.ones(1001, int)
    labels[0] = 0
    np.testing.assert_allclose(accuracy(ones, labels), 1000 / 1001, rtol=1e-7)


@pytest.mark.parametrize("bad", [-1, C, 2**31 - 1])
def test_under_jit_a_bad_label_makes_the_accuracy_nan(bad: int) -> None:
    table, labels = RNG.standard_normal((4, C)), np.array([0, 1, bad, 2])
    assert np.isnan(jax.jit(accuracy)(table, labels))


@pytest.mark.parametrize(
    ("table", "labels", "said"),
    [
        (np.zeros((3, 2)), np.array([0, 1, 2]), r"labels\[2\] = 2"),
        (np.zeros((3, 2)), np.array([0, -1, 1]), r"labels\[1\] = -1"),
        (np.zeros((3, 2)), np.zeros(3), "must be integers, got float64"),
        (np.zeros((3, 2)), np.zeros(2, int), r"labels of shape \(2,\) do not match scores of shape \(3, 2\)"),
        (np.zeros((3, 2), int), np.zeros(3, int), "scores must be real floating point"),
        (np.zeros((0, 2)), np.zeros(0, int), "no examples"),
    ],
)
def test_accuracy_of_what_has_none(own_errors: None, table: np.ndarray, labels: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=f"accuracy: .*{said}"):
        accuracy(table, labels)
