"""Masked arrays: refused by every public function that takes data, and never read without their mask."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_course as jc
from jaxopt_course import landscape, losses, nearest_neighbor, scores

ROW = np.array([False, True, False, False])
SCORES = np.random.default_rng(0).normal(size=(4, 3))
LABELS = np.array([0, 1, 2, 0])
W = np.ones((3, 3))
MASKED_SCORES = np.ma.masked_array(SCORES, np.stack([ROW] * 3, axis=1))
MASKED_LABELS = np.ma.masked_array(LABELS, ROW)
MASKED_PARAMS = np.ma.masked_array(np.ones(3), [False, True, False])
RISK = jc.empirical_risk(scores.linear, losses.softmax_cross_entropy)
SEARCH = nearest_neighbor.train(SCORES, LABELS)
KEY = jax.random.key(0)


def squares(w: Any, *data: Any) -> Any:
    return jnp.sum(jnp.asarray(w) ** 2) + sum(jnp.mean(jnp.asarray(rows)) for rows in data)


def train(params: Any, data: Any) -> Any:
    return jc.train(squares, jc.sgd(0.1), params, data, key=KEY, batch_size=2, num_steps=1)


LOSSES = (losses.multiclass_hinge, losses.crammer_singer_hinge, losses.softmax_cross_entropy, jc.accuracy)
CASES: dict[str, Callable[[], Any]] = {
    **{f"scores of {f.__name__}": partial(f, MASKED_SCORES, LABELS) for f in LOSSES},
    **{f"labels of {f.__name__}": partial(f, SCORES, MASKED_LABELS) for f in LOSSES},
    "l2_penalty": lambda: losses.l2_penalty({"w": MASKED_PARAMS}),
    "l1_penalty": lambda: losses.l1_penalty({"w": MASKED_PARAMS}),
    "inputs of linear": lambda: scores.linear(W, MASKED_SCORES),
    "weights of linear": lambda: scores.linear(MASKED_SCORES, SCORES),
    "mean of standardized": lambda: scores.standardized(scores.linear, MASKED_PARAMS, np.ones(3)),
    "inputs of standardized": lambda: scores.standardized(scores.linear, np.zeros(3), np.ones(3))(W, MASKED_SCORES),
    "inputs of a risk": lambda: RISK(W, (MASKED_SCORES, LABELS)),
    "labels of a risk": lambda: RISK(W, (SCORES, MASKED_LABELS)),
    "images of a search": lambda: nearest_neighbor.train(MASKED_SCORES, LABELS),
    "labels of a search": lambda: nearest_neighbor.train(SCORES, MASKED_LABELS),
    "test images of a search": lambda: nearest_neighbor.predict(SEARCH, MASKED_SCORES),
    "indices of a vote": lambda: nearest_neighbor.vote(SEARCH, MASKED_LABELS[:, None]),
    "feature_statistics": lambda: jc.data.feature_statistics(MASKED_SCORES),
    "params of gradcheck": lambda: jc.gradcheck(squares, MASKED_PARAMS),
    "data of gradcheck": lambda: jc.gradcheck(squares, np.ones(3), MASKED_SCORES),
    "gradient of gradcheck": lambda: jc.gradcheck(squares, np.ones(3), grad_fn=lambda w: 2 * MASKED_PARAMS),
    "params of gradgradcheck": lambda: jc.gradgradcheck(squares, MASKED_PARAMS),
    "params of grad_check_sparse": lambda: jc.grad_check_sparse(squares, MASKED_PARAMS, np.ones(3)),
    "gradient of grad_check_sparse": lambda: jc.grad_check_sparse(squares, np.ones(3), MASKED_PARAMS),
    "numerical_gradient": lambda: jc.numerical_gradient(squares, MASKED_PARAMS),
    "data of minimize": lambda: jc.minimize(squares, jc.lbfgs(), np.ones(3), data=MASKED_SCORES),
    "params of minimize": lambda: jc.minimize(squares, jc.lbfgs(), MASKED_PARAMS),
    "data of train": lambda: train(np.ones(3), MASKED_SCORES),
    "labels of train": lambda: train(np.ones(3), (SCORES, MASKED_LABELS)),
    "params of train": lambda: train(MASKED_PARAMS, SCORES),
    "gradient of an update": lambda: jc.adam(0.1).update(MASKED_PARAMS, jc.adam(0.1).init(np.ones(3))),
    "point of classify": lambda: landscape.classify(squares, MASKED_PARAMS),
    "ends of basins": lambda: landscape.basins(MASKED_SCORES, np.zeros((1, 3))),
    "minimizers of basins": lambda: landscape.basins(SCORES, MASKED_SCORES),
}


@pytest.mark.parametrize("name", CASES)
def test_a_mask_is_never_dropped(name: str, own_errors: None) -> None:
    with pytest.raises(ValueError, match="masked array"):
        CASES[name]()
