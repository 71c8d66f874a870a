"""What a comparison of two optimizers says, for a person, a test and a program."""

import enum
from dataclasses import dataclass

import numpy as np

from jaxopt_course.comparison.formulas import TEXT, in_words, lines
from jaxopt_course.comparison.rules import Rule


class Parity(enum.StrEnum):
    """How two optimizers compare."""

    EQUAL = "EQUAL"  # along this path, and as rules
    EQUAL_HERE = "EQUAL HERE"  # along this path, to rounding; as rules they differ, or are not known
    DIFFERENT = "DIFFERENT"


@dataclass(frozen=True)
class Cause:
    """Conventions that together make the difference: `groups` of switches, and both rules as they were matched."""

    groups: tuple[str, ...]
    a: Rule
    b: Rule
    names: tuple[str, str]
    certain: bool

    def __str__(self) -> str:
        return "; ".join(f"{group}: {self._values(group)}" for group in self.groups)

    def _values(self, group: str) -> str:
        a, b = self.names
        return f"{in_words(self.a, group)} in {a}, {in_words(self.b, group)} in {b}"


@dataclass(frozen=True)
class Parting:
    """Where they first differ beyond rounding, on one stream of gradients: steps are counted from 1."""

    step: int
    path: str
    index: tuple[int, ...]
    slot: str
    a: float
    b: float

    def __str__(self) -> str:
        where = f"params{self.path}{list(self.index) if self.index else ''}"
        return f"step {self.step}, {where}, {self.slot}: {self.a:.9g} and {self.b:.9g}"


@dataclass(frozen=True)
class ParityReport:
    """The outcome of `parity`.

    `own`, `shared`: `[steps]`, the largest relative difference after each step, each on its own path and both on the
    gradients of the first; `ulps`: the largest on shared gradients, in units of the last place of a leaf's largest
    parameter; `parting`: where they part, None if they do not; `causes`: the least sets of conventions that explain it,
    one if it is certain; `rules`: the known rule each is, or None; `removed`: `shared` when the first has the second's
    values of the blamed conventions.
    """

    names: tuple[str, str]
    num_steps: int
    dtype: str
    rtol: float
    own: np.ndarray
    shared: np.ndarray
    ulps: float
    parting: Parting | None
    causes: tuple[Cause, ...]
    rules: tuple[Rule | None, Rule | None]
    identified: tuple[bool, bool]
    removed: np.ndarray | None

    @property
    def verdict(self) -> Parity:
        if self.parting is not None:
            return Parity.DIFFERENT
        return Parity.EQUAL if all(self.identified) and not self.causes else Parity.EQUAL_HERE

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
        out.append(f"  on one stream of gradients   {_growth(self.shared)}")
        out.append(f"  each on its own path         {_growth(self.own)}")
        if self.parting:
            out.append(f"  they part at {self.parting}")
        else:
            out.append(f"  equal to {self.ulps:.2g} ulp")
        out += [f"  {line}" for line in self._cause()]
        for name, rule in zip(self.names, self.rules, strict=True):
            shown = [f"{line}" for line in lines(rule, TEXT)] if rule else ["no rule that we know"]
            out += [f"  {name if i == 0 else '':<{max(map(len, self.names))}}  {line}" for i, line in enumerate(shown)]
        return "\n".join(out)

    def _cause(self) -> list[str]:
        if not self.causes:
            unknown = [name for name, known in zip(self.names, self.identified, strict=True) if not known]
            if unknown:
                verb = "is no rule" if len(unknown) == 1 else "are no rules"
                return [f"not explained by the known differences: {' and '.join(unknown)} {verb} that we know"]
            return ["the same rule: what differs is rounding" if self.parting else "the same rule"]
        shown = [str(cause) for cause in self.causes]
        if self.parting is None:
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


def _growth(curve: np.ndarray) -> str:
    if not len(curve):
        return "no steps"
    steps = sorted({1, max(1, len(curve) // 10), max(1, len(curve) // 2), len(curve)})
    return ", ".join(f"step {s}: {curve[s - 1]:.1e}" for s in steps)
