"""The lecture command: the page that it writes is read back: sections, code, numbers, pictures."""

import base64
import csv
import inspect
import io
import json
import math
import os
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

import jaxopt_course as jc
from experiments import lecture, lecture_sections
from experiments.__main__ import main
from experiments.lecture import CHAPTERS
from experiments.report import Picture, Section, html_page
from tests.test_race import experiments

LECTURE_TABLE = {  # optimizer: first moment, second moment, leaky, bias correction
    "SGD": "no no no no",
    "Momentum": "yes no no no",
    "Nesterov": "yes no no no",
    "AdaGrad": "no yes no no",
    "RMSProp": "no yes yes no",
    "Adam, no correction": "yes yes yes no",
    "Adam": "yes yes yes yes",
    "AdamW": "yes yes yes yes",
}


class Page(HTMLParser):
    """Every tag with its attributes, and the text within headings, code and cells of tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {tag: [] for tag in ("h2", "code", "pre", "td", "li", "p")}
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag in self.texts:
            self.open.append(tag)
            self.texts[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            self.open.remove(tag)

    def handle_data(self, data: str) -> None:
        for tag in self.open:
            self.texts[tag][-1] += data

    def addresses(self) -> list[str]:
        """Whatever the page points at."""
        return [value for _, attrs in self.tags for name, value in attrs.items() if name in ("src", "srcset", "href")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "lecture"
    faster = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_ENABLE_COMPILATION_CACHE": "0"}  # compiling takes the time
    done = experiments("lecture", "--quick", "--out", out, env=os.environ | faster)
    assert (done.returncode, done.stderr) == (0, "")
    for number, chapter in enumerate(CHAPTERS, 1):
        assert f"{number}. {chapter.title} (" in done.stdout
    return out


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text())


@pytest.fixture(scope="module")
def numbers(folder: Path) -> dict[tuple[str, str], float]:
    with (folder / "metrics.csv").open() as file:
        return {(row["section"], row["number"]): float(row["value"] or math.inf) for row in csv.DictReader(file)}


def test_every_section_is_there_in_order(page: Page) -> None:
    titles = [f"{number}. {chapter.title}" for number, chapter in enumerate(CHAPTERS, 1)]
    assert page.texts["h2"] == [*titles, "How it was made"]
    assert page.texts["li"] == titles
    anchors = {attributes["id"] for tag, attributes in page.tags if tag == "h2" and "id" in attributes}
    assert len(anchors) == len(CHAPTERS)
    assert {address[1:] for address in page.addresses() if address.startswith("#")} == anchors


def test_the_code_shown_is_the_code_that_ran(page: Page) -> None:
    assert len(page.texts["code"]) == len(CHAPTERS)
    for shown, chapter in zip(page.texts["code"], CHAPTERS, strict=True):
        assert shown.startswith(inspect.getsource(chapter.make))
        assert all(inspect.getsource(helper) in shown for helper in chapter.helpers)
    source = inspect.getsource(lecture_sections)
    assert all(part in source for shown in page.texts["code"] for part in shown.split("\n\n\n"))


def test_every_picture_decodes_and_shows_something(folder: Path, page: Page) -> None:
    figures = [address for address in page.addresses() if not address.startswith("#")]
    files = {path.read_bytes(): path.name for path in (folder / "figures").iterdir()}
    found = set()
    for address in figures:
        kind, code = address.split(";base64,")
        content = base64.b64decode(code, validate=True)
        found.add(files[content])
        with Image.open(io.BytesIO(content)) as picture:
            assert kind == f"data:image/{str(picture.format).lower()}"
            pixels = np.asarray(picture.convert("L"), float)
        assert pixels.std() > 10, files[content]
        assert len(np.unique(pixels)) > 8, files[content]
    assert found == set(files.values())
    assert len(found) == 30
    assert all(len(attributes["alt"]) > 10 for tag, attributes in page.tags if tag == "img")


def test_the_animation_moves(folder: Path) -> None:
    with Image.open(folder / "figures" / "descent.gif") as picture:
        first, *rest = (np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(picture))
        assert picture.info["loop"] == 0
    assert len(rest) == 2
    assert all((frame != first).any() for frame in rest)


def test_the_page_loads_nothing(folder: Path, page: Page) -> None:
    text = (folder / "report.html").read_text()
    assert "http://" not in text
    assert "https://" not in text
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object", "base")]
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses())
    policies = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_the_numbers_are_those_that_theory_gives(numbers: dict[tuple[str, str], float]) -> None:
    assert [*dict.fromkeys(section for section, _ in numbers)] == [chapter.title for chapter in CHAPTERS]
    assert numbers["Nearest neighbour", "accuracy, l2"] > 0.97
    assert numbers["Losses", "loss of W = 0, softmax"] == pytest.approx(math.log(10), rel=1e-12)
    assert numbers["Losses", "loss of W = 0, multiclass SVM"] == pytest.approx(9, rel=1e-12)
    assert numbers["Gradient check", "least error"] < 1e-8
    coarse, fine = (numbers["A field and its gradient", f"largest error, {n} x {n}"] for n in (41, 81))
    assert coarse / fine == pytest.approx(4, rel=0.05)
    assert numbers["Gradient descent", "difference from theory"] < 1e-14
    assert numbers["The learning rate", "factor a step at 1.02 of the limit"] == pytest.approx(1.04, rel=1e-12)
    noise = "Stochastic gradient descent"
    assert numbers[noise, "mean value"] == pytest.approx(numbers[noise, "in theory"], rel=0.15)
    assert numbers["Saddles", "steps to escape"] == pytest.approx(numbers["Saddles", "in theory"], rel=0.1)
    assert numbers["Adam", "first step, Adam"] == pytest.approx(0.1, rel=1e-5)
    assert numbers["Adam", "first step, Adam, no correction"] == pytest.approx(0.1 * 0.1 / math.sqrt(1e-3), rel=1e-5)
    assert numbers["Second order", "value after one step"] < 1e-20
    assert numbers["Ravines", "steps of SGD"] == 701
    assert numbers["Ravines", "steps with the best momentum"] == 88  # not 69, as its contraction in the long run has it
    assert numbers["Second order", "steps up, Newton"] == numbers["Second order", "steps up, L-BFGS"] == 0
    assert numbers["Second order on images", "least loss"] < numbers["Learned templates", "loss"]


def test_steps_are_counted_to_where_a_path_stays() -> None:
    bowl = jc.surfaces.bowl(1.0)
    x = np.array([1.0, 1e-7, 1e-3, *[1e-8] * 20])

    def counted(x: np.ndarray) -> float:
        return lecture_sections.steps_to(bowl, jc.landscape.Paths(np.column_stack([x, 0 * x]), x**2, len(x) - 1))

    assert counted(x) == 3  # not 1: it climbs back
    assert counted(x[:3]) == math.inf
    assert counted(np.append(np.ones(99), 1e-9)) == math.inf  # an end that is near by chance


def test_a_winner_is_named_only_where_it_is_lowest_on_every_seed() -> None:
    slow, fast = np.array([0.3, 0.4, 0.5]), np.array([0.2, 0.3, 0.4])
    assert lecture_sections.ahead({"SGD": slow, "Adam": fast}).startswith("Adam is lowest on every seed, 0.3000")
    close = fast + np.array([0.001, 0.001, -0.001])
    said = lecture_sections.ahead({"Adam": fast, "Momentum": close, "SGD": slow})
    assert said.startswith("nobody is lowest on every seed. Adam has the lowest mean, 0.3000")
    assert "behind Momentum;" in said


def test_the_numbers_are_on_the_page(page: Page, numbers: dict[tuple[str, str], float]) -> None:
    text = " ".join(page.texts["p"])
    for number in (
        f"{numbers['Nearest neighbour', 'accuracy, l2']:.1%}",
        f"{numbers['Learned templates', 'loss']:.3f}",
        f"{numbers['Saddles', 'steps to escape']:.1f}",
        f"{numbers['Second order on images', 'least loss']:.6f}",
    ):
        assert number in text


def test_the_comparison_is_that_of_the_lecture(page: Page) -> None:
    cells = page.texts["td"]
    for optimizer, facts in LECTURE_TABLE.items():
        rows = [cells[at + 1 : at + 5] for at, cell in enumerate(cells) if cell == optimizer]
        assert facts.split() in rows
    (formulas,) = [text for text in page.texts["pre"] if text.startswith("SGD")]
    assert f"Adam\n{jc.conventions.get('adam', 'lecture').formula}" in formulas.split("\n\n")


def test_manifest(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text(), parse_constant=pytest.fail)
    assert manifest["status"] == "done"
    assert manifest["arguments"]["quick"] is True
    assert (manifest["data"]["train"], manifest["data"]["test"]) == (1437, 360)


def test_of_large_sets_the_first_images_are_taken() -> None:
    dataset = jc.data.load("synthetic", image_shape=(2, 2), num_train=lecture.MOST_TRAINING + 5, num_test=10)
    taken = lecture.fewer(dataset)
    np.testing.assert_array_equal(taken.train[0], dataset.train[0][: lecture.MOST_TRAINING])
    assert len(taken.train[1]) == lecture.MOST_TRAINING
    assert len(taken.test[1]) == 10


def test_the_page_escapes_every_string(tmp_path: Path) -> None:
    bad = "<script>alert('&')</script>\" onload='x"
    (tmp_path / "a.png").write_bytes(b"a")
    picture = Picture(tmp_path / "a.png", bad, tmp_path / "a.png")
    text = html_page(bad, bad, [Section(bad, bad, bad, bad), picture], {bad: bad})
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name == "onload"]
    assert page.texts["code"] == [bad]
    assert page.texts["h2"][0] == bad
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == [bad]


@pytest.mark.parametrize("argv", [("--data", "nope"), ("--seed", "-1"), ("extra",)])
def test_wrong_usage_exits_2(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["lecture", *argv])
    assert left.value.code == 2
    assert "usage" in capsys.readouterr().err
