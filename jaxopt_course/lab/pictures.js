// The lab's pictures. Each has back(pen, box), which stands still, and front(pen, box), which moves with time.

const KEY = 62; // the room at the right of a picture for the key of its colours

function plane(box) {
  const [[left, right], [low, high]] = SURFACES[state.surface].window;
  const inner = { x: 34, y: 6, w: box.w - 40 - KEY, h: box.h - 28 };
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
    if (path.end && k === path.value.length - 1) cross(pen, x, y);
  });
}

/** Where a run diverged. */
function cross(pen, x, y) {
  const list = [
    [x - 5, y - 5, x + 5, y + 5],
    [x - 5, y + 5, x + 5, y - 5],
  ];
  pen.segments(list, { color: theme.paper, width: 4.5 });
  pen.segments(list, { color: theme.ink, width: 2 });
}

/** Levels at equal shares of the window's area, and the shade of a value: contours and surface share them. */
function bandsOf(name) {
  const g = gridOf(name, CELLS),
    levels = Array.from({ length: LEVELS }, (_, k) => g.at((k + 0.5) / LEVELS));
  return { levels, rank: (v) => levels.filter((level) => v >= level).length / LEVELS };
}

/** The key of the contours' colours: a band for each shade, and values between bands. */
function heightKey(pen, { x, y, w, h }, levels) {
  const left = x + w + 8,
    band = (h - 14) / (LEVELS + 1),
    edge = (k) => y + h - k * band;
  pen.text("value", left, y + 5, { color: theme.soft, size: 11 });
  for (let k = 0; k <= LEVELS; k++) tile(pen, left, left + 12, edge(k + 1), edge(k), shade(k / LEVELS));
  outline(pen, left, edge(LEVELS + 1), 12, band * (LEVELS + 1));
  const every = Math.ceil(14 / band);
  for (let k = 1 + Math.floor(every / 2); k <= LEVELS; k += every)
    pen.text(rounded(levels[k - 1]), left + 15, edge(k), { color: theme.soft, size: 11 });
}

const rounded = (v) => short(Number(v.toPrecision(2)));

function outline(pen, x, y, w, h, { color = theme.soft, width = 1 } = {}) {
  pen.line(
    [
      [x, y],
      [x + w, y],
      [x + w, y + h],
      [x, y + h],
      [x, y],
    ],
    { color, width },
  );
}

const contourPicture = {
  back(pen, box) {
    const { inner, to } = plane(box),
      surface = SURFACES[state.surface],
      cells = CELLS,
      g = gridOf(state.surface, cells),
      { levels, rank } = bandsOf(state.surface);
    const [[left, right], [low, high]] = surface.window;
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
    heightKey(pen, inner, levels);
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
  caption() {
    const field = { downhill: "arrows: downhill", gradient: "arrows: the gradient", none: "" }[state.field];
    const star = SURFACES[state.surface].minimizers.length ? "star: a minimum" : "";
    const parts = [field, "+: the start", star, state.trials ? "rings: trial points of a search" : ""];
    return `${state.surface.replaceAll("_", " ")} (${parts.filter(Boolean).join("; ")})`;
  },
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
  outline(pen, x, y, w, h, { color: theme.rule });
  for (const [at, words] of below) {
    pen.line(
      [
        [at, y + h],
        [at, y + h + 4],
      ],
      { color: theme.soft },
    );
    pen.text(words, at, y + h + 12, { color: theme.soft, align: "center", size: 11 });
  }
  for (const [at, words] of beside) {
    pen.line(
      [
        [x - 4, at],
        [x, at],
      ],
      { color: theme.soft },
    );
    pen.text(words, x - 6, at, { color: theme.soft, align: "right", size: 11 });
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
      { rank } = bandsOf(state.surface),
      cells = 36,
      [[left, right], [low, high]] = SURFACES[state.surface].window;
    const spot = (i, j) =>
      place(left + ((right - left) * i) / cells, low + ((high - low) * j) / cells, height(g.values[j][i]));
    const quads = [];
    for (let j = 0; j < cells; j++)
      for (let i = 0; i < cells; i++) {
        const corners = [spot(i, j), spot(i + 1, j), spot(i + 1, j + 1), spot(i, j + 1)];
        quads.push([Math.max(...corners.map((p) => p[2])), corners, rank(g.values[j][i])]);
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
