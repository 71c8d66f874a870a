// The map of learning rates: a grid of runs, computed bit by bit.

const map = { columns: 40, rows: 22, key: "", cells: [], spot: [20, 11], timer: 0 };

function mapAxes() {
  const run = state.runs[state.mapRun];
  if (!run) return null;
  const { hyper } = lab.RULES[run.rule],
    [x] = hyper;
  const names = [...hyper.slice(1).map((h) => h.name), "noise"];
  const y = names.includes(state.mapAxis) ? state.mapAxis : names[0],
    h = hyper.find((h) => h.name === y);
  const base = newRun(run.rule, state.surface).hyper[x.name];
  const xs = x.scale === "log" ? [Math.log10(base) - 2, Math.log10(base) + 1.5] : [x.low, x.high];
  const ys =
    y === "noise"
      ? [0, 4 * SURFACES[state.surface].noise]
      : h.scale === "log"
        ? [Math.log10(h.low), Math.log10(h.high)]
        : [h.low, h.high];
  const valueX = (part) => {
    const v = xs[0] + part * (xs[1] - xs[0]);
    return x.scale === "log" ? 10 ** v : Math.round(v);
  };
  const valueY = (part) => {
    const v = ys[0] + part * (ys[1] - ys[0]);
    return h?.scale === "log" ? 10 ** v : v;
  };
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
  const surface = SURFACES[state.surface],
    [path] = paths[state.mapRun] ?? [];
  if (!path || !surface.minimizers.length) return null;
  const end = path.value.length - 1,
    far = ([x, y]) => Math.hypot(x - path.x[end], y - path.y[end]);
  return lab.sharpness(surface, [surface.minimizers.slice().sort((a, b) => far(a) - far(b))[0]]);
}

function startMap() {
  const axes = mapAxes();
  clearTimeout(map.timer);
  if (!axes) {
    Object.assign(map, { cells: [], key: "" });
    return draw(["map"]);
  }
  const rest = { ...axes.run.hyper, [axes.x.name]: 0, [axes.y]: 0 };
  const key = JSON.stringify([
    state.surface,
    state.start,
    state.steps,
    state.seed,
    axes.y === "noise" ? 0 : state.noise,
    axes.run.rule,
    axes.y,
    rest,
  ]);
  if (key === map.key) return draw(["map"]);
  Object.assign(map, { key, cells: [] });
  draw(["map"]);
  const surface = SURFACES[state.surface];
  const work = () => {
    const until = performance.now() + (playing ? 2 : 12);
    while (map.cells.length < map.columns * map.rows && performance.now() < until) {
      const { hyper, noise } = mapSettings(
        axes,
        map.cells.length % map.columns,
        Math.floor(map.cells.length / map.columns),
      );
      const path = lab.run(surface, lab.RULES[axes.run.rule], hyper, {
        start: state.start,
        steps: state.steps,
        noise,
        seed: state.seed,
      });
      map.cells.push(lab.score(path, surface.minimum ?? -Infinity));
    }
    const done = map.cells.length === map.columns * map.rows;
    if (!done) map.timer = setTimeout(work, playing ? 30 : 0);
    if (done || !playing) draw(["map"]);
  };
  map.timer = setTimeout(work, 60);
}

function scoreShade(s, least, most) {
  if (s === null) return theme.dark ? "#000000" : "#d0d0d0";
  const part = s > 0 ? clamp((Math.log10(s) - least) / (most - least), 0, 1) : 0;
  return theme.dark ? mix("#f0e442", "#123a5a", part) : mix("#08306b", "#f7fbff", part);
}

const MAP_KEY = 100; // the room at the right for the key
const LIMIT = "#d55e00";

/** The limits of the shades, as powers of ten. */
function scoreLimits() {
  const scores = map.cells.filter((s) => s > 0).map(Math.log10);
  if (!scores.length) return [-1, 0];
  const least = Math.max(-16, Math.min(...scores));
  return [least, Math.max(...scores, least + 1)];
}

function hatch(pen, left, right, top, bottom) {
  pen.segments([[left + 1, bottom - 1, right - 1, top + 1]], { color: theme.soft, width: 0.8, alpha: 0.7 });
}

/** What the map's colours, its hatching, its line and its ring mean. */
function mapKey(pen, { x, y, w, h }, hasLimit) {
  const left = x + w + 12,
    [least, most] = scoreLimits(),
    note = { color: theme.soft, size: 10.5 },
    below = hasLimit ? 86 : 66,
    [top, bottom] = [y + 18, y + Math.max(50, h - below)],
    at = (power) => bottom - ((power - least) / (most - least)) * (bottom - top);
  pen.text(SURFACES[state.surface].minimum === null ? "last gradient" : "ends above min.", left - 2, y + 5, note);
  for (let k = 0; k < 40; k++) {
    const [from, to] = [k, k + 1].map((k) => bottom - (k / 40) * (bottom - top));
    tile(pen, left, left + 14, to, from, scoreShade(10 ** (least + ((k + 0.5) / 40) * (most - least)), least, most));
  }
  outline(pen, left, top, 14, bottom - top);
  const marks = logTicks(least, most, Math.max(1, Math.min(6, Math.floor((bottom - top) / 16))));
  for (const power of marks) pen.text(rounded(10 ** power), left + 18, at(power), note);
  let row = bottom + 18;
  tile(pen, left, left + 14, row - 6, row + 6, scoreShade(null));
  hatch(pen, left, left + 14, row - 6, row + 6);
  outline(pen, left, row - 6, 14, 12);
  pen.text("diverged", left + 18, row, note);
  row += 20;
  pen.circle(left + 7, row, 5, { stroke: theme.ink, width: 2 });
  pen.text("this run", left + 18, row, note);
  if (!hasLimit) return;
  row += 20;
  pen.line(
    [
      [left, row],
      [left + 15, row],
    ],
    { color: LIMIT, width: 2, dash: [6, 3] },
  );
  pen.text("stability limit", left + 18, row, note);
}

