r"""What is so where a solver stopped, and what that makes of its claims.

Every word of the tables has one meaning. Value f and gradient g are evaluated anew in float64 where a solver stopped,
and a point outside the bounds has none. Within bounds, g is what these leave of the gradient, and H the Hessian among
the parameters that they do not hold.

- Solved at tau: f - f_best <= tau max(1, |f_best|), with f_best the lowest value that any of the solvers stopped at, or
  that is on the problem's record of minima; or f is as near to another value of that record; or, where a problem has no
  record, the point is at a local minimum: |g|_inf <= 1e-6 max(1, |f|), every eigenvalue of the Hessian H is above 1e-13
  of the largest, so that a plateau or a valley without end is none, and g'inv(H)g / 2, what a Newton step would still
  gain, is within tau max(1, |f|). A problem on which somebody falls below -1e20 has no minimum, and nobody solves it.
- Other minimum: solved in one of the last two ways, not in the first.
- False success: success was claimed, but |g|_inf > 1e-5 max(1, |f|) and not solved at 1e-5.
- Steep success, the stricter reading: success was claimed, but |g|_inf > 10 sqrt(eps) max(1, |f|).
- Elsewhere: success was claimed, and it is not false, but not solved at 1e-5 either: a saddle, a plateau.
- False failure: no success was claimed, but solved at 1e-8 with |g|_inf <= 10 sqrt(eps) max(1, |f|).
- Evaluations: of value and gradient, until the value first was within tau of the one that was reached, on the way.
"""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from experiments.peers import Outcome, Solver, Task

TAUS = (1e-5, 1e-8)
STEEP = 10 * float(np.sqrt(np.finfo(float).eps))
FLAT = 1e-6  # of the gradient at a local minimum
DEFINITE = 1e-13  # of the Hessian there: what is left of it is not rounding
BOTTOM = -1e20  # what falls below has no minimum
SLOWER = 1.5  # in multiples of the best peer's cost, to be listed
FLAGS = ("other_minimum", "false_success", "steep_success", "elsewhere", "false_failure", "crashed")
COSTS = {
    "evaluations": "evaluations of value and gradient",
    "work": "evaluations + Hessian-vector products (a Hessian counts n)",
}
MEDIANS = (*(f"median_ratio_{cost}" for cost in COSTS), "median_on_common")
COMMON = ("lbfgs", "scipy_lbfgsb", "optax_lbfgs", "jaxopt_lbfgs", "jaxopt_lbfgsb")  # those of them that took part
LEAST_COMMON = 3
RIVALS = {  # of ours: in which cost, and whom they are held against
    "lbfgs": ("evaluations", COMMON[1:]),
    "newton": ("evaluations", ("scipy_trust_exact", "scipy_trust_constr")),
    "newton_cg": ("work", ("scipy_trust_exact", "scipy_trust_constr")),
}

Row = dict[str, Any]


def judge(task: Task, outcomes: Mapping[str, Outcome | Exception]) -> list[Row]:
    """A row for every solver: where it stopped, what it claims, and what is so."""
    ends = {name: look(task, outcome) for name, outcome in outcomes.items()}
    values = [*(end["value"] for end in ends.values()), *task.recorded]
    best = min((value for value in values if np.isfinite(value)), default=np.inf)
    bottomless = any(value < BOTTOM for value in values)  # NaN is not
    rows = []
    for name, outcome in outcomes.items():
        end, row = ends[name], {"collection": task.collection, "problem": task.name, "n": len(task.start)}
        row |= {"solver": name, **end, "best_value": best, "bottomless": bottomless}
        references = {tau: reference(task, end, best, tau) for tau in TAUS}
        for tau, value in references.items():
            row[f"solved_{tau:g}"] = value is not None and not bottomless
        scale, claimed = max(1.0, abs(end["value"])), end["success"]
        loosely, tightly = (row[f"solved_{tau:g}"] for tau in TAUS)
        false = claimed and not end["grad_norm"] <= TAUS[0] * scale and not loosely
        row |= {
            "other_minimum": loosely and not near(end["value"], best, TAUS[0]),
            "false_success": false,
            "steep_success": claimed and not end["grad_norm"] <= STEEP * scale,
            "elsewhere": claimed and not loosely and not false,
            "false_failure": not claimed and tightly and end["grad_norm"] <= STEEP * scale,
        }
        for tau, value in references.items():
            evaluations, products = np.inf, np.inf
            if isinstance(outcome, Outcome) and value is not None and row[f"solved_{tau:g}"]:
                evaluations, products = spent(outcome, value, tau)
            row |= {f"evaluations_{tau:g}": evaluations, f"work_{tau:g}": evaluations + products}
        rows.append(row)
    return rows


