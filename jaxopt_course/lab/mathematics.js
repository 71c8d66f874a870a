"use strict";
// The lab's mathematics: surfaces, noise, update rules, line searches, runs and maps. Pure functions of numbers:
// the page draws what they return, and the tests run this very file under node beside the JAX library.

// Labels, hyperparameters and their bounds are data, which Python reads too.
const SETTINGS =
  typeof module === "undefined"
    ? JSON.parse(document.getElementById("data").textContent).settings
    : require("./settings.json");
const OPTIMIZERS = SETTINGS.optimizers;

const EPS = Number.EPSILON;
const TINY = 2.2250738585072014e-308; // the smallest normal number, which the library's `root` adds inside
const LOST = 1e6; // a run ends where a coordinate grows beyond this

// Surfaces: f the value, g the gradient [x, y], h the Hessian [xx, xy, yy]; named as in jc.surfaces.SURFACES.

function bowl(condition, angle = 0) {
  const c = Math.cos(angle),
    s = Math.sin(angle);
  return {
    f: (x, y) => ((c * x + s * y) ** 2 + condition * (c * y - s * x) ** 2) / 2,
    g: (x, y) => {
      const u = c * x + s * y,
        v = condition * (c * y - s * x);
      return [c * u - s * v, s * u + c * v];
    },
    h: () => [c * c + condition * s * s, (1 - condition) * c * s, s * s + condition * c * c],
  };
}

function hill(height, radius) {
  const r2 = radius * radius;
  return {
    f: (x, y) => height / (1 + (x * x + y * y) / r2),
    g: (x, y) => {
      const slope = (-2 * height) / r2 / (1 + (x * x + y * y) / r2) ** 2;
      return [slope * x, slope * y];
    },
    h: (x, y) => {
      const d = 1 + (x * x + y * y) / r2,
        slope = (-2 * height) / r2 / d ** 2,
        bend = (8 * height) / r2 ** 2 / d ** 3;
      return [slope + bend * x * x, bend * x * y, slope + bend * y * y];
    },
  };
}

const wave = 2 * Math.PI;

// the factors of x, and the residuals
function bealeTerms(x, y) {
  const u = 1 - y,
    v = 1 - y * y,
    w = 1 - y * y * y;
  return { u, v, w, a: 1.5 - x * u, b: 2.25 - x * v, c: 2.625 - x * w };
}

// XLA has no subnormal numbers
const flushed = (z) => (Math.abs(z) < 2 ** -1022 ? 0 : z);

