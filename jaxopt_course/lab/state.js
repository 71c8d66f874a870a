// What the lab shows: the state, the address that holds it, and the runs that follow from it.

const $ = (id) => document.getElementById(id);
const DATA = JSON.parse($("data").textContent);
const SURFACES = Object.fromEntries(DATA.surfaces.map((s) => [s.name, { ...s, ...lab.FUNCTIONS[s.name] }]));
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
let loaded = []; // recorded paths that were read from files: {label, look, surface, runs}

/** Recorded paths on the surface that is shown; they follow the page's own runs. */
const recorded = () => [...DATA.recorded, ...loaded].filter(({ surface }) => surface === state.surface);

/** The numbers of colour and dashes of each line: an optimizer's own if they are free; no pair twice. */
function looks() {
  const taken = new Set(),
    uses = DATA.colors.map(() => 0);
  const own = state.runs.map(({ rule }) => DATA.looks[rule.replace("_pure", "").replaceAll("_", "")]);
  return [...own, ...recorded().map(({ look }) => look)].map((look) => {
    const pair = freePair(look, taken, uses);
    taken.add(String(pair));
    uses[pair[0]]++;
    return pair;
  });
}

/** The pair nearest to a look: itself, its colour with other dashes, or the least used colour. */
function freePair(look, taken, uses) {
  const hues = uses.map((_, hue) => hue).sort((a, b) => uses[a] - uses[b]);
  for (const hue of look ? [look[0], ...hues] : hues)
    for (let k = 0; k < DATA.dashes.length; k++) {
      const pair = [hue, ((look ? look[1] : hue) + k) % DATA.dashes.length];
      if (!taken.has(String(pair))) return pair;
    }
  return look ?? [0, 0]; // more lines than there are pairs, which the limits on runs and paths exclude
}

