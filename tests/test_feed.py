"""Data that stays uint8, does not fit, or is shared among devices and processes: the steps are the same."""

import functools
import json
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import jaxopt_course as jc
from jaxopt_course.training import feed
from jaxopt_course.training.steps import train_steps

ROOT = Path(__file__).parent.parent
ROWS, BATCH = 50, 8
A_STEP = BATCH * (9 + 4)  # bytes
MESHES = {"none": None, "one axis": Mesh(np.array(jax.devices()[:1]), ("data",))}


@functools.cache
def problem() -> tuple[Any, Any, Any]:
    pixels, labels = jc.data.load("synthetic", image_shape=(3, 3), num_train=ROWS, num_test=3, num_classes=3).train
    pixels = np.clip(pixels * 20 + 128, 0, 255).astype(np.uint8)
    score_fn = jc.scores.standardized(jc.scores.linear, np.full(9, 128.0), np.full(9, 20.0))
    objective = jc.empirical_risk(score_fn, jc.losses.softmax_cross_entropy, jc.losses.l2_penalty, 1e-3)
    return objective, jc.scores.init_linear(jax.random.key(0), 3, 9), (pixels, labels)


OPTIMIZER = jc.adam(0.05)


def trained(data: Any = None, **options: Any) -> Any:
    objective, params, default = problem()
    options = {"num_steps": 40, "batch_size": BATCH, "chunk_size": 16, **options}
    return jc.train(objective, OPTIMIZER, params, default if data is None else data, key=jax.random.key(1), **options)


def assert_equal(a: Any, b: Any) -> None:
    """Up to rounding: a program that gathers its minibatches is fused in another way than one that is handed them."""
    same = partial(np.testing.assert_allclose, rtol=1e-13, atol=1e-16)
    jax.tree.map(same, (a.params, a.state, a.trace), (b.params, b.state, b.trace))


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("steps", [2, 5, 1000])
def test_streamed_steps_are_the_same(steps: int, drop_last: bool, mesh: Mesh | None) -> None:
    limit = min(2 * steps * A_STEP, ROWS * 13 - 1)
    streamed = trained(max_data_bytes=limit, drop_last=drop_last, mesh=mesh)
    assert_equal(streamed, trained(drop_last=drop_last))


def test_a_file_is_streamed(tmp_path: Path) -> None:
    _, _, (pixels, labels) = problem()
    np.save(tmp_path / "pixels.npy", pixels)
    mapped = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    assert_equal(trained((mapped, labels), max_data_bytes=2 * A_STEP), trained())


def test_no_more_than_asked_for_is_on_the_device() -> None:
    """Of the images: one chunk in use, one on its way."""
    limit, seen = 4 * A_STEP, []

    def look(_: Any) -> None:
        seen.append(sum(array.nbytes for array in jax.live_arrays() if array.dtype == jnp.uint8))

    trained(max_data_bytes=limit, callback=look)
    assert 0 < max(seen) <= limit * 9 / 13
    assert len(seen) == 20


def test_by_default_data_streams_where_the_device_says_that_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []
    original = feed.Feed.__init__

    def noted(self: Any, *args: Any) -> None:
        original(self, *args)
        made.append(self.streams)

    monkeypatch.setattr(feed.Feed, "__init__", noted)
    whole = trained()
    monkeypatch.setattr(feed, "_free_bytes", lambda: 500.0)
    assert_equal(trained(), whole)
    assert made == [False, True]


def test_a_batch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=rf"take {A_STEP} bytes .* max_data_bytes = {2 * A_STEP - 1}"):
        trained(max_data_bytes=2 * A_STEP - 1)


def test_integers_beyond_32_bits_are_refused_when_streamed() -> None:
    _, _, (pixels, labels) = problem()
    with jax.enable_x64(False), pytest.raises(ValueError, match="beyond int32"):
        trained((pixels, labels.astype(np.int64) + 2**40), max_data_bytes=2 * BATCH * 17)


def test_where_a_streamed_step_is_not_finite_is_said() -> None:
    _, _, (pixels, labels) = problem()
    bad = pixels.astype(float)
    bad[17] = np.nan
    for limit in (None, 2 * BATCH * 76):
        with pytest.raises(jc.training.NonFiniteError, match=r"step \d+ of 40: loss nan") as caught:
            trained((bad, labels), max_data_bytes=limit)
        assert caught.value.step == trained_until_bad(bad, labels)


def trained_until_bad(bad: Any, labels: Any) -> int:
    plan = jc.data.minibatches(jax.random.key(1), ROWS, BATCH, 7).full.reshape(-1, BATCH)
    return int(np.argmax((np.asarray(plan) == 17).any(1))) + 1