const FUNCTIONS = {
  hill: hill(2277, 4),
  bowl_1: bowl(1),
  bowl_10: bowl(10),
  bowl_100: bowl(100),
  bowl_10000: bowl(10000),
  bowl_100_turned: bowl(100, Math.PI / 6),
  saddle: { f: (x, y) => (x * x - y * y) / 2, g: (x, y) => [x, -y], h: () => [1, 0, -1] },
  monkey_saddle: {
    f: (x, y) => x * x * x - 3 * x * y * y,
    g: (x, y) => [3 * x * x - 3 * y * y, -6 * x * y],
    h: (x, y) => [6 * x, -6 * y, -6 * x],
  },
  plateau: {
    f: (x, y) => 1 - Math.exp(-(x * x + y * y) / 2),
    g: (x, y) => {
      const e = flushed(Math.exp(-(x * x + y * y) / 2));
      return [x * e, y * e];
    },
    h: (x, y) => {
      const e = flushed(Math.exp(-(x * x + y * y) / 2));
      return [(1 - x * x) * e, -x * y * e, (1 - y * y) * e];
    },
  },
  double_well: {
    f: (x, y) => (x * x - 1) ** 2 / 4 + (y * y) / 2,
    g: (x, y) => [x * (x * x - 1), y],
    h: (x, y) => [3 * x * x - 1, 0, 1],
  },
  rosenbrock: {
    f: (x, y) => 100 * (y - x * x) ** 2 + (1 - x) ** 2,
    g: (x, y) => [-400 * x * (y - x * x) - 2 * (1 - x), 200 * (y - x * x)],
    h: (x, y) => [1200 * x * x - 400 * y + 2, -400 * x, 200],
  },
  beale: {
    f: (x, y) => (1.5 - x * (1 - y)) ** 2 + (2.25 - x * (1 - y * y)) ** 2 + (2.625 - x * (1 - y * y * y)) ** 2,
    g: (x, y) => {
      const { u, v, w, a, b, c } = bealeTerms(x, y);
      return [-2 * (a * u + b * v + c * w), 2 * x * (a + 2 * y * b + 3 * y * y * c)];
    },
    h: (x, y) => {
      const { u, v, w, a, b, c } = bealeTerms(x, y);
      return [
        2 * (u * u + v * v + w * w),
        2 * (a + 2 * y * b + 3 * y * y * c - x * (u + 2 * y * v + 3 * y * y * w)),
        2 * x * (x + 2 * b + 4 * x * y * y + 6 * y * c + 9 * x * y ** 4),
      ];
    },
  },
  himmelblau: {
    f: (x, y) => (x * x + y - 11) ** 2 + (x + y * y - 7) ** 2,
    g: (x, y) => {
      const p = x * x + y - 11,
        q = x + y * y - 7;
      return [4 * x * p + 2 * q, 2 * p + 4 * y * q];
    },
    h: (x, y) => [12 * x * x + 4 * y - 42, 4 * x + 4 * y, 12 * y * y + 4 * x - 26],
  },
  rastrigin: {
    f: (x, y) => 20 + x * x + y * y - 10 * (Math.cos(wave * x) + Math.cos(wave * y)),
    g: (x, y) => [2 * x + 10 * wave * Math.sin(wave * x), 2 * y + 10 * wave * Math.sin(wave * y)],
    h: (x, y) => [2 + 10 * wave ** 2 * Math.cos(wave * x), 0, 2 + 10 * wave ** 2 * Math.cos(wave * y)],
  },
  styblinski_tang: {
    f: (x, y) => ((x * x - 16) * x * x + 5 * x + (y * y - 16) * y * y + 5 * y) / 2,
    g: (x, y) => [(4 * x * x * x - 32 * x + 5) / 2, (4 * y * y * y - 32 * y + 5) / 2],
    h: (x, y) => [6 * x * x - 16, 0, 6 * y * y - 16],
  },
};

/** Eigenvalues of [[a, b], [b, c]] in rising order, with their unit vectors: one Jacobi rotation. */
function eigen(a, b, c) {
  if (b === 0)
    return a <= c
      ? [
          [a, [1, 0]],
          [c, [0, 1]],
        ]
      : [
          [c, [0, 1]],
          [a, [1, 0]],
        ];
  const tau = (c - a) / (2 * b);
  const t = (tau >= 0 ? 1 : -1) / (Math.abs(tau) + Math.hypot(1, tau));
  const cos = 1 / Math.hypot(1, t),
    sin = t * cos;
  const pairs = [
    [a - t * b, [cos, -sin]],
    [c + t * b, [sin, cos]],
  ];
  return pairs[0][0] <= pairs[1][0] ? pairs : [pairs[1], pairs[0]];
}

// Noise: Threefry-2x32 with 20 rounds, the counter-based generator of jax.random (Salmon et al. 2011).

const ROTATIONS = [
  [13, 15, 26, 6],
  [17, 29, 16, 24],
];