def look(task: Task, outcome: Outcome | Exception) -> Row:
    """What is so where a solver stopped."""
    if isinstance(outcome, Exception):
        crash = f"{type(outcome).__name__}: {outcome}".splitlines()[0][:300]
        numbers = dict.fromkeys(("value", "grad_norm", "lowest_curvature", "newton_gain"), np.nan)
        counts = {"evaluations": 0, "products": 0}
        return {**numbers, **counts, "success": False, "status": crash, "crashed": True}
    value, grad = task.value_and_grad(outcome.params)
    grad, hessian = np.asarray(grad), np.asarray(task.hessian(outcome.params))
    if task.bounds is not None:
        value, grad, free = within_bounds(outcome.params, value, grad, *task.bounds)
        grad, hessian = np.append(grad[free], 0), np.pad(hessian[np.ix_(free, free)], (0, 1))
        hessian[-1, -1] = np.max(np.abs(np.diagonal(hessian)), initial=0) or 1  # also where none is free
    lowest, gain = np.nan, np.inf
    if np.isfinite(hessian).all() and np.isfinite(grad).all():
        curvatures, directions = np.linalg.eigh(hessian)
        lowest = float(curvatures[0] / max(np.abs(curvatures).max(), np.finfo(float).tiny))
        if lowest > DEFINITE:
            gain = float(np.sum((directions.T @ grad) ** 2 / curvatures) / 2)
    return {
        "value": float(value),
        "grad_norm": float(np.max(np.abs(grad))),
        "lowest_curvature": lowest,  # in parts of the largest
        "newton_gain": gain,  # inf where that is not positive
        "evaluations": outcome.evaluations,
        "products": outcome.products,
        "success": bool(outcome.success),
        "status": outcome.status,
        "crashed": False,
    }


def within_bounds(
    params: np.ndarray, value: Any, grad: np.ndarray, lower: np.ndarray, upper: np.ndarray
) -> tuple[Any, np.ndarray, np.ndarray]:
    """The value, NaN outside the bounds; what they leave of the gradient; and which parameters they do not hold.

    A parameter within rounding of a bound is at it, and as far as 1e-8 outside may be rounding too.
    """
    room = 1e-8 * np.maximum(1, np.abs(params))
    if np.any(params < lower - room) or np.any(params > upper + room):
        return np.nan, np.full_like(grad, np.nan), np.ones(len(grad), bool)
    at_lower, at_upper = params - lower <= room, upper - params <= room
    held = (at_lower & (grad > 0)) | (at_upper & (grad < 0)) | (at_lower & at_upper)
    return value, np.where(held, 0, grad), ~held


def near(value: float, best: float, tau: float) -> bool:
    return bool(value - best <= tau * max(1.0, abs(best)))


def reference(task: Task, end: Row, best: float, tau: float) -> float | None:
    """The value that was reached; None where that is no minimum."""
    value = end["value"]
    if not np.isfinite(value):
        return None
    if near(value, best, tau):
        return best
    for recorded in task.recorded:
        if abs(value - recorded) <= tau * max(1.0, abs(recorded)):
            return recorded
    scale = max(1.0, abs(value))
    at_minimum = end["grad_norm"] <= FLAT * scale and end["newton_gain"] <= tau * scale
    return value if not task.recorded and at_minimum else None


