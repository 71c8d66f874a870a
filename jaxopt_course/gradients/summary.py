"""From findings for each entry or ray to a record for each leaf."""

from collections.abc import Sequence

import numpy as np

from jaxopt_course.gradients.entries import Looked
from jaxopt_course.gradients.estimates import BARS
from jaxopt_course.gradients.report import SEVERITY, Entry, LeafReport, Verdict
from jaxopt_course.gradients.subject import Part, Question
from jaxopt_course.gradients.verdicts import CONSTANT, FAIL, INCONCLUSIVE, KINK, PASS, Findings

MOST_LISTED = 100  # wrong entries that a report names
NEGLIGIBLE = 1e-6  # of the size of f: how small a slope must be known to be to count as none


def summarize_entries(question: Question, looked: Looked) -> tuple[tuple[LeafReport, ...], tuple[Entry, ...]]:
    """A record for each leaf, and the wrong entries, worst first."""
    leaves = []
    for part in question.args.parts:
        rows = np.flatnonzero((looked.coordinates >= part.first) & (looked.coordinates < part.last))
        if not rows.size:
            nothing = Entry(part.path, (), 0.0, 0.0, 0.0)
            leaves.append(LeafReport(part.path, Verdict.PASS, part.size, 0, 0, 0.0, 0.0, nothing, 0.0, 0.0))
            continue
        some = Looked(looked.coordinates[rows], looked.unit[rows], looked.found.rows(rows), ())
        leaves.append(_leaf(question, part, some))
    return tuple(leaves), wrong_entries(question, looked.coordinates, looked.found)


def _leaf(question: Question, part: Part, looked: Looked) -> LeafReport:
    found = looked.found
    code = _code_of(found)
    row, reading = _worst(found, code)
    at = found.analytic[row, reading], found.numerical[row, reading], found.error[row, reading]
    pairs = 2 if part.is_complex and len(found.code) > part.size else 1  # coordinates of an entry
    apart = np.abs(found.analytic - found.numerical)[~found.held]
    doubtful = (found.code == INCONCLUSIVE).any(axis=1) & ~found.held
    return LeafReport(
        path=part.path,
        verdict=SEVERITY[code],
        entries=part.size,
        checked=len(found.code) // pairs,
        wrong=int((found.code == FAIL).any(axis=1).sum()),
        absolute_error=float(np.nan_to_num(apart, nan=np.inf).max(initial=0.0)),
        relative_error=float(at[2]),
        worst=entry_at(part, int(looked.coordinates[row]), at, question.readings.labels[int(reading)]),
        error_bar=float(found.bar[row, reading]),
        step=float(found.step[row, reading]),
        inconclusive=-(-int(doubtful.sum()) // pairs),
        unmoved=-(-int(((found.code == CONSTANT).all(axis=1) & ~found.held).sum()) // pairs),
        held=-(-int(found.held.sum()) // pairs),
    )


def _code_of(found: Findings) -> int:
    """The verdict of a leaf. Entries that were held, or are negligible, do not spoil what others show.

    Where none shows anything: CONSTANT, if no entry moves f as far as can be told, else INCONCLUSIVE.
    """
    code = found.code[~found.held]
    negligible = found.negligible[~found.held]
    counted = code[~negligible & (code != CONSTANT)]
    if counted.size:
        return int(counted.max())
    with np.errstate(all="ignore"):
        zero = np.maximum(np.abs(found.analytic), np.abs(found.numerical)) <= BARS * found.bar
    return int(CONSTANT if (zero[~found.held] | (code == CONSTANT)).all() else INCONCLUSIVE)


def _worst(found: Findings, code: int) -> tuple[int, int]:
    """The entry that the verdict rests on with the largest error; one with an error bar, rather."""
    rank = np.where((found.code == code) & ~found.held[:, None], np.nan_to_num(found.error, nan=np.inf), -1.0)
    rank = np.where(np.isfinite(found.bar) | (rank < 0), rank, rank - 2.0)
    row, reading = np.unravel_index(np.argmax(rank), rank.shape)
    return int(row), int(reading)


def entry_at(part: Part, coordinate: int, values: Sequence[float], output: str) -> Entry:
    """A record of `values`: analytic, numerical, relative error."""
    analytic, numerical, error = map(float, values)
    path = part.path + part.component(coordinate)
    return Entry(path, part.index_of(coordinate), analytic, numerical, error, output)


def wrong_entries(question: Question, coordinates: np.ndarray, found: Findings) -> tuple[Entry, ...]:
    """The entries that fail, worst first, as many as a report names."""
    rows, readings = np.nonzero(found.code == FAIL)
    order = np.argsort(-found.error[rows, readings], kind="stable")[:MOST_LISTED]
    entries = []
    for r, m in zip(rows[order], readings[order], strict=True):
        part = next(part for part in reversed(question.args.parts) if part.first <= coordinates[r])
        values = found.analytic[r, m], found.numerical[r, m], found.error[r, m]
        entries.append(entry_at(part, int(coordinates[r]), values, question.readings.labels[m]))
    return tuple(entries)


def summarize_directions(question: Question, found: list[Findings], norms: list[np.ndarray]) -> tuple[LeafReport, ...]:
    """A record for each leaf, of the direction in which it does worst; findings and norms [L, M] of each direction."""
    stacked = Findings(*(np.stack(values) for values in zip(*found, strict=True)))  # [K, L, M]
    size_of_f = np.abs(question.here).max()
    size_of_f = max(float(size_of_f), float(np.nanmax(np.stack(norms), initial=0.0)))
    leaves = []
    for number, part in enumerate(question.args.parts):
        of_leaf = Findings(*(values[:, number] for values in stacked))
        code = int(of_leaf.code.max())
        if code in (PASS, CONSTANT, INCONCLUSIVE) and _vanishes(of_leaf, size_of_f):
            code = int(CONSTANT)
        rank = np.where(of_leaf.code == of_leaf.code.max(), of_leaf.error, -1.0)
        k, reading = np.unravel_index(np.argmax(rank), rank.shape)
        a, n, error = of_leaf.analytic[k, reading], of_leaf.numerical[k, reading], of_leaf.error[k, reading]
        leaves.append(
            LeafReport(
                path=part.path,
                verdict=SEVERITY[code],
                entries=part.size,
                checked=len(found),
                wrong=0,
                absolute_error=float(np.nan_to_num(np.abs(of_leaf.analytic - of_leaf.numerical), nan=np.inf).max()),
                relative_error=float(error),
                worst=Entry(part.path, (), float(a), float(n), float(error)),
                error_bar=float(of_leaf.bar[k, reading]),
                step=float(of_leaf.step[k, reading]),
                rays=True,
            )
        )
    return tuple(leaves)


def _vanishes(found: Findings, size_of_f: float) -> bool:
    """Whether both sides are zero as far as can be told, and that is far."""
    bar = float(np.nanmax(np.where(np.isfinite(found.bar), found.bar, np.nan), initial=0.0))
    zero = (np.abs(found.analytic) <= BARS * bar) & (np.abs(found.numerical) <= BARS * bar)
    return bool(zero.all() and (found.code != KINK).all() and BARS * bar <= NEGLIGIBLE * size_of_f)
