// The lab's page: pictures on their canvases, the controls, and what is saved.

function boxOf(id) {
  const canvas = $(id);
  return { w: canvas.clientWidth, h: canvas.clientHeight };
}

function draw(ids = Object.keys(PICTURES), background = true) {
  for (const id of ids) {
    const canvas = $(id),
      box = boxOf(id),
      ratio = Math.min(window.devicePixelRatio || 1, 2);
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
  const style = getComputedStyle(document.documentElement),
    value = (name) => style.getPropertyValue(name).trim();
  theme = { paper: value("--paper"), ink: value("--ink"), soft: value("--soft"), rule: value("--rule") };
  theme.dark = style.colorScheme === "dark";
}

function showTable() {
  const body = $("rows");
  while (body.rows.length > paths.length) body.deleteRow(-1);
  paths.forEach(([path], i) => {
    const row = body.rows[i] ?? body.insertRow(),
      k = rowAt(path, state.step);
    const cells = [
      named(i),
      k,
      short(path.x[k]),
      short(path.y[k]),
      short(path.value[k]),
      short(path.gradNorm[k]),
      short(path.length[k]),
      path.trials[k].length || "",
      k === path.value.length - 1 ? (path.end ?? "") : "",
    ];
    cells.forEach((text, c) => {
      const cell = row.cells[c] ?? row.insertCell();
      if (cell.textContent !== String(text)) cell.textContent = text;
    });
  });
}

function say() {
  const words = paths.map(([path], i) => {
    const k = rowAt(path, state.step);
    const end = path.end && k === path.value.length - 1 ? `, ${path.end}` : "";
    return `${named(i)} at (${short(path.x[k])}, ${short(path.y[k])}), value ${short(path.value[k])}${end}`;
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
  if (loud) {
    say();
    remember();
  }
}

function setPlaying(on) {
  playing = on;
  $("play").textContent = on ? "Pause" : "Play";
  $("play").setAttribute("aria-pressed", String(on));
  if (!on) {
    say();
    remember();
    return;
  }
  if (state.step >= state.steps) state.step = 0;
  clock = state.step;
  let before = null;
  const frame = (now) => {
    if (!playing) return;
    if (before !== null) clock += ((now - before) / 1000) * state.speed;
    before = now;
    if (Math.floor(clock) !== state.step) moveTo(Math.floor(clock), false);
    else draw(MOVING, false);
    if (state.step >= state.steps) setPlaying(false);
    else requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}

let pending = 0;

/** Everything anew, after any change of state. */
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
  $("loss-caption").textContent =
    SURFACES[state.surface].minimum === null ? "Value (it has no minimum)" : "Value above the minimum";
  if (paths[0]?.length > 1) $("loss-caption").textContent += "; bands: four fifths of each ensemble";
  $("scrub").max = state.steps;
  draw(Object.keys(PICTURES).filter((id) => id !== "map"));
  moveTo(state.step, !playing);
  showMapControls();
  startMap();
}

// Controls

function options(select, entries, value) {
  select.replaceChildren(
    ...entries.map(([key, words]) => {
      const option = document.createElement("option");
      [option.value, option.textContent] = [key, words];
      return option;
    }),
  );
  select.value = value;
}

/** A number with a slider: both show it, both change it. */
function pair(id, { get, set, log = false }) {
  const range = $(`${id}-range`),
    box = $(id);
  range.addEventListener("input", () => {
    set(log ? Number((10 ** range.valueAsNumber).toPrecision(3)) : Number(range.valueAsNumber.toPrecision(6)));
    box.value = get();
    refresh();
  });
  box.addEventListener("change", () => {
    const x = box.valueAsNumber,
      legal =
        Number.isFinite(x) &&
        x >= (box.min === "" ? -Infinity : Number(box.min)) &&
        x <= (box.max === "" ? Infinity : Number(box.max));
    if (legal) set(x);
    else
      note([
        `${box.getAttribute("aria-label") ?? id} cannot be ${Number.isFinite(x) ? x : "empty"}: between ${box.min || "anything"} and ${box.max || "anything"}`,
      ]);
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
  options(
    $("surface"),
    DATA.surfaces.map((s) => [s.name, s.name.replaceAll("_", " ")]),
    state.surface,
  );
  options($("field"), Object.entries(FIELDS), state.field);
  options(
    $("speed"),
    SPEEDS.map((v) => [v, `${v} steps/s`]),
    state.speed,
  );
  options(
    $("rule"),
    Object.entries(lab.RULES).map(([key, rule]) => [key, rule.label]),
    "adam",
  );
  for (const k of [0, 1])
    shows.push(
      pair(`start-${"xy"[k]}`, {
        get: () => state.start[k],
        set: (v) => (state.start = state.start.map((old, i) => (i === k ? v : old))),
      }),
    );
  for (const key of ["steps", "noise", "seed", "members"])
    shows.push(pair(key, { get: () => state[key], set: (v) => (state[key] = key === "noise" ? v : Math.round(v)) }));
  const on = (id, event, act) => $(id).addEventListener(event, act);
  on("surface", "change", () => {
    const rules = state.runs.map((run) => run.rule),
      name = $("surface").value;
    Object.assign(state, {
      surface: name,
      start: SURFACES[name].start.slice(),
      runs: rules.map((rule) => newRun(rule, name)),
      step: 0,
    });
    refresh({ controls: true });
  });
  on("field", "change", () => {
    state.field = $("field").value;
    refresh();
  });
  on("trials", "change", () => {
    state.trials = $("trials").checked;
    refresh();
  });
  on("speed", "change", () => {
    state.speed = Number($("speed").value);
    remember();
  });
  on("theme", "change", () => {
    state.theme = $("theme").value;
    refresh();
  });
  on("add", "click", () => {
    state.runs.push(newRun($("rule").value, state.surface));
    refresh({ controls: true });
  });
  on("add-all", "click", () => {
    state.runs = Object.keys(lab.RULES).map((rule) => newRun(rule, state.surface));
    refresh({ controls: true });
  });
  on("reset", "click", () => {
    [state] = fromHash(DATA.state);
    setPlaying(false);
    refresh({ controls: true });
  });
  on("play", "click", () => setPlaying(!playing));
  const jump = (id, to) =>
    on(id, "click", () => {
      setPlaying(false);
      moveTo(to());
    });
  jump("first", () => 0);
  jump("back", () => state.step - 1);
  jump("forward", () => state.step + 1);
  jump("last", () => state.steps);
  on("scrub", "input", () => {
    clock = $("scrub").valueAsNumber;
    moveTo(clock);
  });
  on("map-run", "change", () => {
    state.mapRun = Number($("map-run").value);
    state.mapAxis = null;
    refresh();
  });
  on("map-axis", "change", () => {
    state.mapAxis = $("map-axis").value;
    refresh();
  });
  setUpPictures(on);
  on("png", "click", exportPng);
  on("svg", "click", exportSvg);
  on("csv", "click", exportCsv);
  on("link", "click", copyLink);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || ["INPUT", "SELECT", "BUTTON"].includes(event.target.tagName))
      return;
    const act = {
      " ": () => setPlaying(!playing),
      ",": () => moveTo(state.step - 1),
      ".": () => moveTo(state.step + 1),
      Home: () => moveTo(0),
      End: () => moveTo(state.steps),
    }[event.key];
    if (act) {
      event.preventDefault();
      if (event.key !== " ") setPlaying(false);
      act();
    }
  });
  addEventListener("pagehide", () => remember(true));
  addEventListener("hashchange", () => {
    if (location.hash !== own) load(location.hash);
  });
  new ResizeObserver(() => draw()).observe(document.querySelector(".panels"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => refresh());
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

function setUpPictures(on) {
  const spot = (id, event) => {
    const r = $(id).getBoundingClientRect();
    return [event.clientX - r.left, event.clientY - r.top];
  };
  const arrows = (id, act) =>
    on(id, "keydown", (event) => {
      const way = ARROWS[event.key];
      if (!way) return;
      event.preventDefault();
      act(...way, event.shiftKey ? 10 : 1);
    });
  const begin = (w) => {
    state.start = w.map((z) => Number(z.toPrecision(5)));
    refresh({ controls: true });
  };
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
  on("relief", "pointerdown", (event) => {
    held = [event.clientX, event.clientY];
    $("relief").setPointerCapture(event.pointerId);
  });
  on("relief", "pointermove", (event) => {
    if (!held) return;
    turn((event.clientX - held[0]) / 150, (event.clientY - held[1]) / 150);
    held = [event.clientX, event.clientY];
  });
  for (const end of ["pointerup", "pointercancel"]) on("relief", end, () => (held = null));
  arrows("relief", (dx, dy) => turn(-0.1 * dx, -0.1 * dy));
  for (const id of ["loss", "gradient", "length"]) {
    on(id, "click", (event) => {
      setPlaying(false);
      moveTo(PICTURES[id].stepAt(spot(id, event)[0], boxOf(id)));
    });
    arrows(id, (dx) => {
      setPlaying(false);
      moveTo(state.step + dx);
    });
  }
  const cell = (event) => {
    const { x, y, w, h } = mapPicture.inner(boxOf("map")),
      [px, py] = spot("map", event);
    return [
      clamp(Math.floor(((px - x) / w) * map.columns), 0, map.columns - 1),
      clamp(Math.floor((1 - (py - y) / h) * map.rows), 0, map.rows - 1),
    ];
  };
  on("map", "click", (event) => loadCell(cell(event)));
  arrows("map", (dx, dy) => {
    map.spot = [clamp(map.spot[0] + dx, 0, map.columns - 1), clamp(map.spot[1] + dy, 0, map.rows - 1)];
    draw(["map"], false);
    const axes = mapAxes();
    if (!axes) return;
    const { hyper, noise } = mapSettings(axes, ...map.spot),
      s = map.cells[map.spot[1] * map.columns + map.spot[0]];
    $("say").textContent =
      `Map: ${axes.x.symbol} ${short(hyper[axes.x.name])}, ${axes.h?.symbol ?? "noise"} ${short(axes.y === "noise" ? noise : hyper[axes.y])}: ${s === null ? "lost" : s === undefined ? "not computed yet" : short(s)}.`;
  });
  on("map", "keydown", (event) => {
    if (event.key === "Enter") loadCell(map.spot);
  });
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
  const {
    window: [xs, ys],
    noise,
  } = SURFACES[state.surface];
  [
    ["start-x-range", xs],
    ["start-y-range", ys],
    ["noise-range", [0, 4 * noise]],
  ].forEach(([id, [low, high]]) => {
    Object.assign($(id), { min: low, max: high, step: (high - low) / 500 });
  });
  shows.forEach((show) => show());
  $("runs").replaceChildren(...state.runs.map(card), ...recorded().map(recordedCard));
  state.runs.forEach((run, i) =>
    lab.RULES[run.rule].hyper.forEach((h) =>
      pair(`run-${i}-${h.name}`, {
        get: () => run.hyper[h.name],
        set: (v) => (run.hyper[h.name] = v),
        log: h.scale === "log",
      })(),
    ),
  );
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function swatchOf(i) {
  const swatch = element("canvas", { class: "swatch", width: 84, height: 24, "aria-hidden": "true" });
  readTheme();
  const context = swatch.getContext("2d");
  context.scale(2, 2);
  new CanvasPen(context).line(
    [
      [0, 6],
      [42, 6],
    ],
    { color: color(i), dash: dash(i), width: 3 },
  );
  return swatch;
}

function recordedCard({ label, runs }, k) {
  const words = `recorded: ${runs.length > 1 ? `${runs.length} paths of ` : ""}${runs[0].length - 1} steps`;
  return element("fieldset", {}, element("legend", {}, swatchOf(state.runs.length + k), label), words);
}

function card(run, i) {
  const { label, hyper } = lab.RULES[run.rule];
  const remove = element("button", { "aria-label": `Remove ${label}, run ${i + 1}`, id: `remove-${i}` }, "Remove");
  remove.addEventListener("click", () => {
    state.runs.splice(i, 1);
    state.mapRun = 0;
    refresh({ controls: true });
  });
  const rows = hyper.map((h) => {
    const id = `run-${i}-${h.name}`,
      log = h.scale === "log",
      [low, high] = bounds(h);
    const range = element("input", {
      type: "range",
      id: `${id}-range`,
      min: log ? Math.log10(h.low) : h.low,
      max: log ? Math.log10(h.high) : h.high,
      step: log ? 0.01 : h.step,
      "aria-label": `${label}, run ${i + 1}: ${h.symbol}, slider`,
    });
    const box = element("input", {
      type: "number",
      id,
      min: low,
      max: high,
      step: h.step ?? "any",
      "aria-label": `${label}, run ${i + 1}: ${h.symbol}`,
    });
    return element("label", { class: "row" }, h.symbol, range, box);
  });
  return element("fieldset", {}, element("legend", {}, swatchOf(i), label), ...rows, remove);
}

function showMapControls() {
  state.mapRun = clamp(state.mapRun, 0, Math.max(0, state.runs.length - 1));
  options(
    $("map-run"),
    state.runs.map((_, i) => [i, named(i)]),
    state.mapRun,
  );
  const axes = mapAxes();
  options(
    $("map-axis"),
    (axes?.names ?? []).map((name) => [
      name,
      (axes.run && lab.RULES[axes.run.rule].hyper.find((h) => h.name === name)?.symbol) || "noise",
    ]),
    axes?.y,
  );
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

const settingsOf = ({ rule, hyper }) => {
  const words = Object.entries(hyper).map(([k, v]) => `${k} ${short(v)}`);
  return `${lab.RULES[rule].label}  ${words.join(", ")}`;
};

const BOARD = { width: 1200, height: 1010 };

/** All pictures on one sheet, with a line for every run. */
function board(pen) {
  const { width, height } = BOARD;
  pen.fill(
    [
      [0, 0],
      [width, 0],
      [width, height],
      [0, height],
    ],
    theme.paper,
  );
  pen.text(
    `${state.surface.replaceAll("_", " ")}, step ${state.step} of ${state.steps}${state.noise > 0 ? `, noise ${short(state.noise)}, seed ${state.seed}` : ""}`,
    20,
    20,
    { color: theme.ink, size: 16 },
  );
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
      gradient: "norm of the gradient",
      length: "length of the step",
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
    pen.text(
      i < state.runs.length ? settingsOf(state.runs[i]) : `${named(i)}  recorded`,
      484,
      y,
      { color: theme.ink, size: 12 },
    );
  });
}

function exportPng() {
  const canvas = element("canvas", { width: 2 * BOARD.width, height: 2 * BOARD.height }),
    context = canvas.getContext("2d");
  context.scale(2, 2);
  board(new CanvasPen(context));
  canvas.toBlob((blob) => save("lab.png", "image/png", blob));
}

function exportSvg() {
  const pen = new SvgPen();
  board(pen);
  save("lab.svg", "image/svg+xml", pen.page(BOARD.width, BOARD.height));
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

function load(hash) {
  let wrong;
  [state, wrong] = fromHash(hash);
  note(wrong);
  refresh({ controls: true });
}

requestAnimationFrame(() =>
  setTimeout(() => {
    // the page shows before it computes
    setUp();
    load(location.hash.length > 1 ? location.hash : DATA.state);
  }),
);
