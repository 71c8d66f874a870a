"""Reports of gradient checks, for people, tests and programs."""

import enum
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TypeAlias

import jax
import numpy as np

from jaxopt_course.annotations import PyTree
from jaxopt_course.gradients.subject import Part


class Verdict(enum.StrEnum):
    """The verdict of a check. PASS and KINK are accepted; all others are not."""

    PASS = "PASS"  # the gradient agrees with differences
    KINK = "KINK"  # f has a kink at or near the point, and the gradient agrees with the slopes beside it
    FAIL = "FAIL"  # the gradient is wrong
    INCONCLUSIVE = "INCONCLUSIVE"  # the precision does not suffice to decide
    NONDETERMINISTIC = "NONDETERMINISTIC"  # f returns different values at the same point
    NONFINITE = "NONFINITE"  # f or its gradient is not finite at the point
    CONSTANT = "CONSTANT"  # f does not change and the gradient is zero: nothing was tested


Plain: TypeAlias = dict | list | str | int | float | bool | None  # the types of JSON

SEVERITY = (
    Verdict.PASS,
    Verdict.KINK,
    Verdict.CONSTANT,
    Verdict.INCONCLUSIVE,
    Verdict.FAIL,
    Verdict.NONFINITE,
    Verdict.NONDETERMINISTIC,
)


class GradientCheckError(AssertionError):
    """A gradient check did not pass; `report` is its full report."""

    def __init__(self, report: "GradientReport"):
        super().__init__(f"\n{report}")
        self.report = report


CODE = {verdict: np.int8(code) for code, verdict in enumerate(SEVERITY)}  # verdicts of entries are stored in arrays
STATIC = {"static": True}  # fields that are structure of the tree; the others are its leaves


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Entry:
    """One entry of the gradient (of a Jacobian, for the output named by `output`)."""

    path: str = field(metadata=STATIC)
    index: tuple[int, ...] = field(metadata=STATIC)
    analytic: float
    numerical: float
    relative_error: float
    output: str = field(default="", metadata=STATIC)

    @property
    def place(self) -> str:
        where = f"{self.path}[{', '.join(map(str, self.index))}]" if self.index else self.path
        return f"d {self.output} / d {where}" if self.output else where


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LeafReport:
    """The result for one leaf. `worst` is the entry (or, in directional mode, the ray) with the largest error.

    Errors: absolute, |a - n|; relative, |a - n| / max(|a|, |n|), for each entry (for a ray, relative to the root of the
    sum of squares of its terms). `error_bar` is the uncertainty of the numerical value at the worst place, and `step`
    its step. Of the `checked` entries, `inconclusive` cannot be distinguished from the noise of f or were not reached,
    `unmoved` have gradient zero and do not change f, `held` are not finite or cannot be moved; the verdict applies to
    the others, `speaks_for`.
    """

    path: str = field(metadata=STATIC)
    verdict: Verdict = field(metadata=STATIC)
    entries: int
    checked: int
    wrong: int
    absolute_error: float
    relative_error: float
    worst: Entry
    error_bar: float
    step: float
    rays: bool = field(default=False, metadata=STATIC)
    inconclusive: int = 0
    unmoved: int = 0
    held: int = 0

    @property
    def speaks_for(self) -> int:
        return self.checked - self.inconclusive - self.unmoved - self.held


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Consistency:
    """A comparison that needs no differences, such as forward against reverse mode."""

    name: str = field(metadata=STATIC)
    verdict: Verdict = field(metadata=STATIC)
    error: float
    detail: str = field(default="", metadata=STATIC)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GradientReport:
    """The outcome of `gradcheck` or `gradgradcheck`: a tree of records, and a table when printed.

    `verdict`: the most severe verdict of the leaves and of the consistency checks; `ok`: whether it is PASS or KINK;
    `mode`, `reason`: how the gradient was checked, and why in this mode; `leaves`: a `LeafReport` for each leaf;
    `wrong`: wrong entries that were found, as `Entry`; `consistency`: comparisons without differences; `skipped`:
    leaves that cannot be differentiated; `notes`: other information; `evaluations`: number of evaluations of f.
    """

    title: str = field(metadata=STATIC)
    verdict: Verdict = field(metadata=STATIC)
    mode: str = field(metadata=STATIC)
    reason: str = field(metadata=STATIC)
    leaves: tuple[LeafReport, ...]
    wrong: tuple[Entry, ...]
    consistency: tuple[Consistency, ...]
    skipped: tuple[str, ...] = field(metadata=STATIC)
    notes: tuple[str, ...] = field(metadata=STATIC)
    evaluations: int

    @property
    def ok(self) -> bool:
        return self.verdict in (Verdict.PASS, Verdict.KINK)

    def raise_if_failed(self) -> "GradientReport":
        """Raise `GradientCheckError`, an AssertionError that shows the table, unless the verdict is PASS or KINK."""
        if not self.ok:
            raise GradientCheckError(self)
        return self

    def to_dict(self) -> dict[str, PyTree]:
        """Return the report as plain Python objects that can be written as JSON."""
        leaves = [asdict(leaf) | {"speaks_for": leaf.speaks_for} for leaf in self.leaves]
        return {key: _plain(value) for key, value in (asdict(self) | {"ok": self.ok, "leaves": leaves}).items()}

    def __str__(self) -> str:
        lines = [f"{self.title}: {self.verdict} ({self.mode}: {self.reason}; {self.evaluations:,} evaluations of f)"]
        if self.leaves:
            head = (
                "leaf",
                "verdict",
                "speaks for",
                "wrong",
                "worst at",
                "analytic",
                "numerical",
                "error",
                "bar",
                "step",
            )
            lines += table([head, *map(_cells, self.leaves)])
        if self.consistency:
            rows = [(c.name, str(c.verdict), number(c.error), c.detail) for c in self.consistency]
            lines += table([("consistency", "verdict", "error", ""), *rows])
        shown = self.wrong[:10]
        if shown:
            more = f", the first {len(shown)} of {len(self.wrong)}" if len(self.wrong) > len(shown) else ""
            lines.append(f"wrong entries{more}:")
            rows = [(e.place, number(e.analytic), number(e.numerical), number(e.relative_error)) for e in shown]
            lines += table([("place", "analytic", "numerical", "error"), *rows])
        lines += [f"skipped, not differentiable: {', '.join(self.skipped)}"] if self.skipped else []
        return "\n".join([*lines, *self.notes])


