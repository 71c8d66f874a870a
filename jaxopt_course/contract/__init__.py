"""Does an optimizer keep what loops, compilers, sweeps and checkpoints rely on? A contract for any optimizer."""

from jaxopt_course.contract.check_optimizer import ContractError, ContractReport, Outcome, Row, check_optimizer

__all__ = ["ContractError", "ContractReport", "Outcome", "Row", "check_optimizer"]


def __dir__() -> list[str]:
    return __all__
