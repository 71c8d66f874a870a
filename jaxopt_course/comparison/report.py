"""The report of a comparison of two optimizers, as text and as data."""

import enum
from dataclasses import dataclass

import numpy as np

from jaxopt_course.comparison.formulas import TEXT, describe, lines, lines_of_both
from jaxopt_course.comparison.later import Later
from jaxopt_course.comparison.paths import FirstDifference
from jaxopt_course.comparison.rules import Rule


class Parity(enum.StrEnum):
    """The verdict on two optimizers."""

    EQUAL = "EQUAL"  # equal along this path and as rules: nothing in either can change later
    EQUAL_HERE = "EQUAL HERE"  # equal along this path, to rounding; as rules they differ, may differ, or are unknown
    DIFFERENT = "DIFFERENT"  # different along this path, beyond rounding


@dataclass(frozen=True)
class Cause:
    """Conventions that together cause the difference: `groups` of switches, and the matched rules `a` and `b`."""

    groups: tuple[str, ...]
    a: Rule
    b: Rule
    names: tuple[str, str]
    certain: bool

    def __str__(self) -> str:
        return "; ".join(f"{group}: {self._values(group)}" for group in self.groups)

    def _values(self, group: str) -> str:
        a, b = self.names
        return f"{describe(self.a, group)} in {a}, {describe(self.b, group)} in {b}"


@dataclass(frozen=True)
class ParityReport:
    """The outcome of `parity`.

    `own`, `shared`: `[steps]`, the largest relative difference after each step, with each optimizer on its own path and
    with both on the gradients of the first; `ulps`: the largest of `shared`, in units of the rounding of a leaf's
    dtype; `first_difference`: where they first differ beyond rounding, None if they do not; `causes`: the smallest sets
    of conventions that explain the difference, one set if the cause is certain; `rules`: the known rule that each
    optimizer is, or None; `why_unknown`: why an optimizer was not identified, "" if it was; `later`: what is known of
    the later steps of each, if both rules are known and the same; `removed`: `shared` if the first optimizer had the
    second's values of the conventions in `causes`.
    """

    names: tuple[str, str]
    num_steps: int
    dtype: str
    rtol: float
    own: np.ndarray
    shared: np.ndarray
    ulps: float
    first_difference: FirstDifference | None
    causes: tuple[Cause, ...]
    rules: tuple[Rule | None, Rule | None]
    why_unknown: tuple[str, str]
    removed: np.ndarray | None
    later: tuple[Later, Later] | None = None

    @property
    def verdict(self) -> Parity:
        if self.first_difference is not None:
            return Parity.DIFFERENT
        return Parity.EQUAL if self.later and not self.doubts else Parity.EQUAL_HERE

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why two equal rules may differ at later steps or for other gradients; empty if they cannot."""
        if self.later is None:
            return ()
        return tuple(f"{name}: {doubt}" for name, x in zip(self.names, self.later, strict=True) for doubt in x.doubts)

    @property
    def identified(self) -> tuple[bool, bool]:
        """Whether each optimizer is a known rule."""
        a, b = self.why_unknown
        return not a, not b

    @property
    def explained(self) -> bool:
        return bool(self.causes)

    @property
    def certain(self) -> bool:
        return len(self.causes) == 1 and self.causes[0].certain

    def __str__(self) -> str:
        a, b = self.names
        out = [
            f"{a} and {b}: {self.verdict} ({self.dtype}, {self.num_steps} steps, beyond {self.rtol:g} is difference)"
        ]
        out.append(f"  on one stream of gradients   {_at_some_steps(self.shared)}")
        out.append(f"  each on its own path         {_at_some_steps(self.own)}")
        if self.first_difference:
            out.append(f"  they first differ at {self.first_difference}")
        else:
            out.append(f"  equal to {self.ulps:.2g} ulp")
        out += [f"  {line}" for line in self._cause_lines()]
        width = max(map(len, self.names))
        for name, shown in zip(self.names, self._formulas(), strict=True):
            out += [f"  {name if i == 0 else '':<{width}}  {line}" for i, line in enumerate(shown)]
        return "\n".join(out)

    def _formulas(self) -> tuple[list[str], list[str]]:
        a, b = self.rules
        if a and b:
            return lines_of_both(a, b, TEXT)
        shown = [lines(rule, TEXT) if rule else ["no rule that we know"] for rule in self.rules]
        return shown[0], shown[1]

    def _cause_lines(self) -> list[str]:
        if not self.causes:
            unknown = {name: why for name, why in zip(self.names, self.why_unknown, strict=True) if why}
            if unknown:
                said = f"{' and '.join(unknown)} {'is no rule' if len(unknown) == 1 else 'are no rules'} that we know"
                if self.first_difference is None:
                    said = f"{said}, so this says nothing of other paths"
                else:
                    said = f"not explained by the known differences: {said}"
                return [said, *(f"  {name}: {why}" for name, why in unknown.items())]
            if len({rule.sign for rule in self.rules if rule}) > 1:
                return ["they are different rules: no convention turns one into the other"]
            return ["the same rule: what differs is rounding"] if self.first_difference else self._same_rule()
        shown = [str(cause) for cause in self.causes]
        if self.first_difference is None:
            return ["as rules they differ, which does not show here:", *(f"  {cause}" for cause in shown)]
        if self.certain:
            kind = {1: "this alone removes", 2: "these two, and no fewer, remove"}
            return [
                f"cause: {shown[0]}",
                f"       {kind.get(len(self.causes[0].groups), 'these together remove')} the difference",
            ]
        if len(shown) == 1:
            return [f"likely cause: {shown[0]}"]
        return ["likely cause, any one of these:", *(f"  {cause}" for cause in shown)]

    def _same_rule(self) -> list[str]:
        if self.doubts:
            return ["the same rule as far as was seen, but:", *(f"  {doubt}" for doubt in self.doubts)]
        evidence = [f"{name}: {x.evidence}" for name, x in zip(self.names, self.later or (), strict=False)]
        return ["the same rule, and nothing in it can change later:", *(f"  {words}" for words in evidence)]


def _at_some_steps(curve: np.ndarray) -> str:
    if not len(curve):
        return "no steps"
    steps = sorted({1, max(1, len(curve) // 10), max(1, len(curve) // 2), len(curve)})
    return ", ".join(f"step {s}: {curve[s - 1]:.1e}" for s in steps)
