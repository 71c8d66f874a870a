// What the lab draws with: pens that take the same calls, on a canvas and as SVG; scales, grids and shades.

class CanvasPen {
  constructor(context) {
    this.c = context;
  }
  line(points, { color, width = 1, dash = [], alpha = 1 }) {
    const c = this.c;
    c.globalAlpha = alpha;
    c.strokeStyle = color;
    c.lineWidth = width;
    c.setLineDash(dash);
    c.lineJoin = "round";
    c.beginPath();
    points.forEach(([x, y], i) => (i ? c.lineTo(x, y) : c.moveTo(x, y)));
    c.stroke();
    c.globalAlpha = 1;
    c.setLineDash([]);
  }
  segments(list, { color, width = 1, alpha = 1 }) {
    const c = this.c;
    c.globalAlpha = alpha;
    c.strokeStyle = color;
    c.lineWidth = width;
    c.beginPath();
    for (const [x0, y0, x1, y1] of list) {
      c.moveTo(x0, y0);
      c.lineTo(x1, y1);
    }
    c.stroke();
    c.globalAlpha = 1;
  }
  fill(points, color, alpha = 1) {
    const c = this.c;
    c.globalAlpha = alpha;
    c.fillStyle = color;
    c.beginPath();
    points.forEach(([x, y], i) => (i ? c.lineTo(x, y) : c.moveTo(x, y)));
    c.closePath();
    c.fill();
    c.globalAlpha = 1;
  }
  circle(x, y, r, { fill, stroke, width = 1.5 }) {
    const c = this.c;
    c.beginPath();
    c.arc(x, y, r, 0, 7);
    if (fill) {
      c.fillStyle = fill;
      c.fill();
    }
    if (stroke) {
      c.strokeStyle = stroke;
      c.lineWidth = width;
      c.stroke();
    }
  }
  text(words, x, y, { color, align = "left", size = 11 }) {
    const c = this.c;
    c.font = `${size}px system-ui, sans-serif`;
    c.fillStyle = color;
    c.textAlign = align;
    c.textBaseline = "middle";
    c.fillText(words, x, y);
  }
  clip(x, y, w, h, draw) {
    this.c.save();
    this.c.beginPath();
    this.c.rect(x, y, w, h);
    this.c.clip();
    draw();
    this.c.restore();
  }
  shift(x, y, draw) {
    this.c.save();
    this.c.translate(x, y);
    draw();
    this.c.restore();
  }
}

class SvgPen {
  constructor() {
    this.parts = [];
    this.clips = 0;
  }
  put(tag, attributes, text) {
    const escape = (t) => String(t).replace(/[&<>"]/g, (ch) => `&#${ch.charCodeAt(0)};`);
    const list = Object.entries(attributes)
      .filter(([, v]) => v !== undefined)
      .map(([k, v]) => ` ${k}="${escape(typeof v === "number" ? Number(v.toFixed(2)) : v)}"`);
    this.parts.push(`<${tag}${list.join("")}${text === undefined ? "/>" : `>${escape(text)}</${tag}>`}`);
  }
  path(d, { color, width = 1, dash = [], alpha = 1 }) {
    this.put("path", {
      d,
      fill: "none",
      stroke: color,
      "stroke-width": width,
      "stroke-dasharray": dash.length ? dash.join(" ") : undefined,
      "stroke-opacity": alpha,
      "stroke-linejoin": "round",
    });
  }
  line(points, style) {
    this.path("M" + points.map((p) => p.map((z) => z.toFixed(2)).join(" ")).join("L"), style);
  }
  segments(list, style) {
    this.path(
      list
        .map((s) => {
          const [a, b, c, d] = s.map((z) => z.toFixed(2));
          return `M${a} ${b}L${c} ${d}`;
        })
        .join(""),
      style,
    );
  }
  fill(points, color, alpha = 1) {
    this.put("polygon", {
      points: points.map((p) => p.map((z) => z.toFixed(2)).join(",")).join(" "),
      fill: color,
      "fill-opacity": alpha,
    });
  }
  circle(x, y, r, { fill = "none", stroke, width = 1.5 }) {
    this.put("circle", { cx: x, cy: y, r, fill, stroke, "stroke-width": width });
  }
  text(words, x, y, { color, align = "left", size = 11 }) {
    const anchor = { left: "start", center: "middle", right: "end" }[align];
    this.put(
      "text",
      {
        x,
        y: y + size / 3,
        fill: color,
        "text-anchor": anchor,
        "font-size": size,
        "font-family": "system-ui, sans-serif",
      },
      words,
    );
  }
  clip(x, y, w, h, draw) {
    const id = `clip${this.clips++}`;
    this.parts.push(
      `<clipPath id="${id}"><rect x="${x}" y="${y}" width="${w}" height="${h}"/></clipPath><g clip-path="url(#${id})">`,
    );
    draw();
    this.parts.push("</g>");
  }
  shift(x, y, draw) {
    this.parts.push(`<g transform="translate(${x} ${y})">`);
    draw();
    this.parts.push("</g>");
  }
  page(width, height) {
    const size = `viewBox="0 0 ${width} ${height}" width="${width}" height="${height}"`;
    return `<svg xmlns="http://www.w3.org/2000/svg" ${size}>${this.parts.join("\n")}</svg>\n`;
  }
}

// Scales

function ticks(low, high, most) {
  const rough = (high - low) / most,
    power = 10 ** Math.floor(Math.log10(rough));
  const stride = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= rough);
  const list = [];
  for (let k = Math.ceil(low / stride); k * stride <= high + 1e-9 * stride; k++) list.push(k * stride);
  return list;
}

/** Powers of ten between two powers, with 2 and 5 of each where there are few. */
function logTicks(low, high, most) {
  if (high - low > 2.5) return ticks(low, high, most).filter(Number.isInteger);
  const list = [];
  for (let k = Math.floor(low); k <= high; k++)
    for (const digit of [1, 2, 5]) {
      const power = k + Math.log10(digit);
      if (power >= low - 1e-9 && power <= high + 1e-9) list.push(power);
    }
  return list;
}

/** Quantiles of a surface's values on a grid, for shades that are fair to flat and steep ones alike. */
function grid(surface, cells) {
  const [[left, right], [low, high]] = surface.window;
  const values = [],
    all = [];
  for (let j = 0; j <= cells; j++) {
    const row = [];
    for (let i = 0; i <= cells; i++)
      row.push(surface.f(left + ((right - left) * i) / cells, low + ((high - low) * j) / cells));
    values.push(row);
    all.push(...row);
  }
  all.sort((a, b) => a - b);
  return { values, sorted: all, at: (part) => all[Math.round(part * (all.length - 1))] };
}

const grids = new Map();
const gridOf = (name, cells) => {
  const key = `${name} ${cells}`;
  if (!grids.has(key)) grids.set(key, grid(SURFACES[name], cells));
  return grids.get(key);
};

function mix(a, b, part) {
  const parse = (hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));
  const [p, q] = [parse(a), parse(b)];
  return `rgb(${p.map((z, k) => Math.round(z + (q[k] - z) * part)).join(",")})`;
}

const LEVELS = 14; // contours
const CELLS = 90; // along each side of the grid that they are taken from
const shade = (part) => (theme.dark ? mix("#0b2030", "#5d6f78", part) : mix("#8fb3cc", "#fbfaf5", part));