function threefry([k0, k1], [x0, x1]) {
  const keys = [k0, k1, k0 ^ k1 ^ 0x1bd11bda];
  x0 = (x0 + k0) | 0;
  x1 = (x1 + k1) | 0;
  for (let group = 0; group < 5; group++) {
    for (const r of ROTATIONS[group % 2]) {
      x0 = (x0 + x1) | 0;
      x1 = ((x1 << r) | (x1 >>> (32 - r))) ^ x0;
    }
    x0 = (x0 + keys[(group + 1) % 3]) | 0;
    x1 = (x1 + keys[(group + 2) % 3] + group + 1) | 0;
  }
  return [x0 >>> 0, x1 >>> 0];
}

/** jax.random.bits(fold_in(fold_in(key(seed), member), step), (2,), uint32). */
function randomBits(seed, member, step) {
  const key = threefry(threefry([0, seed >>> 0], [0, member]), [0, step]);
  return [0, 1].map((i) => threefry(key, [0, i]).reduce((hi, lo) => (hi ^ lo) >>> 0));
}

/** Two independent standard normal numbers (Box and Muller 1958). */
function normals(seed, member, step) {
  const [a, b] = randomBits(seed, member, step);
  const radius = Math.sqrt(-2 * Math.log((a + 1) / 2 ** 32)),
    angle = (wave * b) / 2 ** 32;
  return [radius * Math.cos(angle), radius * Math.sin(angle)];
}

/** The objective of one step: the surface and a linear term, whose gradient is the noise of that step. */
function tilted(surface, [nx, ny]) {
  return {
    f: (x, y) => surface.f(x, y) + (nx * x + ny * y),
    g: (x, y) => {
      const [gx, gy] = surface.g(x, y);
      return [gx + nx, gy + ny];
    },
    h: surface.h,
  };
}

// Line search: jc.strong_wolfe, trial by trial. A trial is {t, f, slope, g, w}.

const MAX_EVALS = 25;
const LONGEST = 1e25;
const SLOPE_EVALS = 2; // of a search, while only slopes tell where the minimum is
const DECADES = 100; // a bracket whose ends differ by more is divided at the geometric mean
const rounding = (f) => 8 * EPS * Math.abs(f);
const clip = (x, low, high) => Math.min(Math.max(x, low), high);

function strongWolfe(objective, w, f, g, d, first, { c1 = 1e-4, c2 = 0.9 } = {}) {
  const start = { t: 0, f, slope: g[0] * d[0] + g[1] * d[1], g, w };
  const noise = rounding(f),
    trials = [];
  let low = start,
    high = null,
    t = first,
    returning = false,
    accepted = null;
  while (start.slope < 0) {
    const trial = at(objective, w, d, t);
    trials.push(trial);
    const armijo = trial.f <= start.f + c1 * t * start.slope;
    const approximate = trial.f <= start.f + noise && trial.slope <= (2 * c1 - 1) * start.slope;
    const finite = Number.isFinite(trial.f) && Number.isFinite(trial.slope);
    const better = (armijo || approximate) && trial.f <= low.f + noise && finite;
    const flat = Math.abs(trial.slope) <= -c2 * start.slope;
    const turned = high ? trial.slope * (high.t - low.t) >= 0 : trial.slope >= 0;
    const newLow = better ? trial : low;
    const newHigh = better ? (turned ? low : high) : trial;
    const straight = !newHigh && straightDown(trial, start, first);
    const width = newHigh ? Math.abs(newHigh.t - newLow.t) : Infinity;
    const narrow = newHigh && width <= 4 * EPS * Math.max(newLow.t, newHigh.t);
    const lower = newLow.f < start.f; // if so, one evaluation is kept to go back there
    const overshot = Number.isFinite(trial.slope) && trial.slope > 0 && trials.length < SLOPE_EVALS;
    const hopeless = !lower && !overshot && -t * start.slope <= noise / 1000; // shorter steps promise even less
    const spent = trials.length >= MAX_EVALS - (lower ? 1 : 0);
    const over = straight || narrow || hopeless || trial.f === -Infinity || spent;
    if ((better && (flat || (over && lower))) || returning) accepted = newLow;
    if (accepted || trial.f === -Infinity || (over && !lower)) break;
    returning = Boolean(over);
    t = over ? newLow.t : newHigh ? inside(newLow, newHigh, trials.length, noise) : outwards(low, trial, trials.length);
    [low, high] = [newLow, newHigh];
  }
  return { point: accepted ?? start, trials };
}

