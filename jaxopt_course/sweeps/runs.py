"""All runs of one method, by blocks of lanes and rungs of successive halving, with state that can be saved."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxopt_course.annotations import Objective, Params, PyTree
from jaxopt_course.sweeps.blocks import Block, Rung, block_shape, plan_rungs
from jaxopt_course.sweeps.lanes import Layout, advance, begin, evaluate, fetch, measure_loss
from jaxopt_course.sweeps.methods import Method, weakly_typed
from jaxopt_course.sweeps.result import MethodResult
from jaxopt_course.training.feed import StepPlan, plan_chunks
from jaxopt_course.training.steps import Carry

STEPS_AT_ONCE = 100  # most steps in one compiled call


class Setup(NamedTuple):
    """What all methods of a sweep share; `plan` has one key for each seed, `starts` has leaves `[S, ...]`."""

    objective: Objective
    has_aux: bool
    data: PyTree
    plan: StepPlan
    num_steps: int
    starts: Params
    eval_fn: Callable[[Params], PyTree] | None
    eval_steps: np.ndarray
    eval_every: int | None
    halving: float | None
    keeps_params: str

    @property
    def num_seeds(self) -> int:
        return jax.tree.leaves(self.starts)[0].shape[0]


class MethodRun:
    """The runs of a method; `done` counts the steps of all blocks so far, which run one after the other."""

    def __init__(self, setup: Setup, method: Method, lanes: int, mesh: Any):
        self.setup, self.method = setup, method
        self.rungs = plan_rungs(method.points.count, setup.num_steps, setup.halving)
        seeds, points, along_seeds = block_shape(setup.num_seeds, self.rungs, lanes, 1 if mesh is None else mesh.size)
        self.shape = seeds, points
        self.layout = Layout(mesh, along_seeds)
        self.done = 0
        self.carry: Carry | None = None
        shape = (method.points.count, setup.num_seeds)
        self.results: dict[str, np.ndarray] = {
            "loss": np.full(shape, np.inf),
            "diverged_at": np.zeros(shape, int),
            "steps": np.zeros(shape, int),
            "curve": np.full((*shape, setup.num_steps), np.nan, jax.dtypes.canonicalize_dtype(float)),
            "best": np.array(-1),
        }
        self.evals = self._blank_evals(shape)
        self.params = self._blank_params()
        self.paused: PyTree = None  # carries of all lanes, kept between rungs

    def first_carry(self) -> Carry:
        """The carry of the first block before its first step."""
        return self._begin(next(self._blocks(np.arange(self.method.points.count))))

    def total_steps(self) -> int:
        """Number of steps of all blocks in all rungs."""
        return sum(self._num_blocks(rung) * (rung.last - rung.first) for rung in self.rungs)

    def run(self) -> Iterator[bool]:
        """Run to the end; yields after every compiled call whether a block has ended."""
        passed = 0
        for number, rung in enumerate(self.rungs):
            for block in self._blocks(self._active(number)):
                start, passed = passed, passed + rung.last - rung.first
                if self.done < passed or rung.last == rung.first == self.done == 0:
                    yield from self._run_block(rung, block, rung.first + max(0, self.done - start))

    def _active(self, number: int) -> np.ndarray:
        """The points of a rung: the best points of the previous rung by mean loss, in the order of the grid."""
        active = np.arange(self.method.points.count)
        for rung in self.rungs[1 : number + 1]:
            means = self.results["loss_of_rung"][self.rungs.index(rung) - 1].mean(axis=1)[active]
            active = np.sort(active[np.argsort(means, kind="stable")[: rung.num_points]])
        return active

    def _num_blocks(self, rung: Rung) -> int:
        seeds, points = self.shape
        return -(-rung.num_points // points) * -(-self.setup.num_seeds // seeds)

    def _blocks(self, active: np.ndarray) -> Iterator[Block]:
        seeds, points = self.shape
        for p in range(0, len(active), points):
            for s in range(0, self.setup.num_seeds, seeds):
                these, those = active[p : p + points], np.arange(s, min(s + seeds, self.setup.num_seeds))
                padding = [(0, points - len(these))], [(0, seeds - len(those))]
                yield Block(
                    np.pad(these, padding[0], "edge"), np.pad(those, padding[1], "edge"), len(these), len(those)
                )

    def _begin(self, block: Block) -> Carry:
        starts = self.layout.put(jax.tree.map(lambda leaf: leaf[block.seeds], self.setup.starts), "seeds")
        return begin(self.method.factory, self._points(block), starts, layout=self.layout)

    def _points(self, block: Block) -> dict[str, Any]:
        return {
            name: self.layout.put(weakly_typed(values[block.points]), "points")
            for name, values in self.method.points.items()
        }

    def _run_block(self, rung: Rung, block: Block, step: int) -> Iterator[bool]:
        """Run one block in one rung, from `step` on."""
        setup, points = self.setup, self._points(block)
        if step == rung.first:
            self.carry = None  # frees the memory of the previous block
            self.carry = self._begin(block) if step == 0 else self._resume_from_last_rung(block)
        if step == 0:
            self._evaluate(block, 0)
        carry, self.carry = self.carry, None
        plan = setup.plan._replace(key=setup.plan.key[block.seeds])
        stops = () if setup.eval_every is None else (setup.eval_every,)
        step_of_call = partial(advance.bound((setup.objective, self.method.factory)), points)
        for chunk in plan_chunks(plan, step, rung.last, STEPS_AT_ONCE, stops):
            rows = self.layout.put(chunk.plan, "seeds")
            ends = np.int32(chunk.first), np.int32(chunk.last)
            carry, *record = step_of_call(carry, setup.data, rows, *ends, has_aux=setup.has_aux, layout=self.layout)
            loss, skipped = (lanes[..., chunk.first : chunk.last] for lanes in fetch(record))
            self._record(block, step, block.valid(loss), block.valid(skipped))
            step += chunk.last - chunk.first
            self.done += chunk.last - chunk.first
            self.carry = carry
            self._evaluate(block, step)
            if step == rung.last:
                self._finish(rung, block)
            yield step == rung.last
        if rung.first == rung.last:
            self.carry = carry
            self._finish(rung, block)
            yield True

    def _record(self, block: Block, step: int, loss: np.ndarray, skipped: np.ndarray) -> None:
        """Record the losses `[P, S, rows]` of the steps from `step` on, and where lanes diverged."""
        results, places = self.results, block.places
        stopped, ever = skipped.argmax(axis=2), skipped.any(axis=2)
        at = results["diverged_at"][places]
        results["diverged_at"][places] = np.where((at == 0) & ever, step + stopped + 1, at)
        taken = np.where(ever, stopped, skipped.shape[2])
        results["steps"][places] += np.where(at == 0, taken, 0)
        results["curve"][(*places, slice(step, step + loss.shape[2]))] = np.where(skipped, np.inf, loss)

    def _finish(self, rung: Rung, block: Block) -> None:
        """Record the losses at the end of a rung, and keep the parameters or save the carries for the next rung."""
        assert self.carry is not None
        losses = self._losses(self.carry)
        finite = np.isfinite(losses)
        loss = block.valid(np.where(finite, losses, np.inf))
        results, places = self.results, block.places
        results["loss"][places] = np.where(results["diverged_at"][places] > 0, np.inf, loss)
        if len(self.rungs) > 1:
            of_rung = results.setdefault("loss_of_rung", np.full((len(self.rungs), *results["loss"].shape), np.inf))
            of_rung[self.rungs.index(rung)][places] = results["loss"][places]
        if rung.last < self.setup.num_steps:
            self._save_for_next_rung(block)
        elif self.params:
            self._keep(block)

    def _lanes_over_all_data(self) -> int:
        """Number of lanes that evaluate all data at once, so that they use at most half the examples of one step."""
        return math.prod(self.shape) * self.setup.plan.batch_size // (2 * self.setup.plan.num_examples)

    def _losses(self, carry: Carry) -> np.ndarray:
        """The objective over all data in every lane."""
        setup = self.setup
        options = {"has_aux": setup.has_aux, "at_once": self._lanes_over_all_data(), "layout": self.layout}
        return fetch(measure_loss(setup.objective, carry.params, setup.data, **options))

    def _evaluate(self, block: Block, step: int) -> None:
        """Call `eval_fn` if it is due at this step."""
        at = np.flatnonzero(self.setup.eval_steps == step)
        if self.setup.eval_fn is None or not at.size:
            return
        assert self.carry is not None
        at_once = self._lanes_over_all_data()
        found = fetch(evaluate(self.setup.eval_fn, self.carry.params, at_once=at_once, layout=self.layout))
        for kept, lanes in zip(jax.tree.leaves(self.evals), jax.tree.leaves(found), strict=True):
            kept[(*block.places, at[0])] = block.valid(lanes)

    def _blank_evals(self, shape: tuple[int, int]) -> PyTree:
        if self.setup.eval_fn is None:
            return None
        start = jax.tree.map(lambda leaf: leaf[0], self.setup.starts)
        one = jax.eval_shape(self.setup.eval_fn, start)

        def blank(leaf: Any) -> np.ndarray:
            fill = np.nan if jax.dtypes.issubdtype(leaf.dtype, np.inexact) else 0
            return np.full((*shape, len(self.setup.eval_steps), *leaf.shape), fill, leaf.dtype)

        return jax.tree.map(blank, one)

    def _blank_params(self) -> dict[str, Params]:
        """Allocate host arrays for the parameters to keep: of the best point, of all points, or none."""
        start = fetch(self.setup.starts)

        def room(*points: int) -> Params:
            return jax.tree.map(lambda leaf: np.zeros((*points, *leaf.shape), leaf.dtype), start)

        if self.setup.keeps_params == "all":
            return {"all": room(self.method.points.count)}
        if self.setup.keeps_params == "none":
            return {}
        return {"best": room()} | ({"block": room(self.shape[1])} if self.shape[0] < self.setup.num_seeds else {})

    def _keep(self, block: Block) -> None:
        """Keep the final parameters of all points, or of the best point as soon as all its seeds have finished."""
        assert self.carry is not None
        lanes = fetch(self.carry.params)
        if "all" in self.params:
            for kept, leaf in _pairs(self.params["all"], lanes):
                kept[block.places] = block.valid(leaf)
            return
        candidates = jax.tree.map(block.valid, lanes)
        if "block" in self.params:  # the seeds of a point are spread over several blocks
            seeds = block.seeds[: block.num_seeds]
            for kept, leaf in _pairs(self.params["block"], candidates):
                kept[: block.num_points, seeds] = leaf
            if seeds[-1] + 1 < self.setup.num_seeds:
                return
            candidates = self.params["block"]
        means = self.results["loss"].mean(axis=1)
        for place, point in enumerate(block.points[: block.num_points]):
            best = int(self.results["best"])
            if best < 0 or means[point] < means[best]:
                self.results["best"] = np.array(point)
                for kept, leaf in _pairs(self.params["best"], candidates):
                    kept[...] = leaf[place]

    def _save_for_next_rung(self, block: Block) -> None:
        lanes = fetch(self.carry)
        if self.paused is None:
            self.paused = self.blank_paused(lanes)
        for kept, leaf in _pairs(self.paused, lanes):
            kept[block.places] = block.valid(leaf)

    def blank_paused(self, lanes: Carry) -> Carry:
        """Allocate host arrays for the carries of all lanes, from the carries of a block."""
        shape = (self.method.points.count, self.setup.num_seeds)
        return jax.tree.map(lambda leaf: np.zeros((*shape, *leaf.shape[2:]), leaf.dtype), lanes)

    def _resume_from_last_rung(self, block: Block) -> Carry:
        everyone = np.ix_(block.points, block.seeds)
        carry = jax.tree.map(lambda leaf: np.swapaxes(leaf[everyone], 0, 1), self.paused)
        return self.layout.put(carry, "lanes") if self.layout.mesh else jax.device_put(carry)

    def saved_carry(self) -> Carry:
        """The carry of the current block for a checkpoint; with several processes, it is copied to the host."""
        assert self.carry is not None
        return self.carry if jax.process_count() == 1 else fetch(self.carry)

    def arrays(self) -> dict[str, np.ndarray]:
        """The results so far as named arrays, for a checkpoint."""
        trees = {"evals": self.evals, "params": self.params, "paused": self.paused}
        paths = jax.tree_util.tree_leaves_with_path(trees)
        return {**self.results, **{f"trees{jax.tree_util.keystr(path)}": leaf for path, leaf in paths}}

    def restore(self, done: int, carry: Carry, arrays: dict[str, np.ndarray]) -> None:
        """Continue from a checkpoint: the results `arrays()` and the carry of the current block."""
        self.done, self.carry = done, carry
        self.results = {name: np.array(a) for name, a in arrays.items() if not name.startswith("trees")}
        if any(name.startswith("trees['paused']") for name in arrays):
            self.paused = self.blank_paused(fetch(carry))
        trees = {"evals": self.evals, "params": self.params, "paused": self.paused}
        for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
            leaf[...] = arrays[f"trees{jax.tree_util.keystr(path)}"]

    def lowest_loss(self) -> float:
        """The lowest mean loss of a point so far; inf before the first."""
        return float(self.results["loss"].mean(axis=1).min())

    def result(self) -> MethodResult:
        results = self.results
        finalists = self._active(len(self.rungs) - 1)
        best = int(finalists[np.argmin(results["loss"].mean(axis=1)[finalists])])
        params = self.params.get("all", self.params.get("best"))
        loss, stopped, steps, curve = (results[name] for name in ("loss", "diverged_at", "steps", "curve"))
        # a lane that never stopped but has an infinite loss over all data diverged at its last step
        diverged_at = np.where((stopped == 0) & np.isinf(loss), np.maximum(steps, 1), stopped)
        return MethodResult(self.method.points, loss, diverged_at, steps, curve, self.evals, best, params)


def _pairs(kept: PyTree, lanes: PyTree) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return zip(jax.tree.leaves(kept), jax.tree.leaves(lanes), strict=True)
