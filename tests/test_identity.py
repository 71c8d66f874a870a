"""The same run has the same identity, in a new process too; another run has another one, and what differs is named."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_course as jc
from jaxopt_course.training import CheckpointError, fingerprints, identity
from jaxopt_course.training.checkpoint import Checkpoints
from jaxopt_course.training.feed import StepPlan
from jaxopt_course.training.identity import RunParts, differences, run_identity

with jax.enable_x64(True):
    PARAMS = {"W": jnp.linspace(0, 1, 15).reshape(3, 5), "b": jnp.zeros(3)}
DATA = np.linspace(-1, 1, 505).reshape(101, 5), np.arange(101, dtype=np.int32) % 3


def objective(params: Any, batch: Any, power: int = 2) -> Any:
    return jnp.mean((batch[0] @ params["W"].T + params["b"][None]) ** power)


class Weighted(NamedTuple):
    """An objective that is an object."""

    weight: float

    def __call__(self, params: Any, batch: Any) -> Any:
        return self.weight * objective(params, batch)


@jax.custom_vjp
def cubed(x: Any) -> Any:
    return x**3


cubed.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x**2 * g,))


def facts(optimizer: Any = jc.adam(0.1), objective: Any = objective, **parts: Any) -> dict[str, Any]:  # noqa: B008
    plan = StepPlan(jax.random.key(5), 101, 8, True)
    whole = RunParts(objective, optimizer, PARAMS, None, DATA, plan, False, "stop", False)._replace(**parts)
    with jax.numpy_dtype_promotion("standard"):
        return json.loads(json.dumps(run_identity(whole).facts()))


def closing_over(constant: Any) -> Any:
    return lambda params, batch: objective(params, batch) + jnp.sum(params["b"] * constant)


OPTIMIZERS: dict[str, Any] = {
    "adam": lambda: jc.adam(0.1),
    "rate": lambda: jc.adam(0.2),
    "b1": lambda: jc.adam(0.1, b1=0.8),
    "no correction": lambda: jc.adam(0.1, bias_correction=False),
    "momentum": lambda: jc.momentum(0.1),
    "nesterov": lambda: jc.momentum(0.1, nesterov=True),
    "optax.adam": lambda: optax.adam(0.1),
    "optax.nadam": lambda: optax.nadam(0.1),
    "chain": lambda: optax.chain(optax.clip(1.0), optax.adam(0.1)),
    "other chain": lambda: optax.chain(optax.clip(2.0), optax.adam(0.1)),
    "schedule": lambda: jc.adam(optax.cosine_decay_schedule(0.1, 20)),
    "longer schedule": lambda: jc.adam(optax.cosine_decay_schedule(0.1, 30)),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "injected rate": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.2),
    "labels": lambda: optax.multi_transform({"a": optax.adam(0.1), "b": optax.sgd(0.1)}, {"W": "a", "b": "b"}),
    "other labels": lambda: optax.multi_transform({"a": optax.adam(0.1), "b": optax.sgd(0.1)}, {"W": "b", "b": "a"}),
}
OBJECTIVES: dict[str, Any] = {
    "plain": lambda: objective,
    "jitted": lambda: jax.jit(functools.partial(objective, power=4)),
    "partial": lambda: functools.partial(objective, power=3),
    "object": lambda: Weighted(2.0),
    "other field": lambda: Weighted(3.0),
    "default": lambda: lambda params, batch, scale=2.5: scale * objective(params, batch),
    "other default": lambda: lambda params, batch, scale=2.6: scale * objective(params, batch),
    "constant": lambda: closing_over(np.arange(3.0)),
    "other constant": lambda: closing_over(np.arange(3.0) + np.eye(3)[2] * 1e-9),
    "jitted constant": lambda: jax.jit(closing_over(np.arange(3.0) + 1)),
    "other jitted constant": lambda: jax.jit(closing_over(np.arange(3.0) + 2)),
    "softmax": lambda: jc.empirical_risk(jc.scores.linear, jc.losses.softmax_cross_entropy),
    "hinge": lambda: jc.empirical_risk(jc.scores.linear, jc.losses.multiclass_hinge),
    "custom": lambda: lambda params, batch: jnp.sum(cubed(params["b"])) + jnp.sum(params["W"]),
    "vmapped": lambda: lambda p, b: jnp.mean(jax.vmap(lambda x: jnp.tanh(p["W"] @ x + p["b"]).sum())(b[0])),
}


def all_hashes() -> dict[str, str]:
    hashes = {name: facts(make()) for name, make in OPTIMIZERS.items()}
    hashes |= {f"f {name}": facts(objective=make()) for name, make in OBJECTIVES.items()}
    return {
        name: "".join(function["hash"][:16] for function in fact["functions"].values()) for name, fact in hashes.items()
    }


def test_every_optimizer_and_objective_has_a_fingerprint_that_a_new_process_finds_again() -> None:
    here = all_hashes()
    default = {"adam", "f plain"}  # of the same run
    assert len({*here.values()}) == len(here) - len(default) + 1
    assert here == all_hashes()
    code = (
        "import json, jax; jax.config.update('jax_enable_x64', True)\n"
        "from tests.test_identity import all_hashes; print('HASHES' + json.dumps(all_hashes()))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.split("HASHES")[1]) == here


def changed(array: np.ndarray, at: Any, to: Any) -> np.ndarray:
    copy = array.copy()
    copy[at] = to
    return copy


X, Y = DATA
ONE_BIT = changed(X.view(np.int64), (50, 2), X.view(np.int64)[50, 2] ^ 1).view(np.float64)
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "rate": ({"optimizer": jc.adam(0.2)}, r"its optimizer is another one: numbers .*here -0\.2"),
    "rule": ({"optimizer": jc.momentum(0.1)}, "its optimizer is another one: .*operations"),
    "function": ({"objective": functools.partial(objective, power=3)}, "its objective is another one"),
    "constant": ({"objective": closing_over(np.arange(3.0))}, r"other values in the constants float64\[3\]"),
    "one bit": ({"data": (ONE_BIT, Y)}, r"its data\[0\] has other values among the examples 48 to 50$|50 to 51$"),
    "label": ({"data": (X, changed(Y, 7, 2))}, r"its data\[1\] has other values among the examples \d to 7$|7 to 8$"),
    "bytes": ({"data": (X, Y.view(np.uint32))}, r"its data\[1\] is int32\[101\], here it is uint32\[101\]"),
    "start": ({"params": {**PARAMS, "b": jnp.eye(3)[1]}}, r"its params\['b'\] has other values$"),
    "key": ({"plan": StepPlan(jax.random.key(6), 101, 8, True)}, r"its key is \[0, 5\], here it is \[0, 6\]"),
    "aux": ({"has_aux": True, "objective": lambda p, b: (objective(p, b), 0.0)}, "its has_aux is False, here it is Tr"),
    "state": ({"state": jc.adam(0.1).init(PARAMS)}, r"its state.* is absent, here it is"),
}


@pytest.mark.parametrize(("other", "message"), OTHERS.values(), ids=OTHERS)
def test_what_differs_is_named(other: dict[str, Any], message: str) -> None:
    said = differences(facts(), facts(**other))
    assert re.search(message, said), said


def test_a_transposed_array_differs_and_another_memory_layout_does_not() -> None:
    square = np.arange(9.0).reshape(3, 3)
    prints = [fingerprints.fingerprint_arrays(a, 64) for a in (square, np.asfortranarray(square), square.T)]
    assert prints[0] == prints[1] != prints[2]


def test_a_constant_that_is_changed_in_place_is_another_objective() -> None:
    constant = np.arange(3.0)
    function = closing_over(constant)
    before = facts(objective=function)
    constant[1] += 1
    assert "its objective is another one" in differences(before, facts(objective=function))


def test_another_version_of_jax_is_given_as_the_likely_reason() -> None:
    theirs = facts(jc.adam(0.2))
    theirs["versions"]["jax"] = "0.8.1"
    said = differences(theirs, facts())
    assert f"traced with jax 0.8.1, optax {optax.__version__}, here with jax {jax.__version__}" in said
    assert not differences({**facts(), "versions": theirs["versions"]}, facts())


def test_what_cannot_be_compared_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def python(x: Any) -> Any:
        return x

    def calls_python(params: Any, batch: Any) -> Any:
        seen = jax.pure_callback(python, jax.ShapeDtypeStruct((), float), jax.lax.stop_gradient(jnp.sum(batch[0])))
        return objective(params, batch) + seen * 0

    (said,) = identity.not_compared(facts(objective=calls_python))
    assert "the objective calls Python (pure_callback of tests.test_identity." in said
    monkeypatch.setattr(fingerprints, "HASH_LIMIT_BYTES", 1000)
    assert "data[0] is too large to hash: 64 of 101 rows were" in identity.not_compared(facts())[0]


def test_large_data_is_compared_beside_the_training_and_a_mixture_is_never_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "COMPARED_FIRST_BYTES", 100)
    options: dict[str, Any] = {"key": jax.random.key(0), "batch_size": 8, "checkpoint_dir": tmp_path, "chunk_size": 5}
    optimizer = jc.sgd(0.1)
    jc.train(objective, optimizer, PARAMS, DATA, num_steps=10, **options)
    before = sorted(path.name for path in tmp_path.iterdir())
    for num_steps in (10, 20):
        with pytest.raises(CheckpointError, match=r"of another run: its data\[0\] has other values"):
            jc.train(objective, optimizer, PARAMS, (ONE_BIT, Y), num_steps=num_steps, **options)
        assert sorted(path.name for path in tmp_path.iterdir()) == before
    jc.train(objective, optimizer, PARAMS, DATA, num_steps=20, **options)


def test_a_finished_run_is_read_from_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = sys.modules[Checkpoints.__module__]

    def denied(_: Path) -> int:
        raise PermissionError(13, "Permission denied")

    options: dict[str, Any] = {"key": jax.random.key(0), "batch_size": 8, "checkpoint_dir": tmp_path}
    optimizer = jc.sgd(0.1)
    first = jc.train(objective, optimizer, PARAMS, DATA, num_steps=5, **options)
    monkeypatch.setattr(checkpoint, "_locked", denied)
    again = jc.train(objective, optimizer, PARAMS, DATA, num_steps=5, **options)
    jax.tree.map(np.testing.assert_array_equal, again, first)
    with pytest.raises(OSError, match=f"read-only, and the run is not finished.*{tmp_path}"):
        jc.train(objective, optimizer, PARAMS, DATA, num_steps=9, **options)


def test_a_folder_that_is_a_file_and_a_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").write_text("")
    options: dict[str, Any] = {"key": jax.random.key(0), "batch_size": 8, "num_steps": 1}
    for folder in ("~/file", "~/file/below"):
        with pytest.raises(NotADirectoryError, match="must be a folder, but this is a file"):
            jc.train(objective, jc.sgd(0.1), PARAMS, DATA, checkpoint_dir=folder, **options)
    jc.train(objective, jc.sgd(0.1), PARAMS, DATA, checkpoint_dir="~/runs", **options)
    assert len([*(tmp_path / "runs").glob("*.safetensors")]) == 1