const mapPicture = {
  inner: (box) => ({ x: 44, y: 6, w: box.w - 56 - MAP_KEY, h: box.h - 30 }),
  back(pen, box) {
    const axes = mapAxes(),
      { x, y, w, h } = this.inner(box);
    if (!axes) return;
    const [least, most] = scoreLimits(),
      curvature = mapCurvature(),
      hasLimit = curvature !== null && lab.stabilityLimit(axes.run.rule, axes.run.hyper, curvature) !== null;
    const cw = w / map.columns,
      ch = h / map.rows,
      lost = [];
    map.cells.forEach((s, k) => {
      const i = k % map.columns;
      const j = Math.floor(k / map.columns);
      const [left, right] = [x + i * cw, x + (i + 1) * cw];
      const [top, bottom] = [y + h - (j + 1) * ch, y + h - j * ch];
      tile(pen, left, right, top, bottom, scoreShade(s, least, most));
      if (s === null) lost.push([left + 1, bottom - 1, right - 1, top + 1]);
    });
    pen.segments(lost, { color: theme.soft, width: 0.8, alpha: 0.7 });
    const tick = (log, [a, b], to) =>
      ticks(a, b, 4).map((t) => [to((t - a) / (b - a)), short(log ? Number((10 ** t).toPrecision(1)) : t)]);
    frame(
      pen,
      { x, y, w, h },
      tick(axes.x.scale === "log", axes.xs, (p) => x + p * w),
      tick(axes.h?.scale === "log", axes.ys, (p) => y + (1 - p) * h),
    );
    mapKey(pen, { x, y, w, h }, hasLimit);
    if (!hasLimit) return;
    const line = [];
    for (let k = 0; k <= 60; k++) {
      const hyper = { ...axes.run.hyper, ...(axes.y === "noise" ? {} : { [axes.y]: axes.valueY(k / 60) }) };
      const limit = lab.stabilityLimit(axes.run.rule, hyper, curvature);
      line.push([x + axes.partX(limit) * w, y + (1 - k / 60) * h]);
    }
    pen.clip(x, y, w, h, () => {
      pen.line(line, { color: theme.paper, width: 4 });
      pen.line(line, { color: LIMIT, width: 2, dash: [6, 3] });
    });
  },
  front(pen, box) {
    const axes = mapAxes(),
      { x, y, w, h } = this.inner(box);
    if (!axes) return;
    const v = axes.y === "noise" ? state.noise : axes.run.hyper[axes.y],
      px = x + axes.partX(axes.run.hyper[axes.x.name]) * w,
      py = y + (1 - axes.partY(v)) * h;
    pen.clip(x - 6, y - 6, w + 12, h + 12, () => {
      pen.circle(px, py, 6, { stroke: theme.paper, width: 4 });
      pen.circle(px, py, 6, { stroke: theme.ink, width: 2 });
    });
    if (document.activeElement === $("map")) {
      const cw = w / map.columns,
        ch = h / map.rows,
        [i, j] = map.spot,
        a = x + i * cw,
        b = y + h - (j + 1) * ch;
      outline(pen, a, b, cw, ch, { color: LIMIT, width: 2 });
    }
  },
  caption() {
    const axes = mapAxes();
    if (!axes) return "No run.";
    const curvature = mapCurvature(),
      limit = curvature === null ? null : lab.stabilityLimit(axes.run.rule, axes.run.hyper, curvature);
    const endless = SURFACES[state.surface].minimum === null,
      what = endless ? "the last gradient norm" : "how far above the minimum it ends";
    const curved = axes.run.rule === "newton_pure" ? "" : `, for curvature ${short(curvature)}`;
    const words =
      limit === null
        ? "No stability limit is known for this optimizer here."
        : `Stability limit: ${short(limit)} at these settings${curved}.`;
    return [
      `${axes.x.symbol} across, ${axes.h?.symbol ?? "noise"} upwards.`,
      `Colour: ${what} after ${state.steps} steps, ${theme.dark ? "bright" : "dark"} where it is low.`,
      words,
      "A click loads the settings of that run.",
    ].join(" ");
  },
};

const PICTURES = {
  contour: contourPicture,
  relief,
  loss: chart(loss, { ensemble: true, tells: true }),
  gradient: chart((p) => p.gradNorm),
  length: chart((p) => p.length),
  map: mapPicture,
};
