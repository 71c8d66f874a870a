// Recorded paths from files: JSON or CSV of points [steps, 2], read in the page and sent nowhere.

const MOST_BYTES = 2e6;

/** The paths in a file's text, [{label, runs}]; an Error says what is wrong with it. */
function pathsOf(name, text) {
  const stem = name.replace(/\.[^.]*$/, "").slice(0, 60) || "path";
  if (/\.json$/i.test(name)) return fromJson(name, stem, text);
  return [{ label: stem, runs: [finite(name, fromCsv(name, text))] }];
}

/** [[x, y], ...], or {label: [[x, y], ...], ...}, or either with several runs, [[[x, y], ...], ...]. */
function fromJson(name, stem, text) {
  let value;
  try {
    value = JSON.parse(text.replace(/-?\b(NaN|Infinity)\b/g, "null")); // as Python writes them
  } catch (error) {
    throw new Error(`${name} is not JSON: ${error.message}`);
  }
  const isPoint = (p) => Array.isArray(p) && p.length === 2 && p.every((z) => z === null || typeof z === "number");
  const isPath = (path) => Array.isArray(path) && path.length > 0 && path.every(isPoint);
  const named = Array.isArray(value) ? [[stem, value]] : Object.entries(value ?? {});
  if (!named.length) throw new Error(`${name} has no path: a path is a list of points [x, y]`);
  return named.map(([label, given]) => {
    const runs = isPath(given) ? [given] : given;
    if (!Array.isArray(runs) || !runs.length || !runs.every(isPath))
      throw new Error(`${name}: "${label}" is no path: a path is a list of points [x, y], each two numbers`);
    return { label: label.slice(0, 60), runs: runs.map((run) => finite(`${name}: "${label}"`, run)) };
  });
}

/** Two columns, x and y; the first line may hold their names. */
function fromCsv(name, text) {
  const number = (cell) => (/^[+-]?(nan|inf(inity)?)$/i.test(cell) ? null : cell === "" ? NaN : Number(cell));
  const rows = text.split(/\r?\n/).map((line, k) => [k + 1, line.trim()]);
  const filled = rows.filter(([, line]) => line);
  const points = filled.map(([at, line], k) => {
    const cells = line.split(/[,;\t ]+/);
    if (cells.length !== 2)
      throw new Error(`${name}, line ${at}: a line has two numbers, x and y, not ${cells.length}`);
    const point = cells.map(number);
    if (!point.some(Number.isNaN)) return point;
    if (k === 0 && point.every(Number.isNaN)) return null; // names of the columns
    throw new Error(`${name}, line ${at}: "${line.slice(0, 40)}" is not two numbers`);
  });
  return points[0] === null ? points.slice(1) : points;
}

/** A path up to its first point that is not finite. */
function finite(what, points) {
  const end = points.findIndex((point) => !point.every(Number.isFinite));
  const path = end < 0 ? points : points.slice(0, end);
  if (!path.length) throw new Error(`${what} has no finite start`);
  return path;
}

/** Read files that a person chose, as paths on the surface that is shown. */
async function readFiles(files) {
  const wrong = [],
    { surface } = state;
  for (const file of files) {
    try {
      if (file.size > MOST_BYTES) throw new Error(`${file.name} is larger than ${MOST_BYTES / 1e6} MB`);
      const found = pathsOf(file.name, await file.text());
      if (DATA.recorded.length + loaded.length + found.length > SETTINGS.most_paths)
        throw new Error(`${file.name}: there would be more than ${SETTINGS.most_paths} recorded paths`);
      const taken = new Set(recorded().map(({ label }) => label));
      for (const path of found) {
        let label = path.label;
        for (let k = 2; taken.has(label); k++) label = `${path.label} (${k})`;
        taken.add(label);
        loaded.push({ ...path, label, surface, look: null });
        if (!path.runs[0].some(isDrawn))
          wrong.push(`the contours do not show ${label}: it is outside of what ${surface} draws`);
      }
    } catch (error) {
      wrong.push(error.message);
    }
  }
  $("files").value = "";
  const longest = Math.max(...recorded().map(({ runs }) => runs[0].length - 1), state.steps);
  state.steps = Math.min(longest, SETTINGS.numbers.steps.most);
  state.step = state.steps;
  refresh({ controls: true });
  note(wrong);
}

const isDrawn = (point) =>
  SURFACES[state.surface].window.every(([low, high], i) => low <= point[i] && point[i] <= high);

if (typeof module !== "undefined") module.exports = { pathsOf };
