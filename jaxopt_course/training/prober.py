"""When a run is looked at, on which minibatches, and what is kept of it."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import AnyOptimizer, Array, Batch, Objective, Params
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


class Minibatch(NamedTuple):
    """`size` in examples, and whether that is `everything` there is."""

    size: int
    everything: bool


class Viewpoint(NamedTuple):
    """Where a brief look is taken: `examples` are the valid ones at hand, `key` the run's own for probes."""

    sight: Sight
    key: Array
    step: np.int32
    examples: np.int32


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
        self.sight: Sight | None = None
        self.steps: list[int] = []
        self.looks: list[Probe] = []
        self.survey_steps: list[int] = []
        self.surveys: list[Survey] = []
        minibatch = Minibatch(batch_size, batch_size == num_examples)
        self._survey = partial(_compiled_survey.bound((objective, optimizer)), minibatch=minibatch, has_aux=has_aux)

    def viewpoint(self, step: int, carry: Carry, chunk: Chunk) -> Viewpoint | None:
        """Where the chunk that begins after `step` steps is to look, if a look is due; before the first a survey."""
        if step == 0 and not self.surveys:
            self.survey(step, carry, chunk)
        if step % self.every or step in self.steps:
            return None
        assert self.sight is not None
        return Viewpoint(self.sight, self.key, np.int32(step), self._at_hand(chunk))

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
        point = (self.key, np.int32(step), self._at_hand(chunk))
        seen, self.sight = self._survey(carry, self.start, examples_of(chunk.data, chunk.plan), *point)
        self.survey_steps.append(step)
        self.surveys.append(seen)
        if step not in self.steps:
            self.steps.append(step)
            self.looks.append(condensed(seen))

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

    def _at_hand(self, chunk: Chunk) -> np.int32:
        if chunk.plan is not None:
            return np.int32(self.num_examples)
        return np.int32(min(chunk.last * jax.tree.leaves(chunk.data)[0].shape[1], self.num_examples))


def blank_probes() -> Probes:
    """The tree of `Probes`, with nothing in it."""
    none: Any = np.zeros(0)
    pair, extreme = Pair(*[none] * len(Pair._fields)), Extreme(*[none] * len(Extreme._fields))
    rest = dict.fromkeys(Survey._fields, none)
    survey = Survey(**rest | {"pairs": pair, "highest": extreme, "lowest": extreme})
    return Probes(none, Probe(pair, none, none), none, survey, none, none, Sight(*[none] * len(Sight._fields)))


def look(
    callables: tuple[Objective, AnyOptimizer], carry: Carry, data: Batch, plan: Array | None, view: Viewpoint,
    minibatch: Minibatch, has_aux: bool,
) -> tuple[Probe, Array]:  # fmt: skip
    """A brief look at a run, and the direction for the next one; `data` and `plan` as in `train_steps`. Pure."""
    scene = _scene(callables, carry, examples_of(data, plan), has_aux)
    rows = _rows(jax.random.fold_in(view.key, view.step), (3, minibatch.size), view.examples, minibatch)
    return brief_probe(scene, view.sight, rows)


def examples_of(data: Batch, plan: Array | None) -> Batch:
    """The examples of a chunk along one axis."""
    return data if plan is not None else jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), data)


def _stacked(rows: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def _rows(key: Array, shape: tuple[int, ...], count: Array | np.int32, minibatch: Minibatch) -> Array:
    """Minibatches drawn with replacement; all examples where a minibatch is all of them."""
    if minibatch.everything:
        return jnp.broadcast_to(jnp.arange(shape[-1]), shape)
    return jax.random.randint(key, shape, 0, count)


def _scene(callables: tuple[Objective, AnyOptimizer], carry: Carry, data: Batch, has_aux: bool) -> Scene:
    objective, optimizer = callables

    def loss(params: Params, batch: Batch) -> Array:
        return scalar_and_aux("train", objective(params, batch), has_aux)[0]

    return Scene(loss, data, Rule(Vectors(carry.params), optimizer, carry.params), carry.state)


@partial(Program, static_argnames=("minibatch", "has_aux"))
def _compiled_survey(
    callables: tuple[Objective, AnyOptimizer], carry: Carry, start: Params, data: Batch, key: Array, step: Array,
    examples: Array, *, minibatch: Minibatch, has_aux: bool,
) -> tuple[Survey, Sight]:  # fmt: skip
    scene = _scene(callables, carry, data, has_aux)
    blocks = 1 if minibatch.everything else max(BLOCKS, min(-(-EXAMPLES // minibatch.size), EXAMPLES))
    rows_key, response_key, survey_key = jax.random.split(jax.random.fold_in(key, step), 3)
    rows = _rows(rows_key, (5, blocks, minibatch.size), examples, minibatch)
    response = linear_response(scene.rule, scene.state, scene.gradient(rows[4, 0])[1], response_key, step > 0)
    return survey(scene, response, scene.flat.vector(start), rows[:4], survey_key)
