"""Training that is stopped, killed or lied to: it goes on where it was, bit for bit, or says why it cannot."""

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save

import jaxopt_course as jc
from jaxopt_course.training import (
    CheckpointError,
    CheckpointWriteError,
    Interrupted,
    NonFiniteError,
    checkpoint_file,
    interrupts,
)
from jaxopt_course.training.checkpoint import Checkpoints
from jaxopt_course.training.feed import StepPlan
from jaxopt_course.training.identity import RunParts, run_identity
from tests import killable
from tests.killable import STEPS, trained

ROOT = Path(__file__).parent.parent


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def steps(folder: Path) -> list[int]:
    return [int(path.name.split("-")[1]) for path in files(folder)]


def assert_equal(a: Any, b: Any) -> None:
    chex.assert_trees_all_equal_structs(a, b)
    for x, y in zip(jax.tree.leaves(tuple(a)), jax.tree.leaves(tuple(b)), strict=True):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        np.testing.assert_array_equal(x, y)


class Stop(Exception):
    pass


def stopped(at: int, folder: Path, **options: Any) -> None:
    """A run that ends in the middle, without a word to the library."""

    def callback(snapshot: Any) -> None:
        if snapshot.step > at:
            raise Stop

    with pytest.raises(Stop):
        trained(checkpoint_dir=folder, callback=callback, **options)


@pytest.mark.parametrize("options", [{}, {"drop_last": False}, {"chunk_size": 7}, {"max_data_bytes": 1500}], ids=str)
def test_a_resumed_run_ends_bit_equal(options: dict[str, Any], tmp_path: Path) -> None:
    for at in (100, 130, 250):
        stopped(at, tmp_path, checkpoint_every=20, **options)
    assert_equal(trained(checkpoint_dir=tmp_path, checkpoint_every=20, **options), trained(**options))
    assert steps(tmp_path) == [260, 280, 300]


def test_a_run_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    first = trained(checkpoint_dir=tmp_path, num_steps=50)
    assert steps(tmp_path) == [50]

    def never(_: Any) -> None:
        raise AssertionError

    assert_equal(trained(checkpoint_dir=tmp_path, num_steps=50, callback=never), first)
    assert_equal(trained(checkpoint_dir=tmp_path, num_steps=90), trained(num_steps=90))
    with pytest.raises(ValueError, match="is at step 90, beyond the 50 requested"):
        trained(checkpoint_dir=tmp_path, num_steps=50)


def test_every_kind_of_leaf_comes_back(tmp_path: Path) -> None:
    """bfloat16, a random key inside the optimizer's state, aux of several dtypes, skipped steps."""
    data = np.linspace(0, 1, 20, dtype=np.float32)
    optimizer = optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(3)), jc.adam(0.1))
    params = {"half": jnp.ones(3, jnp.bfloat16), "scalar": jnp.float32(2), "none": jnp.zeros((2, 0))}

    def objective(w: Any, x: Any) -> Any:
        value = jnp.sum(w["half"].astype(jnp.float32) ** 2) + (w["scalar"] - jnp.mean(x)) ** 2
        bad = jnp.any(x == data[7])
        return jnp.where(bad, jnp.nan, value), {"max": jnp.max(x), "bad": bad}

    def run(**options: Any) -> Any:
        options = {"num_steps": 40, "chunk_size": 5, "has_aux": True, "on_nonfinite": "skip", **options}
        return jc.train(objective, optimizer, params, data, key=jax.random.key(0), batch_size=4, **options)

    def halt(snapshot: Any) -> None:
        if snapshot.step == 25:
            raise Stop

    with jax.numpy_dtype_promotion("standard"):
        with pytest.raises(Stop):
            run(checkpoint_dir=tmp_path, checkpoint_every=5, callback=halt)
        resumed, whole = run(checkpoint_dir=tmp_path), run()
    numbers = lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf  # noqa: E731
    assert_equal(jax.tree.map(numbers, resumed), jax.tree.map(numbers, whole))
    assert whole.trace.skipped.sum() == 8


@pytest.mark.usefixtures("own_errors")
def test_a_batch_size_of_numpy_is_a_number_too(tmp_path: Path) -> None:
    data, params = np.arange(12.0), jnp.ones(2)
    for batch_size in (np.int64(4), 4):
        options: dict[str, Any] = {"batch_size": batch_size, "num_steps": 3, "checkpoint_dir": tmp_path}
        jc.train(lambda w, _: jnp.sum(w), jc.sgd(0.1), params, data, key=jax.random.key(0), **options)
    assert steps(tmp_path) == [3]


def test_nothing_is_hashed_or_traced_without_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_: Any) -> str:
        raise AssertionError

    monkeypatch.setattr(sys.modules["jaxopt_course.training.train"], "run_identity", never)
    trained(num_steps=3)


