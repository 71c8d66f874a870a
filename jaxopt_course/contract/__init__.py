"""A contract for any optimizer: the properties that loops, compilers, sweeps and checkpoints rely on."""

from jaxopt_course.contract.check_optimizer import ContractError, ContractReport, Outcome, Row, check_optimizer

__all__ = ["ContractError", "ContractReport", "Outcome", "Row", "check_optimizer"]


def __dir__() -> list[str]:
    return __all__
