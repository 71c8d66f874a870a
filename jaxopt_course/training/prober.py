"""When a run is looked at, on which minibatches, and what is kept of it."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import AnyOptimizer, Array, ArrayLike, Batch, Int, Objective, Params
from jaxopt_course.landscape.lanczos import Extreme
from jaxopt_course.training.feed import Chunk
from jaxopt_course.training.probes import (
    BLOCKS,
    EXAMPLES,
    Pair,
    Probe,
    Scene,
    Sight,
    Survey,
    brief_probe,
    condensed,
    has_forward,
    survey,
)
from jaxopt_course.training.programs import Program
from jaxopt_course.training.response import Rule, linear_response
from jaxopt_course.training.steps import Carry, scalar_and_aux
from jaxopt_course.training.vectors import Vectors


class Probes(NamedTuple):
    """What `probe_every` leaves in the trace, NumPy arrays.

    `steps[K]`, `looks`: brief looks, stacked, each after that many steps; `survey_steps[2]`, `surveys`: the thorough
    ones before the first step and after the last, whose means are the looks at those steps; `batch_size`,
    `num_examples`: of the run; `sight`: what the next look would take.
    """

    steps: np.ndarray
    looks: Probe
    survey_steps: np.ndarray
    surveys: Survey
    batch_size: np.ndarray
    num_examples: np.ndarray
    sight: Sight


class Viewpoint(NamedTuple):
    """Where a brief look is taken: from what earlier ones saw, on minibatches of these `rows[3, B]`."""

    sight: Sight
    rows: Int[ArrayLike, "3 B"]


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
        self.seed = np.asarray(jax.random.key_data(self.key)).ravel().tolist()
        self.sight: Sight | None = None
        self.steps: list[int] = []
        self.looks: list[Probe] = []
        self.survey_steps: list[int] = []
        self.surveys: list[Survey] = []
        self._survey = partial(_compiled_survey.bound((objective, optimizer)), has_aux=has_aux)

    def viewpoint(self, step: int, carry: Carry, chunk: Chunk) -> Viewpoint | None:
        """Where the chunk that begins after `step` steps is to look, if a look is due; before the first a survey."""
        if step == 0 and not self.surveys:
            self.survey(step, carry, chunk)
        if step % self.every or step in self.steps:
            return None
        assert self.sight is not None
        return Viewpoint(self.sight, self._rows(step, 3, chunk))

    def keep(self, step: int, seen: tuple[Probe, Array]) -> None:
        """Keep what a brief look saw."""
        assert self.sight is not None
        look, direction = seen
        self.steps.append(step)
        self.looks.append(look)
        self.sight = self.sight._replace(direction=direction)

    def survey(self, step: int, carry: Carry, chunk: Chunk) -> None:
        """Look thoroughly, with examples of a chunk."""
        if step in self.survey_steps:
            return
        blocks = 1 if self._is_whole else max(BLOCKS, min(-(-EXAMPLES // self.batch_size), EXAMPLES))
        rows = self._rows(step, 5 * blocks, chunk).reshape(5, blocks, self.batch_size)
        data = examples_of(chunk.data, chunk.plan)
        seen, look, self.sight = self._survey(carry, self.start, data, rows, self.key, np.int32(step))
        self.survey_steps.append(step)
        self.surveys.append(seen)
        if step not in self.steps:
            self.steps.append(step)
            self.looks.append(look)

    def probes(self) -> Probes:
        """What was seen, on the host."""
        looks, surveys, sight = jax.device_get((self.looks, self.surveys, self.sight))
        return Probes(
            np.array(self.steps, int), _stacked(looks), np.array(self.survey_steps, int), _stacked(surveys),
            np.array(self.batch_size), np.array(self.num_examples), sight,
        )  # fmt: skip

    def restore(self, probes: Probes) -> None:
        """Go on from what an earlier part of the run has seen."""
        self.steps, self.survey_steps = probes.steps.tolist(), probes.survey_steps.tolist()
        self.looks = [jax.tree.map(lambda rows, i=i: rows[i], probes.looks) for i in range(len(self.steps))]
        self.surveys = [jax.tree.map(lambda rows, i=i: rows[i], probes.surveys) for i in range(len(self.survey_steps))]
        self.sight = probes.sight

    @property
    def _is_whole(self) -> bool:
        return self.batch_size == self.num_examples

    def _rows(self, step: int, count: int, chunk: Chunk) -> np.ndarray:
        """Minibatches `[count, B]`, drawn with replacement; all examples where a minibatch is all of them."""
        if self._is_whole:
            return np.tile(np.arange(self.batch_size, dtype=np.int32), (count, 1))
        at_hand = self.num_examples
        if chunk.plan is None:
            at_hand = min(chunk.last * jax.tree.leaves(chunk.data)[0].shape[1], at_hand)
        return np.random.default_rng([*self.seed, step]).integers(0, at_hand, (count, self.batch_size), np.int32)


def blank_probes() -> Probes:
    """The tree of `Probes`, with nothing in it."""
    none: Any = np.zeros(0)
    pair, extreme = Pair(*[none] * len(Pair._fields)), Extreme(*[none] * len(Extreme._fields))
    rest = dict.fromkeys(Survey._fields, none)
    survey = Survey(**rest | {"pairs": pair, "highest": extreme, "lowest": extreme})
    return Probes(none, Probe(pair, none, none), none, survey, none, none, Sight(*[none] * len(Sight._fields)))


def look(
    callables: tuple[Objective, AnyOptimizer], carry: Carry, data: Batch, plan: Array | None, view: Viewpoint,
    has_aux: bool,
) -> tuple[Probe, Array]:  # fmt: skip
    """A brief look at a run, and the direction for the next one; `data` and `plan` as in `train_steps`. Pure."""
    return brief_probe(_scene(callables, carry, examples_of(data, plan), has_aux), view.sight, jnp.asarray(view.rows))


def examples_of(data: Batch, plan: Array | None) -> Batch:
    """The examples of a chunk along one axis."""
    return data if plan is not None else jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), data)


def _stacked(rows: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def _scene(callables: tuple[Objective, AnyOptimizer], carry: Carry, data: Batch, has_aux: bool) -> Scene:
    objective, optimizer = callables

    def loss(params: Params, batch: Batch) -> Array:
        return scalar_and_aux("train", objective(params, batch), has_aux)[0]

    params, one = carry.params, jax.tree.map(lambda leaf: leaf[:1], data)
    return Scene(loss, data, Rule(Vectors(params), optimizer, params), carry.state, has_forward(loss, params, one))


@partial(Program, static_argnames="has_aux")
def _compiled_survey(
    callables: tuple[Objective, AnyOptimizer], carry: Carry, start: Params, data: Batch, rows: Array, key: Array,
    step: Array, *, has_aux: bool,
) -> tuple[Survey, Probe, Sight]:  # fmt: skip
    scene = _scene(callables, carry, data, has_aux)
    response_key, survey_key = jax.random.split(jax.random.fold_in(key, step))
    response = linear_response(scene.rule, scene.state, scene.gradient(rows[4, 0])[1], response_key, step > 0)
    seen, sight = survey(scene, response, scene.flat.vector(start), rows[:4], survey_key)
    return seen, condensed(seen), sight
