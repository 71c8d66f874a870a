// The lab's time: pictures on their canvases, the legend, the table, and the player.

const MOVING = ["contour", "relief", "loss", "gradient", "length"];

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

function readTheme() {
  if (state.theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = state.theme;
  const style = getComputedStyle(document.documentElement),
    value = (name) => style.getPropertyValue(name).trim();
  theme = { paper: value("--paper"), ink: value("--ink"), soft: value("--soft"), rule: value("--rule") };
  theme.dark = style.colorScheme === "dark";
}

/** A sample of line i: long enough for every dash pattern. */
function swatchOf(i) {
  const swatch = element("canvas", { class: "swatch", width: 120, height: 24, "aria-hidden": "true" });
  const context = swatch.getContext("2d");
  context.scale(2, 2);
  new CanvasPen(context).line(
    [
      [0, 6],
      [60, 6],
    ],
    { color: color(i), dash: dash(i), width: 2.5 },
  );
  return swatch;
}

/** Colour and dashes of every run, and which of them diverged. */
function showLegend() {
  $("legend").replaceChildren(
    ...paths.map(([path], i) => {
      const words = ending(path);
      return element("li", {}, swatchOf(i), words ? `${named(i)} (${words})` : named(i));
    }),
  );
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
      k === path.value.length - 1 ? ending(path) : "",
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
    const end = path.end && k === path.value.length - 1 ? `, ${ending(path)}` : "";
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

let pending = 0,
  stale = true; // the paths are not those of the state

/** Everything anew, after any change of state. */
function refresh({ controls = false } = {}) {
  state.step = Math.min(state.step, state.steps);
  note([]);
  readTheme();
  stale = true;
  if (controls) {
    compute(); // the lines and the cards of one moment
    showControls();
  }
  cancelAnimationFrame(pending);
  pending = requestAnimationFrame(paint);
  remember();
}

function paint() {
  readTheme();
  if (stale) compute();
  $("loss-caption").textContent =
    SURFACES[state.surface].minimum === null ? "Loss (it has no minimum)" : "Loss above the minimum";
  if (paths[0]?.length > 1) $("loss-caption").textContent += "; bands: 80 % of the runs";
  showLegend();
  $("scrub").max = state.steps;
  draw(Object.keys(PICTURES).filter((id) => id !== "map"));
  moveTo(state.step, !playing);
  showMapControls();
  startMap();
}