/** -g/|g|, and a first length in the scale of the parameters. */
function downTheGradient(w, f, g) {
  const norm = Math.hypot(...g) || 1,
    size = Math.max(...w.map(Math.abs)),
    fall = Math.abs(f) / norm;
  return { d: [-g[0] / norm, -g[1] / norm], first: size > 0 ? 0.1 * size : fall > 0 ? fall : 1 };
}

function at(objective, w, d, t) {
  const x = w[0] + t * d[0],
    y = w[1] + t * d[1],
    g = objective.g(x, y);
  return { t, f: objective.f(x, y), slope: g[0] * d[0] + g[1] * d[1], g, w: [x, y] };
}

function straightDown(trial, start, first) {
  const fall = start.f - trial.f;
  return trial.t >= LONGEST * first && trial.slope <= start.slope && fall >= -0.5 * trial.t * start.slope;
}

/** The largest factor between two trials: 10 for the first two, then squared from trial to trial, 1e16 at most. */
const largestFactor = (count) => 10 ** clip(2 ** (count - 2), 1, 16);

/** Where the cubic through both ends is least, not too near to either; nearer to the start from trial to trial. */
function inside(low, high, count, noise) {
  const width = high.t - low.t,
    nearest = low.t > 0 ? 0.1 : 1 / largestFactor(count);
  if (count % 3 === 0) {
    const decades = low.t > 0 && high.t > DECADES * low.t;
    return low.t + width * (decades ? (Math.sqrt(low.t) * Math.sqrt(high.t) - low.t) / width : 0.5);
  }
  const part = clip(leastBetween(low, high, noise), nearest, 0.9);
  return low.t + width * (Number.isFinite(part + high.f) ? part : Math.min(0.2, 2 * nearest));
}

/** Of the cubic through two trials; of the parabola through their slopes where what these promise is rounding. */
function leastBetween(a, b, noise) {
  const width = b.t - a.t,
    slopeA = a.slope * width,
    slopeB = b.slope * width;
  if (Math.max(Math.abs(slopeA), Math.abs(slopeB)) <= noise && slopeA < 0 && slopeB > 0)
    return slopeA / (slopeA - slopeB);
  const z = slopeA + slopeB - 3 * (b.f - a.f);
  const root = Math.sqrt(Math.max(z * z - slopeA * slopeB, 0));
  return 1 - (slopeB + root - z) / (slopeB - slopeA + 2 * root);
}

/** Where the slope would vanish if it went on as from low to trial: one stride further or up to the bound. */
function outwards(low, trial, count) {
  const secant = trial.slope / (low.slope - trial.slope),
    most = largestFactor(count) - 1;
  return trial.t + (trial.t - low.t) * (trial.slope > low.slope ? clip(secant, 1, most) : most);
}

// Newton's direction: jc.newton's, for two parameters.

/** 1 / sqrt of the diagonal; where that is far below what its row says, the largest entry of the row becomes 1. */
function hessianScale(xx, xy, yy) {
  const sizes = [
      [Math.abs(xx), Math.abs(xy)],
      [Math.abs(xy), Math.abs(yy)],
    ],
    largest = Math.max(sizes[0][0], sizes[1][1]);
  const scale = [0, 1].map((i) => (sizes[i][i] > EPS ** 2 * largest ? 1 / Math.sqrt(sizes[i][i]) : 0));
  const inUnits = (row, of) => Math.max(...row.map((size, j) => (of[j] ? size * scale[j] : 0)));
  const telling = [0, 1].map((i) => scale[i] > 0 && scale[i] * inUnits(sizes[i], [true, true]) <= EPS ** -0.4);
  return [0, 1].map((i) => {
    if (telling[i]) return scale[i];
    const across = inUnits(sizes[i], telling) || Math.sqrt(Math.max(...sizes[i]));
    return across > 0 ? 1 / across : 1;
  });
}