def spent(outcome: Outcome, value: float, tau: float) -> tuple[float, float]:
    """Evaluations and products until the history first is within tau of a value; by rounding it may never be."""
    there = outcome.history[:, 0] <= value + tau * max(1.0, abs(value))
    if not there.any():
        return float(outcome.evaluations), float(outcome.products)
    _, evaluations, products = outcome.history[int(np.argmax(there))]
    return float(evaluations), float(products)


# Summing up


def costs(rows: Sequence[Row], solvers: Mapping[str, Solver], cost: str) -> dict[str, np.ndarray]:
    """What each solver spent on each problem that has a minimum; inf where it did not solve it."""
    names = [name for name, solver in solvers.items() if solver.installed]
    counted = [row for row in rows if not row["bottomless"]]
    return {name: np.array([row[cost] for row in counted if row["solver"] == name], float) for name in names}


def summarise(rows: Sequence[Row], solvers: Mapping[str, Solver]) -> list[Row]:
    """A row for each solver."""
    tight = TAUS[1]
    spent = {cost: costs(rows, solvers, f"{cost}_{tight:g}") for cost in COSTS}
    best = {
        cost: np.min([values for name, values in of.items() if solvers[name].drawn], axis=0, initial=np.inf)
        for cost, of in spent.items()
    }
    shared = [spent["evaluations"][name] for name in COMMON if name in spent["evaluations"]]
    common = np.flatnonzero(np.isfinite(shared).all(axis=0)) if len(shared) >= LEAST_COMMON else np.zeros(0, int)
    summary = []
    for name, solver in solvers.items():
        own = [row for row in rows if row["solver"] == name]
        row: Row = {"solver": name, "label": solver.label, "installed": solver.installed}
        row |= dict.fromkeys((*(f"solved_{tau:g}" for tau in TAUS), *FLAGS, *MEDIANS, "common_problems", "problems"))
        if solver.installed:
            for flag in (*(f"solved_{tau:g}" for tau in TAUS), *FLAGS):
                row[flag] = sum(bool(each[flag]) for each in own)
            for cost in COSTS:
                values = spent[cost][name]
                both = np.isfinite(values) & np.isfinite(best[cost])
                row[f"median_ratio_{cost}"] = median(values[both] / best[cost][both])
            row["median_on_common"] = median(spent["evaluations"][name][common])
            row |= {"common_problems": len(common), "problems": len(own)}
        summary.append(row)
    return summary


def median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else np.nan


def where_ours_lose(rows: Sequence[Row]) -> list[Row]:
    """Problems that a peer of the same kind solves and ours does not, or with less than 2/3 of the cost."""
    found, by = [], {(row["problem"], row["solver"]): row for row in rows}
    for row in rows:
        counted, names = RIVALS.get(row["solver"], ("evaluations", ()))
        peers = [by[row["problem"], name] for name in names if (row["problem"], name) in by]
        for tau in TAUS:
            cost, lowest = f"{counted}_{tau:g}", row[f"solved_{tau:g}"] and not row["other_minimum"]
            fair = [peer for peer in peers if not (lowest and peer["other_minimum"])]  # it has not come as far down
            best = min(fair, key=itemgetter(cost), default=None)
            if best is None or not row[cost] > SLOWER * best[cost]:
                continue
            found.append(
                {
                    "problem": row["problem"],
                    "n": row["n"],
                    "solver": row["solver"],
                    "tau": tau,
                    "counted": counted,
                    "cost": row[cost],
                    "status": row["status"],
                    "value": row["value"],
                    "peer": best["solver"],
                    "peer_cost": best[cost],
                    "peer_value": best["value"],
                }
            )
    return found
