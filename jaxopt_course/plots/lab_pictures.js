// The lab's pictures. Each has back(pen, box), which stands still, and front(pen, box), which moves with time.

function plane(box) {
  const [[left, right], [low, high]] = SURFACES[state.surface].window;
  const inner = { x: 34, y: 6, w: box.w - 40, h: box.h - 28 };
  return {
    inner,
    to: ([x, y]) => [
      inner.x + ((x - left) / (right - left)) * inner.w,
      inner.y + (1 - (y - low) / (high - low)) * inner.h,
    ],
    from: ([px, py]) => [
      left + ((px - inner.x) / inner.w) * (right - left),
      low + (1 - (py - inner.y) / inner.h) * (high - low),
    ],
  };
}

const near = ([x, y], box) => [clamp(x, -1e4, 1e4 + box.w), clamp(y, -1e4, 1e4 + box.h)]; // no huge numbers
const worldPath = (path, upTo, to, box) =>
  Array.from({ length: upTo + 1 }, (_, k) => near(to([path.x[k], path.y[k]]), box));

function drawRuns(pen, box, to) {
  paths.forEach((members, i) => {
    const path = members[0],
      k = rowAt(path, state.step),
      style = { color: color(i), dash: dash(i) };
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
    const k = rowAt(path, state.step),
      [x, y] = near(to([path.x[k], path.y[k]]), box);
    pen.circle(x, y, 5, { fill: color(i), stroke: theme.paper });
    if (path.end && k === path.value.length - 1) pen.text("x", x, y, { color: theme.paper, align: "center" });
  });
}

