"""What if I move this? A page in one file, whose update rules are checked against the library."""

from jaxopt_course.lab.page import write

__all__ = ["write"]


def __dir__() -> list[str]:
    return __all__
