"""How far is nearest neighbour from the time of the one necessary matrix product?

Nearest neighbour of uint8 pixels of random 32x32x3 images; the time does not depend on their content. L2 takes 2 B N D
operations. The floor is one product of all test images with all training images, already in float32, in the better of
its two orders. L1 compares B N D pairs of pixels. The peers are the brute-force searches of scikit-learn and torch, as
a user calls them, on float32. Memory is measured in a separate process, beside the memory of the images.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmarks import timing

FEATURES, CLASSES = 32 * 32 * 3, 10
MIB = 2**20
STATUS = Path("/proc/self/status")  # Linux


class Problem(NamedTuple):
    """Training and test images as uint8 on the host; there are fewer test images for L1 than for L2."""

    images: Any
    labels: Any
    tests: dict[str, Any]

    def work(self, metric: str) -> int:
        """Operations of L2, pairs of pixels of L1."""
        return (2 if metric == "l2" else 1) * len(self.tests[metric]) * self.images.size


def main(argv: list[str]) -> int:
    parser = timing.arguments("neighbors", __doc__ or "", rounds=5)
    parser.add_argument("--train", type=timing.at_least_one, default=20_000, help="training images (%(default)s)")
    parser.add_argument("--test", type=timing.at_least_one, default=1000, help="test images for L2 (%(default)s)")
    parser.add_argument("--test-l1", type=timing.at_least_one, default=100, help="test images for L1 (%(default)s)")
    parser.add_argument("--k", type=timing.at_least_one, default=1, help="neighbours (%(default)s)")
    parser.add_argument("--memory", action="store_true", help="print the bytes that classifying takes, and do no more")
    options = parser.parse_args(argv)
    if options.memory:
        print(peak_bytes(options.train, options.test, options.k))
        return 0

    problem = load(options.train, {"l2": options.test, "l1": options.test_l1})
    timings: list[timing.Timing] = []
    ratios: list[timing.Ratio] = []
    lines: list[list[str]] = []
    for metric in ("l2", "l1"):
        runs = contestants(problem, metric, options.k)
        result = timing.race(metric.upper(), runs, options.rounds, notes=NOTES)
        timings.extend(result.values())
        ratios.extend(targets(metric, result))
        rate = problem.work(metric) / 1e9
        for line, t in zip(timing.race_lines(result, "ours", 1e3), result.values(), strict=True):
            lines.append([*line[:-1], timing.number(rate / t.median), line[-1]])
    facts: dict[str, float] = {}
    if STATUS.exists():
        taken, facts = memory(options)
        ratios.append(taken)

    if not options.json:
        title = f"Nearest neighbour among {options.train:,} images of {FEATURES:,} pixels, k = {options.k}"
        columns = ["metric", "contestant", "ms", "min ms", "/ ours", "G/s", "note"]
        timing.print_table(title, columns, lines)
        timing.print_ratios(ratios)
        shown = [f"{name.removesuffix('_bytes')} {value / MIB:,.1f} MiB" for name, value in facts.items()]
        print("memory:", ", ".join(shown))
    shown_options = {name: getattr(options, name) for name in ("rounds", "train", "test", "test_l1", "k")}
    document = timing.document("neighbors", shown_options, timings, ratios, facts)
    timing.write(document, options.out, echo=options.json)
    return 0


NOTES = {
    "ours": "uint8 pixels, exact",
    "ours, float32": "near ties decided in float64",
    "scikit-learn": "KNeighborsClassifier, brute force, float32",
    "torch": "cdist (L2 by matrix products) and topk, float32, the whole matrix",
    "floor": "one product, tests @ images.T",
    "floor, other order": "images @ tests.T",
}


def load(num_train: int, num_test: dict[str, int]) -> Problem:
    import numpy as np

    rng = np.random.default_rng(0)

    def draw(count: int) -> Any:
        return rng.integers(0, 256, (count, FEATURES), np.uint8)

    tests = {metric: draw(count) for metric, count in num_test.items()}
    return Problem(draw(num_train), rng.integers(0, CLASSES, num_train), tests)


def contestants(problem: Problem, metric: str, k: int) -> dict[str, timing.Run | None]:
    import jax.numpy as jnp
    import numpy as np

    images, test = problem.images.astype(np.float32), problem.tests[metric].astype(np.float32)
    runs = {
        "ours": ours(problem.images, problem.tests[metric], problem.labels, metric, k),
        "ours, float32": ours(images, test, problem.labels, metric, k),
        "scikit-learn": scikit_learn(images, test, problem.labels, metric, k) if timing.installed("sklearn") else None,
        "torch": torch_run(images, test, metric, k) if timing.installed("torch") else None,
    }
    if metric == "l2":
        a, b = jnp.asarray(images), jnp.asarray(test)
        runs |= {"floor": product(b, a), "floor, other order": product(a, b)}
    return runs


def targets(metric: str, result: dict[str, timing.Timing]) -> list[timing.Ratio]:
    ours = result["ours"]
    ratios = [timing.ratio(f"{metric}: scikit-learn / ours", result["scikit-learn"], ours, ">=", 3.0)]
    if metric == "l2":
        best = min(result["floor"], result["floor, other order"], key=lambda t: t.median)
        ratios.insert(0, timing.ratio("l2: rate of ours / rate of the product", best, ours, ">=", 0.9))
    return ratios


def ours(images: Any, test: Any, labels: Any, metric: str, k: int) -> timing.Run:
    import jax.numpy as jnp

    import jaxopt_course as jc

    model, test = jc.nearest_neighbor.train(images, labels), jnp.asarray(test)
    return lambda: jc.nearest_neighbor.predict(model, test, k=k, metric=metric)


def scikit_learn(images: Any, test: Any, labels: Any, metric: str, k: int) -> timing.Run:
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(k, algorithm="brute", p=1 if metric == "l1" else 2, n_jobs=-1).fit(images, labels)
    return lambda: model.predict(test)


def torch_run(images: Any, test: Any, metric: str, k: int) -> timing.Run:
    import torch

    a, b = torch.from_numpy(test), torch.from_numpy(images)
    p, mode = (1.0, "donot_use_mm_for_euclid_dist") if metric == "l1" else (2.0, "use_mm_for_euclid_dist")
    return lambda: torch.topk(torch.cdist(a, b, p, compute_mode=mode), k, largest=False).indices.numpy()


def product(a: Any, b: Any) -> timing.Run:
    import jax
    from jax import lax

    multiply = jax.jit(lambda a, b: lax.dot_general(a, b, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST))
    return lambda: multiply(a, b)


# Memory


def memory(options: Any) -> tuple[timing.Ratio, dict[str, float]]:
    """Peak memory of training and classifying in a separate process, over that of the images, model and one chunk."""
    command = [sys.executable, "-m", "experiments", "bench", "neighbors", "--memory"]
    command += ["--train", str(options.train), "--test", str(options.test), "--k", str(options.k)]
    taken = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    data = FEATURES * (options.train + options.test) + 8.0 * options.train
    rows = nearest_neighbor_chunk()
    chunk = 4.0 * (2 * rows * FEATURES + rows * rows)  # a tile of either images in float32, and their distances
    value = taken / (data + chunk)
    facts = {"peak_bytes": taken, "data_bytes": data, "chunk_bytes": chunk}
    return timing.Ratio("l2: memory / (data and one chunk)", value, "<=", 1.0, value, value, value), facts


def nearest_neighbor_chunk() -> int:
    from jaxopt_course.problems import nearest_neighbor

    return nearest_neighbor.CHUNK_BYTES // (4 * FEATURES)


def peak_bytes(num_train: int, num_test: int, k: int) -> int:
    """The increase of this process's peak memory while it makes images, trains and classifies with compiled code."""
    import jax
    import jax.numpy as jnp

    import jaxopt_course as jc

    def classify(images: Any, tests: Any) -> Any:
        labels = jnp.zeros(len(images), jnp.int32)
        model = jc.nearest_neighbor.train(images, labels, num_classes=CLASSES)
        return jc.nearest_neighbor.predict(model, tests, k=k)

    def images(count: int) -> Any:
        return jnp.ones((count, FEATURES), jnp.uint8)

    def compiled(train: int, test: int) -> Any:
        return (
            jax.jit(classify).lower(*(jax.ShapeDtypeStruct((n, FEATURES), jnp.uint8) for n in (train, test))).compile()
        )

    jax.block_until_ready(compiled(10 * k, 10)(images(10 * k), images(10)))
    run = compiled(num_train, num_test)
    before = high_water_mark()
    jax.block_until_ready(run(images(num_train), images(num_test)))
    return high_water_mark() - before


def high_water_mark() -> int:
    """Peak memory of this process in bytes. (The peak of getrusage would be inherited from the parent.)"""
    lines = STATUS.read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
