// The lab's page: what the address says becomes a state, the state becomes runs, runs become pictures.

if (typeof document !== "undefined") (() => {
const $ = (id) => document.getElementById(id);
const DATA = JSON.parse($("data").textContent);
const SURFACES = Object.fromEntries(DATA.surfaces.map((s) => [s.name, { ...s, ...lab.FUNCTIONS[s.name] }]));
const OKABE_ITO = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "ink", "#b0a000"];
const DASHES = [[], [9, 3], [2.5, 2.5], [9, 3, 2, 3], [14, 4], [5, 5], [1.5, 4], [9, 3, 2, 3, 2, 3]];
const SPEEDS = [2, 5, 10, 30, 60, 120, 300]; // steps a second
const FIELDS = { downhill: "downhill", gradient: "gradient (uphill)", none: "none" };
const still = matchMedia("(prefers-reduced-motion: reduce)");

// Numbers as text

function short(x) {
  if (x === null || x === undefined || Number.isNaN(x)) return "";
  if (x === 0) return "0";
  const size = Math.abs(x);
  return size >= 1e5 || size < 1e-3 ? Number(x.toPrecision(3)).toExponential().replace("e+", "e") : String(Number(x.toPrecision(4)));
}

const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
const color = (i) => (OKABE_ITO[i % 8] === "ink" ? theme.ink : OKABE_ITO[i % 8]);
const dash = (i) => DASHES[(i + Math.floor(i / 8)) % 8];

// State, and the address that holds it

function newRun(rule, surface) {
  const record = SURFACES[surface];
  const curvature = lab.sharpness(record, [record.start, ...record.minimizers]);
  return { rule, hyper: lab.defaults(rule, curvature, record) };
}

function initial(surface = "rosenbrock") {
  return {
    surface, start: SURFACES[surface].start.slice(), steps: 300, noise: 0, seed: 0, members: 1, step: 0, speed: 30,
    field: "downhill", trials: true, mapRun: 0, mapAxis: null, view: [0.6, 0.9], theme: "auto",
    runs: ["sgd", "momentum", "rmsprop", "adam", "newton", "lbfgs"].map((rule) => newRun(rule, surface)),
  };
}

function toHash(s) {
  const q = new URLSearchParams({ surface: s.surface, start: s.start.join(","), steps: s.steps });
  for (const run of s.runs) q.append("run", [run.rule, ...Object.entries(run.hyper).map(([k, v]) => `${k}:${v}`)].join(","));
  q.append("noise", s.noise);
  for (const key of ["seed", "members", "step", "speed", "field", "trials", "theme"]) q.append(key, s[key]);
  q.append("map", [s.mapRun, s.mapAxis ?? ""].join(","));
  q.append("view", s.view.map((z) => z.toFixed(2)).join(","));
  return "#" + q.toString().replaceAll("%2C", ",").replaceAll("%3A", ":");
}

/** The state that an address asks for, and words on what in it makes no sense. */
function fromHash(text) {
  const q = new URLSearchParams(text.replace(/^#/, "")), wrong = [];
  const known = ["surface", "start", "steps", "run", "noise", "seed", "members", "step", "speed", "field", "trials", "theme", "map", "view"];
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
    s.runs = q.getAll("run").filter(Boolean).flatMap((text) => {
      const [rule, ...settings] = text.split(",");
      if (!Object.hasOwn(lab.RULES, rule)) return wrong.push(`there is no optimizer "${rule}"`), [];
      const run = newRun(rule, s.surface);
      for (const setting of settings) {
        const [name, value = ""] = setting.split(":"), h = lab.RULES[rule].hyper.find((h) => h.name === name);
        if (!h) wrong.push(`${rule} has no "${name}"`);
        else run.hyper[name] = number(value, ...bounds(h), run.hyper[name], `${rule}'s ${name}`, h.whole);
      }
      return run;
    });
  }
  const [mapRun, mapAxis] = (q.get("map") ?? "").split(",");
  s.mapRun = mapRun ? number(mapRun, 0, Math.max(0, s.runs.length - 1), 0, "map", true) : 0;
  s.mapAxis = mapAxis || null;
  if (q.has("view")) s.view = q.get("view").split(",").concat("", "").slice(0, 2).map((t, i) => number(t, -100, 100, [0.6, 0.9][i], "view"));
  return [s, wrong];
}

/** What is legal; sliders show less. */
function bounds(h) {
  if (h.name === "memory_size") return [1, 100];
  if (h.scale === "linear") return [0, h.high];
  return [h.name === "eps" ? 0 : Number.MIN_VALUE, 1e6];
}

let state = initial(), paths = [], theme = {}, playing = false, clock = 0, hashTimer = 0, own = "";
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
    Array.from({ length: count }, (_, member) => lab.run(surface, lab.RULES[rule], hyper, { ...settings, member })));
}

const rowAt = (path, step) => Math.min(step, path.value.length - 1);
const named = (i) => {
  const same = state.runs.filter((run) => run.rule === state.runs[i].rule).length > 1;
  const h = lab.RULES[state.runs[i].rule].hyper[0];
  return lab.RULES[state.runs[i].rule].label + (same ? ` ${short(state.runs[i].hyper[h.name])}` : "");
};

// Pens: one drawing, on a canvas or as SVG

class CanvasPen {
  constructor(context) { this.c = context; }
  line(points, { color, width = 1, dash = [], alpha = 1 }) {
    const c = this.c;
    c.globalAlpha = alpha; c.strokeStyle = color; c.lineWidth = width; c.setLineDash(dash); c.lineJoin = "round";
    c.beginPath();
    points.forEach(([x, y], i) => (i ? c.lineTo(x, y) : c.moveTo(x, y)));
    c.stroke(); c.globalAlpha = 1; c.setLineDash([]);
  }
  segments(list, { color, width = 1, alpha = 1 }) {
    const c = this.c;
    c.globalAlpha = alpha; c.strokeStyle = color; c.lineWidth = width;
    c.beginPath();
    for (const [x0, y0, x1, y1] of list) { c.moveTo(x0, y0); c.lineTo(x1, y1); }
    c.stroke(); c.globalAlpha = 1;
  }
  fill(points, color, alpha = 1) {
    const c = this.c;
    c.globalAlpha = alpha; c.fillStyle = color;
    c.beginPath();
    points.forEach(([x, y], i) => (i ? c.lineTo(x, y) : c.moveTo(x, y)));
    c.closePath(); c.fill(); c.globalAlpha = 1;
  }
  circle(x, y, r, { fill, stroke, width = 1.5 }) {
    const c = this.c;
    c.beginPath(); c.arc(x, y, r, 0, 7);
    if (fill) { c.fillStyle = fill; c.fill(); }
    if (stroke) { c.strokeStyle = stroke; c.lineWidth = width; c.stroke(); }
  }
  text(words, x, y, { color, align = "left", size = 11 }) {
    const c = this.c;
    c.font = `${size}px system-ui, sans-serif`; c.fillStyle = color; c.textAlign = align; c.textBaseline = "middle";
    c.fillText(words, x, y);
  }
  clip(x, y, w, h, draw) {
    this.c.save(); this.c.beginPath(); this.c.rect(x, y, w, h); this.c.clip();
    draw(); this.c.restore();
  }
  shift(x, y, draw) { this.c.save(); this.c.translate(x, y); draw(); this.c.restore(); }
}

