// The lab's pictures under the mouse, the finger and the keys.

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
    const { window } = SURFACES[state.surface];
    state.start = w.map((z, i) => clamp(Number(z.toPrecision(5)), ...window[i]));
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
    const across = `${axes.x.symbol} ${short(hyper[axes.x.name])}`,
      upwards = `${axes.h?.symbol ?? "noise"} ${short(axes.y === "noise" ? noise : hyper[axes.y])}`,
      found = s === null ? "diverged" : s === undefined ? "not computed yet" : short(s);
    $("say").textContent = `Map: ${across}, ${upwards}: ${found}.`;
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
