"""The look of each optimizer, as data: one colour and one dash pattern, in figures and in the lab."""

import re
from collections.abc import Iterable
from zlib import crc32

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
COLORS = (*OKABE_ITO, "#882255", "#999933")  # the last two are wine and olive of Paul Tol
DASHES: tuple[tuple[float, ...], ...] = (  # on, off, on, off, ... in line widths; empty: solid
    (),
    (6, 2),
    (10, 3),
    (4, 1.5, 1, 1.5, 1, 1.5),
    (2, 1.5),
    (6, 2, 1.5, 2),
    (1, 1),
    (8, 1.5, 1, 1.5, 1, 1.5, 1, 1.5),
    (3, 1.2, 3, 1.2, 1, 1.2),
    (1, 2.5),
)
RULES = {  # rule -> indices of (colour, dash pattern); Adam without correction has the colour of Adam
    "sgd": (0, 0),
    "momentum": (1, 1),
    "adam": (2, 2),
    "adagrad": (3, 3),
    "rmsprop": (4, 4),
    "nesterov": (5, 5),
    "newton": (6, 6),
    "lbfgs": (7, 7),
    "newtoncg": (8, 8),
    "adamuncorrected": (2, 9),
}
SPELLINGS = {
    "gradientdescent": "sgd",
    "heavyball": "momentum",
    "sgdmomentum": "momentum",
    "sgdwithmomentum": "momentum",
    "nesterovmomentum": "nesterov",
    "nesterovsmomentum": "nesterov",
    "nag": "nesterov",
    "adamnocorrection": "adamuncorrected",
    "adamnobiascorrection": "adamuncorrected",
    "adamwithoutcorrection": "adamuncorrected",
    "adamwithoutbiascorrection": "adamuncorrected",
    "uncorrectedadam": "adamuncorrected",
    "adamalmost": "adamuncorrected",
}
VARIANTS = {("momentum", "nesterov=true"): "nesterov", ("adam", "biascorrection=false"): "adamuncorrected"}
HEAD = re.compile(r"(?:\w+\.)*(?P<name>[A-Za-z][\w' -]*?)(?P<settings>\s*[(\[,:@].*|\s+\w+\s*=.*|\s+[-+.]?\d.*)?")
SPARE = [  # all other pairs; the first ones share neither colour nor dashes with one another
    (color, (color + shift) % len(DASHES))
    for shift in range(1, len(DASHES))
    for color in range(len(COLORS))
    if (color, (color + shift) % len(DASHES)) not in RULES.values()
]


def pairs(labels: Iterable[str]) -> dict[str, tuple[int, int]]:
    """The colour and the dash pattern of every line in a figure, as indices into `COLORS` and `DASHES`."""
    chosen: dict[str, tuple[int, int]] = {}
    rules = {label: rule_of(label) for label in labels}
    for label, rule in rules.items():
        if rule is not None and RULES[rule] not in chosen.values():
            chosen[label] = RULES[rule]
    for label, rule in rules.items():
        if label not in chosen:
            color = RULES[rule][0] if rule else None
            chosen[label] = _farthest(label, color, list(chosen.values()))
    return {label: chosen[label] for label in rules}


def rule_of(label: str) -> str | None:
    """The key of `RULES` that a label names, or None."""
    if (whole := _known(label)) is not None:
        return whole
    found = HEAD.fullmatch(label.strip())
    if found is None or (rule := _known(found["name"])) is None:
        return None
    settings = re.sub(r"[^a-z=]", "", (found["settings"] or "").lower())
    return next((variant for (plain, words), variant in VARIANTS.items() if plain == rule and words in settings), rule)


def _known(name: str) -> str | None:
    letters = re.sub(r"[^a-z0-9]", "", name.lower())
    key = SPELLINGS.get(letters, letters)
    return key if key in RULES else None


def _farthest(label: str, color: int | None, taken: list[tuple[int, int]]) -> tuple[int, int]:
    """The spare pair (of one colour, if given) that shares least with the taken ones; the search starts by label."""
    place = crc32(label.encode()) % len(COLORS)
    first, rest = SPARE[: len(COLORS)], SPARE[len(COLORS) :]
    free = [pair for pair in (*first[place:], *first[:place], *rest) if color in (None, pair[0])]

    def shared(pair: tuple[int, int]) -> int:
        return sum(100 * (pair == other) + 2 * (pair[0] == other[0]) + (pair[1] == other[1]) for other in taken)

    return min(free, key=shared)