class SvgPen {
  constructor() { this.parts = []; this.clips = 0; }
  put(tag, attributes, text) {
    const escape = (t) => String(t).replace(/[&<>"]/g, (ch) => `&#${ch.charCodeAt(0)};`);
    const list = Object.entries(attributes).filter(([, v]) => v !== undefined).map(([k, v]) => ` ${k}="${escape(typeof v === "number" ? Number(v.toFixed(2)) : v)}"`);
    this.parts.push(`<${tag}${list.join("")}${text === undefined ? "/>" : `>${escape(text)}</${tag}>`}`);
  }
  path(d, { color, width = 1, dash = [], alpha = 1 }) {
    this.put("path", { d, fill: "none", stroke: color, "stroke-width": width, "stroke-dasharray": dash.length ? dash.join(" ") : undefined, "stroke-opacity": alpha, "stroke-linejoin": "round" });
  }
  line(points, style) { this.path("M" + points.map((p) => p.map((z) => z.toFixed(2)).join(" ")).join("L"), style); }
  segments(list, style) { this.path(list.map((s) => { const [a, b, c, d] = s.map((z) => z.toFixed(2)); return `M${a} ${b}L${c} ${d}`; }).join(""), style); }
  fill(points, color, alpha = 1) { this.put("polygon", { points: points.map((p) => p.map((z) => z.toFixed(2)).join(",")).join(" "), fill: color, "fill-opacity": alpha }); }
  circle(x, y, r, { fill = "none", stroke, width = 1.5 }) { this.put("circle", { cx: x, cy: y, r, fill, stroke, "stroke-width": width }); }
  text(words, x, y, { color, align = "left", size = 11 }) {
    const anchor = { left: "start", center: "middle", right: "end" }[align];
    this.put("text", { x, y: y + size / 3, fill: color, "text-anchor": anchor, "font-size": size, "font-family": "system-ui, sans-serif" }, words);
  }
  clip(x, y, w, h, draw) {
    const id = `clip${this.clips++}`;
    this.parts.push(`<clipPath id="${id}"><rect x="${x}" y="${y}" width="${w}" height="${h}"/></clipPath><g clip-path="url(#${id})">`);
    draw(); this.parts.push("</g>");
  }
  shift(x, y, draw) { this.parts.push(`<g transform="translate(${x} ${y})">`); draw(); this.parts.push("</g>"); }
  page(width, height) { return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}">${this.parts.join("\n")}</svg>\n`; }
}

// Scales

function ticks(low, high, most) {
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const stride = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= rough);
  const list = [];
  for (let k = Math.ceil(low / stride); k * stride <= high + 1e-9 * stride; k++) list.push(k * stride);
  return list;
}

/** Quantiles of a surface's values on a grid, for shades that are fair to flat and steep ones alike. */
function grid(surface, cells) {
  const [[left, right], [low, high]] = surface.window;
  const values = [], all = [];
  for (let j = 0; j <= cells; j++) {
    const row = [];
    for (let i = 0; i <= cells; i++) row.push(surface.f(left + ((right - left) * i) / cells, low + ((high - low) * j) / cells));
    values.push(row);
    all.push(...row);
  }
  all.sort((a, b) => a - b);
  return { values, sorted: all, at: (part) => all[Math.round(part * (all.length - 1))] };
}

const grids = new Map();
const gridOf = (name, cells) => {
  const key = `${name} ${cells}`;
  if (!grids.has(key)) grids.set(key, grid(SURFACES[name], cells));
  return grids.get(key);
};

function mix(a, b, part) {
  const parse = (hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));
  const [p, q] = [parse(a), parse(b)];
  return `rgb(${p.map((z, k) => Math.round(z + (q[k] - z) * part)).join(",")})`;
}

const LEVELS = 14;
const shade = (part) => (theme.dark ? mix("#0b2030", "#5d6f78", part) : mix("#8fb3cc", "#fbfaf5", part));

// Pictures. Each has back(pen, box), which stands still, and front(pen, box), which moves with time.

function plane(box) {
  const [[left, right], [low, high]] = SURFACES[state.surface].window;
  const inner = { x: 34, y: 6, w: box.w - 40, h: box.h - 28 };
  return {
    inner,
    to: ([x, y]) => [inner.x + ((x - left) / (right - left)) * inner.w, inner.y + (1 - (y - low) / (high - low)) * inner.h],
    from: ([px, py]) => [left + ((px - inner.x) / inner.w) * (right - left), low + (1 - (py - inner.y) / inner.h) * (high - low)],
  };
}

const near = ([x, y], box) => [clamp(x, -1e4, 1e4 + box.w), clamp(y, -1e4, 1e4 + box.h)]; // canvases dislike huge numbers
const worldPath = (path, upTo, to, box) => Array.from({ length: upTo + 1 }, (_, k) => near(to([path.x[k], path.y[k]]), box));

function drawRuns(pen, box, to) {
  paths.forEach((members, i) => {
    const path = members[0], k = rowAt(path, state.step), style = { color: color(i), dash: dash(i) };
    for (const other of members.slice(1)) {
      const end = rowAt(other, state.step);
      pen.line(worldPath(other, end, to, box), { ...style, dash: [], alpha: 0.28 });
      const [x, y] = near(to([other.x[end], other.y[end]]), box);
      pen.circle(x, y, 2, { fill: style.color });
    }
    const points = worldPath(path, k, to, box);
    pen.line(points, { color: theme.paper, width: 4.5, alpha: 0.75 });
    pen.line(points, { ...style, width: 2.2 });
  });
  paths.forEach(([path], i) => {
    const k = rowAt(path, state.step), [x, y] = near(to([path.x[k], path.y[k]]), box);
    pen.circle(x, y, 5, { fill: color(i), stroke: theme.paper });
    if (path.end && k === path.value.length - 1) pen.text("x", x, y, { color: theme.paper, align: "center" });
  });
}

