"""Formulas as MathML, which browsers draw themselves: no script, no fonts to load."""

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging

logger = logging.getLogger(__name__)

TIGHT = r"&#x0007C;|&#x02016;|&#x02225;|&#x0002F;|/|\|"  # bars and slash: no space around, no stretching
PRIMED = r"<msup>(<mi>[^<]*</mi>)<mi>(&#x0203[2-7];)</mi></msup>"  # fonts draw a prime raised and small already
WITH_COLUMNS = r"\\begin\{(align\*|cases|\w*matrix|array)\}.*?\\end\{\1\}"


def mathml(latex: str, display: str) -> str:
    """Convert a formula, and add what latex2mathml lacks: `aligned`, and the spaces that TeX sets."""
    latex = re.sub(r"\\arg\s*\\(min|max)", r"\\operatorname{arg\1}", latex)
    latex = re.sub(r"\\(begin|end)\{(aligned|split)\}", r"\\\1{align*}", latex)
    if "&" in re.sub(WITH_COLUMNS, "", latex, flags=re.DOTALL):
        latex = rf"\begin{{align*}}{latex}\end{{align*}}"
    formula = convert(latex, display=display)
    if unknown := re.search(r"\\\w+", formula):
        logger.warning("formula: latex2mathml does not know %s in %s", unknown[0], latex)
    formula = re.sub(rf"<mo[^>]*>({TIGHT})</mo>", r'<mo stretchy="false" lspace="0" rspace="0">\1</mo>', formula)
    formula = re.sub(PRIMED, r'<mrow>\1<mo lspace="0" rspace="0">\2</mo></mrow>', formula)
    formula = formula.replace('<mn mathvariant="double-struck">1</mn>', "<mn>&#x1D7D9;</mn>")
    formula = re.sub(r"<mi>(log|exp|sin|cos)</mi>", r"<mo>\1</mo>", formula)
    formula = re.sub(r"<mo>([A-Za-z]{2,})</mo>(?!<mo)", r'<mo lspace="0.17em" rspace="0.17em">\1</mo>', formula)
    return re.sub(r"<mo>([A-Za-z]{2,})</mo>", r'<mo lspace="0.17em" rspace="0">\1</mo>', formula)


def visit_math(self: Any, node: nodes.math) -> None:
    self.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def visit_math_block(self: Any, node: nodes.math_block) -> None:
    self.body.append(f'<div class="math-block">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
