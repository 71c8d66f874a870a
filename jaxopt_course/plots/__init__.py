"""Figures: each function takes data and returns a matplotlib `Figure`; nothing is computed here."""

from jaxopt_course.extras import missing

try:
    import matplotlib  # noqa: F401
except ImportError as error:
    raise missing("jaxopt_course.plots", error) from error

from jaxopt_course.plots.comparisons import contract_grid, difference_curves
from jaxopt_course.plots.diagnosis import diagnosis
from jaxopt_course.plots.figures import (
    confusion_matrix,
    gradient_costs,
    step_size_errors,
    templates,
)
from jaxopt_course.plots.images import image_grid
from jaxopt_course.plots.landscapes import (
    basin_map,
    beside_theory,
    gradient_arrows,
    heat_map,
    learning_rate_map,
)
from jaxopt_course.plots.motion import curves, write_descent
from jaxopt_course.plots.profiles import performance_profiles
from jaxopt_course.plots.solves import coefficient_paths, convergence_curves
from jaxopt_course.plots.style import line_style, line_styles
from jaxopt_course.plots.sweeps import (
    expected_best,
    hyperparameter_map,
    learning_curves,
    race_intervals,
    rate_robustness,
)
from jaxopt_course.plots.trails import noisy_ensemble, surface_3d, trajectories

__all__ = [
    "basin_map",
    "beside_theory",
    "coefficient_paths",
    "confusion_matrix",
    "contract_grid",
    "convergence_curves",
    "curves",
    "diagnosis",
    "difference_curves",
    "expected_best",
    "gradient_arrows",
    "gradient_costs",
    "heat_map",
    "hyperparameter_map",
    "image_grid",
    "learning_curves",
    "learning_rate_map",
    "line_style",
    "line_styles",
    "noisy_ensemble",
    "performance_profiles",
    "race_intervals",
    "rate_robustness",
    "step_size_errors",
    "surface_3d",
    "templates",
    "trajectories",
    "write_descent",
]


def __dir__() -> list[str]:
    return __all__
