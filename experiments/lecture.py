"""The whole lecture as one page: every picture of it made anew, with the code that made it and the number it shows."""

import argparse
import inspect
import json
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxopt_course as jc
from experiments import lecture_sections as sections
from experiments.lecture_sections import Lesson, Shown
from experiments.problems import describe
from experiments.report import Block, Section, facts, html_page, print_blocks
from experiments.runs import start_run

MOST_TRAINING, MOST_TEST = 2000, 500  # images, of the larger sets: a lecture has to end
INTRODUCTION = (
    "From images to scores, to a loss, to its gradient, and down to the minimum. Under each heading stands the "
    "function that made the numbers and the pictures below it, as it ran."
)


class Chapter(NamedTuple):
    """What a section of the page is called and about, the function it is, and helpers to show with it."""

    title: str
    make: Callable[[Lesson], Shown]
    text: str
    helpers: tuple[Callable[..., Any], ...] = ()

    @property
    def code(self) -> str:
        return "\n\n".join(inspect.getsource(part) for part in (self.make, *self.helpers))


CHAPTERS = (
    Chapter("Images", sections.images, "What is to be told apart."),
    Chapter(
        "Nearest neighbour",
        sections.nearest_neighbor,
        "The first classifier remembers all the training images, and says of a new one what the most similar one was.",
    ),
    Chapter(
        "Scores",
        sections.linear_scores,
        "A linear classifier f(x, W) = Wx + b has a row of W for each class; the highest score wins.",
    ),
    Chapter("Losses", sections.losses, "A loss says how bad scores are: 0 or near it where the true class leads."),
    Chapter(
        "Gradient check",
        sections.gradient_check,
        "Numerical gradients are slow, approximate and easy to write, analytic ones fast, exact and error-prone. So: "
        "use the analytic one, and check it. (The walk goes over the softmax loss.)",
    ),
    Chapter(
        "A field and its gradient",
        sections.scalar_field,
        "The gradient points where the field grows fastest, and is as long as it is steep.",
    ),
    Chapter(
        "Gradient descent",
        sections.gradient_descent,
        "A step against the gradient, again and again.",
        (sections.paths,),
    ),
    Chapter(
        "The learning rate",
        sections.learning_rates,
        "Along a direction of curvature L a step of the learning rate r multiplies the distance by |1 - r L|.",
    ),
    Chapter(
        "Learned templates", sections.learned_templates, "Gradient descent on the images, all of them at every step."
    ),
    Chapter(
        "Stochastic gradient descent",
        sections.stochastic_gradients,
        "A minibatch's gradient is right on average; its noise does not go away at the minimum.",
    ),
    Chapter("Ravines", sections.ravine, "Steep across, flat along: steps jitter across, and progress along is slow."),
    Chapter("Saddles", sections.saddle, "At a saddle the gradient is zero, and near it small."),
    Chapter("Local minima", sections.local_minima, "Descent ends in the valley that it starts in."),
    Chapter(
        "Momentum",
        sections.momentum,
        "Steps across cancel, steps along add up.",
        (sections.on_a_ravine, sections.steps_to, sections.counts),
    ),
    Chapter("Nesterov's momentum", sections.nesterov, "The gradient where the velocity is about to lead."),
    Chapter(
        "AdaGrad", sections.adagrad, "Each coordinate by the root of all its squared gradients: steps only shrink."
    ),
    Chapter("RMSProp", sections.rmsprop, "A leaky AdaGrad: old gradients are forgotten, steps need not shrink."),
    Chapter(
        "Adam",
        sections.adam,
        "RMSProp and momentum; without bias correction the first steps are too long. The ravine is turned by 30 "
        "degrees, so that no coordinate runs along it.",
    ),
    Chapter("Four rules in a curved valley", sections.curved_valley, "The same start, the same number of steps."),
    Chapter(
        "What tracks what",
        sections.comparison,
        "The lecture's table, made from the rules themselves.",
        (sections.parts_from_lecture,),
    ),
    Chapter(
        "Every optimizer on images",
        sections.race,
        "Softmax regression on minibatches of real images.",
        (sections.ahead,),
    ),
    Chapter(
        "Second order", sections.newton, "With the Hessian a step goes to the minimum of the parabola that fits here."
    ),
    Chapter(
        "Second order on images",
        sections.second_order_on_images,
        "Without a Hessian in memory: L-BFGS keeps its last ten steps, Newton-CG multiplies with it.",
    ),
)


def run(args: argparse.Namespace) -> int:
    """Every section in turn, written and printed."""
    asked = {name: value for name, value in vars(args).items() if name != "command"}
    with jax.enable_x64(True), start_run("lecture", asked, args.out) as folder:
        pixels, features = (fewer(jc.data.load(args.data, root=args.root, raw=raw)) for raw in (True, False))
        folder.note(dtype="float64; uint8 pixels for nearest neighbour", data=describe(pixels))
        lesson = Lesson(folder, pixels, features, jax.random.key(args.seed), args.quick)
        blocks: list[Block] = []
        rows: list[dict[str, Any]] = []
        for number, chapter in enumerate(CHAPTERS, 1):
            began = time.perf_counter()
            shown = chapter.make(lesson)
            seconds = round(time.perf_counter() - began, 2)
            blocks += [Section(f"{number}. {chapter.title}", chapter.text, shown.found, chapter.code), *shown.blocks]
            rows += [
                {"section": chapter.title, "number": name, "value": finite(value), "seconds": seconds}
                for name, value in shown.numbers.items()
            ]
            if not (args.quiet or args.json):
                print_blocks(f"{number}. {chapter.title} ({seconds:.1f} s): {shown.found}")
        folder.write_csv("metrics.csv", rows)
        title, how = f"Optimization for deep learning, on {pixels.name}", facts(folder.manifest, pixels.source)
        (folder.folder / "report.html").write_text(html_page(title, INTRODUCTION, blocks, how), encoding="utf-8")
        folder.note(results=rows)
        if args.json:
            print(json.dumps({"folder": str(folder.folder), "results": rows}))
        elif not args.quiet:
            print_blocks(f"{folder.folder}/report.html")
    return 0


def finite(value: float) -> float | None:
    """None for what never came: JSON has no infinity."""
    return float(value) if math.isfinite(value) else None


def fewer(dataset: jc.data.Dataset) -> jc.data.Dataset:
    """The first images of each part, if there are many."""

    def first(part: tuple[np.ndarray, np.ndarray], most: int) -> tuple[np.ndarray, np.ndarray]:
        return part[0][:most], part[1][:most]

    return dataset._replace(train=first(dataset.train, MOST_TRAINING), test=first(dataset.test, MOST_TEST))
