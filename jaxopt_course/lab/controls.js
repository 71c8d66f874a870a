// The lab's controls, and what they change.

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
function pair(id, { get, set, log = false, whole = false }) {
  const range = $(`${id}-range`),
    box = $(id);
  range.addEventListener("input", () => {
    set(log ? Number((10 ** range.valueAsNumber).toPrecision(3)) : Number(range.valueAsNumber.toPrecision(6)));
    box.value = get();
    refresh();
  });
  box.addEventListener("change", () => {
    const words = refusal(box.getAttribute("aria-label"), box.value, Number(box.min), Number(box.max), whole);
    if (words === null) {
      set(box.valueAsNumber);
      refresh();
    } else note([`${words}. It stays ${get()}`]);
    show();
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
    SETTINGS.choices.speed.map((v) => [v, `${v} steps/s`]),
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
  for (const [key, { least, most, whole }] of Object.entries(SETTINGS.numbers)) {
    Object.assign($(key), { min: least, max: most });
    const set = (v) => {
      const atEnd = state.step === state.steps;
      state[key] = v;
      if (atEnd) state.step = state.steps;
    };
    shows.push(pair(key, { get: () => state[key], set, whole }));
  }
  const on = (id, event, act) => $(id).addEventListener(event, act);
  on("surface", "change", () => {
    const rules = state.runs.map((run) => run.rule),
      name = $("surface").value;
    Object.assign(state, {
      surface: name,
      start: SURFACES[name].start.slice(),
      runs: rules.map((rule) => newRun(rule, name)),
      step: state.steps,
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
    if (state.runs.length >= SETTINGS.most_runs) return note([`there are ${state.runs.length} runs, the most`]);
    state.runs.push(newRun($("rule").value, state.surface));
    refresh({ controls: true });
  });
  on("add-all", "click", () => {
    state.runs = Object.keys(lab.RULES).map((rule) => newRun(rule, state.surface));
    refresh({ controls: true });
  });
  on("reset", "click", () => {
    loaded = [];
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
  on("files", "change", () => readFiles([...$("files").files]));
  on("open-controls", "click", () => openControls(!document.body.classList.contains("open")));
  on("png", "click", exportPng);
  on("svg", "click", exportSvg);
  on("csv", "click", exportCsv);
  on("link", "click", copyLink);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && document.body.classList.contains("open")) return openControls(false, true);
    const writes = ["INPUT", "SELECT", "BUTTON", "SUMMARY"].includes(event.target.tagName);
    if (event.ctrlKey || event.metaKey || event.altKey || writes) return;
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
  [xs, ys].forEach(([min, max], k) => Object.assign($(`start-${"xy"[k]}`), { min, max }));
  shows.forEach((show) => show());
  $("runs").replaceChildren(...state.runs.map(card), ...recorded().map(recordedCard));
  state.runs.forEach((run, i) =>
    lab.RULES[run.rule].hyper.forEach((h) =>
      pair(`run-${i}-${h.name}`, {
        get: () => run.hyper[h.name],
        set: (v) => (run.hyper[h.name] = v),
        log: h.scale === "log",
        whole: h.whole,
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

function recordedCard(path, k) {
  const { label, runs } = path,
    steps = runs[0].length - 1,
    { most } = SETTINGS.numbers.steps;
  const several = runs.length > 1 ? `${runs.length} paths of ` : "",
    cut = steps > most ? `, the first ${most} of them shown` : "",
    words = `recorded: ${several}${steps} steps${cut}`;
  const made = element("fieldset", {}, element("legend", {}, swatchOf(state.runs.length + k), label), words);
  if (loaded.includes(path)) {
    const remove = element("button", { "aria-label": `Remove ${label}, recorded`, id: `remove-path-${k}` }, "Remove");
    remove.addEventListener("click", () => {
      loaded = loaded.filter((other) => other !== path);
      refresh({ controls: true });
    });
    made.append(remove);
  }
  return made;
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
      [low, high] = [h.least, h.most];
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

/** What is out of range or unknown, where it is seen and read out; the next change that is legal takes it away. */
function note(sentences) {
  $("note").replaceChildren(...sentences.map((text) => element("p", {}, `${text}.`)));
}

/** On a narrow window the controls are a sheet over the lower half. */
function openControls(open, back = false) {
  document.body.classList.toggle("open", open);
  $("open-controls").setAttribute("aria-expanded", String(open));
  $("open-controls").textContent = open ? "Close the controls" : "Controls";
  if (back) $("open-controls").focus();
}