def test_only_the_newest_stay_and_the_file_is_a_safetensors_file(tmp_path: Path) -> None:
    result = trained(checkpoint_dir=tmp_path, num_steps=100, checkpoint_every=10, keep=2)
    assert steps(tmp_path) == [90, 100]
    arrays = load_file(files(tmp_path)[-1])
    np.testing.assert_array_equal(arrays["carry.params['W']"].view(np.float64).reshape(3, 5), result.params["W"])
    assert {path.name for path in tmp_path.iterdir()} == {*(path.name for path in files(tmp_path)), ".lock"}


# What is refused, and what is used instead


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [flipped, cut, emptied])
def test_a_torn_checkpoint_is_refused_and_the_one_before_used(harm: Callable[[Path], None], tmp_path: Path) -> None:
    stopped(100, tmp_path, checkpoint_every=20)
    newest = files(tmp_path)[-1]
    harm(newest)
    with pytest.warns(RuntimeWarning, match=r"incomplete or changed.*continuing from step 80"):
        resumed = trained(checkpoint_dir=tmp_path, checkpoint_every=20)
    assert_equal(resumed, trained())
    assert Path(f"{newest}.refused").exists()


def test_nothing_is_begun_anew_where_all_are_torn(tmp_path: Path) -> None:
    stopped(60, tmp_path, checkpoint_every=20)
    for path in files(tmp_path):
        flipped(path)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be resumed") as caught:
        trained(checkpoint_dir=tmp_path)
    assert str(caught.value).count("incomplete or changed") == 3
    assert steps(tmp_path) == [20, 40, 60]


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray]], None]) -> None:
    """A file whose hash is right and whose content is not."""
    arrays = {name: np.array(rows) for name, rows in load_file(path).items()}
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    facts = json.loads(header["__metadata__"]["jaxopt_course"])
    change(facts, arrays)
    content = save(arrays, {"jaxopt_course": json.dumps(facts)})
    path.unlink()
    name = f"{path.name[:17]}-{hashlib.sha256(content).hexdigest()}.safetensors"
    (path.parent / name).write_bytes(content)