/** The way d down, the gain that is left, and the way out of a saddle with the curvature along it. */
function newtonDirection([xx, xy, yy], g, radius) {
  const largest = Math.max(Math.abs(xx), Math.abs(yy)),
    scale = hessianScale(xx, xy, yy);
  const a = scale[0] * xx * scale[0],
    b = scale[0] * xy * scale[1],
    c = scale[1] * yy * scale[1];
  const sg = [scale[0] * g[0], scale[1] * g[1]];
  const l11 = Math.sqrt(a),
    l21 = b / l11,
    l22 = Math.sqrt(c - l21 * l21);
  const least = EPS * Math.max(l11 ** 2, l22 ** 2);
  const definite = l11 ** 2 > least && l22 ** 2 > least;
  let step,
    out = null,
    bend = 0,
    convex = largest > 0;
  if (definite) {
    const z0 = sg[0] / l11,
      z1 = (sg[1] - l21 * z0) / l22,
      y = z1 / l22;
    step = [(z0 - l21 * y) / l11, y];
  } else {
    const pairs = eigen(a, b, c),
      size = Math.max(...pairs.map(([value]) => Math.abs(value)));
    step = [0, 0];
    for (const [value, q] of pairs) {
      convex &&= value >= -8 * EPS * size;
      const along = q[0] * sg[0] + q[1] * sg[1];
      const curvature = size > 0 ? Math.max(Math.abs(value), 8 * EPS * size) : 1;
      const part = along === 0 ? 0 : along / curvature;
      step = [step[0] + q[0] * part, step[1] + q[1] * part];
    }
    const [lowest, q] = pairs[0];
    if (lowest < -8 * EPS * size) {
      const up = q[0] * sg[0] + q[1] * sg[1] > 0 ? -1 : 1,
        v = [up * scale[0] * q[0], up * scale[1] * q[1]],
        far = Math.hypot(...v);
      out = [v[0] / far, v[1] / far];
      bend = -lowest / far ** 2;
    }
  }
  const d = [-scale[0] * step[0], -scale[1] * step[1]],
    length = Math.hypot(...d);
  const cut = definite || length <= radius ? 1 : radius / length;
  const gain = convex ? -0.5 * (g[0] * d[0] + g[1] * d[1]) : Infinity; // what the model has left
  return { d: [cut * d[0], cut * d[1]], gain, out, bend };
}

/** Along negative curvature where the direction promises nothing beside it; the gradient to tell the search. */
function wayOut({ out, bend }, w, f, g, d, first, radius) {
  const seen = Math.sqrt((8 * rounding(f)) / bend),
    far = Math.max(0.1 * Math.hypot(...w), radius, seen),
    fall = 0.5 * bend * far * far;
  const promise = -0.5 * (g[0] * d[0] + g[1] * d[1]);
  const leaves = bend > 0 && promise <= Math.max(rounding(f), Math.sqrt(EPS) * fall) && first > 0;
  if (!leaves || !(fall > 0 && Number.isFinite(fall))) return { d, first, told: g };
  const way = [far * out[0], far * out[1]];
  return { d: way, first: 1, told: [g[0] - 0.5 * bend * way[0], g[1] - 0.5 * bend * way[1]] };
}

// L-BFGS: pairs {s, y, sy}, the newest last (Nocedal 1980, the two-loop recursion).

