// What the lab shows: the state, the address that holds it, and the runs that follow from it.

const $ = (id) => document.getElementById(id);
const DATA = JSON.parse($("data").textContent);
const SURFACES = Object.fromEntries(DATA.surfaces.map((s) => [s.name, { ...s, ...lab.FUNCTIONS[s.name] }]));
const SPEEDS = [2, 5, 10, 30, 60, 120, 300]; // steps a second
const FIELDS = { downhill: "downhill", gradient: "gradient (uphill)", none: "none" };

// Numbers as text

function short(x) {
  if (x === null || x === undefined || Number.isNaN(x)) return "";
  if (x === 0) return "0";
  const size = Math.abs(x);
  return size >= 1e5 || size < 1e-3
    ? Number(x.toPrecision(3)).toExponential().replace("e+", "e")
    : String(Number(x.toPrecision(4)));
}

const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
/** Paths that the page was given, `{label, look, runs}`, where their surface is shown; they follow the page's own runs. */
const recorded = () => (DATA.recorded.surface === state.surface ? DATA.recorded.paths : []);

/** [colour, dashes] of each run as numbers: an optimizer's own, as in all figures; of a second one other dashes. */
function looks() {
  const taken = new Set();
  const own = state.runs.map(({ rule }) => DATA.looks[rule.replace("_pure", "").replaceAll("_", "")]);
  return [...own, ...recorded().map(({ look }) => look)].map((look) => {
    let [hue, dashes] = look;
    for (let k = 0; k < DATA.dashes.length && taken.has(`${hue} ${dashes}`); k++) dashes = (dashes + 1) % DATA.dashes.length;
    taken.add(`${hue} ${dashes}`);
    return [hue, dashes];
  });
}
const INK = "#000000"; // follows the theme
const color = (i) => {
  const hue = DATA.colors[looks()[i][0]];
  return hue === INK ? theme.ink : hue;
};
const dash = (i) => DATA.dashes[looks()[i][1]].map((part) => 1.5 * part);

// State, and the address that holds it

function newRun(rule, surface) {
  const record = SURFACES[surface];
  const curvature = lab.sharpness(record, [record.start, ...record.minimizers]);
  return { rule, hyper: lab.defaults(rule, curvature, record) };
}

function initial(surface = "rosenbrock") {
  return {
    surface,
    start: SURFACES[surface].start.slice(),
    steps: 300,
    noise: 0,
    seed: 0,
    members: 1,
    step: 0,
    speed: 30,
    field: "downhill",
    trials: true,
    mapRun: 0,
    mapAxis: null,
    view: [0.6, 0.9],
    theme: "auto",
    runs: ["sgd", "momentum", "rmsprop", "adam", "newton", "lbfgs"].map((rule) => newRun(rule, surface)),
  };
}

function toHash(s) {
  const q = new URLSearchParams({ surface: s.surface, start: s.start.join(","), steps: s.steps });
  for (const run of s.runs)
    q.append("run", [run.rule, ...Object.entries(run.hyper).map(([k, v]) => `${k}:${v}`)].join(","));
  q.append("noise", s.noise);
  for (const key of ["seed", "members", "step", "speed", "field", "trials", "theme"]) q.append(key, s[key]);
  q.append("map", [s.mapRun, s.mapAxis ?? ""].join(","));
  q.append("view", s.view.map((z) => z.toFixed(2)).join(","));
  return "#" + q.toString().replaceAll("%2C", ",").replaceAll("%3A", ":");
}