CHANGES: dict[str, tuple[Callable[..., Any], str]] = {
    "version": (
        lambda facts, _: facts.update(version=1),
        "has version 1, but this library reads version 2; version 1 does not",
    ),
    "future": (lambda facts, _: facts.update(version=3), "has version 3, but this library reads version 2"),
    "run": (
        lambda facts, _: facts["run"]["settings"].update(batch_size=9),
        "of another run: its batch_size is 9, here it is 8",
    ),
    "malformed": (lambda facts, _: facts["run"].update(arrays=[]), "its facts are malformed"),
    "step": (lambda facts, _: facts.update(step=7), "contents are inconsistent"),
    "dtype": (lambda facts, _: facts["leaves"].update({"carry.alive": ["int8", []]}), r"its carry.alive is int8\[\]"),
    "missing": (lambda facts, _: facts["leaves"].pop("carry.alive"), "contents are inconsistent"),
    "bytes": (
        lambda _, arrays: arrays.update({"carry.alive": np.zeros(3, np.uint8)}),
        "not a checkpoint of this library",
    ),
    "shape": (
        lambda facts, _: facts["leaves"].update({"carry.alive": ["bool", [1]]}),
        r"is bool\[1\], here it is bool",
    ),
    "object": (lambda facts, _: facts["leaves"].update({"carry.alive": ["object", []]}), "not a checkpoint of this"),
    "huge": (lambda facts, _: facts["leaves"].update({"carry.alive": ["bool", [2**40]]}), "not a checkpoint of this"),
    "facts": (lambda facts, _: facts.clear(), "not a checkpoint of this library"),
    "history": (lambda facts, _: facts["leaves"].pop("history/.loss"), "contents are inconsistent"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_a_foreign_checkpoint_is_refused_with_the_reason(change: Any, message: str, tmp_path: Path) -> None:
    trained(checkpoint_dir=tmp_path, num_steps=10, chunk_size=10)
    rewritten(files(tmp_path)[0], change)
    with pytest.raises(CheckpointError, match=message):
        trained(checkpoint_dir=tmp_path, num_steps=20, chunk_size=10)


def test_another_tree_key_or_data_is_refused(tmp_path: Path) -> None:
    data, params = (np.arange(12.0), np.arange(12)), {"W": jnp.ones(2)}

    def objective(w: Any, _: Any) -> Any:
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(w))

    def run(
        params: Any = params, data: Any = data, seed: int = 0, optimizer: Any = killable.OPTIMIZER, **o: Any
    ) -> Any:
        options = {"batch_size": 4, "num_steps": 3, "checkpoint_dir": tmp_path, **o}
        return jc.train(objective, optimizer, params, data, key=jax.random.key(seed), **options)

    run()
    others: dict[str, dict[str, Any]] = {
        "its key is": {"seed": 1},
        r"its data\[0\] has other values among the examples 0 to 0, 1 to 1, 2 to 2, \.\.\.": {
            "data": (np.arange(12.0) + 1, np.arange(12))
        },
        "its batch_size is 4, here it is 6": {"batch_size": 6},
        "its drop_last is True, here it is False": {"drop_last": False},
        "its eval_fn is False, here it is True": {"eval_fn": lambda w: w["W"]},
        r"its params\['W'\] is float64\[2\], here it is float64\[3\]": {"params": {"W": jnp.ones(3)}},
        r"its params\['W'\] is float64\[2\], here it is float32\[2\]": {"params": {"W": jnp.ones(2, jnp.float32)}},
        r"its params\['V'\] is absent, here it is float64\[2\]": {"params": {"V": jnp.ones(2)}},
        r"its optimizer is another one": {"optimizer": jc.sgd(0.1)},
    }
    for message, other in others.items():
        with pytest.raises(CheckpointError, match=message):
            run(**other)
    with pytest.raises(FileExistsError, match="holds 1 checkpoints, the newest step-000000000003"):
        run(resume=False)
    run()


def test_a_history_of_another_kind_is_refused(tmp_path: Path) -> None:
    trained(checkpoint_dir=tmp_path, num_steps=10)
    with pytest.raises(CheckpointError, match=r"another structure: \.evals, \.evals\['b'\] only in one"):
        trained(checkpoint_dir=tmp_path, num_steps=20, eval_fn=lambda params: {"b": params["b"]})


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    def intrude(_: Any) -> None:
        trained(checkpoint_dir=tmp_path)

    with pytest.raises(CheckpointError, match="another run is writing"):
        trained(checkpoint_dir=tmp_path, callback=intrude)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint_every": 5}, "needs a checkpoint_dir"),
        ({"checkpoint_dir": "x", "checkpoint_every": 0}, "checkpoint_every must be at least 1, got 0"),
        ({"checkpoint_dir": "x", "keep": 0}, "keep must be at least 1, got 0"),
    ],
)
def test_options_that_make_no_sense(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        trained(**options)
    assert not [*tmp_path.iterdir()]


def test_a_disk_that_is_full_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_file.os, "fsync", full)
    with pytest.raises(OSError, match=f"step 10 could not be written: No space left on device: '{tmp_path}'") as caught:
        trained(checkpoint_dir=tmp_path, checkpoint_every=10)
    assert isinstance(caught.value, CheckpointWriteError)
    assert caught.value.errno == 28
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    result = caught.value.result
    assert_equal(result.params, trained(num_steps=len(result.trace.loss)).params)


def test_without_the_package_it_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        trained(checkpoint_dir=tmp_path)


def test_parameters_that_end_not_finite_say_so_again_when_resumed(tmp_path: Path) -> None:
    def run(**options: Any) -> None:
        objective = lambda w, x: jnp.sum(w) * jnp.mean(x)  # noqa: E731
        data, options = np.full(8, 100.0), {"num_steps": 3, "checkpoint_dir": tmp_path, **options}
        jc.train(objective, jc.sgd(1e308), jnp.ones(2), data, key=jax.random.key(0), batch_size=4, **options)

    for _ in range(2):
        with pytest.raises(NonFiniteError):
            run()


def test_mutated_checkpoints_are_refused_and_nothing_else(tmp_path: Path) -> None:
    """Bytes changed, cut, doubled and swapped, half of them under a name that vouches. More by hand: COUNT."""
    trained(checkpoint_dir=tmp_path / "good", num_steps=6, eval_fn=None, eval_every=None)
    good, rng = files(tmp_path / "good")[0], np.random.default_rng(0)
    content = good.read_bytes()
    params, data = killable.problem()
    carry = jc.training.init_carry(killable.OPTIMIZER, params)
    plan = StepPlan(jax.random.key(5), 60, 8, True)
    parts = RunParts(killable.OBJECTIVE, killable.OPTIMIZER, params, None, data, plan, False, "stop", False)
    (tmp_path / "bad").mkdir()
    store = Checkpoints(tmp_path / "bad", run_identity(parts), carry, keep=1, resume=True)
    accepted = 0
    for trial in range(int(os.environ.get("COUNT", "3000"))):
        harmed = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            at, to = sorted(rng.integers(0, len(harmed) or 1, 2))
            kind = rng.integers(5)
            if kind == 0 and harmed:
                harmed[at] ^= 1 << int(rng.integers(8))
            elif kind == 1:
                del harmed[at:to]
            elif kind == 2:
                harmed[at:at] = harmed[at:to]
            elif kind == 3:
                harmed[at:to] = rng.bytes(int(to - at))
            elif len(harmed) > 8:
                harmed[rng.integers(8)] = rng.integers(256)
        vouched = trial % 2
        digest = hashlib.sha256(harmed if vouched else content).hexdigest()
        path = tmp_path / "bad" / f"step-{6:012d}-{digest}.safetensors"
        path.write_bytes(harmed)
        try:
            store._read(path)
            accepted += 1
            assert vouched or harmed == content
        except CheckpointError:
            pass
        path.unlink()
    assert accepted > 0  # what changed only numbers, under a name that vouches for it
    store._close()


