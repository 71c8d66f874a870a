// What the lab saves: one sheet as PNG or SVG, a table as CSV, and the link.

function save(name, type, content) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  $("say").textContent = `${name} is saved.`;
}

const settingsOf = ({ rule, hyper }) => {
  const words = Object.entries(hyper).map(([k, v]) => `${k} ${short(v)}`);
  return `${lab.RULES[rule].label}  ${words.join(", ")}`;
};

/** The size of the sheet, which has room for a line for every run. */
const sizeOfBoard = () => ({ width: 1200, height: Math.max(1010, 816 + 18 * paths.length) });

/** All pictures on one sheet, with a line for every run. */
function board(pen) {
  const { width, height } = sizeOfBoard();
  pen.fill(
    [
      [0, 0],
      [width, 0],
      [width, height],
      [0, height],
    ],
    theme.paper,
  );
  const noise = state.noise > 0 ? `, noise ${short(state.noise)}, seed ${state.seed}` : "",
    title = `${state.surface.replaceAll("_", " ")}, step ${state.step} of ${state.steps}${noise}`;
  pen.text(title, 20, 20, { color: theme.ink, size: 16 });
  const places = [
    ["contour", 20, 44, 570, 420],
    ["relief", 610, 44, 570, 420],
    ["loss", 20, 500, 380, 250],
    ["gradient", 410, 500, 380, 250],
    ["length", 800, 500, 380, 250],
    ["map", 20, 786, 380, 200],
  ];
  for (const [id, x, y, w, h] of places) {
    const title = {
      loss: $("loss-caption").textContent.split(";")[0],
      gradient: "gradient norm",
      length: "step length",
      map: `map of ${state.runs[state.mapRun] ? named(state.mapRun) : "nothing"}`,
    }[id];
    if (title) pen.text(title, x + 34, y - 8, { color: theme.soft, size: 12 });
    pen.shift(x, y, () => {
      PICTURES[id].back(pen, { w, h });
      PICTURES[id].front(pen, { w, h });
    });
  }
  paths.forEach((_, i) => {
    const y = 796 + 18 * i;
    pen.line(
      [
        [430, y],
        [474, y],
      ],
      { color: color(i), dash: dash(i), width: 2.5 },
    );
    const words = [i < state.runs.length ? settingsOf(state.runs[i]) : `${named(i)}  recorded`, ending(paths[i][0])];
    pen.text(words.filter(Boolean).join(": "), 484, y, { color: theme.ink, size: 12 });
  });
}

function exportPng() {
  const { width, height } = sizeOfBoard(),
    canvas = element("canvas", { width: 2 * width, height: 2 * height }),
    context = canvas.getContext("2d");
  context.scale(2, 2);
  board(new CanvasPen(context));
  canvas.toBlob((blob) => save("lab.png", "image/png", blob));
}

function exportSvg() {
  const pen = new SvgPen();
  board(pen);
  save("lab.svg", "image/svg+xml", pen.page(...Object.values(sizeOfBoard())));
}

/** The optimizer of a run and its settings, as cells of the table. */
function optimizerCells(i) {
  if (i >= state.runs.length) return [`"${named(i).replaceAll('"', '""')}"`, "recorded"];
  const { rule, hyper } = state.runs[i];
  return [rule, Object.entries(hyper).map(([n, v]) => `${n}=${v}`).join(" ")];
}

function exportCsv() {
  const rows = [
    ["run", "optimizer", "settings", "member", "step", "x", "y", "value", "gradient_norm", "step_length", "trials"],
  ];
  paths.forEach((members, i) =>
    members.forEach((path, member) =>
      path.value.forEach((value, k) =>
        rows.push([
          i,
          ...optimizerCells(i),
          member,
          k,
          path.x[k],
          path.y[k],
          value,
          path.gradNorm[k],
          path.length[k],
          path.trials[k].length,
        ]),
      ),
    ),
  );
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