/** The state that an address asks for, and words on what in it makes no sense. */
function fromHash(text) {
  const q = new URLSearchParams(text.replace(/^#/, "")),
    wrong = [];
  const known = [
    "surface",
    "start",
    "steps",
    "run",
    "noise",
    "seed",
    "members",
    "step",
    "speed",
    "field",
    "trials",
    "theme",
    "map",
    "view",
  ];
  for (const key of new Set(q.keys())) if (!known.includes(key)) wrong.push(`there is no setting "${key}"`);
  const number = (text, low, high, otherwise, what, whole = false) => {
    const x = text === null || text.trim() === "" ? NaN : Number(text);
    if (x >= low && x <= high && !(whole && !Number.isInteger(x))) return x;
    if (text !== null) wrong.push(`${what} cannot be "${text}"`);
    return otherwise;
  };
  const one = (key, low, high, otherwise, whole) => number(q.get(key), low, high, otherwise, key, whole);
  const choice = (key, values, otherwise) => {
    if (q.get(key) === null || values.includes(q.get(key))) return q.get(key) ?? otherwise;
    wrong.push(`there is no ${key} "${q.get(key)}"`);
    return otherwise;
  };
  const s = initial(choice("surface", Object.keys(SURFACES), "rosenbrock"));
  if (q.has("start")) {
    const parts = q.get("start").split(",");
    s.start = s.start.map((old, i) => number(parts[i] ?? "", -lab.LOST, lab.LOST, old, "start"));
  }
  s.steps = one("steps", 1, 2000, s.steps, true);
  s.noise = one("noise", 0, 1e6, s.noise);
  s.seed = one("seed", 0, 2 ** 32 - 1, s.seed, true);
  s.members = one("members", 1, 200, s.members, true);
  s.step = one("step", 0, s.steps, s.step, true);
  s.speed = Number(choice("speed", SPEEDS.map(String), String(s.speed)));
  s.field = choice("field", Object.keys(FIELDS), s.field);
  s.trials = choice("trials", ["true", "false"], String(s.trials)) === "true";
  s.theme = choice("theme", ["auto", "light", "dark"], s.theme);
  if (q.has("run")) {
    s.runs = q
      .getAll("run")
      .filter(Boolean)
      .flatMap((text) => {
        const [rule, ...settings] = text.split(",");
        if (!Object.hasOwn(lab.RULES, rule)) return (wrong.push(`there is no optimizer "${rule}"`), []);
        const run = newRun(rule, s.surface);
        for (const setting of settings) {
          const [name, value = ""] = setting.split(":"),
            h = lab.RULES[rule].hyper.find((h) => h.name === name);
          if (!h) wrong.push(`${rule} has no "${name}"`);
          else run.hyper[name] = number(value, ...bounds(h), run.hyper[name], `${rule}'s ${name}`, h.whole);
        }
        return run;
      });
  }
  const [mapRun, mapAxis] = (q.get("map") ?? "").split(",");
  s.mapRun = mapRun ? number(mapRun, 0, Math.max(0, s.runs.length - 1), 0, "map", true) : 0;
  s.mapAxis = mapAxis || null;
  if (q.has("view"))
    s.view = q
      .get("view")
      .split(",")
      .concat("", "")
      .slice(0, 2)
      .map((t, i) => number(t, -100, 100, [0.6, 0.9][i], "view"));
  return [s, wrong];
}

/** What is legal; sliders show less. */
function bounds(h) {
  if (h.name === "memory_size") return [1, 100];
  if (h.scale === "linear") return [0, h.high];
  return [h.name === "eps" ? 0 : Number.MIN_VALUE, 1e6];
}

let state = initial(),
  paths = [],
  theme = {},
  playing = false,
  clock = 0,
  hashTimer = 0,
  own = "";
const layers = {};

function remember(now = false) {
  clearTimeout(hashTimer);
  const write = () => {
    own = toHash(state);
    history.replaceState(null, "", own);
  };
  if (now) write();
  else hashTimer = setTimeout(write, 250);
}

// Runs

function compute() {
  const surface = SURFACES[state.surface];
  const settings = { start: state.start, steps: state.steps, noise: state.noise, seed: state.seed };
  const count = state.noise > 0 ? state.members : 1;
  paths = state.runs.map(({ rule, hyper }) =>
    Array.from({ length: count }, (_, member) => lab.run(surface, lab.RULES[rule], hyper, { ...settings, member })),
  );
  const again = (points) =>
    lab.run(surface, lab.replay(points), {}, { start: points[0], steps: Math.min(state.steps, points.length - 1) });
  paths.push(...recorded().map(({ runs }) => runs.map(again)));
}

const rowAt = (path, step) => Math.min(step, path.value.length - 1);
const named = (i) => {
  if (i >= state.runs.length) return recorded()[i - state.runs.length].label;
  const same = state.runs.filter((run) => run.rule === state.runs[i].rule).length > 1;
  const h = lab.RULES[state.runs[i].rule].hyper[0];
  return lab.RULES[state.runs[i].rule].label + (same ? ` ${short(state.runs[i].hyper[h.name])}` : "");
};
