"""Losses against textbook loops, torch, optax and mpmath; their invariants, kinks and infinities; labels; penalties."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxopt_course import losses
from tests import references_losses as references

HINGES = {"multiclass_hinge": losses.multiclass_hinge, "crammer_singer_hinge": losses.crammer_singer_hinge}
LOSSES: dict[str, Callable[..., Any]] = {**HINGES, "softmax_cross_entropy": losses.softmax_cross_entropy}
INF, NAN = np.inf, np.nan

each_loss = pytest.mark.parametrize("name", LOSSES)
each_hinge = pytest.mark.parametrize("name", HINGES)


def draw(num: int = 40, classes: int = 7, scale: float = 2.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return scale * rng.standard_normal((num, classes)), rng.integers(0, classes, num)


def value_and_gradient(loss: Callable[..., Any]) -> Callable[..., Any]:
    def both(scores: Any, labels: Any, **options: float) -> Any:
        return loss(scores, labels, **options), jax.grad(lambda s: loss(s, labels, **options).sum())(scores)

    return jax.jit(both, static_argnames="margin")


VMAPPED = {name: jax.jit(jax.vmap(loss)) for name, loss in LOSSES.items()}
JITTED = {name: value_and_gradient(loss) for name, loss in LOSSES.items()}  # a compilation costs less than eager calls


def value(name: str, scores: Any, labels: Any, **options: float) -> np.ndarray:
    return np.asarray(JITTED[name](scores, labels, **options)[0])


def gradient(name: str, scores: Any, labels: Any, **options: float) -> np.ndarray:
    return np.asarray(JITTED[name](scores, labels, **options)[1])


# The same numbers as the textbook, torch, optax and mpmath


@each_loss
def test_equals_the_textbook_loop(name: str) -> None:
    scores, labels = draw()
    expected = getattr(references, name)(scores, labels)
    np.testing.assert_allclose(value(name, scores, labels), expected, rtol=1e-13, atol=1e-15)


@each_hinge
@pytest.mark.parametrize("margin", [2.5])
def test_margin_equals_the_textbook_loop(name: str, margin: float) -> None:
    scores, labels = draw()
    expected = getattr(references, name)(scores, labels, margin)
    np.testing.assert_allclose(value(name, scores, labels, margin=margin), expected, rtol=1e-13, atol=1e-15)


def test_lecture_numbers() -> None:
    scores = np.array([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0], [2.2, 2.5, -3.1]])
    labels = np.array([0, 1, 2])
    np.testing.assert_allclose(value("multiclass_hinge", scores, labels), [2.9, 0, 12.9], rtol=1e-14)
    np.testing.assert_allclose(value("crammer_singer_hinge", scores, labels), [2.9, 0, 6.6], rtol=1e-14)
    nats = value("softmax_cross_entropy", scores, labels)
    np.testing.assert_allclose(nats[0] / np.log(10), 0.89, atol=0.005)  # the slide's logarithm has base 10


def test_the_two_hinges_part_as_soon_as_two_classes_offend() -> None:
    scores, labels = draw()
    total, worst = (value(name, scores, labels) for name in HINGES)
    offenders = (scores - np.take_along_axis(scores, labels[:, None], 1) + 1 > 0).sum(1) - 1  # less the right class
    several = offenders > 1
    assert several.any()
    assert not several.all()
    np.testing.assert_allclose(total[~several], worst[~several], rtol=1e-14)
    assert (total[several] > worst[several]).all()
    assert np.max(total - worst) > 5


def torch_loss(name: str, scores: Any, labels: Any, margin: float) -> Any:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    if name == "multiclass_hinge":  # torch divides by C
        return scores.shape[1] * functional.multi_margin_loss(scores, labels, margin=margin, reduction="none")
    if name == "softmax_cross_entropy":
        return functional.cross_entropy(scores, labels, reduction="none")
    right = scores.gather(1, labels[:, None])
    wrong = scores.masked_fill(functional.one_hot(labels, scores.shape[1]).bool(), -INF)
    return torch.relu(wrong.max(1).values - right[:, 0] + margin)


@each_loss
@pytest.mark.parametrize("scale", [0.1, 2.0, 50.0])
@pytest.mark.parametrize("margin", [1.0, 2.5])
def test_equals_torch_with_gradient(name: str, scale: float, margin: float) -> None:
    torch = pytest.importorskip("torch")
    scores, labels = draw(scale=scale)
    options = {"margin": margin} if name in HINGES and margin != 1 else {}  # 1 is what nothing said means
    twin = torch.tensor(scores, requires_grad=True)
    expected = torch_loss(name, twin, torch.tensor(labels), margin)
    expected.sum().backward()
    np.testing.assert_allclose(value(name, scores, labels, **options), expected.detach(), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(gradient(name, scores, labels, **options), twin.grad, rtol=1e-12, atol=1e-14)


def test_crammer_singer_equals_optax_with_gradient() -> None:
    scores, labels = draw()

    @jax.jit
    def twin(scores: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return optax.losses.multiclass_hinge_loss(scores, jnp.asarray(labels))

    expected = np.maximum(twin(scores), 0)  # optax leaves rounding errors of either sign where the loss is 0
    np.testing.assert_allclose(value("crammer_singer_hinge", scores, labels), expected, rtol=1e-13, atol=1e-15)
    certain = np.abs(expected) > 1e-12
    expected = jax.jit(jax.grad(lambda s: twin(s).sum()))(scores)
    found = gradient("crammer_singer_hinge", scores, labels)
    np.testing.assert_allclose(found[certain], expected[certain], atol=1e-15)


@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0, 30.0, 100.0])
def test_cross_entropy_to_the_last_digits(scale: float) -> None:
    scores, labels = draw(scale=scale, seed=1)
    labels[:25] = scores[:25].argmax(1)  # confident and right: losses far below the spacing of floats at 1
    scores[:15] += scale * np.linspace(-5, 5, 15)[:, None]
    losses_and_gradients = JITTED["softmax_cross_entropy"](scores, labels)
    for row, label, loss, slopes in zip(scores, labels, *losses_and_gradients, strict=True):
        exact, exact_slopes = references.softmax_cross_entropy_exact(row, label)
        assert exact < 1e-20 or references.relative_error(loss, exact) <= 1e-14
        for found, expected in zip(slopes, exact_slopes, strict=True):
            assert abs(expected) < 1e-300 or references.relative_error(found, expected) <= 1e-13


@pytest.mark.parametrize("gap", [0.5, 5.0, 46.0, 300.0, 700.0])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("offset", [0.0, 1024.0, -32768.0])
def test_cross_entropy_of_a_gap_wherever_it_lies(gap: float, sign: int, offset: float) -> None:
    """Losses from 1e-304 to 700 nats; the offsets are exact in binary, so they may cost nothing."""
    scores = offset + np.array([0.0, sign * gap, sign * gap - 1])
    exact, exact_slopes = references.softmax_cross_entropy_exact(scores, 0)
    tolerance = 1e-14 * max(1, gap / 46)  # half a unit in the last place of the gap is what any formula loses
    assert references.relative_error(value("softmax_cross_entropy", scores, np.array(0)), exact) <= tolerance
    for found, expected in zip(gradient("softmax_cross_entropy", scores, np.array(0)), exact_slopes, strict=True):
        assert references.relative_error(found, expected) <= 1e-13


def test_cross_entropy_of_1e_minus_20() -> None:
    scores = np.array([0.0, np.log(1e-20), -INF])
    np.testing.assert_allclose(value("softmax_cross_entropy", scores, np.array(0)), 1e-20, rtol=1e-14)


# Invariants


@each_hinge
def test_zero_exactly_when_right_by_the_margin(name: str) -> None:
    right_by = np.array([1.0, 1.5, 0.5, -2.0])
    scores = np.stack([right_by, np.zeros(4), np.full(4, -10.0)], axis=1)
    np.testing.assert_array_equal(value(name, scores, np.zeros(4, int)), [0, 0, 0.5, 3])


@each_loss
def test_one_class_costs_nothing(name: str) -> None:
    scores, labels = np.array([[5.0], [-1e4]]), np.zeros(2, int)
    np.testing.assert_array_equal(value(name, scores, labels), np.zeros(2))
    np.testing.assert_array_equal(gradient(name, scores, labels), np.zeros((2, 1)))


@each_loss
@pytest.mark.parametrize("batch", [(2, 1, 3), (0, 2)])
def test_any_leading_dimensions(name: str, batch: tuple[int, ...]) -> None:
    scores, labels = draw()
    size = int(np.prod(batch))
    found, slopes = JITTED[name](scores[:size].reshape(*batch, 7), labels[:size].reshape(batch))
    assert found.shape == batch
    np.testing.assert_allclose(np.ravel(found), value(name, scores, labels)[:size], rtol=1e-14)
    np.testing.assert_allclose(np.reshape(slopes, (-1, 7)), gradient(name, scores, labels)[:size], rtol=1e-13)


@each_loss
def test_eager_jit_vmap_and_loop_agree(name: str) -> None:
    scores, labels = draw()
    eager = LOSSES[name](scores, labels)
    np.testing.assert_allclose(value(name, scores, labels), eager, rtol=1e-14)
    np.testing.assert_allclose(VMAPPED[name](scores, labels), eager, rtol=1e-14)
    one_by_one = [value(name, s, np.array(y)) for s, y in zip(scores, labels, strict=True)]
    np.testing.assert_allclose(one_by_one, eager, rtol=1e-14)


@each_loss
def test_gradient_is_the_slope(name: str) -> None:
    scores, labels = draw()
    steps = 1e-6 * np.eye(7)[:, None, :]
    up, down = (np.stack([value(name, scores + sign * step, labels) for step in steps], 1) for sign in (1, -1))
    np.testing.assert_allclose(gradient(name, scores, labels), (up - down) / 2e-6, atol=1e-8)


@each_loss
def test_only_the_right_class_is_pulled_up_as_much_as_the_others_are_pushed_down(name: str) -> None:
    scores, labels = draw()
    slopes = gradient(name, scores, labels)
    np.testing.assert_allclose(slopes.sum(1), 0, atol=1e-14)
    is_right = np.arange(7) == labels[:, None]
    assert (slopes[is_right] <= 0).all()
    assert (slopes[~is_right] >= 0).all()


@each_loss
def test_hessian_is_finite_and_that_of_softmax(name: str) -> None:
    scores = np.array([1.0, -0.5, 2.0, -INF])
    hessian = jax.jit(jax.hessian(lambda s: LOSSES[name](s, np.array(1))))(scores)
    p = np.exp(scores) / np.exp(scores).sum()
    expected = np.diag(p) - np.outer(p, p) if name == "softmax_cross_entropy" else np.zeros((4, 4))
    np.testing.assert_allclose(hessian, expected, atol=1e-14)


tame = hnp.arrays(np.float64, (4, 5), elements=st.floats(-50, 50))
wild = hnp.arrays(
    np.float64,
    (4, 5),
    elements=st.one_of(st.floats(-1e4, 1e4), st.sampled_from([0.0, 1.0, -1.0, 1e4, -1e4, -INF])),
)
classes = hnp.arrays(np.int64, 4, elements=st.integers(0, 4))
few = settings(max_examples=50)


@few
@each_loss
@given(scores=wild, labels=classes)
def test_any_scores_give_losses_that_are_never_negative_nor_nan(
    name: str, scores: np.ndarray, labels: np.ndarray
) -> None:
    found, slopes = JITTED[name](scores, labels)
    right = scores[np.arange(4), labels]
    assert (np.asarray(found) >= 0).all()
    np.testing.assert_array_equal(np.isposinf(found), np.isneginf(right))
    assert np.isfinite(slopes).all()


@few
@each_loss
@given(scores=tame, labels=classes, shift=st.floats(-1e3, 1e3))
def test_shift_invariance(name: str, scores: np.ndarray, labels: np.ndarray, shift: float) -> None:
    """Up to the digits that adding the shift to the scores takes away."""
    lost = 5 * np.spacing(np.abs(scores).max() + abs(shift))
    expected = value(name, scores, labels)
    assert (np.abs(value(name, scores + shift, labels) - expected) <= lost * (1 + expected)).all()


@few
@each_loss
@given(scores=tame, labels=classes, order=st.permutations(range(5)), rows=st.permutations(range(4)))
def test_permuting_classes_or_rows_permutes_the_answer(
    name: str, scores: np.ndarray, labels: np.ndarray, order: list[int], rows: list[int]
) -> None:
    renamed = np.argsort(order)[labels]
    found, slopes = JITTED[name](scores[rows][:, order], renamed[rows])
    np.testing.assert_allclose(found, value(name, scores, labels)[rows], rtol=1e-13, atol=1e-300)
    np.testing.assert_allclose(slopes, gradient(name, scores, labels)[rows][:, order], rtol=1e-12, atol=1e-300)


@few
@given(scores=tame, labels=classes)
def test_hinges_bound_the_mistakes_and_one_another(scores: np.ndarray, labels: np.ndarray) -> None:
    worst, total = (value(name, scores, labels) for name in ("crammer_singer_hinge", "multiclass_hinge"))
    rivals = scores.copy()
    rivals[np.arange(4), labels] = -INF
    is_wrong = rivals.max(1) >= scores[np.arange(4), labels]
    assert (worst >= is_wrong).all()
    assert (total >= worst * (1 - 1e-15)).all()
    assert (total <= 4 * worst * (1 + 1e-15)).all()


# Kinks, ties, and scores that are huge, infinite or NaN


@each_hinge
def test_subgradient_at_the_kink_is_zero(name: str) -> None:
    """`jnp.maximum(0, m)` would give 1/2 here."""
    scores, labels = np.array([[3.0, 2.0, -5.0], [1.0, 0.0, 0.0]]), np.array([0, 0])
    np.testing.assert_array_equal(gradient(name, scores, labels), np.zeros((2, 3)))
    beyond = scores + np.array([0, 1e-9, 0])
    np.testing.assert_array_equal(gradient(name, beyond, labels), [[-1, 1, 0]] * 2)


@pytest.mark.parametrize(
    ("name", "loss", "slopes"),
    [
        ("multiclass_hinge", 2.0, [-2, 1, 1]),
        ("crammer_singer_hinge", 1.0, [-1, 1 / 2, 1 / 2]),
        ("softmax_cross_entropy", np.log(3), [-2 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_classes_that_tie_share_alike(name: str, loss: float, slopes: list[float]) -> None:
    scores, labels = np.full((2, 3), 2.5), np.array([0, 0])
    np.testing.assert_allclose(value(name, scores, labels), [loss, loss], rtol=1e-15)
    np.testing.assert_allclose(gradient(name, scores, labels), [slopes, slopes], rtol=1e-15)


EXTREMES = {  # scores, label: multiclass hinge, Crammer-Singer hinge, cross-entropy
    "far right": ([1e4, -1e4, 0.0], 0, 0.0, 0.0, 0.0),
    "far wrong": ([1e4, -1e4, 0.0], 1, 30002.0, 20001.0, 20000.0),
    "all huge": ([1e4, 1e4, 1e4], 2, 2.0, 1.0, np.log(3)),
    "all hugely negative": ([-1e4, -1e4, -1e4], 2, 2.0, 1.0, np.log(3)),
    "a wrong class at -inf": ([-INF, 0.0, 0.0], 1, 1.0, 1.0, np.log(2)),
    "every wrong class at -inf": ([-INF, -5.0, -INF], 1, 0.0, 0.0, 0.0),
    "every wrong class at -inf, the right one far down": ([-INF, -1e4, -INF], 1, 0.0, 0.0, 0.0),
    "the right class at +inf": ([0.0, INF, 5.0], 1, 0.0, 0.0, 0.0),
    "the right class at +inf, a wrong one at -inf": ([-INF, INF, 5.0], 1, 0.0, 0.0, 0.0),
    "the right class at -inf": ([0.0, -INF, 5.0], 1, INF, INF, INF),
    "the right class and a wrong one at -inf": ([-INF, -INF, 5.0], 1, INF, INF, INF),
    "every class at -inf": ([-INF, -INF, -INF], 1, INF, INF, INF),
    "one class, at -inf": ([-INF], 0, INF, INF, INF),
}


@each_loss
@pytest.mark.parametrize("case", EXTREMES)
def test_extreme_scores(name: str, case: str) -> None:
    row, label, *expected = EXTREMES[case]
    scores, labels = np.array([row, np.zeros(len(row))]), np.array([label, 0])  # an ordinary neighbour
    found, slopes = JITTED[name](scores, labels)
    np.testing.assert_allclose(found[0], expected[list(LOSSES).index(name)], rtol=1e-15)
    assert np.isfinite(slopes).all()
    neighbours = np.zeros_like(scores)
    np.testing.assert_allclose(found[1], value(name, neighbours, labels)[1], rtol=1e-15)
    np.testing.assert_allclose(slopes[1], gradient(name, neighbours, labels)[1], rtol=1e-15)


@each_loss
def test_infinities_have_the_gradient_of_the_limit(name: str) -> None:
    for infinite, huge in (([0.3, -0.2, -INF], [0.3, -0.2, -800.0]), ([INF, 0.0, 1.0], [800.0, 0.0, 1.0])):
        expected = gradient(name, np.array(huge), np.array(0))
        np.testing.assert_allclose(gradient(name, np.array(infinite), np.array(0)), expected, rtol=1e-14, atol=1e-300)


@each_loss
@pytest.mark.parametrize(
    ("row", "label"),
    [
        ([NAN, 1.0, 2.0], 0),
        ([NAN, 1.0, 2.0], 1),
        ([NAN, NAN, NAN], 2),
        ([NAN, -INF, -INF], 0),
        ([NAN, INF, 0.0], 2),
        ([NAN, 1e4, -1e4], 1),
        ([NAN], 0),
    ],
)
def test_nan_scores_give_nan(name: str, row: list[float], label: int) -> None:
    scores, labels = np.array([row, np.zeros(len(row))]), np.array([label, 0])
    found = value(name, scores, labels)
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1], value(name, np.zeros_like(scores), labels)[1], rtol=1e-15)


BIG = "max"
ENDS: dict[
    str, tuple[Any, ...]
] = {  # scores (the right class is the second): loss, and slopes of the two hinges and of cross-entropy, by limits
    "beyond the range": ([BIG, "-max"], INF, [1, -1], [1, -1], [1, -1]),
    "two beyond it": ([BIG, "-max", BIG], INF, [1, -2, 1], [0.5, -1, 0.5], [0.5, -1, 0.5]),
    "two beyond it, one far below the other": ([BIG, "-max", "max/2"], INF, [1, -2, 1], [1, -1, 0], [1, -1, 0]),
    "right by more than the range": (["-max", BIG], 0.0, [0, 0], [0, 0], [0, 0]),
    "a wrong class at +inf": ([INF, 0.0, 1.0], INF, [1, -2, 1], [1, -1, 0], [1, -1, 0]),
    "a wrong class at +inf, the right at the largest": ([INF, BIG], INF, [1, -1], [1, -1], [1, -1]),
    "a wrong class at +inf, another at the largest": ([INF, "-max", BIG], INF, [1, -2, 1], [1, -1, 0], [1, -1, 0]),
    "two wrong classes at +inf": ([INF, 0.0, INF], INF, [1, -2, 1], [0.5, -1, 0.5], [0.5, -1, 0.5]),
    "the right class at -inf": ([0.0, -INF, "-max"], INF, [1, -2, 1], [1, -1, 0], [1, -1, 0]),
    "the right class at the smallest": ([-INF, "-max", -INF], 0.0, [0, 0, 0], [0, 0, 0], [0, 0, 0]),
    "the right class and a wrong one at +inf": ([INF, INF, 0.0], NAN, [NAN] * 3, [NAN] * 3, [NAN] * 3),
    "a wrong class at NaN": ([NAN, 0.0], NAN, [NAN] * 2, [NAN] * 2, [NAN] * 2),
    "the right class at NaN": ([-5.0, NAN, INF], NAN, [NAN] * 3, [NAN] * 3, [NAN] * 3),
    "a wrong class at NaN, the right at +inf": ([NAN, INF], NAN, [NAN] * 2, [NAN] * 2, [NAN] * 2),
}


@each_loss
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
def test_losses_and_gradients_at_the_ends_of_the_range(name: str, dtype: Any) -> None:
    largest = float(jnp.finfo(dtype).max)
    numbers = {BIG: largest, "-max": -largest, "max/2": largest / 2}
    for case, (row, loss, *slopes) in ENDS.items():
        wide = [numbers.get(s, s) if isinstance(s, str) else s for s in row] + [-INF] * (3 - len(row))
        found, gradient = JITTED[name](jnp.asarray([wide, [0.0] * 3], dtype), np.array([1, 1]))
        np.testing.assert_array_equal(found[0], loss, err_msg=case)
        expected = np.array(slopes[list(LOSSES).index(name)] + [0.0] * (3 - len(row)))
        expected = np.full(3, NAN) if np.isnan(loss) else expected
        np.testing.assert_allclose(np.asarray(gradient[0], float), expected, err_msg=case)
        assert np.isfinite(np.asarray(gradient[1], float)).all()


@each_loss
def test_a_label_out_of_range_has_no_gradient_either(name: str) -> None:
    slopes = gradient(name, np.zeros((2, 3)), np.array([3, 0]))
    assert np.isnan(slopes[0]).all()
    assert np.isfinite(slopes[1]).all()


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16])
def test_penalties_at_the_ends_of_the_range(dtype: Any) -> None:
    largest = float(jnp.finfo(dtype).max)
    with np.errstate(over="ignore", invalid="ignore"):
        for w in (largest, -largest, INF, -INF, NAN, 0.0):
            scalar = jnp.asarray(w, dtype)
            cost, slope = jax.value_and_grad(losses.l1_penalty)(scalar)
            np.testing.assert_array_equal([float(cost), float(slope)], [abs(w), np.sign(w)])
            cost, slope = jax.value_and_grad(losses.l2_penalty)(scalar)
            wide = np.float64 if dtype == jnp.float64 else np.float32
            np.testing.assert_allclose([float(cost)], [wide(w) * wide(w)], rtol=1e-6)
            np.testing.assert_array_equal(float(slope), float(jnp.asarray(2 * wide(w), dtype)))


# Dtypes


@each_loss
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_narrow_scores_lose_only_what_they_came_without(name: str, dtype: Any) -> None:
    scores, labels = draw()
    narrow = jnp.asarray(scores).astype(dtype)
    truth, true_slopes = JITTED[name](np.asarray(narrow, np.float64), labels)
    found, slopes = JITTED[name](narrow, labels)
    assert truth.dtype == jnp.float64
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, truth, rtol=5e-6, atol=1e-6)
    assert slopes.dtype == dtype
    rtol = max(5e-6, float(jnp.finfo(dtype).eps))
    np.testing.assert_allclose(np.asarray(slopes, np.float64), true_slopes, rtol=rtol, atol=1e-7)


@each_loss
def test_float16_does_not_overflow_between_its_own_largest_numbers(name: str) -> None:
    """The gap of 120,000 is beyond float16."""
    found = value(name, np.array([[6e4, -6e4]], np.float16), np.array([1]))
    np.testing.assert_array_equal(found, [120000.0 if name == "softmax_cross_entropy" else 120001.0])


def test_confident_float32_keeps_its_digits() -> None:
    """Minus the log of a probability is 0 here."""
    found = value("softmax_cross_entropy", np.array([[40.0, 0.0]], np.float32), np.array([0]))
    np.testing.assert_allclose(found, [np.exp(-40.0)], rtol=1e-5)


# Labels


@each_loss
@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_labels_of_any_integer_type(name: str, dtype: Any) -> None:
    scores, labels = draw()
    expected = value(name, scores, labels)
    np.testing.assert_allclose(value(name, scores, labels.astype(dtype)), expected, rtol=1e-14)
    np.testing.assert_allclose(value(name, scores, jnp.asarray(labels.astype(dtype))), expected, rtol=1e-14)


@each_loss
def test_more_classes_than_the_type_of_the_labels_can_count(name: str) -> None:
    """Class 261 is not class 5, though both are 5 in 8 bits."""
    scores, _ = draw(4, 300)
    scores[:, 261] = 9.0
    labels = np.array([5, 0, 6, 1])
    found = value(name, scores, labels.astype(np.uint8))
    np.testing.assert_allclose(found, getattr(references, name)(scores, labels), rtol=1e-13)


@each_loss
@pytest.mark.parametrize(
    ("shape", "bad", "said"),
    [
        ((4,), {(2,): 7}, r"labels\[2\] = 7"),
        ((4,), {(0,): -1}, r"labels\[0\] = -1"),
        ((4,), {(3,): 100, (1,): -5}, r"2 of 4 labels .* labels\[1\] = -5"),
        ((2, 3), {(1, 2): 7}, r"labels\[1, 2\] = 7"),
        ((), {(): 7}, r"labels.* = 7"),
    ],
)
def test_a_label_out_of_range_is_named(
    own_errors: None, name: str, shape: tuple[int, ...], bad: dict[tuple[int, ...], int], said: str
) -> None:
    scores, labels = np.zeros((*shape, 7)), np.zeros(shape, int)
    for index, value in bad.items():
        labels[index] = value
    for given_labels in (labels, jnp.asarray(labels)):
        with pytest.raises(ValueError, match=rf"{name}: .*{said}.*0 <= label < 7"):
            LOSSES[name](scores, given_labels)


@each_loss
@pytest.mark.parametrize("bad", [2**32, 2**32 + 1, 2**40 + 3, -(2**32)])
def test_a_label_of_64_bits_does_not_wrap_into_range(own_errors: None, name: str, bad: int) -> None:
    with jax.enable_x64(False), pytest.raises(ValueError, match=rf"labels\[1\] = {bad}"):
        LOSSES[name](np.zeros((3, 7), np.float32), np.array([0, bad, 1]))


@each_loss
@pytest.mark.parametrize("bad", [-1, 7, 8, 255, -128, 2**31 - 1])
def test_under_jit_a_bad_label_spoils_its_own_example_only(name: str, bad: int) -> None:
    scores, labels = draw()
    expected, expected_slopes = (np.array(a) for a in JITTED[name](scores, labels))
    labels[3], expected[3] = bad, NAN
    found, slopes = JITTED[name](scores, labels)
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    np.testing.assert_allclose(VMAPPED[name](scores, labels), expected, rtol=1e-14)
    others = np.arange(len(labels)) != 3
    np.testing.assert_allclose(slopes[others], expected_slopes[others], rtol=1e-14)


@each_loss
@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.zeros(4), "must be integers, got float64"),
        (np.zeros(4, bool), "must be integers, got bool"),
        (np.eye(4, 7), "must be integers, got float64.*one-hot"),
        (np.eye(4, 7, dtype=int), r"shape \(4, 7\).*expected labels of shape \(4,\)"),
        (np.zeros(3, int), r"shape \(3,\).*expected labels of shape \(4,\)"),
        (np.zeros((4, 1), int), r"shape \(4, 1\).*expected labels of shape \(4,\)"),
        (np.array(0), r"shape \(\).*expected labels of shape \(4,\)"),
    ],
    ids=["float", "bool", "one-hot float", "one-hot int", "too few", "column", "scalar"],
)
def test_labels_that_are_no_labels(own_errors: None, name: str, labels: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: .*{said}"):
        LOSSES[name](np.zeros((4, 7)), labels)
    with pytest.raises(ValueError, match=f"{name}: .*{said}"):  # types and shapes are known under jit too
        jax.jit(LOSSES[name])(np.zeros((4, 7)), labels)


@each_loss
@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (np.zeros((4, 7), int), "floating point, got int64"),
        (np.zeros((4, 7), complex), "floating point, got complex128"),
        (np.zeros((4, 0)), r"C >= 1 classes, got shape \(4, 0\)"),
        (np.array(0.0), r"got shape \(\)"),
    ],
)
def test_scores_that_are_no_scores(own_errors: None, name: str, scores: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: .*{said}"):
        LOSSES[name](scores, np.zeros(4, int))


# Penalties

TREE = {"W": np.array([[3.0, -4.0], [0.0, 0.5]]), "rest": [np.array([-1.0]), (np.array(2.0),)]}


@pytest.mark.parametrize(
    ("penalty", "value", "slope"),
    [
        (losses.l2_penalty, 9 + 16 + 0.25 + 1 + 4, lambda w: 2 * w),
        (losses.l1_penalty, 3 + 4 + 0.5 + 1 + 2, np.sign),
    ],
    ids=["l2", "l1"],
)
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16])
def test_penalty_and_gradient_over_every_leaf(penalty: Any, value: float, slope: Any, dtype: Any) -> None:
    tree = jax.tree.map(lambda w: jnp.asarray(w, dtype), TREE)
    cost, gradient = jax.jit(jax.value_and_grad(penalty))(tree)
    assert cost.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
    assert cost.shape == ()
    assert float(cost) == value
    assert {g.dtype for g in jax.tree.leaves(gradient)} == {jnp.dtype(dtype)}
    as_float64 = jax.tree.map(lambda g: np.asarray(g, float), gradient)
    chex.assert_trees_all_equal(as_float64, jax.tree.map(lambda w: np.asarray(slope(w)), TREE))


@pytest.mark.parametrize(("penalty", "value"), [(losses.l2_penalty, 41.0), (losses.l1_penalty, 13.0)], ids=["l2", "l1"])
def test_penalty_of_mixed_dtypes(penalty: Any, value: float) -> None:
    tree = {"a": jnp.array([4.0], jnp.bfloat16), "b": jnp.array([-4.0], jnp.float32), "c": jnp.array([2.0, 1.0, 2.0])}
    cost, gradient = jax.jit(jax.value_and_grad(penalty))(tree)
    assert cost.dtype == jnp.float64
    assert float(cost) == value
    for g, w in zip(jax.tree.leaves(gradient), jax.tree.leaves(tree), strict=True):
        assert g.dtype == w.dtype
    del tree["c"]
    assert jax.eval_shape(penalty, tree).dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_penalties_of_16_bits_are_summed_in_32(dtype: Any) -> None:
    """In bfloat16 a running sum of ones stops at 256; in float16 300^2 is infinite."""
    for penalty in (losses.l2_penalty, losses.l1_penalty):
        assert float(jax.jit(penalty)(jnp.ones(5000, dtype))) == 5000
    assert float(jax.jit(losses.l2_penalty)(jnp.asarray(np.full(5000, 300), dtype))) == 5000 * 300**2


def test_penalties_of_complex_leaves() -> None:
    w = {"a": jnp.array([3 + 4j, 0]), "b": jnp.array([2.0])}
    for penalty, cost, slopes in ((losses.l2_penalty, 29, [6 - 8j, 0]), (losses.l1_penalty, 7, [0.6 - 0.8j, 0])):
        found, gradient = jax.jit(jax.value_and_grad(penalty))(w)
        assert found.dtype == jnp.float64
        assert float(found) == cost
        np.testing.assert_allclose(gradient["a"], slopes, rtol=1e-15)  # JAX conjugates


@pytest.mark.parametrize("penalty", [losses.l2_penalty, losses.l1_penalty], ids=["l2", "l1"])
def test_nothing_costs_nothing(penalty: Any) -> None:
    nothing: list[Any] = [{}, [], None, {"a": None}, {"a": jnp.zeros((0, 3))}]
    for tree in nothing:
        assert float(penalty(tree)) == 0
        assert penalty(tree).shape == ()
    assert float(penalty({"a": None, "b": jnp.array([-1.0])})) == 1


def test_penalties_compose() -> None:
    stack = np.random.default_rng(0).standard_normal((5, 3, 4))
    for penalty, term in ((losses.l2_penalty, np.square), (losses.l1_penalty, np.abs)):
        np.testing.assert_allclose(jax.jit(jax.vmap(penalty))(stack), term(stack).sum((1, 2)), rtol=1e-14)
    np.testing.assert_array_equal(jax.jit(jax.hessian(losses.l2_penalty))(np.ones(3)), 2 * np.eye(3))


@pytest.mark.parametrize("classes", [3, 64, 100])
@pytest.mark.parametrize("loss", [losses.multiclass_hinge, losses.crammer_singer_hinge, losses.softmax_cross_entropy])
def test_a_nan_among_many_classes_is_seen(loss: Any, classes: int) -> None:
    """In rows of 64 and more XLA's maximum on a CPU lost it."""
    scores = np.random.default_rng(0).standard_normal((classes, classes))
    scores[:, 1] = np.nan
    assert np.all(np.isnan(jax.jit(loss)(jnp.asarray(scores), jnp.zeros(classes, int))))