# Signals


@pytest.mark.parametrize("signum", interrupts.SIGNALS)
def test_a_signal_saves_and_the_run_goes_on_later(signum: signal.Signals, tmp_path: Path) -> None:
    def kill(snapshot: Any) -> None:
        if snapshot.step == 28:  # of the fourth epoch the end
            os.kill(os.getpid(), signum)

    before = signal.getsignal(signum)
    with pytest.raises(Interrupted, match=f"{signum.name} after step 28 of {STEPS}, saved in") as caught:
        trained(checkpoint_dir=tmp_path, callback=kill)
    assert isinstance(caught.value, KeyboardInterrupt)
    assert (caught.value.code, caught.value.step, len(caught.value.result.trace.loss)) == (128 + signum, 28, 28)
    assert signal.getsignal(signum) == before
    assert steps(tmp_path) == [28]
    assert_equal(trained(checkpoint_dir=tmp_path), trained())


def test_without_a_folder_signals_are_left_alone() -> None:
    def kill(_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        trained(callback=kill)
    assert not isinstance(caught.value, Interrupted)


def test_a_signal_that_comes_too_late_is_delivered() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts.Signals() as signals:  # noqa: PT012
        assert signals.poll() is None
        os.kill(os.getpid(), signal.SIGINT)


LONG = """
import os, sys, threading
from tests import killable

def callback(snapshot):
    if snapshot.step == 6:
        print("running", flush=True)

killable.trained(checkpoint_dir=sys.argv[1], num_steps=10**9, callback=callback, checkpoint_every=10**9)
"""


@pytest.mark.parametrize("signum", interrupts.SIGNALS)
def test_a_process_ends_within_two_seconds_with_the_signals_code(signum: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LONG, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    process.send_signal(signum)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert not error
    assert len(files(tmp_path)) == 1
    saved = steps(tmp_path)[0]
    assert_equal(trained(checkpoint_dir=tmp_path, num_steps=saved), trained(num_steps=saved))


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    hang = LONG.replace('print("running", flush=True)', 'print("running", flush=True); threading.Event().wait()')
    command = [sys.executable, "-c", hang, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
    assert not files(tmp_path)


# Killed again and again

TIMES_OF_A_RUN = 20
ENDS = {signal.SIGKILL: (-9,), signal.SIGTERM: (-15, 143)}  # -15: before it came to listen


@pytest.mark.parametrize(("signum", "times"), [(signal.SIGKILL, 100), (signal.SIGTERM, 20)])
def test_killed_again_and_again_every_run_ends_bit_equal(signum: signal.Signals, times: int, tmp_path: Path) -> None:
    """At random moments after it has gone on, half of them while a file is being written; the next process goes on."""
    context, rng = multiprocessing.get_context("forkserver"), np.random.default_rng(0)
    context.set_forkserver_preload(["tests.killable"])

    def started(run: int) -> Any:
        paths = [str(tmp_path / name) for name in (f"run{run}", f"{run}.npz", "cache")]
        process = context.Process(target=killable.run, args=paths)
        process.start()
        return process

    def kill(run: int, while_writing: bool) -> None:
        folder, process = tmp_path / f"run{run}", started(run)
        before = set(files(folder))
        while process.is_alive() and set(files(folder)) <= before:
            time.sleep(0.001)
        end = time.monotonic() + rng.uniform(0, 0.02)
        while process.is_alive() and not (while_writing and [*folder.glob("*.part")]) and time.monotonic() < end:
            pass
        os.kill(process.pid, signum)
        process.join(60)
        assert process.exitcode in ENDS[signum], "it did not go on, or came to its end before it was killed"

    torn, expected = 0, jax.tree.leaves(tuple(trained()))
    for run in range(times // TIMES_OF_A_RUN):
        for time_of_run in range(TIMES_OF_A_RUN):
            kill(run, while_writing=bool(time_of_run % 2))
            torn += len([*(tmp_path / f"run{run}").glob("*.part")])
        last = started(run)
        last.join(120)
        assert last.exitcode == 0
        with np.load(tmp_path / f"{run}.npz") as arrays:
            for a, b in zip(arrays.values(), expected, strict=True):
                np.testing.assert_array_equal(a, b)
    assert torn > 5 if signum == signal.SIGKILL else torn == 0