const contourPicture = {
  back(pen, box) {
    const { inner, to } = plane(box), surface = SURFACES[state.surface], cells = 90, g = gridOf(state.surface, cells);
    const [[left, right], [low, high]] = surface.window;
    const levels = Array.from({ length: LEVELS }, (_, k) => g.at((k + 0.5) / LEVELS));
    const rank = (v) => levels.filter((level) => v >= level).length / LEVELS;
    pen.clip(inner.x, inner.y, inner.w, inner.h, () => {
      const w = inner.w / cells, h = inner.h / cells;
      g.values.slice(0, -1).forEach((row, j) => { // runs of cells of one shade are one rectangle
        for (let i = 0, from = 0; i < cells; i++) {
          const here = rank(row[i]);
          if (i + 1 < cells && rank(row[i + 1]) === here) continue;
          tile(pen, inner.x + from * w, inner.x + (i + 1) * w, inner.y + inner.h - (j + 1) * h, inner.y + inner.h - j * h, shade(here));
          from = i + 1;
        }
      });
      const point = (i, j) => to([left + ((right - left) * i) / cells, low + ((high - low) * j) / cells]);
      for (const level of levels) {
        const list = lab.contour(g.values, level).map(([a, b, c, d]) => [...point(a, b), ...point(c, d)]);
        pen.segments(list, { color: theme.ink, width: 0.7, alpha: 0.35 });
      }
      if (state.field !== "none") this.arrows(pen, inner, to, surface);
      for (const [x, y] of surface.minimizers) star(pen, ...to([x, y]));
      const [x, y] = to(state.start);
      pen.segments([[x - 6, y, x + 6, y], [x, y - 6, x, y + 6]], { color: theme.ink, width: 2 });
    });
    frame(pen, inner, ticks(left, right, 6).map((x) => [to([x, 0])[0], short(x)]), ticks(low, high, 6).map((y) => [to([0, y])[1], short(y)]));
  },
  arrows(pen, inner, to, surface) {
    const [[left, right], [low, high]] = surface.window, count = 15, list = [];
    const spots = [];
    for (let j = 0; j < count; j++) for (let i = 0; i < count; i++) {
      const w = [left + ((right - left) * (i + 0.5)) / count, low + ((high - low) * (j + 0.5)) / count];
      spots.push([w, surface.g(...w)]);
    }
    const sizes = spots.map(([, g]) => Math.hypot(...g)).sort((a, b) => a - b), typical = sizes[Math.floor(sizes.length / 2)] || 1;
    const sign = state.field === "gradient" ? 1 : -1;
    for (const [w, g] of spots) {
      const [x, y] = to(w), size = Math.hypot(...g);
      if (!(size > 1e-9 * typical)) continue;
      const dx = (sign * g[0] * inner.w) / (right - left), dy = (-sign * g[1] * inner.h) / (high - low), norm = Math.hypot(dx, dy);
      const length = 4 + (9 * Math.log1p(size / typical)) / Math.log1p(sizes[sizes.length - 1] / typical);
      const [ux, uy] = [dx / norm, dy / norm], [hx, hy] = [x + ux * length, y + uy * length];
      list.push([x - ux * length, y - uy * length, hx, hy]);
      for (const side of [-1, 1]) list.push([hx, hy, hx - 4 * ux + 2.5 * side * uy, hy - 4 * uy - 2.5 * side * ux]);
    }
    pen.segments(list, { color: theme.ink, width: 1, alpha: 0.5 });
  },
  front(pen, box) {
    const { inner, to } = plane(box);
    pen.clip(inner.x, inner.y, inner.w, inner.h, () => {
      drawRuns(pen, box, to);
      if (!state.trials) return;
      paths.forEach(([path], i) => {
        const last = rowAt(path, state.step);
        for (let k = Math.max(1, last - 12); k <= last; k++) {
          const from = near(to([path.x[k - 1], path.y[k - 1]]), box);
          for (const trial of path.trials[k]) {
            const [x, y] = near(to(trial), box);
            if (k === last) pen.line([from, [x, y]], { color: color(i), width: 1, alpha: 0.6 });
            pen.circle(x, y, k === last ? 4 : 2.5, { fill: theme.paper, stroke: color(i) });
          }
        }
      });
    });
  },
  caption: () => `${state.surface.replaceAll("_", " ")}: contours at equal shares of the area, ${state.field === "none" ? "" : `arrows ${state.field === "downhill" ? "downhill" : "along the gradient"}, `}+ the start${SURFACES[state.surface].minimizers.length ? ", star the minimum" : ""}${state.trials ? ", rings what a search tried" : ""}`,
};

/** A rectangle between whole pixels, so that neighbours meet without a seam. */
function tile(pen, left, right, top, bottom, fill) {
  const [x0, x1, y0, y1] = [left, right, top, bottom].map(Math.round);
  pen.fill([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], fill);
}

function star(pen, x, y) {
  const points = Array.from({ length: 10 }, (_, k) => {
    const r = k % 2 ? 3.2 : 8, a = (Math.PI * k) / 5;
    return [x + r * Math.sin(a), y - r * Math.cos(a)];
  });
  pen.fill(points, theme.ink);
  pen.line([...points, points[0]], { color: theme.paper, width: 1 });
}

function frame(pen, { x, y, w, h }, below, beside) {
  pen.line([[x, y], [x + w, y], [x + w, y + h], [x, y + h], [x, y]], { color: theme.rule });
  for (const [at, words] of below) {
    pen.line([[at, y + h], [at, y + h + 4]], { color: theme.soft });
    pen.text(words, at, y + h + 12, { color: theme.soft, align: "center", size: 10 });
  }
  for (const [at, words] of beside) {
    pen.line([[x - 4, at], [x, at]], { color: theme.soft });
    pen.text(words, x - 6, at, { color: theme.soft, align: "right", size: 10 });
  }
}

