"""Every test runs in float64 and with nothing promoted in silence; shapes in signatures are checked at every call."""

import itertools
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jaxtyping
import pytest
from hypothesis import settings

jaxtyping.install_import_hook("jaxopt_course", "beartype.beartype")

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("repeatable")


# Most of the time of the tests is compiling. With these flags XLA compiles the same program in less time: on one
# thread for each process, and with its older code generator. Later releases lack the flag of the generator, and a flag
# that XLA does not know ends the process. `XLA_FLAGS= make test` runs what users run.
QUICK_CODE = ["--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__ < (0, 11):
    QUICK_CODE.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(QUICK_CODE))  # read when JAX first computes
IN_ENVIRONMENT = sys.prefix != sys.base_prefix
COMPILED = Path(sys.prefix) / "compiled"  # goes with the environment; without one, with the folder of the run
MOST_COMPILED = 4e9  # bytes


def pytest_configure(config: pytest.Config) -> None:
    """The first process of a run lets go what earlier runs have compiled where that has grown too large."""
    kept = IN_ENVIRONMENT and "PYTEST_XDIST_WORKER" not in os.environ and COMPILED.exists()
    if kept and sum(file.stat().st_size for file in COMPILED.iterdir()) > MOST_COMPILED:
        shutil.rmtree(COMPILED)


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What one process has compiled no other compiles again: no later run, and no command that a test starts."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    options = {
        "jax_compilation_cache_dir": str(COMPILED if IN_ENVIRONMENT else folder / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in options.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


MAPS = Path("/proc/self/maps")  # of Linux
MOST_MAPS = 20_000  # of the 65,530 that a process may have; one more, and compiling ends the process
finished = itertools.count(1)


@pytest.fixture(autouse=True)
def compiled_code_fits() -> Iterator[None]:
    """Every compiled program holds some maps of the process's memory; before they run out, all programs are let go."""
    yield
    if next(finished) % 50 == 0 and MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture
def own_errors() -> Iterator[None]:
    """Let wrong arguments through to the library's own checks instead of the shape checker's."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
