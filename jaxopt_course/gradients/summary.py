"""From findings for each ray to a record for each leaf."""

from collections.abc import Sequence

import numpy as np

from jaxopt_course.gradients.directions import Direction
from jaxopt_course.gradients.entries import CODE, FAIL, KINK, Findings, Leafwise
from jaxopt_course.gradients.estimates import BARS
from jaxopt_course.gradients.report import SEVERITY, Entry, LeafReport, Verdict
from jaxopt_course.gradients.subject import Arguments

CONSTANT = CODE[Verdict.CONSTANT]
MOST_LISTED = 100  # wrong entries that a report names
NEGLIGIBLE = 1e-6  # of the size of f: how small a slope must be known to be to count as none


def entry_at(args: Arguments, coordinate: int, analytic: float, numerical: float, error: float, output: str) -> Entry:
    part = next(part for part in reversed(args.parts) if part.first <= coordinate)
    return Entry(
        path=part.path + part.component(coordinate),
        index=part.index_of(coordinate),
        analytic=float(analytic),
        numerical=float(numerical),
        relative_error=float(error),
        output=output,
    )


def summarize_entries(
    args: Arguments,
    found: Findings,
    coordinates: np.ndarray,
    layout: Leafwise,
    labels: Sequence[str],
    here: np.ndarray,
) -> tuple[tuple[LeafReport, ...], tuple[Entry, ...]]:
    """A record for each leaf, and the wrong entries, worst first."""
    leaf_of, unit = layout.leaf[coordinates], layout.unit[coordinates][:, None]
    size_of_f = max(float(np.abs(here).max()), float(np.nanmax(np.abs(found.numerical * unit), initial=0.0)))
    leaves = []
    for number, part in enumerate(args.parts):
        rows = np.flatnonzero(leaf_of == number)
        if not rows.size:
            nothing = Entry(part.path, (), 0.0, 0.0, 0.0)
            leaves.append(LeafReport(part.path, Verdict.PASS, part.size, 0, 0, 0.0, 0.0, nothing, 0.0, 0.0))
            continue
        here_found = Findings(*(values[rows] for values in found))
        code = here_found.code.max()
        if code < FAIL and _vanishes(here_found, unit[rows], size_of_f):
            code = CONSTANT
        rank = np.where(here_found.code == here_found.code.max(), here_found.error, -1.0)
        swept = np.isfinite(here_found.bar)
        rank = np.where(swept | ~swept.any(), rank, rank - 2)  # the one with an error bar, rather
        row, reading = np.unravel_index(np.argmax(rank), rank.shape)
        at = here_found.analytic[row, reading], here_found.numerical[row, reading], here_found.error[row, reading]
        leaves.append(
            LeafReport(
                path=part.path,
                verdict=SEVERITY[code],
                entries=part.size,
                checked=len(rows) // (2 if part.is_complex and len(rows) > part.size else 1),
                wrong=int((here_found.code == FAIL).any(axis=1).sum()),
                absolute_error=float(
                    np.nan_to_num(np.abs(here_found.analytic - here_found.numerical), nan=np.inf).max()
                ),
                relative_error=float(at[2]),
                worst=entry_at(args, int(coordinates[rows[row]]), *at, labels[int(reading)]),
                error_bar=float(here_found.bar[row, reading]),
                step=float(here_found.step[row, reading]),
            )
        )
    return tuple(leaves), wrong_entries(args, found, coordinates, labels)


def wrong_entries(
    args: Arguments, found: Findings, coordinates: np.ndarray, labels: Sequence[str]
) -> tuple[Entry, ...]:
    """The entries that fail, worst first, as many as a report names."""
    rows, readings = np.nonzero(found.code == FAIL)
    order = np.argsort(-found.error[rows, readings], kind="stable")[:MOST_LISTED]
    return tuple(
        entry_at(
            args,
            int(coordinates[r]),
            found.analytic[r, m],
            found.numerical[r, m],
            found.error[r, m],
            labels[m],
        )
        for r, m in zip(rows[order], readings[order], strict=True)
    )


def _vanishes(found: Findings, unit: np.ndarray, size_of_f: float) -> bool:
    """Whether both sides are zero as far as can be told, and that is far."""
    bar = float(np.nanmax(np.where(np.isfinite(found.bar), found.bar, np.nan), initial=0.0))
    known = float(np.nanmax(np.where(np.isfinite(found.bar), found.bar * unit, np.nan), initial=0.0))
    zero = (np.abs(found.analytic) <= BARS * bar) & (np.abs(found.numerical) <= BARS * bar)
    return bool(zero.all()) and bool((found.code != KINK).all()) and BARS * known <= NEGLIGIBLE * size_of_f


def summarize_directions(args: Arguments, directions: list[Direction], here: np.ndarray) -> tuple[LeafReport, ...]:
    """A record for each leaf, of the direction in which it does worst."""
    stacked = Findings(*(np.stack(values) for values in zip(*(d.found for d in directions), strict=True)))  # [K, L, M]
    norm = np.stack([d.norm for d in directions])
    size_of_f = max(float(np.abs(here).max()), float(np.nanmax(norm, initial=0.0)))
    leaves = []
    for number, part in enumerate(args.parts):
        found = Findings(*(values[:, number] for values in stacked))
        code = found.code.max()
        if code < FAIL and _vanishes(found, np.ones(1), size_of_f):
            code = CONSTANT
        rank = np.where(found.code == found.code.max(), found.error, -1.0)
        k, reading = np.unravel_index(np.argmax(rank), rank.shape)
        worst = Entry(
            part.path,
            (),
            float(found.analytic[k, reading]),
            float(found.numerical[k, reading]),
            float(found.error[k, reading]),
        )
        leaves.append(
            LeafReport(
                path=part.path,
                verdict=SEVERITY[code],
                entries=part.size,
                checked=len(directions),
                wrong=0,
                absolute_error=float(np.nan_to_num(np.abs(found.analytic - found.numerical), nan=np.inf).max()),
                relative_error=worst.relative_error,
                worst=worst,
                error_bar=float(found.bar[k, reading]),
                step=float(found.step[k, reading]),
                rays=True,
            )
        )
    return tuple(leaves)