const relief = {
  /** Height in [0, 1], logarithmic above the lowest value seen; and where a point of the plane lies in the picture. */
  view(box) {
    const g = gridOf(state.surface, 36), [[left, right], [low, high]] = SURFACES[state.surface].window;
    const least = g.at(0), most = g.at(1), scale = Math.max(g.at(0.5) - least, 1e-9) / 4;
    const height = (v) => Math.log1p(Math.max(v - least, 0) / scale) / Math.log1p((most - least) / scale);
    const [turn, tilt] = state.view;
    const [c, s, up] = [Math.cos(turn), Math.sin(turn), Math.sin(tilt)];
    const size = Math.min(box.w / 3.1, box.h / (2.9 * up + 1.3 * Math.cos(tilt)));
    const place = (x, y, z) => {
      const u = (2 * (x - left)) / (right - left) - 1, v = (2 * (y - low)) / (high - low) - 1;
      const across = c * u - s * v, away = s * u + c * v;
      return [box.w / 2 + size * across, box.h / 2 - size * (away * up + (1.2 * z - 0.6) * Math.cos(tilt)), away];
    };
    return { g, height, place, inside: (x, y) => x >= left && x <= right && y >= low && y <= high };
  },
  back(pen, box) {
    const { g, height, place } = this.view(box), cells = 36, [[left, right], [low, high]] = SURFACES[state.surface].window;
    const spot = (i, j) => place(left + ((right - left) * i) / cells, low + ((high - low) * j) / cells, height(g.values[j][i]));
    const quads = [];
    for (let j = 0; j < cells; j++) for (let i = 0; i < cells; i++) {
      const corners = [spot(i, j), spot(i + 1, j), spot(i + 1, j + 1), spot(i, j + 1)];
      quads.push([Math.max(...corners.map((p) => p[2])), corners, height(g.values[j][i])]);
    }
    quads.sort((a, b) => b[0] - a[0]);
    for (const [, corners, z] of quads) {
      const points = corners.map(([x, y]) => [x, y]);
      pen.fill(points, shade(z));
      pen.line([...points, points[0]], { color: theme.ink, width: 0.5, alpha: 0.22 });
    }
    for (const [word, x, y] of [["x", right, low], ["y", left, high]]) {
      const [px, py] = place(x + (word === "x" ? 0.06 * (right - left) : 0), y + (word === "y" ? 0.06 * (high - low) : 0), 0);
      pen.text(word, px, py, { color: theme.soft, align: "center", size: 12 });
    }
  },
  front(pen, box) {
    const { height, place } = this.view(box), surface = SURFACES[state.surface], [[left, right], [low, high]] = surface.window;
    drawRuns(pen, box, ([x, y]) => {
      const [u, v] = [clamp(x, left, right), clamp(y, low, high)]; // outside the window: along its edge
      return place(u, v, height(surface.f(u, v))).slice(0, 2);
    });
  },
};

/** A chart of one number a step, logarithmic where all of it is positive. */
function chart(pick, { ensemble = false, labels = false } = {}) {
  return {
    scale(box) {
      const inner = { x: 48, y: 6, w: box.w - 60 - (labels ? 84 : 0), h: box.h - 28 };
      const all = paths.flatMap((members) => pick(members[0])).filter(Number.isFinite);
      const log = !(pick === loss && SURFACES[state.surface].minimum === null);
      const positive = all.filter((v) => v > 0);
      let most = log ? Math.max(...positive, 1e-300) : Math.max(...all), least = log ? Math.min(...positive) : Math.min(...all);
      if (!all.length || (log && !positive.length)) [least, most] = [0.1, 1];
      if (log) least = Math.max(least, most * 1e-16, 1e-300);
      else {
        const g = gridOf(state.surface, 36); // a fall without end: as far as the window shows
        least = Math.max(least, g.at(0) - (g.at(1) - g.at(0)));
        most = Math.min(most, g.at(1) + (g.at(1) - g.at(0)));
      }
      if (!(most > least)) most = log ? least * 10 : least + 1;
      const f = log ? (v) => Math.log10(Math.max(v, least)) : (v) => v, a = f(least), b = f(most);
      const toX = (k) => inner.x + (k / state.steps) * inner.w, toY = (v) => inner.y + (1 - clamp((f(v) - a) / (b - a), -0.02, 1.02)) * inner.h;
      const marks = log ? ticks(a, b, 5).filter((t) => Number.isInteger(t) || b - a < 2).map((t) => [toY(10 ** t), short(Number((10 ** t).toPrecision(2)))]) : ticks(a, b, 5).map((t) => [toY(t), short(t)]);
      return { inner, toX, toY, marks };
    },
    back(pen, box) {
      const { inner, toX, toY, marks } = this.scale(box);
      frame(pen, inner, ticks(0, state.steps, 4).map((k) => [toX(k), String(k)]), marks);
      pen.clip(inner.x, inner.y, inner.w, inner.h, () => {
        paths.forEach((members, i) => {
          if (ensemble && members.length > 1) this.band(pen, members, color(i), toX, toY);
          const line = pick(members[0]).map((v, k) => [toX(k), toY(v)]);
          pen.line(line, { color: color(i), dash: dash(i), width: 1.8, alpha: 0.85 });
        });
      });
      if (labels) this.names(pen, inner, toY);
    },
    /** From the tenth to the ninetieth hundredth of the ensemble. */
    band(pen, members, fill, toX, toY) {
      const lines = members.map(pick), length = Math.max(...lines.map((line) => line.length)), edge = [[], []];
      for (let k = 0; k < length; k++) {
        const row = lines.map((line) => line[Math.min(k, line.length - 1)]).sort((a, b) => a - b);
        edge[0].push([toX(k), toY(row[Math.floor(0.1 * (row.length - 1))])]);
        edge[1].push([toX(k), toY(row[Math.ceil(0.9 * (row.length - 1))])]);
      }
      pen.fill([...edge[0], ...edge[1].reverse()], fill, 0.18);
    },
    names(pen, inner, toY) {
      const spots = paths.map(([path], i) => ({ i, y: toY(pick(path)[path.value.length - 1]) })).sort((a, b) => a.y - b.y);
      spots.forEach((spot, k) => { if (k) spot.y = Math.max(spot.y, spots[k - 1].y + 12); });
      const over = spots.length ? spots[spots.length - 1].y - (inner.y + inner.h) : 0;
      for (const { i, y } of spots) {
        const [x, at] = [inner.x + inner.w + 4, y - Math.max(0, over)];
        pen.line([[x, at], [x + 14, at]], { color: color(i), width: 3 });
        pen.text(named(i), x + 18, at, { color: theme.ink, size: 10.5 });
      }
    },
    front(pen, box) {
      const { inner, toX, toY } = this.scale(box), x = toX(state.step);
      pen.line([[x, inner.y], [x, inner.y + inner.h]], { color: theme.ink, width: 1 });
      pen.clip(inner.x - 5, inner.y - 5, inner.w + 10, inner.h + 10, () => paths.forEach(([path], i) => {
        const k = rowAt(path, state.step);
        pen.circle(toX(k), toY(pick(path)[k]), 4, { fill: color(i), stroke: theme.paper });
      }));
    },
    stepAt(px, box) {
      const { inner } = this.scale(box);
      return Math.round(clamp((px - inner.x) / inner.w, 0, 1) * state.steps);
    },
  };
}

const loss = (path) => {
  const least = SURFACES[state.surface].minimum;
  return least === null ? path.value : path.value.map((v) => Math.max(v - least, 0));
};

// The map of learning rates: a grid of runs, computed bit by bit

