"""One look for each optimizer in every figure and in the lab; every other line has a look of its own."""

import itertools
from typing import Any

import numpy as np
import pytest

import jaxopt_course as jc
from experiments.contestants import CONTESTANTS
from jaxopt_course.landscape import GradientField
from jaxopt_course.looks import COLORS, DASHES, RULES, rule_of

LABELS = (
    "SGD",
    "Momentum",
    "Nesterov",
    "AdaGrad",
    "RMSProp",
    "Adam",
    "Adam, no correction",
    "Newton",
    "Newton-CG",
    "L-BFGS",
)


def look(style: dict[str, Any]) -> tuple[str, str]:
    return style["color"], str(style["linestyle"])


@pytest.mark.parametrize(
    ("rule", "spellings"),
    [
        ("sgd", ["SGD", "sgd", "optax.sgd", "SGD (0.0015)", "SGD, B = 16", "Gradient descent", "jc.sgd(0.1)"]),
        ("momentum", ["Momentum", "momentum", "jc.momentum(0.1, 0.9)", "Momentum, B = 64"]),
        ("nesterov", ["Nesterov", "Nesterov's momentum", "jc.momentum(0.1, nesterov=True)"]),
        ("adagrad", ["AdaGrad", "Adagrad", "torch.optim.Adagrad"]),
        ("rmsprop", ["RMSProp", "RMSprop lr=0.1", "RMSProp 0.01"]),
        ("adam", ["Adam", "adam", "optax.adam", "optax.adam(1e-2)", "Adam (0.05)", "ADAM @ 0.1"]),
        ("adamuncorrected", ["Adam, no correction", "adam_uncorrected", "Adam without bias correction"]),
        ("adamuncorrected", ["jc.adam(0.1, bias_correction=False)", "uncorrected Adam"]),
        ("newton", ["Newton", "jc.newton()"]),
        ("newtoncg", ["Newton-CG", "newton_cg", "NewtonCG"]),
        ("lbfgs", ["L-BFGS", "lbfgs", "LBFGS (100)"]),
    ],
)
def test_a_rule_looks_the_same_however_it_is_spelt(rule: str, spellings: list[str]) -> None:
    assert {rule_of(label) for label in spellings} == {rule}
    assert len({look(jc.plots.line_style(label)) for label in spellings}) == 1


@pytest.mark.parametrize("label", ["AdamW", "scipy L-BFGS-B", "optax L-BFGS", "my Adam", "Lion", "", "0.1", "rate 0.1"])
def test_other_rules_are_not_mistaken_for_these(label: str) -> None:
    assert rule_of(label) is None
    assert look(jc.plots.line_style(label)) not in {look(jc.plots.line_style(known)) for known in LABELS}


def test_the_ten_rules_differ_also_in_grey() -> None:
    styles = jc.plots.line_styles(LABELS)
    assert len({look(style)[1] for style in styles.values()}) == len(LABELS) == len(RULES)
    assert len({style["color"] for style in styles.values()}) == len(LABELS) - 1
    assert styles["Adam"]["color"] == styles["Adam, no correction"]["color"]
    assert {rule_of(contestant.label) for contestant in CONTESTANTS.values()} <= RULES.keys()


@pytest.mark.parametrize("count", [1, 5, 9, 30, 80])
def test_other_lines_are_kept_apart(count: int) -> None:
    labels = [f"line {chr(97 + i // 10)}{i % 10}" for i in range(count)]
    styles = jc.plots.line_styles(labels)
    assert styles == jc.plots.line_styles(labels)
    assert len({look(style) for style in styles.values()}) == count
    if count <= len(COLORS):
        assert len({style["color"] for style in styles.values()}) == count
        assert len({look(style)[1] for style in styles.values()}) == count
    assert len(COLORS) * len(DASHES) - len(RULES) == 80


def test_a_label_keeps_its_look_beside_others_unless_they_would_be_alike() -> None:
    alone = look(jc.plots.line_style("Lion"))
    others = [rule for rule in LABELS if look(jc.plots.line_style(rule))[0] != alone[0]]
    others = [rule for rule in others if look(jc.plots.line_style(rule))[1] != alone[1]]
    for beside in itertools.permutations(others[:3]):
        assert look(jc.plots.line_styles([*beside, "Lion"])["Lion"]) == alone
    assert look(jc.plots.line_styles([*LABELS, "Lion"])["Lion"]) not in map(look, jc.plots.line_styles(LABELS).values())


def test_two_of_one_rule_share_its_colour_and_are_told_apart_by_dashes() -> None:
    styles = jc.plots.line_styles(["mine", "optax.adam", "Adam", "Adam (0.1)"])
    assert styles["optax.adam"] == jc.plots.line_style("Adam")
    assert len({styles[label]["color"] for label in ("optax.adam", "Adam", "Adam (0.1)")}) == 1
    assert len({look(style) for style in styles.values()}) == 4


def test_figures_of_rules_show_them_in_their_own_look() -> None:
    """Whatever stands beside them, and in whatever order."""
    x = np.linspace(-1, 1, 5)
    field = GradientField(x, x, x[:, None] ** 2 + x**2, np.zeros((5, 5, 2)), np.zeros((5, 5, 2)))
    path, values = np.column_stack([x, x]), np.array([[3.0, 2.0, 1.0, 0.5, 0.1]])
    spent = np.arange(1.0, 6.0)
    for names in (("Adam", "SGD"), ("other", "SGD", "L-BFGS", "Adam")):
        figures = [
            jc.plots.learning_curves(dict.fromkeys(names, values), title="T", ylabel="loss"),
            jc.plots.rate_robustness(spent, dict.fromkeys(names, values.T), title="T", ylabel="loss", ceiling=9.0),
            jc.plots.trajectories(field, dict.fromkeys(names, path), title="T"),
            jc.plots.surface_3d(field, title="T", paths=dict.fromkeys(names, np.column_stack([path, x**2]))),
            jc.plots.convergence_curves(
                dict.fromkeys(names, values[0]),
                {"evaluations": dict.fromkeys(names, spent)},
                title="T",
                ylabel="f",
                floor=1e-9,
            ),
            jc.plots.performance_profiles(dict.fromkeys(names, spent), title="T", cost="evaluations"),
            jc.plots.beside_theory({"": ({}, dict.fromkeys(names, path.T))}, title="T", xlabel="x", ylabel="y"),
        ]
        for figure in figures:
            drawn: list[Any] = list(figure.axes[0].lines)
            shown = {(line.get_color(), _dashes(line)) for line in drawn if len(np.ravel(line.get_xdata())) >= 2}
            for rule in ("Adam", "SGD"):
                style = jc.plots.line_style(rule)
                assert (style["color"], _pattern(style["linestyle"])) in shown


def _dashes(line: Any) -> str:
    offset, parts = line._unscaled_dash_pattern
    return _pattern((offset, parts) if parts else "solid")


def _pattern(linestyle: Any) -> str:
    return linestyle if isinstance(linestyle, str) else str(list(linestyle[1]))