def test_data_laid_out_in_steps_needs_no_plan() -> None:
    objective, params, data = problem()
    plan = jc.data.minibatches(jax.random.key(1), ROWS, BATCH, 1).full.reshape(-1, BATCH)
    carry = jc.training.init_carry(OPTIMIZER, params)
    steps = jax.jit(functools.partial(train_steps, objective, OPTIMIZER))
    a = steps(carry, jax.tree.map(jnp.asarray, data), plan)
    b = steps(carry, jax.tree.map(lambda leaf: jnp.asarray(leaf)[plan], data), None)
    jax.tree.map(np.testing.assert_array_equal, a, b)


# Several devices and several processes, each in a Python of its own: JAX fixes their number when it starts.

PROGRAM = """
import json, sys
import jax
jax.config.update("jax_enable_x64", True)
import numpy as np
import jaxopt_course as jc

_, who, port, folder = sys.argv
if port != "0":
    jax.distributed.initialize(f"localhost:{port}", 2, int(who))
inputs, labels = jc.data.load("synthetic", image_shape=(4, 4), num_train=200, num_test=10).train
data = inputs.astype(float), labels
objective = jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy, jc.losses.l2_penalty, 1e-3)
params = jc.scores.init_linear(jax.random.key(0), 10, 16)
devices = np.array(jax.devices())
meshes = {"one": None, "all": jax.sharding.Mesh(devices, ("data",))}
if len(devices) == 8:
    meshes["grid"] = jax.make_mesh((4, 2), ("a", "b"))
if mesh := meshes["all"] if len(devices) > 1 else None:
    try:
        jc.train(objective, jc.adam(0.1), params, data, key=jax.random.key(1), batch_size=9, num_steps=1, mesh=mesh)
    except ValueError as error:
        assert f"multiple of the mesh's {len(devices)} devices, got 9" in str(error), error
    else:
        raise AssertionError("a batch that the devices cannot share was accepted")
answers = {}
for name, mesh in meshes.items():
    if name == "one" and port != "0":
        continue
    for limit in (None, 2 * 16 * 132 * 30 // len(devices)):
        result = jc.train(objective, jc.adam(0.1), params, data, key=jax.random.key(1), batch_size=16, num_steps=200,
                          drop_last=False, mesh=mesh, max_data_bytes=limit)
        assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(result.params))
        answers[f"{name} {limit is not None}"] = [np.asarray(result.params["W"]).tolist(), result.trace.loss.tolist()]
for steps in (90, 200) if port != "0" else ():
    saved = jc.train(objective, jc.adam(0.1), params, data, key=jax.random.key(1), batch_size=16, num_steps=steps,
                     drop_last=False, mesh=meshes["all"], checkpoint_dir=folder, checkpoint_every=40)
    answers["resumed"] = [np.asarray(saved.params["W"]).tolist(), saved.trace.loss.tolist()]
if len(devices) == 8:  # what a step says to the others: its share of the gradient and the loss, in one message
    from jaxopt_course.training.feed import Feed, PlannedSteps
    from jaxopt_course.training.train import _compiled_steps

    for limit in (None, 20_000):
        feed = Feed(data, 16, 10, meshes["all"], limit)
        carry = feed.replicated(jc.training.init_carry(jc.adam(0.1), params))
        plan = jc.data.minibatches(jax.random.key(1), 200, 16, 1).full.reshape(-1, 16)
        chunk = next(feed.chunks([PlannedSteps(plan, 0, 3)]))
        compiled = _compiled_steps.lower(
            (objective, jc.adam(0.1)), carry, chunk.data, chunk.plan, 0, 0, 3, None, has_aux=False,
            on_nonfinite="stop", everywhere=feed.everywhere, at_once=10,
        ).compile().as_text()
        said = [word for word in ("all-reduce", "all-gather", "all-to-all", "collective-permute")
                for _ in range(compiled.count(f" {word}(") + compiled.count(f" {word}-start("))]
        assert said == ["all-reduce"], said
print("ANSWER" + json.dumps(answers))
"""


def started(devices: int, folder: Path, who: int = 0, port: int = 0) -> subprocess.Popen[str]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, str(who), str(port), str(folder)]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def answered(process: subprocess.Popen[str]) -> dict[str, Any]:
    with process:
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return json.loads(output.split("ANSWER")[1])


def test_one_device_eight_devices_and_two_processes_take_the_same_steps(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    eight = answered(started(8, tmp_path))
    both = [started(1, tmp_path, 0, port), started(1, tmp_path, 1, port)]
    answers = [eight, *map(answered, both)]
    weights, losses = map(np.array, eight["one False"])
    assert losses[-10:].mean() < losses[0] - 0.5
    for name, (w, loss) in (item for answer in answers for item in answer.items()):
        np.testing.assert_allclose(w, weights, rtol=1e-11, atol=1e-13, err_msg=name)
        np.testing.assert_allclose(loss, losses, rtol=1e-11, err_msg=name)
    assert [len(answer) for answer in answers] == [6, 3, 3]
    assert answers[1] == answers[2]
    assert answers[1]["resumed"] == answers[1]["all False"]