const map = { columns: 40, rows: 22, key: "", cells: [], spot: [20, 11], timer: 0 };

function mapAxes() {
  const run = state.runs[state.mapRun];
  if (!run) return null;
  const { hyper } = lab.RULES[run.rule], [x] = hyper;
  const names = [...hyper.slice(1).map((h) => h.name), "noise"];
  const y = names.includes(state.mapAxis) ? state.mapAxis : names[0], h = hyper.find((h) => h.name === y);
  const base = newRun(run.rule, state.surface).hyper[x.name];
  const xs = x.scale === "log" ? [Math.log10(base) - 2, Math.log10(base) + 1.5] : [x.low, x.high];
  const ys = y === "noise" ? [0, 4 * SURFACES[state.surface].noise] : h.scale === "log" ? [Math.log10(h.low), Math.log10(h.high)] : [h.low, h.high];
  const valueX = (part) => { const v = xs[0] + part * (xs[1] - xs[0]); return x.scale === "log" ? 10 ** v : Math.round(v); };
  const valueY = (part) => { const v = ys[0] + part * (ys[1] - ys[0]); return h?.scale === "log" ? 10 ** v : v; };
  const partX = (v) => ((x.scale === "log" ? Math.log10(v) : v) - xs[0]) / (xs[1] - xs[0]);
  const partY = (v) => ((h?.scale === "log" ? Math.log10(v) : v) - ys[0]) / (ys[1] - ys[0]);
  return { run, x, y, names, xs, ys, valueX, valueY, partX, partY, h };
}

function mapSettings(axes, i, j) {
  const hyper = { ...axes.run.hyper, [axes.x.name]: Number(axes.valueX((i + 0.5) / map.columns).toPrecision(4)) };
  const v = Number(axes.valueY((j + 0.5) / map.rows).toPrecision(4));
  if (axes.y !== "noise") hyper[axes.y] = v;
  return { hyper, noise: axes.y === "noise" ? v : state.noise };
}

function mapCurvature() {
  const surface = SURFACES[state.surface], [path] = paths[state.mapRun] ?? [];
  if (!path || !surface.minimizers.length) return null;
  const end = path.value.length - 1, far = ([x, y]) => Math.hypot(x - path.x[end], y - path.y[end]);
  return lab.sharpness(surface, [surface.minimizers.slice().sort((a, b) => far(a) - far(b))[0]]);
}

function startMap() {
  const axes = mapAxes();
  clearTimeout(map.timer);
  if (!axes) { Object.assign(map, { cells: [], key: "" }); return draw(["map"]); }
  const rest = { ...axes.run.hyper, [axes.x.name]: 0, [axes.y]: 0 };
  const key = JSON.stringify([state.surface, state.start, state.steps, state.seed, axes.y === "noise" ? 0 : state.noise, axes.run.rule, axes.y, rest]);
  if (key === map.key) return draw(["map"]);
  Object.assign(map, { key, cells: [] });
  draw(["map"]);
  const surface = SURFACES[state.surface];
  const work = () => {
    const until = performance.now() + (playing ? 2 : 12);
    while (map.cells.length < map.columns * map.rows && performance.now() < until) {
      const { hyper, noise } = mapSettings(axes, map.cells.length % map.columns, Math.floor(map.cells.length / map.columns));
      const path = lab.run(surface, lab.RULES[axes.run.rule], hyper, { start: state.start, steps: state.steps, noise, seed: state.seed });
      map.cells.push(lab.score(path, surface.minimum ?? -Infinity));
    }
    const done = map.cells.length === map.columns * map.rows;
    if (!done) map.timer = setTimeout(work, playing ? 30 : 0);
    if (done || !playing) draw(["map"]);
  };
  map.timer = setTimeout(work, 60);
}

const mapPicture = {
  inner: (box) => ({ x: 44, y: 6, w: box.w - 50, h: box.h - 30 }),
  back(pen, box) {
    const axes = mapAxes(), { x, y, w, h } = this.inner(box);
    if (!axes) return;
    const scores = map.cells.filter((s) => s > 0).map(Math.log10), least = Math.max(-16, Math.min(...scores)), most = Math.max(...scores, least + 1);
    const cw = w / map.columns, ch = h / map.rows, lost = [];
    map.cells.forEach((s, k) => {
      const px = x + (k % map.columns) * cw, py = y + h - (Math.floor(k / map.columns) + 1) * ch;
      const part = s === null ? 1 : s > 0 ? clamp((Math.log10(s) - least) / (most - least), 0, 1) : 0;
      const shadeOf = s === null ? (theme.dark ? "#000000" : "#d0d0d0") : theme.dark ? mix("#f0e442", "#123a5a", part) : mix("#08306b", "#f7fbff", part);
      tile(pen, px, px + cw, py, py + ch, shadeOf);
      if (s === null) lost.push([px + 1, py + ch - 1, px + cw - 1, py + 1]);
    });
    pen.segments(lost, { color: theme.soft, width: 0.8, alpha: 0.7 });
    const tick = (log, [a, b], to) => ticks(a, b, 4).map((t) => [to((t - a) / (b - a)), short(log ? Number((10 ** t).toPrecision(1)) : t)]);
    frame(pen, { x, y, w, h }, tick(axes.x.scale === "log", axes.xs, (p) => x + p * w), tick(axes.h?.scale === "log", axes.ys, (p) => y + (1 - p) * h));
    const curvature = mapCurvature();
    if (curvature === null) return;
    const line = [];
    for (let k = 0; k <= 60; k++) {
      const hyper = { ...axes.run.hyper, ...(axes.y === "noise" ? {} : { [axes.y]: axes.valueY(k / 60) }) };
      const limit = lab.stabilityLimit(axes.run.rule, hyper, curvature);
      if (limit === null) return;
      line.push([x + axes.partX(limit) * w, y + (1 - k / 60) * h]);
    }
    pen.clip(x, y, w, h, () => {
      pen.line(line, { color: theme.paper, width: 4 });
      pen.line(line, { color: "#d55e00", width: 2, dash: [6, 3] });
    });
  },
  front(pen, box) {
    const axes = mapAxes(), { x, y, w, h } = this.inner(box);
    if (!axes) return;
    const v = axes.y === "noise" ? state.noise : axes.run.hyper[axes.y], px = x + axes.partX(axes.run.hyper[axes.x.name]) * w, py = y + (1 - axes.partY(v)) * h;
    pen.clip(x - 6, y - 6, w + 12, h + 12, () => {
      pen.circle(px, py, 6, { stroke: theme.paper, width: 4 });
      pen.circle(px, py, 6, { stroke: theme.ink, width: 2 });
    });
    if (document.activeElement === $("map")) {
      const cw = w / map.columns, ch = h / map.rows, [i, j] = map.spot, a = x + i * cw, b = y + h - (j + 1) * ch;
      pen.line([[a, b], [a + cw, b], [a + cw, b + ch], [a, b + ch], [a, b]], { color: "#d55e00", width: 2 });
    }
  },
  caption() {
    const axes = mapAxes();
    if (!axes) return "No run.";
    const curvature = mapCurvature(), limit = curvature === null ? null : lab.stabilityLimit(axes.run.rule, axes.run.hyper, curvature);
    const what = SURFACES[state.surface].minimum === null ? "last gradient norm" : "how far above the minimum it ends";
    const words = limit === null ? "no fixed limit is known for it here" : `dashed: the stability limit, ${short(limit)} at these settings${axes.run.rule === "newton_pure" ? "" : `, for curvature ${short(curvature)}`}`;
    return `${axes.x.symbol} across, ${axes.h?.symbol ?? "noise"} upwards; ${theme.dark ? "bright" : "dark"} is low: ${what} after ${state.steps} steps; hatched: lost; ${words}. Ring: this run.`;
  },
};

