"""Schedule of the probes of a run: when they are taken, on which minibatches, and what is stored."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_course.annotations import AnyOptimizer, Array, ArrayLike, Batch, Int, Objective, Params
from jaxopt_course.landscape.lanczos import Extreme
from jaxopt_course.training.feed import Chunk
from jaxopt_course.training.probes import (
    MIN_BLOCKS,
    MIN_EXAMPLES,
    LossAtPoint,
    Pair,
    Probe,
    ProbeState,
    Survey,
    brief_probe,
    has_forward,
    survey,
    survey_means,
)
from jaxopt_course.training.programs import Program
from jaxopt_course.training.response import Rule, linear_response
from jaxopt_course.training.steps import Carry, scalar_and_aux
from jaxopt_course.training.vectors import Vectors


class Probes(NamedTuple):
    """The measurements of `probe_every` in the trace, as NumPy arrays.

    `steps[K]`, `looks`: brief probes, stacked, and the number of steps before each; `survey_steps[2]`, `surveys`: the
    thorough surveys before the first step and after the last, whose means are the probes at those steps; `batch_size`,
    `num_examples`: of the run; `sight`: the state for the next probe.
    """

    steps: np.ndarray
    looks: Probe
    survey_steps: np.ndarray
    surveys: Survey
    batch_size: np.ndarray
    num_examples: np.ndarray
    sight: ProbeState


class ProbeInputs(NamedTuple):
    """The inputs of a brief probe: the state from earlier probes, and minibatches of the examples `rows[3, B]`."""

    sight: ProbeState
    rows: Int[ArrayLike, "3 B"]


class Prober:
    """Takes brief probes at regular intervals and surveys at the start and the end, and stores the results."""

    def __init__(
        self, objective: Objective, optimizer: AnyOptimizer, start: Params, key: Array, every: int, batch_size: int,
        num_examples: int, has_aux: bool,
    ):  # fmt: skip
        if any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(start)):
            raise TypeError("train: probe_every needs real parameters")
        self.every, self.batch_size, self.num_examples = every, batch_size, num_examples
        self.start, self.key = start, jax.random.fold_in(key, 0x70726F62)
        self.seed = np.asarray(jax.random.key_data(self.key)).ravel().tolist()
        self.sight: ProbeState | None = None
        self.steps: list[int] = []
        self.looks: list[Probe] = []
        self.survey_steps: list[int] = []
        self.surveys: list[Survey] = []
        self._survey = partial(_compiled_survey.bound((objective, optimizer)), has_aux=has_aux)

    def inputs_if_due(self, step: int, carry: Carry, chunk: Chunk) -> ProbeInputs | None:
        """Return the inputs of a probe for the chunk that begins after `step` steps, if a probe is due.

        Before the first step, take a survey.
        """
        if step == 0 and not self.surveys:
            self.survey(step, carry, chunk)
        if step % self.every or step in self.steps:
            return None
        assert self.sight is not None
        return ProbeInputs(self.sight, self._rows(step, 3, chunk))

    def keep(self, step: int, seen: tuple[Probe, Array]) -> None:
        """Store the result of a brief probe."""
        assert self.sight is not None
        probe, direction = seen
        self.steps.append(step)
        self.looks.append(probe)
        self.sight = self.sight._replace(direction=direction)

    def survey(self, step: int, carry: Carry, chunk: Chunk) -> None:
        """Take a survey, with examples of a chunk."""
        if step in self.survey_steps:
            return
        blocks = 1 if self._is_whole else max(MIN_BLOCKS, min(-(-MIN_EXAMPLES // self.batch_size), MIN_EXAMPLES))
        rows = self._rows(step, 5 * blocks, chunk).reshape(5, blocks, self.batch_size)
        data = examples_of(chunk.data, chunk.plan)
        seen, probe, self.sight = self._survey(carry, self.start, data, rows, self.key, np.int32(step))
        self.survey_steps.append(step)
        self.surveys.append(seen)
        if step not in self.steps:
            self.steps.append(step)
            self.looks.append(probe)

    def probes(self) -> Probes:
        """Return all measurements, on the host."""
        looks, surveys, sight = jax.device_get((self.looks, self.surveys, self.sight))
        return Probes(
            np.array(self.steps, int), _stacked(looks), np.array(self.survey_steps, int), _stacked(surveys),
            np.array(self.batch_size), np.array(self.num_examples), sight,
        )  # fmt: skip

    def restore(self, probes: Probes) -> None:
        """Continue from the measurements of an earlier part of the run."""
        self.steps, self.survey_steps = probes.steps.tolist(), probes.survey_steps.tolist()
        self.looks = [jax.tree.map(lambda rows, i=i: rows[i], probes.looks) for i in range(len(self.steps))]
        self.surveys = [jax.tree.map(lambda rows, i=i: rows[i], probes.surveys) for i in range(len(self.survey_steps))]
        self.sight = probes.sight

    @property
    def _is_whole(self) -> bool:
        return self.batch_size == self.num_examples

    def _rows(self, step: int, count: int, chunk: Chunk) -> np.ndarray:
        """Draw minibatches `[count, B]` with replacement; if the batch is the whole data, return all examples."""
        if self._is_whole:
            return np.tile(np.arange(self.batch_size, dtype=np.int32), (count, 1))
        at_hand = self.num_examples
        if chunk.plan is None:
            at_hand = min(chunk.last * jax.tree.leaves(chunk.data)[0].shape[1], at_hand)
        return np.random.default_rng([*self.seed, step]).integers(0, at_hand, (count, self.batch_size), np.int32)


def blank_probes() -> Probes:
    """Return an empty tree with the structure of `Probes`."""
    none: Any = np.zeros(0)
    pair, extreme = Pair(*[none] * len(Pair._fields)), Extreme(*[none] * len(Extreme._fields))
    rest = dict.fromkeys(Survey._fields, none)
    survey = Survey(**rest | {"pairs": pair, "highest": extreme, "lowest": extreme})
    return Probes(
        none, Probe(pair, none, none), none, survey, none, none, ProbeState(*[none] * len(ProbeState._fields))
    )


def take_probe(
    callables: tuple[Objective, AnyOptimizer], carry: Carry, data: Batch, plan: Array | None, inputs: ProbeInputs,
    has_aux: bool,
) -> tuple[Probe, Array]:  # fmt: skip
    """Take a brief probe, and return it with the direction for the next one. Pure.

    `data` and `plan` are as in `train_steps`.
    """
    return brief_probe(
        _loss_at_point(callables, carry, examples_of(data, plan), has_aux), inputs.sight, jnp.asarray(inputs.rows)
    )


def examples_of(data: Batch, plan: Array | None) -> Batch:
    """Return the examples of a chunk along one axis."""
    return data if plan is not None else jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), data)


def _stacked(rows: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def _loss_at_point(callables: tuple[Objective, AnyOptimizer], carry: Carry, data: Batch, has_aux: bool) -> LossAtPoint:
    objective, optimizer = callables

    def loss(params: Params, batch: Batch) -> Array:
        return scalar_and_aux("train", objective(params, batch), has_aux)[0]

    params, one = carry.params, jax.tree.map(lambda leaf: leaf[:1], data)
    return LossAtPoint(
        loss, data, Rule(Vectors(params), optimizer, params), carry.state, has_forward(loss, params, one)
    )


@partial(Program, static_argnames="has_aux")
def _compiled_survey(
    callables: tuple[Objective, AnyOptimizer], carry: Carry, start: Params, data: Batch, rows: Array, key: Array,
    step: Array, *, has_aux: bool,
) -> tuple[Survey, Probe, ProbeState]:  # fmt: skip
    point = _loss_at_point(callables, carry, data, has_aux)
    response_key, survey_key = jax.random.split(jax.random.fold_in(key, step))
    response = linear_response(point.rule, point.state, point.gradient(rows[4, 0])[1], response_key, step > 0)
    seen, sight = survey(point, response, point.flat.vector(start), rows[:4], survey_key)
    return seen, survey_means(seen), sight
