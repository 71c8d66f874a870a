r"""Judge where a solver stopped, and whether its claims are true.

The words of the tables are defined as follows. Value f and gradient g are evaluated again in float64 at the point where
a solver stopped; a point outside the bounds has no value. With bounds, g is the projected gradient, and H is the
Hessian with respect to the parameters that are not held by a bound.

- Solved at tau: one of three conditions holds. (1) f - f_best <= tau max(1, |f_best|), where f_best is the lowest value
  at which any of the solvers stopped or that is in the problem's record of minima. (2) f is as near to another value in
  that record. (3) The problem has no record, and the point is a local minimum: |g|_inf <= 1e-6 max(1, |f|); every
  eigenvalue of the Hessian H is above 1e-13 of the largest, which excludes plateaus and unbounded valleys; and
  g'inv(H)g / 2, the gain of a further Newton step, is at most tau max(1, |f|). If any solver falls below -1e20, the
  problem has no minimum, and no solver solves it.
- Other minimum: solved by condition (2) or (3) and not by (1).
- False success: success was claimed, but |g|_inf > 1e-5 max(1, |f|) and not solved at 1e-5.
- Steep success, a stricter criterion: success was claimed, but |g|_inf > 10 sqrt(eps) max(1, |f|).
- Elsewhere: success was claimed and is not false, but not solved at 1e-5 either: a saddle, a plateau.
- False failure: no success was claimed, but solved at 1e-8 with |g|_inf <= 10 sqrt(eps) max(1, |f|).
- Evaluations: evaluations of value and gradient until the value was within tau of the reached one for the first time.
"""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from experiments.peers import Outcome, Solver, Task

TAUS = (1e-5, 1e-8)
STEEP = 10 * float(np.sqrt(np.finfo(float).eps))
FLAT = 1e-6  # tolerance on the gradient at a local minimum
DEFINITE = 1e-13  # tolerance on the eigenvalues of the Hessian at a local minimum, above rounding
BOTTOM = -1e20  # a problem whose value falls below has no minimum
SLOWER = 1.5  # list problems on which our cost is above this multiple of the best peer's
FLAGS = ("other_minimum", "false_success", "steep_success", "elsewhere", "false_failure", "crashed")
COSTS = {
    "evaluations": "evaluations of value and gradient",
    "work": "evaluations + Hessian-vector products (a Hessian counts n)",
}
MEDIANS = (*(f"median_ratio_{cost}" for cost in COSTS), "median_on_common")
COMMON = ("lbfgs", "scipy_lbfgsb", "optax_lbfgs", "jaxopt_lbfgs", "jaxopt_lbfgsb")  # as far as they took part
LEAST_COMMON = 3
RIVALS = {  # our solver -> the cost that is compared, and the peers
    "lbfgs": ("evaluations", COMMON[1:]),
    "newton": ("evaluations", ("scipy_trust_exact", "scipy_trust_constr")),
    "newton_cg": ("work", ("scipy_trust_exact", "scipy_trust_constr")),
}

Row = dict[str, Any]


def judge(task: Task, outcomes: Mapping[str, Outcome | Exception]) -> list[Row]:
    """One row for each solver: where it stopped, what it claims, and whether the claim is true."""
    ends = {name: evaluate_end(task, outcome) for name, outcome in outcomes.items()}
    values = [*(end["value"] for end in ends.values()), *task.recorded]
    best = min((value for value in values if np.isfinite(value)), default=np.inf)
    bottomless = any(value < BOTTOM for value in values)  # False for NaN
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


def evaluate_end(task: Task, outcome: Outcome | Exception) -> Row:
    """Evaluate value, gradient and curvature at the point where a solver stopped."""
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
        hessian[-1, -1] = np.max(np.abs(np.diagonal(hessian)), initial=0) or 1  # also if no parameter is free
    lowest, gain = np.nan, np.inf
    if np.isfinite(hessian).all() and np.isfinite(grad).all():
        curvatures, directions = np.linalg.eigh(hessian)
        lowest = float(curvatures[0] / max(np.abs(curvatures).max(), np.finfo(float).tiny))
        if lowest > DEFINITE:
            gain = float(np.sum((directions.T @ grad) ** 2 / curvatures) / 2)
    return {
        "value": float(value),
        "grad_norm": float(np.max(np.abs(grad))),
        "lowest_curvature": lowest,  # relative to the largest
        "newton_gain": gain,  # inf if the lowest curvature is not positive
        "evaluations": outcome.evaluations,
        "products": outcome.products,
        "success": bool(outcome.success),
        "status": outcome.status,
        "crashed": False,
    }


def within_bounds(
    params: np.ndarray, value: Any, grad: np.ndarray, lower: np.ndarray, upper: np.ndarray
) -> tuple[Any, np.ndarray, np.ndarray]:
    """The value (NaN outside the bounds), the projected gradient, and a mask of the parameters not held by a bound.

    A parameter within rounding of a bound counts as at the bound. Up to 1e-8 outside also counts as rounding.
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
    """The minimal value that was reached; None if the point is not a minimum."""
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
    """Evaluations and products until the history is within tau of a value for the first time.

    If rounding keeps the history outside, all evaluations and products count.
    """
    there = outcome.history[:, 0] <= value + tau * max(1.0, abs(value))
    if not there.any():
        return float(outcome.evaluations), float(outcome.products)
    _, evaluations, products = outcome.history[int(np.argmax(there))]
    return float(evaluations), float(products)


# Summing up


def costs(rows: Sequence[Row], solvers: Mapping[str, Solver], cost: str) -> dict[str, np.ndarray]:
    """The cost of each solver on each problem that has a minimum; inf if it did not solve the problem."""
    names = [name for name, solver in solvers.items() if solver.installed]
    counted = [row for row in rows if not row["bottomless"]]
    return {name: np.array([row[cost] for row in counted if row["solver"] == name], float) for name in names}


def summarise(rows: Sequence[Row], solvers: Mapping[str, Solver]) -> list[Row]:
    """One row for each solver."""
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
    """Problems that a peer of the same kind solves while ours does not, or solves with less than 2/3 of our cost."""
    found, by = [], {(row["problem"], row["solver"]): row for row in rows}
    for row in rows:
        counted, names = RIVALS.get(row["solver"], ("evaluations", ()))
        peers = [by[row["problem"], name] for name in names if (row["problem"], name) in by]
        for tau in TAUS:
            cost, lowest = f"{counted}_{tau:g}", row[f"solved_{tau:g}"] and not row["other_minimum"]
            fair = [peer for peer in peers if not (lowest and peer["other_minimum"])]  # its minimum is higher
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
