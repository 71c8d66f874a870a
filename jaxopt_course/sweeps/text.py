"""Tables and numbers as plain text."""

import math
from collections.abc import Sequence


def text_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table; the first two columns are aligned to the left, the others to the right."""
    lines = [columns, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]

    def aligned(line: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([aligned(columns), "  ".join("-" * width for width in widths), *map(aligned, rows)])


def number(value: float, digits: int = 3) -> str:
    """Format a number with `digits` significant digits, without an exponent if that is short."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.{digits}g}"