const contourPicture = {
  back(pen, box) {
    const { inner, to } = plane(box),
      surface = SURFACES[state.surface],
      cells = 90,
      g = gridOf(state.surface, cells);
    const [[left, right], [low, high]] = surface.window;
    const levels = Array.from({ length: LEVELS }, (_, k) => g.at((k + 0.5) / LEVELS));
    const rank = (v) => levels.filter((level) => v >= level).length / LEVELS;
    pen.clip(inner.x, inner.y, inner.w, inner.h, () => {
      const w = inner.w / cells,
        h = inner.h / cells;
      g.values.slice(0, -1).forEach((row, j) => {
        // runs of cells of one shade are one rectangle
        for (let i = 0, from = 0; i < cells; i++) {
          const here = rank(row[i]);
          if (i + 1 < cells && rank(row[i + 1]) === here) continue;
          tile(
            pen,
            inner.x + from * w,
            inner.x + (i + 1) * w,
            inner.y + inner.h - (j + 1) * h,
            inner.y + inner.h - j * h,
            shade(here),
          );
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
      pen.segments(
        [
          [x - 6, y, x + 6, y],
          [x, y - 6, x, y + 6],
        ],
        { color: theme.ink, width: 2 },
      );
    });
    frame(
      pen,
      inner,
      ticks(left, right, 6).map((x) => [to([x, 0])[0], short(x)]),
      ticks(low, high, 6).map((y) => [to([0, y])[1], short(y)]),
    );
  },
  arrows(pen, inner, to, surface) {
    const [[left, right], [low, high]] = surface.window,
      count = 15,
      list = [];
    const spots = [];
    for (let j = 0; j < count; j++)
      for (let i = 0; i < count; i++) {
        const w = [left + ((right - left) * (i + 0.5)) / count, low + ((high - low) * (j + 0.5)) / count];
        spots.push([w, surface.g(...w)]);
      }
    const sizes = spots.map(([, g]) => Math.hypot(...g)).sort((a, b) => a - b),
      typical = sizes[Math.floor(sizes.length / 2)] || 1;
    const sign = state.field === "gradient" ? 1 : -1;
    for (const [w, g] of spots) {
      const [x, y] = to(w),
        size = Math.hypot(...g);
      if (!(size > 1e-9 * typical)) continue;
      const dx = (sign * g[0] * inner.w) / (right - left),
        dy = (-sign * g[1] * inner.h) / (high - low),
        norm = Math.hypot(dx, dy);
      const length = 4 + (9 * Math.log1p(size / typical)) / Math.log1p(sizes[sizes.length - 1] / typical);
      const [ux, uy] = [dx / norm, dy / norm],
        [hx, hy] = [x + ux * length, y + uy * length];
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
  caption: () =>
    `${state.surface.replaceAll("_", " ")}: contours at equal shares of the area, ${state.field === "none" ? "" : `arrows ${state.field === "downhill" ? "downhill" : "along the gradient"}, `}+ the start${SURFACES[state.surface].minimizers.length ? ", star the minimum" : ""}${state.trials ? ", rings what a search tried" : ""}`,
};

/** A rectangle between whole pixels, so that neighbours meet without a seam. */
function tile(pen, left, right, top, bottom, fill) {
  const [x0, x1, y0, y1] = [left, right, top, bottom].map(Math.round);
  pen.fill(
    [
      [x0, y0],
      [x1, y0],
      [x1, y1],
      [x0, y1],
    ],
    fill,
  );
}

function star(pen, x, y) {
  const points = Array.from({ length: 10 }, (_, k) => {
    const r = k % 2 ? 3.2 : 8,
      a = (Math.PI * k) / 5;
    return [x + r * Math.sin(a), y - r * Math.cos(a)];
  });
  pen.fill(points, theme.ink);
  pen.line([...points, points[0]], { color: theme.paper, width: 1 });
}

function frame(pen, { x, y, w, h }, below, beside) {
  pen.line(
    [
      [x, y],
      [x + w, y],
      [x + w, y + h],
      [x, y + h],
      [x, y],
    ],
    { color: theme.rule },
  );
  for (const [at, words] of below) {
    pen.line(
      [
        [at, y + h],
        [at, y + h + 4],
      ],
      { color: theme.soft },
    );
    pen.text(words, at, y + h + 12, { color: theme.soft, align: "center", size: 10 });
  }
  for (const [at, words] of beside) {
    pen.line(
      [
        [x - 4, at],
        [x, at],
      ],
      { color: theme.soft },
    );
    pen.text(words, x - 6, at, { color: theme.soft, align: "right", size: 10 });
  }
}

const relief = {
  /** Height in [0, 1], logarithmic above the lowest value seen; and where a point of the plane lies in the picture. */
  view(box) {
    const g = gridOf(state.surface, 36),
      [[left, right], [low, high]] = SURFACES[state.surface].window;
    const least = g.at(0),
      most = g.at(1),
      scale = Math.max(g.at(0.5) - least, 1e-9) / 4;
    const height = (v) => Math.log1p(Math.max(v - least, 0) / scale) / Math.log1p((most - least) / scale);
    const [turn, tilt] = state.view;
    const [c, s, up] = [Math.cos(turn), Math.sin(turn), Math.sin(tilt)];
    const size = Math.min(box.w / 3.1, box.h / (2.9 * up + 1.3 * Math.cos(tilt)));
    const place = (x, y, z) => {
      const u = (2 * (x - left)) / (right - left) - 1,
        v = (2 * (y - low)) / (high - low) - 1;
      const across = c * u - s * v,
        away = s * u + c * v;
      return [box.w / 2 + size * across, box.h / 2 - size * (away * up + (1.2 * z - 0.6) * Math.cos(tilt)), away];
    };
    return { g, height, place, inside: (x, y) => x >= left && x <= right && y >= low && y <= high };
  },
  back(pen, box) {
    const { g, height, place } = this.view(box),
      cells = 36,
      [[left, right], [low, high]] = SURFACES[state.surface].window;
    const spot = (i, j) =>
      place(left + ((right - left) * i) / cells, low + ((high - low) * j) / cells, height(g.values[j][i]));
    const quads = [];
    for (let j = 0; j < cells; j++)
      for (let i = 0; i < cells; i++) {
        const corners = [spot(i, j), spot(i + 1, j), spot(i + 1, j + 1), spot(i, j + 1)];
        quads.push([Math.max(...corners.map((p) => p[2])), corners, height(g.values[j][i])]);
      }
    quads.sort((a, b) => b[0] - a[0]);
    for (const [, corners, z] of quads) {
      const points = corners.map(([x, y]) => [x, y]);
      pen.fill(points, shade(z));
      pen.line([...points, points[0]], { color: theme.ink, width: 0.5, alpha: 0.22 });
    }
    for (const [word, x, y] of [
      ["x", right, low],
      ["y", left, high],
    ]) {
      const [px, py] = place(
        x + (word === "x" ? 0.06 * (right - left) : 0),
        y + (word === "y" ? 0.06 * (high - low) : 0),
        0,
      );
      pen.text(word, px, py, { color: theme.soft, align: "center", size: 12 });
    }
  },
  front(pen, box) {
    const { height, place } = this.view(box),
      surface = SURFACES[state.surface],
      [[left, right], [low, high]] = surface.window;
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
      const inner = { x: 48, y: 6, w: box.w - 60 - (labels ? 96 : 0), h: box.h - 28 };
      const all = paths.flatMap((members) => pick(members[0])).filter(Number.isFinite);
      const log = !(pick === loss && SURFACES[state.surface].minimum === null);
      const positive = all.filter((v) => v > 0);
      let most = log ? Math.max(...positive, 1e-300) : Math.max(...all),
        least = log ? Math.min(...positive) : Math.min(...all);
      if (!all.length || (log && !positive.length)) [least, most] = [0.1, 1];
      if (log) least = Math.max(least, most * 1e-16, 1e-300);
      else {
        const g = gridOf(state.surface, 36); // a fall without end: as far as the window shows
        least = Math.max(least, g.at(0) - (g.at(1) - g.at(0)));
        most = Math.min(most, g.at(1) + (g.at(1) - g.at(0)));
      }
      if (!(most > least)) most = log ? least * 10 : least + 1;
      const f = log ? (v) => Math.log10(Math.max(v, least)) : (v) => v,
        a = f(least),
        b = f(most);
      const toX = (k) => inner.x + (k / state.steps) * inner.w,
        toY = (v) => inner.y + (1 - clamp((f(v) - a) / (b - a), -0.02, 1.02)) * inner.h;
      const marks = log
        ? ticks(a, b, 5)
            .filter((t) => Number.isInteger(t) || b - a < 2)
            .map((t) => [toY(10 ** t), short(Number((10 ** t).toPrecision(2)))])
        : ticks(a, b, 5).map((t) => [toY(t), short(t)]);
      return { inner, toX, toY, marks };
    },
    back(pen, box) {
      const { inner, toX, toY, marks } = this.scale(box);
      frame(
        pen,
        inner,
        ticks(0, state.steps, 4).map((k) => [toX(k), String(k)]),
        marks,
      );
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
      const lines = members.map(pick),
        length = Math.max(...lines.map((line) => line.length)),
        edge = [[], []];
      for (let k = 0; k < length; k++) {
        const row = lines.map((line) => line[Math.min(k, line.length - 1)]).sort((a, b) => a - b);
        edge[0].push([toX(k), toY(row[Math.floor(0.1 * (row.length - 1))])]);
        edge[1].push([toX(k), toY(row[Math.ceil(0.9 * (row.length - 1))])]);
      }
      pen.fill([...edge[0], ...edge[1].reverse()], fill, 0.18);
    },
    names(pen, inner, toY) {
      const spots = paths
        .map(([path], i) => ({ i, y: toY(pick(path)[path.value.length - 1]) }))
        .sort((a, b) => a.y - b.y);
      spots.forEach((spot, k) => {
        if (k) spot.y = Math.max(spot.y, spots[k - 1].y + 12);
      });
      const over = spots.length ? spots[spots.length - 1].y - (inner.y + inner.h) : 0;
      for (const { i, y } of spots) {
        const [x, at] = [inner.x + inner.w + 4, y - Math.max(0, over)];
        pen.line(
          [
            [x, at],
            [x + 24, at],
          ],
          { color: color(i), dash: dash(i), width: 3 },
        );
        pen.text(named(i), x + 28, at, { color: theme.ink, size: 10.5 });
      }
    },
    front(pen, box) {
      const { inner, toX, toY } = this.scale(box),
        x = toX(state.step);
      pen.line(
        [
          [x, inner.y],
          [x, inner.y + inner.h],
        ],
        { color: theme.ink, width: 1 },
      );
      pen.clip(inner.x - 5, inner.y - 5, inner.w + 10, inner.h + 10, () =>
        paths.forEach(([path], i) => {
          const k = rowAt(path, state.step);
          pen.circle(toX(k), toY(pick(path)[k]), 4, { fill: color(i), stroke: theme.paper });
        }),
      );
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

const mapPicture = {
  inner: (box) => ({ x: 44, y: 6, w: box.w - 50, h: box.h - 30 }),
  back(pen, box) {
    const axes = mapAxes(),
      { x, y, w, h } = this.inner(box);
    if (!axes) return;
    const scores = map.cells.filter((s) => s > 0).map(Math.log10),
      least = Math.max(-16, Math.min(...scores)),
      most = Math.max(...scores, least + 1);
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
      pen.line(
        [
          [a, b],
          [a + cw, b],
          [a + cw, b + ch],
          [a, b + ch],
          [a, b],
        ],
        { color: "#d55e00", width: 2 },
      );
    }
  },
  caption() {
    const axes = mapAxes();
    if (!axes) return "No run.";
    const curvature = mapCurvature(),
      limit = curvature === null ? null : lab.stabilityLimit(axes.run.rule, axes.run.hyper, curvature);
    const what = SURFACES[state.surface].minimum === null ? "last gradient norm" : "how far above the minimum it ends";
    const words =
      limit === null
        ? "no fixed limit is known for it here"
        : `dashed: the stability limit, ${short(limit)} at these settings${axes.run.rule === "newton_pure" ? "" : `, for curvature ${short(curvature)}`}`;
    return `${axes.x.symbol} across, ${axes.h?.symbol ?? "noise"} upwards; ${theme.dark ? "bright" : "dark"} is low: ${what} after ${state.steps} steps; hatched: lost; ${words}. Ring: this run.`;
  },
};

const PICTURES = {
  contour: contourPicture,
  relief,
  loss: chart(loss, { ensemble: true, labels: true }),
  gradient: chart((p) => p.gradNorm),
  length: chart((p) => p.length),
  map: mapPicture,
};