function inverseHessianProduct(g, pairs) {
  if (pairs.length === 0) return g;
  let q = g;
  const weights = [];
  for (const { s, y, sy } of pairs.slice().reverse()) {
    const a = (s[0] * q[0] + s[1] * q[1]) / sy;
    weights.unshift(a);
    q = [q[0] - a * y[0], q[1] - a * y[1]];
  }
  const { y, sy } = pairs[pairs.length - 1],
    gamma = sy / (y[0] * y[0] + y[1] * y[1]);
  q = [gamma * q[0], gamma * q[1]];
  pairs.forEach(({ s, y, sy }, i) => {
    const a = weights[i] - (y[0] * q[0] + y[1] * q[1]) / sy;
    q = [q[0] + a * s[0], q[1] + a * s[1]];
  });
  return q;
}

function remembered(pairs, s, y, memory) {
  const sy = s[0] * y[0] + s[1] * y[1],
    ss = s[0] ** 2 + s[1] ** 2,
    yy = y[0] ** 2 + y[1] ** 2;
  const inRange = [1 / Math.sqrt(sy), sy / yy, yy / sy].every(Number.isFinite);
  return sy > EPS * Math.sqrt(yy) * Math.sqrt(ss) && inRange
    ? [...pairs.slice(1 - memory || 1e9), { s, y, sy }]
    : pairs;
}

// Rules, in historical order. step(state, w, objective, hyper) -> {state, update, trials?, t?}

const coordinatewise = (g, rule) => {
  const [x, y] = [rule(0, g[0]), rule(1, g[1])];
  return { update: [x[0], y[0]], moments: [x.slice(1), y.slice(1)] };
};
const root = (v) => Math.sqrt(v + TINY);
const oneMinusPower = (b, t) => -Math.expm1(t * Math.log1p(-(1 - b)));

function momentumStep(nesterov) {
  return (v, w, objective, { learning_rate: lr, rho }) => {
    const g = objective.g(...w);
    const { update, moments } = coordinatewise(g, (i, g) => {
      const trace = rho * v[i] + g;
      return [-lr * (nesterov ? g + rho * trace : trace), trace];
    });
    return { update, state: [moments[0][0], moments[1][0]] };
  };
}

function adamStep(corrected) {
  return ({ t, m, v }, w, objective, { learning_rate: lr, b1, b2, eps }) => {
    const g = objective.g(...w),
      c1 = corrected ? oneMinusPower(b1, t + 1) : 1,
      c2 = corrected ? oneMinusPower(b2, t + 1) : 1;
    const { update, moments } = coordinatewise(g, (i, g) => {
      const mu = b1 * m[i] + (1 - b1) * g,
        nu = b2 * v[i] + (1 - b2) * (g * g);
      return [-lr * (mu / c1 / (root(nu / c2) + eps)), mu, nu];
    });
    const [x, y] = moments;
    return { update, state: { t: t + 1, m: [x[0], y[0]], v: [x[1], y[1]] } };
  };
}

const zeros = () => [0, 0];
const adamStart = () => ({ t: 0, m: [0, 0], v: [0, 0] });