const PICTURES = {
  contour: contourPicture, relief, loss: chart(loss, { ensemble: true, labels: true }), gradient: chart((p) => p.gradNorm),
  length: chart((p) => p.length), map: mapPicture,
};

// Drawing

function boxOf(id) {
  const canvas = $(id);
  return { w: canvas.clientWidth, h: canvas.clientHeight };
}

function draw(ids = Object.keys(PICTURES), background = true) {
  for (const id of ids) {
    const canvas = $(id), box = boxOf(id), ratio = Math.min(window.devicePixelRatio || 1, 2);
    if (!box.w || !box.h) continue;
    const [w, h] = [Math.round(box.w * ratio), Math.round(box.h * ratio)];
    const layer = (layers[id] ??= document.createElement("canvas"));
    if (background || layer.width !== w || layer.height !== h) {
      Object.assign(layer, { width: w, height: h });
      const context = layer.getContext("2d");
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.fillStyle = theme.paper;
      context.fillRect(0, 0, box.w, box.h);
      PICTURES[id].back(new CanvasPen(context), box);
      const caption = PICTURES[id].caption?.();
      if (caption) $(`${id}-caption`).textContent = caption;
    }
    if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.drawImage(layer, 0, 0);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    PICTURES[id].front(new CanvasPen(context), box);
  }
}

const MOVING = ["contour", "relief", "loss", "gradient", "length"];

