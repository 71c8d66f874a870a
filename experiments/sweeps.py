"""Every learning rate with every seed: the runs of a rule are lanes of one compiled program, an epoch a call."""

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxopt_course as jc
from experiments.arguments import UsageError
from experiments.contestants import Contestant
from jaxopt_course.training import Interrupted
from jaxopt_course.training.checkpoint import Checkpoints
from jaxopt_course.training.fingerprints import trace
from jaxopt_course.training.identity import Identity
from jaxopt_course.training.interrupts import Signals

RATES = np.logspace(-4, 1, 21)  # four a decade
LOSSES = {"softmax": jc.losses.softmax_cross_entropy, "hinge": jc.losses.multiclass_hinge}
SAVE_AFTER = 5.0  # seconds


class Problem(NamedTuple):
    """What is raced on, the same for all."""

    dataset: jc.data.Dataset
    train: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]
    objective: Callable[[Any, Any], jax.Array]
    batch_size: int
    epochs: int
    keys: jax.Array  # one a seed
    mesh: Mesh | None  # devices that share each minibatch

    def start(self, key: jax.Array) -> Any:
        """The parameters that belong to a seed."""
        return jc.scores.init_linear(jax.random.split(key)[0], len(self.dataset.class_names), self.train[0].shape[1])

    def plan(self, key: jax.Array, epochs: int, first_epoch: Any = 0) -> jax.Array:
        """Its minibatches, `[S, B]`."""
        order = jax.random.split(key)[1]
        made = jc.data.minibatches(order, len(self.train[0]), self.batch_size, epochs, first_epoch=first_epoch)
        rows = made.full.reshape(-1, self.batch_size)
        if self.mesh is None:
            return rows
        return jax.lax.with_sharding_constraint(rows, NamedSharding(self.mesh, PartitionSpec(None, "data")))


class Saves(NamedTuple):
    """Where sweeps are saved, whether to go on from there, and what must be the same then."""

    folder: Path
    resume: bool
    facts: dict[str, Any]


class Sweep(NamedTuple):
    """All runs of one rule: arrays `[rates, seeds, ...]`."""

    train_loss: np.ndarray
    test_accuracy: np.ndarray
    loss: np.ndarray  # [rates, seeds, steps]
    grad_norm: np.ndarray
    start_loss: np.ndarray
    params: Any

    @property
    def best(self) -> int:
        """The rate with the lowest mean training loss; a rate at which any seed diverged is out."""
        return int(np.argmin(np.where(np.isfinite(self.train_loss), self.train_loss, np.inf).mean(axis=1)))


def load_problem(args: argparse.Namespace, mesh: Mesh | None) -> Problem:
    dataset = jc.data.load(args.data, root=args.root)
    if args.batch_size > len(dataset.train[0]):
        raise UsageError(f"--batch-size {args.batch_size} is more than the {len(dataset.train[0])} training images")
    objective = jc.empirical_risk(jc.scores.linear, LOSSES[args.loss], jc.losses.l2_penalty, args.l2)
    train, test = (
        (jnp.asarray(inputs, float), jnp.asarray(labels)) for inputs, labels in (dataset.train, dataset.test)
    )
    keys = jax.random.split(jax.random.key(args.seed), args.seeds)
    if mesh is not None:
        train, test, keys = jax.device_put((train, test, keys), NamedSharding(mesh, PartitionSpec()))
    return Problem(dataset, train, test, objective, args.batch_size, args.epochs, keys, mesh)


def sharing(count: int | None, batch_size: int) -> Mesh | None:
    """So many devices, which share every minibatch; CPUs are made, as long as JAX has not begun."""
    if count is None:
        return None
    if batch_size % count:
        raise UsageError(f"--batch-size {batch_size} is not a multiple of --devices {count}")
    with suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)
    if jax.device_count() < count:
        raise UsageError(f"--devices {count}: there are {jax.device_count()} of {jax.devices()[0].device_kind}")
    return Mesh(np.array(jax.devices()[:count]), ("data",))