const STEPS = {
  sgd: {
    init: () => null,
    step: (state, w, objective, { learning_rate: lr }) => {
      const g = objective.g(...w);
      return { state, update: [-lr * g[0], -lr * g[1]] };
    },
  },
  momentum: { init: zeros, step: momentumStep(false) },
  nesterov: { init: zeros, step: momentumStep(true) },
  adagrad: {
    init: zeros,
    step: (s, w, objective, { learning_rate: lr, eps }) => {
      const { update, moments } = coordinatewise(objective.g(...w), (i, g) => {
        const sum = s[i] + g * g;
        return [-lr * (g / (root(sum) + eps)), sum];
      });
      return { update, state: [moments[0][0], moments[1][0]] };
    },
  },
  rmsprop: {
    init: zeros,
    step: (s, w, objective, { learning_rate: lr, decay: beta, eps }) => {
      const { update, moments } = coordinatewise(objective.g(...w), (i, g) => {
        const nu = beta * s[i] + (1 - beta) * (g * g);
        return [-lr * (g / (root(nu) + eps)), nu];
      });
      return { update, state: [moments[0][0], moments[1][0]] };
    },
  },
  adam_uncorrected: { init: adamStart, step: adamStep(false) },
  adam: { init: adamStart, step: adamStep(true) },
  newton: {
    searches: true,
    // how far a step may go where curvature is not positive; whether the next goes down the gradient
    init: (w) => ({ radius: Math.hypot(...w) || 1, retreats: false }),
    step: ({ radius, retreats }, w, objective, { learning_rate: rate }) => {
      const g = objective.g(...w),
        f = objective.f(...w);
      const newton = newtonDirection(objective.h(...w), g, radius);
      const { d, first, told } = retreats
        ? { ...downTheGradient(w, f, g), told: g }
        : wayOut(newton, w, f, g, newton.d, rate, radius);
      const { point, trials } = strongWolfe(objective, w, f, told, d, first);
      const reached = point.t * Math.hypot(...d),
        slope = told[0] * d[0] + told[1] * d[1],
        moved = 8 * EPS * (Math.abs(w[0] * told[0]) + Math.abs(w[1] * told[1]));
      const unexplained = newton.gain > rounding(f) || -first * slope > Math.max(rounding(f), moved);
      const fails = !(point.t > 0) && slope < 0 && unexplained;
      return {
        state: { radius: reached > 0 ? 2 * reached : radius, retreats: fails && !retreats },
        update: [point.t * d[0], point.t * d[1]],
        trials,
        t: point.t,
      };
    },
  },
  newton_pure: {
    init: (w) => Math.hypot(...w) || 1,
    step: (radius, w, objective, { learning_rate: t }) => {
      const { d } = newtonDirection(objective.h(...w), objective.g(...w), radius),
        reached = t * Math.hypot(...d);
      return { state: reached > 0 ? 2 * reached : radius, update: [t * d[0], t * d[1]], t };
    },
  },
  lbfgs: {
    searches: true,
    init: () => [],
    step: (pairs, w, objective, { memory_size: memory }) => {
      const g = objective.g(...w),
        f = objective.f(...w);
      const quasiNewton = { d: inverseHessianProduct(g, pairs).map((z) => -z), first: 1 };
      const { d, first } = pairs.length > 0 ? quasiNewton : downTheGradient(w, f, g);
      const { point, trials } = strongWolfe(objective, w, f, g, d, first);
      const update = [point.t * d[0], point.t * d[1]];
      if (!(point.t > 0)) return { state: [], update, trials, t: 0 }; // once more, down the gradient
      const y = [point.g[0] - g[0], point.g[1] - g[1]];
      return { state: remembered(pairs, update, y, memory), update, trials, t: point.t };
    },
  },
};

/** Each with its label and its hyperparameters. */
const RULES = Object.fromEntries(Object.entries(STEPS).map(([key, rule]) => [key, { ...OPTIMIZERS[key], ...rule }]));

// Runs

/**
 * A path from `start`: arrays with one entry a point, x, y, value, gradNorm, length (of the update that led there), t
 * (what a search accepted) and trials (the points it tried). `end` says why it ended early, or is null.
 */
function run(surface, rule, hyper, { start, steps, noise = 0, seed = 0, member = 0 }) {
  const path = { x: [], y: [], value: [], gradNorm: [], length: [], t: [], trials: [], end: null };
  let w = start,
    state = rule.init(start),
    last = { update: [0, 0] };
  for (let step = 0; ; step++) {
    const value = surface.f(...w),
      g = surface.g(...w);
    if (!w.every(Number.isFinite) || w.some((z) => Math.abs(z) > LOST)) path.end = "left for infinity";
    else if (![value, ...g].every(Number.isFinite)) path.end = "value not finite";
    if (path.end && step > 0) return path;
    path.x.push(w[0]);
    path.y.push(w[1]);
    path.value.push(value);
    path.gradNorm.push(Math.hypot(...g));
    path.length.push(Math.hypot(...last.update));
    path.t.push(last.t ?? null);
    path.trials.push((last.trials ?? []).map((trial) => trial.w));
    if (path.end || step === steps) return path;
    const objective =
      noise > 0
        ? tilted(
            surface,
            normals(seed, member, step).map((n) => noise * n),
          )
        : surface;
    last = rule.step(state, w, objective, hyper);
    state = last.state;
    w = [w[0] + last.update[0], w[1] + last.update[1]];
  }
}