function readTheme() {
  if (state.theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = state.theme;
  const style = getComputedStyle(document.documentElement), value = (name) => style.getPropertyValue(name).trim();
  theme = { paper: value("--paper"), ink: value("--ink"), soft: value("--soft"), rule: value("--rule") };
  theme.dark = style.colorScheme === "dark";
}

function showTable() {
  const body = $("rows");
  while (body.rows.length > paths.length) body.deleteRow(-1);
  paths.forEach(([path], i) => {
    const row = body.rows[i] ?? body.insertRow(), k = rowAt(path, state.step);
    const cells = [named(i), k, short(path.x[k]), short(path.y[k]), short(path.value[k]), short(path.gradNorm[k]), short(path.length[k]), path.trials[k].length || "", k === path.value.length - 1 ? path.end ?? "" : ""];
    cells.forEach((text, c) => {
      const cell = row.cells[c] ?? row.insertCell();
      if (cell.textContent !== String(text)) cell.textContent = text;
    });
  });
}

function say() {
  const words = paths.map(([path], i) => {
    const k = rowAt(path, state.step);
    return `${named(i)} at (${short(path.x[k])}, ${short(path.y[k])}), value ${short(path.value[k])}${path.end && k === path.value.length - 1 ? `, ${path.end}` : ""}`;
  });
  $("say").textContent = `Step ${state.step} of ${state.steps}. ${words.join("; ") || "No run"}.`;
}

function moveTo(step, loud = true) {
  state.step = clamp(Math.round(step), 0, state.steps);
  $("scrub").value = state.step;
  $("scrub").setAttribute("aria-valuetext", `step ${state.step} of ${state.steps}`);
  $("count").textContent = `${state.step} / ${state.steps}`;
  draw(MOVING, false);
  showTable();
  if (loud) { say(); remember(); }
}

function setPlaying(on) {
  playing = on;
  $("play").textContent = on ? "Pause" : "Play";
  $("play").setAttribute("aria-pressed", String(on));
  if (!on) { say(); remember(); return; }
  if (state.step >= state.steps) state.step = 0;
  clock = state.step;
  let before = null;
  const frame = (now) => {
    if (!playing) return;
    if (before !== null) clock += ((now - before) / 1000) * state.speed;
    before = now;
    frames.count++;
    if (Math.floor(clock) !== state.step) moveTo(Math.floor(clock), false);
    else draw(MOVING, false);
    if (state.step >= state.steps) setPlaying(false);
    else requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}
const frames = { count: 0 };

/** Everything anew, after any change of state. */
let pending = 0;
function refresh({ controls = false } = {}) {
  state.step = Math.min(state.step, state.steps);
  if (controls) showControls();
  cancelAnimationFrame(pending);
  pending = requestAnimationFrame(paint);
  remember();
}

function paint() {
  readTheme();
  compute();
  $("loss-caption").textContent = SURFACES[state.surface].minimum === null ? "Value (it has no minimum)" : "Value above the minimum";
  if (paths[0]?.length > 1) $("loss-caption").textContent += "; bands: four fifths of each ensemble";
  $("scrub").max = state.steps;
  draw(Object.keys(PICTURES).filter((id) => id !== "map"));
  moveTo(state.step, !playing);
  showMapControls();
  startMap();
}

// Controls

function options(select, entries, value) {
  select.replaceChildren(...entries.map(([key, words]) => {
    const option = document.createElement("option");
    [option.value, option.textContent] = [key, words];
    return option;
  }));
  select.value = value;
}

/** A number with a slider: both show it, both change it. */
function pair(id, { get, set, log = false }) {
  const range = $(`${id}-range`), box = $(id);
  range.addEventListener("input", () => {
    set(log ? Number((10 ** range.valueAsNumber).toPrecision(3)) : Number(range.valueAsNumber.toPrecision(6)));
    box.value = get();
    refresh();
  });
  box.addEventListener("change", () => {
    const x = box.valueAsNumber, legal = Number.isFinite(x) && x >= (box.min === "" ? -Infinity : Number(box.min)) && x <= (box.max === "" ? Infinity : Number(box.max));
    if (legal) set(x);
    else note([`${box.getAttribute("aria-label") ?? id} cannot be ${Number.isFinite(x) ? x : "empty"}: between ${box.min || "anything"} and ${box.max || "anything"}`]);
    show();
    if (legal) refresh();
  });
  const show = () => {
    box.value = get();
    range.value = log ? Math.log10(get()) : get();
  };
  return show;
}

const shows = [];

function setUp() {
  options($("surface"), DATA.surfaces.map((s) => [s.name, s.name.replaceAll("_", " ")]), state.surface);
  options($("field"), Object.entries(FIELDS), state.field);
  options($("speed"), SPEEDS.map((v) => [v, `${v} steps/s`]), state.speed);
  options($("rule"), Object.entries(lab.RULES).map(([key, rule]) => [key, rule.label]), "adam");
  for (const k of [0, 1]) shows.push(pair(`start-${"xy"[k]}`, { get: () => state.start[k], set: (v) => (state.start = state.start.map((old, i) => (i === k ? v : old))) }));
  for (const key of ["steps", "noise", "seed", "members"]) shows.push(pair(key, { get: () => state[key], set: (v) => (state[key] = key === "noise" ? v : Math.round(v)) }));
  const on = (id, event, act) => $(id).addEventListener(event, act);
  on("surface", "change", () => {
    const rules = state.runs.map((run) => run.rule), name = $("surface").value;
    Object.assign(state, { surface: name, start: SURFACES[name].start.slice(), runs: rules.map((rule) => newRun(rule, name)), step: 0 });
    refresh({ controls: true });
  });
  on("field", "change", () => { state.field = $("field").value; refresh(); });
  on("trials", "change", () => { state.trials = $("trials").checked; refresh(); });
  on("speed", "change", () => { state.speed = Number($("speed").value); remember(); });
  on("theme", "change", () => { state.theme = $("theme").value; refresh(); });
  on("add", "click", () => { state.runs.push(newRun($("rule").value, state.surface)); refresh({ controls: true }); });
  on("add-all", "click", () => { state.runs = Object.keys(lab.RULES).map((rule) => newRun(rule, state.surface)); refresh({ controls: true }); });
  on("reset", "click", () => { [state] = fromHash(DATA.state); setPlaying(false); refresh({ controls: true }); });
  on("play", "click", () => setPlaying(!playing));
  const jump = (id, to) => on(id, "click", () => { setPlaying(false); moveTo(to()); });
  jump("first", () => 0); jump("back", () => state.step - 1); jump("forward", () => state.step + 1); jump("last", () => state.steps);
  on("scrub", "input", () => { clock = $("scrub").valueAsNumber; moveTo(clock); });
  on("map-run", "change", () => { state.mapRun = Number($("map-run").value); state.mapAxis = null; refresh(); });
  on("map-axis", "change", () => { state.mapAxis = $("map-axis").value; refresh(); });
  setUpPictures(on);
  on("png", "click", exportPng); on("svg", "click", exportSvg); on("csv", "click", exportCsv); on("link", "click", copyLink);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || ["INPUT", "SELECT", "BUTTON"].includes(event.target.tagName)) return;
    const act = { " ": () => setPlaying(!playing), ",": () => moveTo(state.step - 1), ".": () => moveTo(state.step + 1), Home: () => moveTo(0), End: () => moveTo(state.steps) }[event.key];
    if (act) { event.preventDefault(); if (event.key !== " ") setPlaying(false); act(); }
  });
  addEventListener("pagehide", () => remember(true));
  addEventListener("hashchange", () => { if (location.hash !== own) load(location.hash); });
  new ResizeObserver(() => draw()).observe(document.querySelector(".panels"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => refresh());
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

function setUpPictures(on) {
  const spot = (id, event) => { const r = $(id).getBoundingClientRect(); return [event.clientX - r.left, event.clientY - r.top]; };
  const arrows = (id, act) => on(id, "keydown", (event) => {
    const way = ARROWS[event.key];
    if (!way) return;
    event.preventDefault();
    act(...way, event.shiftKey ? 10 : 1);
  });
  const begin = (w) => { state.start = w.map((z) => Number(z.toPrecision(5))); refresh({ controls: true }); };
  on("contour", "click", (event) => begin(plane(boxOf("contour")).from(spot("contour", event))));
  arrows("contour", (dx, dy, finer) => {
    const [[left, right], [low, high]] = SURFACES[state.surface].window;
    begin([state.start[0] + (dx * (right - left)) / 50 / finer, state.start[1] + (dy * (high - low)) / 50 / finer]);
  });
  const turn = (dx, dy) => {
    state.view = [state.view[0] + dx, clamp(state.view[1] + dy, 0.1, 1.5)];
    draw(["relief"]);
    remember();
  };
  let held = null;
  on("relief", "pointerdown", (event) => { held = [event.clientX, event.clientY]; $("relief").setPointerCapture(event.pointerId); });
  on("relief", "pointermove", (event) => {
    if (!held) return;
    turn((event.clientX - held[0]) / 150, (event.clientY - held[1]) / 150);
    held = [event.clientX, event.clientY];
  });
  for (const end of ["pointerup", "pointercancel"]) on("relief", end, () => (held = null));
  arrows("relief", (dx, dy) => turn(-0.1 * dx, -0.1 * dy));
  for (const id of ["loss", "gradient", "length"]) {
    on(id, "click", (event) => { setPlaying(false); moveTo(PICTURES[id].stepAt(spot(id, event)[0], boxOf(id))); });
    arrows(id, (dx) => { setPlaying(false); moveTo(state.step + dx); });
  }
  const cell = (event) => {
    const { x, y, w, h } = mapPicture.inner(boxOf("map")), [px, py] = spot("map", event);
    return [clamp(Math.floor(((px - x) / w) * map.columns), 0, map.columns - 1), clamp(Math.floor((1 - (py - y) / h) * map.rows), 0, map.rows - 1)];
  };
  on("map", "click", (event) => loadCell(cell(event)));
  arrows("map", (dx, dy) => {
    map.spot = [clamp(map.spot[0] + dx, 0, map.columns - 1), clamp(map.spot[1] + dy, 0, map.rows - 1)];
    draw(["map"], false);
    const axes = mapAxes();
    if (!axes) return;
    const { hyper, noise } = mapSettings(axes, ...map.spot), s = map.cells[map.spot[1] * map.columns + map.spot[0]];
    $("say").textContent = `Map: ${axes.x.symbol} ${short(hyper[axes.x.name])}, ${axes.h?.symbol ?? "noise"} ${short(axes.y === "noise" ? noise : hyper[axes.y])}: ${s === null ? "lost" : s === undefined ? "not computed yet" : short(s)}.`;
  });
  on("map", "keydown", (event) => { if (event.key === "Enter") loadCell(map.spot); });
  for (const event of ["focus", "blur"]) on("map", event, () => draw(["map"], false));
}

function loadCell([i, j]) {
  const axes = mapAxes();
  if (!axes) return;
  map.spot = [i, j];
  const { hyper, noise } = mapSettings(axes, i, j);
  Object.assign(axes.run.hyper, hyper);
  state.noise = noise;
  refresh({ controls: true });
}

function showControls() {
  $("surface").value = state.surface;
  $("field").value = state.field;
  $("speed").value = state.speed;
  $("theme").value = state.theme;
  $("trials").checked = state.trials;
  const { window: [xs, ys], noise } = SURFACES[state.surface];
  [["start-x-range", xs], ["start-y-range", ys], ["noise-range", [0, 4 * noise]]].forEach(([id, [low, high]]) => {
    Object.assign($(id), { min: low, max: high, step: (high - low) / 500 });
  });
  shows.forEach((show) => show());
  $("runs").replaceChildren(...state.runs.map(card));
  state.runs.forEach((run, i) => lab.RULES[run.rule].hyper.forEach((h) => pair(`run-${i}-${h.name}`, {
    get: () => run.hyper[h.name], set: (v) => (run.hyper[h.name] = v), log: h.scale === "log",
  })()));
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function card(run, i) {
  const { label, hyper } = lab.RULES[run.rule], swatch = element("canvas", { class: "swatch", width: 84, height: 24, "aria-hidden": "true" });
  readTheme();
  const context = swatch.getContext("2d");
  context.scale(2, 2);
  new CanvasPen(context).line([[0, 6], [42, 6]], { color: color(i), dash: dash(i), width: 3 });
  const remove = element("button", { "aria-label": `Remove ${label}, run ${i + 1}`, id: `remove-${i}` }, "Remove");
  remove.addEventListener("click", () => { state.runs.splice(i, 1); state.mapRun = 0; refresh({ controls: true }); });
  const rows = hyper.map((h) => {
    const id = `run-${i}-${h.name}`, log = h.scale === "log", [low, high] = bounds(h);
    const range = element("input", { type: "range", id: `${id}-range`, min: log ? Math.log10(h.low) : h.low, max: log ? Math.log10(h.high) : h.high, step: log ? 0.01 : h.step, "aria-label": `${label}, run ${i + 1}: ${h.symbol}, slider` });
    const box = element("input", { type: "number", id, min: low, max: high, step: h.step ?? "any", "aria-label": `${label}, run ${i + 1}: ${h.symbol}` });
    return element("label", { class: "row" }, h.symbol, range, box);
  });
  return element("fieldset", {}, element("legend", {}, swatch, label), ...rows, remove);
}

function showMapControls() {
  state.mapRun = clamp(state.mapRun, 0, Math.max(0, state.runs.length - 1));
  options($("map-run"), state.runs.map((_, i) => [i, named(i)]), state.mapRun);
  const axes = mapAxes();
  options($("map-axis"), (axes?.names ?? []).map((name) => [name, axes.run && lab.RULES[axes.run.rule].hyper.find((h) => h.name === name)?.symbol || "noise"]), axes?.y);
}

function note(lines) {
  $("note").replaceChildren(...lines.map((line) => element("p", { class: "note" }, line)));
}

// Export

function save(name, type, content) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  $("say").textContent = `${name} is saved.`;
}

const BOARD = { width: 1200, height: 1010 };

/** All pictures on one sheet, with a line for every run. */
function board(pen) {
  const { width, height } = BOARD;
  pen.fill([[0, 0], [width, 0], [width, height], [0, height]], theme.paper);
  pen.text(`${state.surface.replaceAll("_", " ")}, step ${state.step} of ${state.steps}${state.noise > 0 ? `, noise ${short(state.noise)}, seed ${state.seed}` : ""}`, 20, 20, { color: theme.ink, size: 16 });
  const places = [["contour", 20, 44, 570, 420], ["relief", 610, 44, 570, 420], ["loss", 20, 500, 380, 250], ["gradient", 410, 500, 380, 250], ["length", 800, 500, 380, 250], ["map", 20, 786, 380, 200]];
  for (const [id, x, y, w, h] of places) {
    const title = { loss: $("loss-caption").textContent, gradient: "norm of the gradient", length: "length of the step", map: `map of ${state.runs[state.mapRun] ? named(state.mapRun) : "nothing"}` }[id];
    if (title) pen.text(title, x + 34, y - 8, { color: theme.soft, size: 12 });
    pen.shift(x, y, () => { PICTURES[id].back(pen, { w, h }); PICTURES[id].front(pen, { w, h }); });
  }
  state.runs.forEach((run, i) => {
    const y = 796 + 18 * i;
    pen.line([[430, y], [474, y]], { color: color(i), dash: dash(i), width: 2.5 });
    pen.text(`${lab.RULES[run.rule].label}  ${Object.entries(run.hyper).map(([k, v]) => `${k} ${short(v)}`).join(", ")}`, 484, y, { color: theme.ink, size: 12 });
  });
}

function exportPng() {
  const canvas = element("canvas", { width: 2 * BOARD.width, height: 2 * BOARD.height }), context = canvas.getContext("2d");
  context.scale(2, 2);
  board(new CanvasPen(context));
  canvas.toBlob((blob) => save("lab.png", "image/png", blob));
}

function exportSvg() {
  const pen = new SvgPen();
  board(pen);
  save("lab.svg", "image/svg+xml", pen.page(BOARD.width, BOARD.height));
}

function exportCsv() {
  const rows = [["run", "optimizer", "settings", "member", "step", "x", "y", "value", "gradient_norm", "step_length", "trials"]];
  paths.forEach((members, i) => members.forEach((path, member) => path.value.forEach((value, k) => rows.push([
    i, state.runs[i].rule, Object.entries(state.runs[i].hyper).map(([n, v]) => `${n}=${v}`).join(" "), member, k, path.x[k], path.y[k], value, path.gradNorm[k], path.length[k], path.trials[k].length,
  ]))));
  save("lab.csv", "text/csv", rows.map((row) => row.join(",")).join("\n") + "\n");
}

async function copyLink() {
  remember(true);
  try {
    await navigator.clipboard.writeText(location.href);
    $("say").textContent = "The link is copied.";
  } catch {
    $("say").textContent = "The link is in the address bar; this browser does not let a page copy it.";
  }
}

function load(hash) {
  let wrong;
  [state, wrong] = fromHash(hash);
  note(wrong);
  refresh({ controls: true });
}

requestAnimationFrame(() => setTimeout(() => { // the page shows before it computes
  setUp();
  load(location.hash.length > 1 ? location.hash : DATA.state);
}));
})();