/** WCAG's contrast of two colours, from 1 to 21. */
function contrast(a, b) {
  const luminance = (color) => {
    const hexadecimal = [1, 3, 5].map((k) => parseInt(color.slice(k, k + 2), 16)),
      parts = color.startsWith("#") ? hexadecimal : color.match(/\d+/g),
      linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = Array.from(parts, (z) => linear(z / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
}

/** A colour of the figures, nearer to the ink where the paper needs it: a contrast of 3, which lines must have. */
function readable(hue) {
  for (let part = 0; part <= 1; part += 0.05) {
    const color = part ? mix(hue, theme.ink, part) : hue;
    if (contrast(color, theme.paper) >= 3) return color;
  }
  return theme.ink;
}

const INK = "#000000"; // follows the theme
const color = (i) => {
  const hue = DATA.colors[lines[i][0]];
  return hue === INK ? theme.ink : readable(hue);
};
const dash = (i) => DATA.dashes[lines[i][1]].map((part) => 1.5 * part);

// State, and the address that holds it

function newRun(rule, surface) {
  const record = SURFACES[surface];
  const curvature = lab.sharpness(record, [record.start, ...record.minimizers]);
  return { rule, hyper: lab.defaults(rule, curvature, record) };
}

function initial(surface = SETTINGS.surface) {
  const numbers = Object.fromEntries(Object.entries(SETTINGS.numbers).map(([key, { value }]) => [key, value]));
  const longest = DATA.recorded.filter((path) => path.surface === surface).map(({ runs }) => runs[0].length - 1);
  const steps = Math.min(Math.max(numbers.steps, ...longest), SETTINGS.numbers.steps.most);
  return {
    surface,
    start: SURFACES[surface].start.slice(),
    ...numbers,
    steps,
    step: steps, // finished paths
    speed: 30,
    field: "downhill",
    trials: true,
    mapRun: 0,
    mapAxis: null,
    view: [0.6, 0.9],
    theme: "auto",
    runs: SETTINGS.runs.map((rule) => newRun(rule, surface)),
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

const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;
const KEYS = ["surface", "start", "run", "step", "map", "view"].concat(
  Object.keys(SETTINGS.numbers),
  Object.keys(SETTINGS.choices),
);

/** What is wrong with a number that a person wrote, as a sentence; null where it is within its bounds. */
function refusal(what, text, least, most, whole = false, where = "") {
  const x = NUMBER.test(text.trim()) ? Number(text) : NaN;
  if (x >= least && x <= most && !(whole && !Number.isInteger(x))) return null;
  return `${what} cannot be "${text}":${where} ${whole ? "a whole number" : "a number"} from ${least} to ${most}`;
}

/** The state that an address asks for, and sentences on what in it is unknown or out of its bounds. */
function fromHash(text) {
  const q = new URLSearchParams(text.replace(/^#/, "")),
    wrong = [],
    { numbers, choices } = SETTINGS;
  for (const key of new Set(q.keys()))
    if (!KEYS.includes(key)) wrong.push(`there is no setting "${key}"; there are ${KEYS.join(", ")}`);
  const number = (text, otherwise, what, least, most, whole, where) => {
    const words = refusal(what, text, least, most, whole, where);
    if (words !== null) wrong.push(words);
    return words === null ? Number(text) : otherwise;
  };
  const choice = (key, values, otherwise) => {
    if (q.get(key) === null || values.includes(q.get(key))) return q.get(key) ?? otherwise;
    wrong.push(`there is no ${key} "${q.get(key)}"; there are ${values.join(", ")}`);
    return otherwise;
  };
  const parts = (text) => text.split(",").concat("", "").slice(0, Math.max(2, text.split(",").length));
  const s = initial(choice("surface", Object.keys(SURFACES), SETTINGS.surface));
  if (q.has("start")) {
    const [x, y, more] = parts(q.get("start"));
    if (more !== undefined) wrong.push(`start cannot be "${q.get("start")}": two numbers, with a comma between`);
    s.start = [x, y].map((part, i) => {
      const [least, most] = SURFACES[s.surface].window[i];
      return number(part, s.start[i], `start ${"xy"[i]}`, least, most, false, ` on ${s.surface}`);
    });
  }
  for (const [key, { least, most, whole }] of Object.entries(numbers))
    if (q.has(key)) s[key] = number(q.get(key), s[key], key, least, most, whole);
  s.step = q.has("step") ? number(q.get("step"), s.steps, "step", 0, s.steps, true) : s.steps;
  s.speed = Number(choice("speed", choices.speed, String(s.speed)));
  s.field = choice("field", choices.field, s.field);
  s.trials = choice("trials", choices.trials, String(s.trials)) === "true";
  s.theme = choice("theme", choices.theme, s.theme);
  if (q.has("run")) {
    const texts = q.getAll("run").filter(Boolean);
    s.runs = texts.flatMap((text) => {
      const [rule, ...settings] = text.split(",");
      if (!Object.hasOwn(lab.RULES, rule)) {
        wrong.push(`there is no optimizer "${rule}"; there are ${Object.keys(lab.RULES).join(", ")}`);
        return [];
      }
      const run = newRun(rule, s.surface),
        { hyper } = lab.RULES[rule];
      for (const setting of settings) {
        const [name, value = ""] = setting.split(/:(.*)/s),
          h = hyper.find((h) => h.name === name);
        if (!h) wrong.push(`${rule} has no "${name}"; it has ${hyper.map((h) => h.name).join(", ")}`);
        else run.hyper[name] = number(value, run.hyper[name], `${name} of ${rule}`, h.least, h.most, h.whole);
      }
      return run;
    });
    if (texts.length > SETTINGS.most_runs) wrong.push(`there are ${texts.length} runs: at most ${SETTINGS.most_runs}`);
    if (!s.runs.length && texts.length) s.runs = initial(s.surface).runs; // none of them is known: the usual ones
    s.runs = s.runs.slice(0, SETTINGS.most_runs);
  }
  if (q.has("map")) {
    const [index, axis] = parts(q.get("map"));
    const words = index && refusal("map", index, 0, Math.max(0, s.runs.length - 1), true);
    if (words) wrong.push(words);
    else if (axis && s.runs.length) {
      s.mapRun = Number(index || 0);
      const names = [...lab.RULES[s.runs[s.mapRun].rule].hyper.slice(1).map((h) => h.name), "noise"];
      if (names.includes(axis)) s.mapAxis = axis;
      else wrong.push(`there is no axis "${axis}" of the map; there are ${names.join(", ")}`);
    } else s.mapRun = Number(index || 0);
  }
  if (q.has("view"))
    s.view = parts(q.get("view"))
      .slice(0, 2)
      .map((text, i) => number(text, s.view[i], "view", -100, 100));
  return [s, wrong];
}

let state = initial(),
  paths = [],
  lines = [], // of `looks`
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
  lines = looks();
  stale = false;
  const settings = { start: state.start, steps: state.steps, noise: state.noise, seed: state.seed };
  const count = state.noise > 0 ? state.members : 1;
  paths = state.runs.map(({ rule, hyper }) =>
    Array.from({ length: count }, (_, member) => lab.run(surface, lab.RULES[rule], hyper, { ...settings, member })),
  );
  const again = (points) =>
    lab.run(surface, lab.replay(points), {}, { start: points[0], steps: Math.min(state.steps, points.length - 1) });
  paths.push(...recorded().map(({ runs }) => runs.map(again)));
}

/** In words, how a path ended before its time; empty where it did not. */
const ending = (path) => (path.end ? `diverged at step ${path.value.length}` : "");

const rowAt = (path, step) => Math.min(step, path.value.length - 1);
const named = (i) => {
  if (i >= state.runs.length) return recorded()[i - state.runs.length].label;
  const same = state.runs.filter((run) => run.rule === state.runs[i].rule).length > 1;
  const h = lab.RULES[state.runs[i].rule].hyper[0];
  return lab.RULES[state.runs[i].rule].label + (same ? ` ${short(state.runs[i].hyper[h.name])}` : "");
};