def entry_at(part: Part, coordinate: int, values: Sequence[float], output: str) -> Entry:
    """Return an `Entry` with `values`: analytic, numerical, relative error."""
    analytic, numerical, error = map(float, values)
    path = part.path + part.component(coordinate)
    return Entry(path, part.index_of(coordinate), analytic, numerical, error, output)


def gravest(verdicts: Iterable[Verdict], consistency: Iterable[Consistency]) -> Verdict:
    """Return the overall verdict. CONSTANT leaves count only if all leaves are CONSTANT."""
    telling: list[Verdict] = [v for v in verdicts if v is not Verdict.CONSTANT] or [Verdict.CONSTANT]
    telling += [row.verdict for row in consistency if row.verdict is Verdict.FAIL]
    return max(telling, key=SEVERITY.index)


def _cells(leaf: LeafReport) -> tuple[str, ...]:
    worst = leaf.worst
    place = f"{leaf.checked} directions" if leaf.rays and not worst.index else ", ".join(map(str, worst.index))
    checked = f"{leaf.speaks_for:,} of {leaf.entries:,}" if not leaf.rays else f"{leaf.checked:,} rays"
    return (
        leaf.path,
        str(leaf.verdict),
        checked,
        f"{leaf.wrong:,}",
        f"{worst.output} [{place}]".strip() if not leaf.rays else "a direction",
        number(worst.analytic),
        number(worst.numerical),
        number(leaf.relative_error),
        number(leaf.error_bar),
        number(leaf.step),
    )


def number(value: float) -> str:
    return f"{value:.6g}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.3e}"


def table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _plain(value: object) -> Plain:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return str(value)
    if isinstance(value, float | np.floating) and not math.isfinite(value):
        return None
    return value  # type: ignore[return-value]
