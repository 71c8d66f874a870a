// The lab's curves: one number a step of every run, under one cursor.

/** The runs that the limits of a curve are taken from: those that do not diverge; all of them where all do. */
function settled() {
  const calm = paths.filter(([path]) => !path.end);
  return calm.length ? calm : paths;
}

/** The median of the runs' largest values, or of another measure of them: one run alone sets no limit. */
function typical(pick, measure) {
  const sizes = settled()
    .map(([path]) => measure(...pick(path).filter((v) => v > 0 && v < Infinity)))
    .filter(Number.isFinite)
    .sort((a, b) => a - b);
  return sizes[Math.floor((sizes.length - 1) / 2)];
}

/** A chart of one number a step, logarithmic where all of it is positive. `tells`: names the runs that diverge. */
function chart(pick, { ensemble = false, tells = false } = {}) {
  return {
    scale(box) {
      const inner = { x: 48, y: 6, w: box.w - 60, h: box.h - 28 };
      const log = !(pick === loss && SURFACES[state.surface].minimum === null);
      const all = settled().flatMap(([path]) => pick(path)).filter(Number.isFinite);
      const positive = all.filter((v) => v > 0);
      let most = log ? Math.max(...positive, 1e-300) : Math.max(...all),
        least = log ? Math.min(...positive) : Math.min(...all);
      if (!all.length || (log && !positive.length)) [least, most] = [0.1, 1];
      if (log && positive.length) {
        // a run that grows or falls far beyond the others leaves the panel, and flattens none of them
        most = Math.min(most, 1000 * typical(pick, Math.max));
        least = Math.max(least, Math.min(typical(pick, Math.min) / 1000, most * 1e-8));
      }
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
        ? logTicks(a, b, 5).map((t) => [toY(10 ** t), rounded(10 ** t)])
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
          pen.line(line, { color: color(i), dash: dash(i), width: 1.8 });
        });
      });
      if (tells) this.losses(pen, inner);
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
    /** Which runs diverged, and when: they leave the panel, or end in it. */
    losses(pen, inner) {
      const words = paths.flatMap(([path], i) => (path.end ? [`${named(i)}: ${ending(path)}`] : []));
      const room = Math.max(1, Math.floor(inner.h / 26)),
        shown = words.length > room ? [...words.slice(0, room - 1), `and ${words.length - room + 1} more`] : words;
      const [right, size] = [inner.x + inner.w - 3, 10.5];
      shown.forEach((text, k) => {
        const [y, width] = [inner.y + 9 + 13 * k, 0.56 * size * text.length];
        const [x0, x1, y0, y1] = [right - width - 3, right + 2, y - 6.5, y + 6.5];
        pen.fill(
          [
            [x0, y0],
            [x1, y0],
            [x1, y1],
            [x0, y1],
          ],
          theme.paper,
          0.85,
        );
        pen.text(text, right, y, { color: theme.ink, size, align: "right" });
      });
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
          const [px, py] = [toX(k), toY(pick(path)[k])];
          pen.circle(px, py, 4, { fill: color(i), stroke: theme.paper });
          if (path.end && k === path.value.length - 1) cross(pen, px, Math.max(py, inner.y + 3));
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