def swept(contestant: Contestant, problem: Problem, saves: Saves | None = None) -> Sweep:
    """Every learning rate with every seed, in one compile: the runs are lanes of a vmap, and an epoch is a call."""

    def begin(rate: jax.Array, key: jax.Array) -> tuple[Any, jax.Array]:
        params = problem.start(key)
        return jc.training.init_carry(contestant.make(rate), params), problem.objective(params, problem.train)

    def advance(rate: jax.Array, key: jax.Array, carry: Any, epoch: jax.Array) -> tuple[Any, Any]:
        plan = problem.plan(key, 1, epoch)
        return jc.training.train_steps(problem.objective, contestant.make(rate), carry, problem.train, plan)

    def end(carry: Any) -> tuple[jax.Array, jax.Array]:
        loss = jnp.where(carry.alive, problem.objective(carry.params, problem.train), jnp.inf)
        return loss, jc.accuracy(jc.scores.linear(carry.params, problem.test[0]), problem.test[1])

    def lanes(f: Callable[..., Any], rates: tuple[Any, ...], seeds: tuple[Any, ...]) -> Callable[..., Any]:
        return jax.jit(jax.vmap(jax.vmap(f, rates), seeds, out_axes=1))  # rates inside: they share their minibatches

    rates = jnp.asarray(RATES, float)
    carry, start_loss = lanes(begin, (0, None), (None, 0))(rates, problem.keys)
    step = lanes(advance, (0, None, 0, None), (None, 0, 1, None))

    def step_epoch(carry: Any, epoch: int) -> tuple[Any, Any]:
        return step(rates, problem.keys, carry, jnp.int32(epoch))

    if saves is None:
        carry, records = run_epochs(step_epoch, carry, problem.epochs, None)
    else:
        identity = identity_of(saves, contestant, problem, trace(step_epoch, carry, jnp.int32(0)))
        folder = saves.folder / contestant.label.lower().replace(",", "").replace(" ", "-")
        with Checkpoints(folder, identity, carry, keep=2, resume=saves.resume) as store:
            carry, records = run_epochs(step_epoch, carry, problem.epochs, store, contestant.label)
    steps = joined(records)
    train_loss, test_accuracy = lanes(end, (0,), (1,))(carry)
    return jax.device_get(Sweep(train_loss, test_accuracy, steps["loss"], steps["grad_norm"], start_loss, carry.params))


def identity_of(saves: Saves, contestant: Contestant, problem: Problem, step: Any) -> Identity:
    """What must be the same when a sweep is resumed; `step` is the traced step of all lanes."""
    settings = {**saves.facts, "optimizer": contestant.label}
    return Identity(settings, {"step": step}, {"data": problem.train})


def run_epochs(
    step: Callable[[Any, int], tuple[Any, Any]], carry: Any, epochs: int, store: Checkpoints | None, label: str = ""
) -> tuple[Any, list[dict[str, np.ndarray]]]:
    """The carry after all epochs, and the records of each; saved now and then, at the end and after a signal."""
    records: list[dict[str, np.ndarray]] = []
    first, saved_at = 0, time.monotonic()
    if store is not None and store.saved is not None:
        first, carry, records = store.saved.step, store.saved.carry, [store.saved.history]
    with Signals() if store is not None else nullcontext() as signals:
        for epoch in range(first, epochs):
            carry, record = step(carry, epoch)
            records.append({"loss": np.asarray(record.loss), "grad_norm": np.asarray(record.grad_norm)})
            if store is None or signals is None:
                continue
            signum = signals.poll()
            if signum or epoch + 1 == epochs or time.monotonic() - saved_at > SAVE_AFTER:
                store.save(epoch + 1, carry, joined(records))
                saved_at = time.monotonic()
            if signum:
                store.wait()
                message = (
                    f"{signum.name}: {label} is saved after epoch {epoch + 1}, in {store.folder}; --resume goes on"
                )
                raise Interrupted(message, signum, epoch + 1, None)
    return carry, records


def joined(records: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The steps of all epochs, `[rates, seeds, steps]`."""
    return {name: np.concatenate([rows[name] for rows in records], axis=2) for name in ("loss", "grad_norm")}