/** A rule that goes along recorded points, whatever the surface: for `run`, from the first of them. */
const replay = (points) => ({
  init: () => 0,
  step: (k, w) => ({ state: k + 1, update: points[k + 1].map((z, i) => z - w[i]) }),
});

/** The sharpest curvature at the start and at the minimizers: what a learning rate has to suit. */
function sharpness(surface, points) {
  const sizes = points.map(([x, y]) => Math.max(...eigen(...surface.h(x, y)).map(([value]) => Math.abs(value))));
  return Math.max(...sizes);
}

const twoDigits = (x) => Number(x.toPrecision(2));

/** Hyperparameters that suit a surface `{start, minimizers, window}` of curvature `sharpness`. */
function defaults(rule, curvature, record) {
  const hyper = Object.fromEntries(RULES[rule].hyper.map(({ name, value }) => [name, value]));
  const width = record.window[0][1] - record.window[0][0];
  const rate = { sgd: 1 / curvature, momentum: 0.25 / curvature, nesterov: 0.25 / curvature, adagrad: width / 10 }[
    rule
  ];
  if (RULES[rule].searches || rule === "newton_pure") return hyper;
  return { ...hyper, learning_rate: twoDigits(rate ?? width / (rule === "rmsprop" ? 400 : 100)) };
}

/** The learning rate beyond which a rule leaves a minimum of that curvature, or null where there is no such number. */
function stabilityLimit(rule, { rho }, curvature) {
  if (rule === "sgd") return 2 / curvature;
  if (rule === "momentum") return (2 * (1 + rho)) / curvature;
  if (rule === "nesterov") return (2 * (1 + rho)) / (1 + 2 * rho) / curvature;
  return rule === "newton_pure" ? 2 : null;
}

/** What a map colours: how far above the minimum a run ended, or its last gradient where there is none; null: lost. */
function score(path, minimum) {
  if (path.end) return null;
  const last = path.value.length - 1;
  return Number.isFinite(minimum) ? Math.max(path.value[last] - minimum, 0) : path.gradNorm[last];
}

/** Line segments [x0, y0, x1, y1] in cells, where values[ny][nx] cross a level: marching squares. */
function contour(values, level) {
  const segments = [];
  for (let j = 0; j + 1 < values.length; j++) {
    for (let i = 0; i + 1 < values[j].length; i++) {
      const corners = [
        [i, j, values[j][i]],
        [i + 1, j, values[j][i + 1]],
        [i + 1, j + 1, values[j + 1][i + 1]],
        [i, j + 1, values[j + 1][i]],
      ];
      const cuts = [];
      corners.forEach(([x, y, v], k) => {
        const [x2, y2, v2] = corners[(k + 1) % 4];
        if (v < level === v2 < level) return;
        const part = (level - v) / (v2 - v);
        cuts.push([x + part * (x2 - x), y + part * (y2 - y)]);
      });
      for (let k = 0; k + 1 < cuts.length; k += 2) segments.push([...cuts[k], ...cuts[k + 1]]);
    }
  }
  return segments;
}

const lab = {
  FUNCTIONS,
  RULES,
  LOST,
  contour,
  defaults,
  eigen,
  normals,
  randomBits,
  replay,
  run,
  score,
  sharpness,
  stabilityLimit,
};
if (typeof module !== "undefined") module.exports = lab;
