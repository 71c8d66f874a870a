"""When a run is looked at, on which minibatches, and what is kept of it."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import AnyOptimizer, Array, Batch, Objective, Params
from jaxopt_course.landscape.lanczos import Extreme
from jaxopt_course.training.checks import check_objective_value
from jaxopt_course.training.feed import Chunk
from jaxopt_course.training.probes import BLOCKS, EXAMPLES, Pair, Probe, Scene, Survey, brief_probe, survey
from jaxopt_course.training.programs import Program
from jaxopt_course.training.response import linear_response
from jaxopt_course.training.steps import Carry
from jaxopt_course.training.vectors import Vectors


class Probes(NamedTuple):
    """What `probe_every` leaves in the trace, NumPy arrays.

    `steps[K]`, `looks`: brief looks, stacked, each before that many steps plus one; `survey_steps[2]`, `surveys`: the
    thorough ones before the first step and after the last; `batch_size`, `num_examples`: of the run; `direction[n]`: of
    largest curvature, from which the next look would go on.
    """

    steps: np.ndarray
    looks: Probe
    survey_steps: np.ndarray
    surveys: Survey
    batch_size: np.ndarray
    num_examples: np.ndarray
    direction: np.ndarray


class Prober:
    """Takes brief looks every so many steps and thorough ones at the ends, and keeps what they saw."""

    def __init__(
        self, objective: Objective, optimizer: AnyOptimizer, start: Params, key: Array, every: int, batch_size: int,
        num_examples: int, has_aux: bool,
    ):  # fmt: skip
        if any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(start)):
            raise TypeError("train: probe_every needs real parameters")
        self.every, self.batch_size, self.num_examples = every, batch_size, num_examples
        self.start, self.key = start, jax.random.fold_in(key, 0x70726F62)
        self.direction: Array | None = None
        self.steps: list[int] = []
        self.looks: list[Probe] = []
        self.survey_steps: list[int] = []
        self.surveys: list[Survey] = []
        callables = (objective, optimizer)
        options = {"batch_size": batch_size, "everything": batch_size == num_examples, "has_aux": has_aux}
        self._brief = partial(_compiled_look.bound(callables), **options)
        self._survey = partial(_compiled_survey.bound(callables), **options)

    def look(self, step: int, carry: Carry, chunk: Chunk, last: bool = False) -> None:
        """Look at the run after `step` steps, with examples of a chunk, where it is time to."""
        due = step % self.every == 0 or last
        if not due or step in (self.survey_steps if last else self.steps):
            return
        data, at_hand = _examples(chunk)
        count = np.int32(min(at_hand, self.num_examples))
        key = jax.random.fold_in(self.key, step)
        if step == 0 or last:
            seen, self.direction = self._survey(carry, self.start, data, count, key, np.bool_(step > 0))
            self.survey_steps.append(step)
            self.surveys.append(seen)
        if step not in self.steps:
            shift = jnp.maximum(-self.surveys[-1].lowest.value, 0)
            seen, self.direction = self._brief(carry, data, count, key, self.direction, shift, np.bool_(step > 0))
            self.steps.append(step)
            self.looks.append(seen)

    def probes(self) -> Probes:
        """What was seen, on the host."""
        looks, surveys = jax.device_get((self.looks, self.surveys))
        return Probes(
            np.array(self.steps, int), _stacked(looks), np.array(self.survey_steps, int), _stacked(surveys),
            np.array(self.batch_size), np.array(self.num_examples), np.asarray(self.direction),
        )  # fmt: skip

    def restore(self, probes: Probes) -> None:
        """Go on from what an earlier part of the run has seen."""
        self.steps, self.survey_steps = probes.steps.tolist(), probes.survey_steps.tolist()
        self.looks = [jax.tree.map(lambda rows, i=i: rows[i], probes.looks) for i in range(len(self.steps))]
        self.surveys = [jax.tree.map(lambda rows, i=i: rows[i], probes.surveys) for i in range(len(self.survey_steps))]
        self.direction = jnp.asarray(probes.direction)


def blank_probes() -> Probes:
    """The tree of `Probes`, with nothing in it."""
    none: Any = np.zeros(0)
    pair, extreme = Pair(*[none] * len(Pair._fields)), Extreme(*[none] * len(Extreme._fields))
    rest = dict.fromkeys(Survey._fields, none)
    survey = Survey(**rest | {"pairs": pair, "highest": extreme, "lowest": extreme})
    return Probes(none, Probe(pair, none, none, none), none, survey, none, none, none)


def _stacked(rows: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def _examples(chunk: Chunk) -> tuple[Batch, int]:
    """The examples that a chunk has at hand, along one axis, and how many are valid."""
    if chunk.plan is not None:
        return chunk.data, 2**31 - 1
    count = chunk.last * jax.tree.leaves(chunk.data)[0].shape[1]
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), chunk.data), count


def _rows(key: Array, shape: tuple[int, ...], count: Array, everything: bool) -> Array:
    """Minibatches drawn with replacement; all examples where a minibatch is all of them."""
    if everything:
        return jnp.broadcast_to(jnp.arange(shape[-1]), shape)
    return jax.random.randint(key, shape, 0, count)


def _scene(objective: Objective, params: Params, data: Batch, has_aux: bool) -> Scene:
    def loss(params: Params, batch: Batch) -> Array:
        returned = objective(params, batch)
        check_objective_value("train", returned, has_aux)
        return returned[0] if has_aux else returned

    flat = Vectors(params)
    return Scene(flat, loss, data, params, flat.vector(params))


@partial(Program, static_argnames=("batch_size", "everything", "has_aux"))
def _compiled_look(
    callables: tuple[Objective, AnyOptimizer], carry: Carry, data: Batch, count: Array, key: Array, direction: Array,
    shift: Array, warm: Array, *, batch_size: int, everything: bool, has_aux: bool,
) -> tuple[Probe, Array]:  # fmt: skip
    objective, optimizer = callables
    scene = _scene(objective, carry.params, data, has_aux)
    rows_key, response_key = jax.random.split(key)
    rows = _rows(rows_key, (4, batch_size), count, everything)
    response = linear_response(optimizer, carry.state, carry.params, scene.gradient(rows[3])[1], response_key, warm)
    return brief_probe(scene, response, rows[:3], direction, shift)


@partial(Program, static_argnames=("batch_size", "everything", "has_aux"))
def _compiled_survey(
    callables: tuple[Objective, AnyOptimizer], carry: Carry, start: Params, data: Batch, count: Array, key: Array,
    warm: Array, *, batch_size: int, everything: bool, has_aux: bool,
) -> tuple[Survey, Array]:  # fmt: skip
    objective, optimizer = callables
    scene = _scene(objective, carry.params, data, has_aux)
    blocks = 1 if everything else max(BLOCKS, min(-(-EXAMPLES // batch_size), EXAMPLES))
    rows_key, response_key, survey_key = jax.random.split(key, 3)
    rows = _rows(rows_key, (4, blocks, batch_size), count, everything)
    response = linear_response(optimizer, carry.state, carry.params, scene.gradient(rows[3, 0])[1], response_key, warm)
    return survey(scene, response, scene.flat.vector(start), rows[:3], survey_key)
