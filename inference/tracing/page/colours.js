// What is shown, and in which colour. Colours never stand alone: cells have text where there is room, and every value is
// said below the map.

const RAMP = [[68, 1, 84], [65, 68, 135], [42, 120, 142], [34, 168, 132], [122, 209, 81], [253, 231, 37]];
const LINES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]; // told apart by colour-blind readers
const KINDS = ["#4477aa", "#ee8866", "#bbcc33", "#ffaabb", "#99ddff", "#eedd88", "#44bb99", "#aaaa00", "#cc99dd"];
const REST = "#9aa1ac";

const QUANTITIES = {
  answer: { name: "answer", meaning: "The likeliest token; the fainter, the less likely it is held to be." },
  best: { name: "probability of the answer", low: 0, high: 1, meaning: "Probability of the likeliest token." },
  truth: { name: "probability of the label", low: 0, high: 1, meaning: "Probability of the token that is to be predicted." },
  rank: { name: "rank of the label", log: true, meaning: "The label's place among all tokens; 1 is the likeliest." },
  entropy: { name: "entropy", meaning: "Entropy of the answer in nats: 0 is certain." },
  kl: { name: "KL to the last answer", log: true, floor: 1e-6, meaning: "KL divergence of this answer from the last one of the coda, in nats: how much is still to come." },
  residual: { name: "residual", log: true, floor: 1e-6, meaning: "Size of the step, |s − s′| / |s|: how far this iteration moved the state." },
  cosine: { name: "cosine of steps", low: -1, high: 1, meaning: "Cosine between this step of the state and the one before: 1 goes straight on, −1 swings back." },
  agrees: { name: "agrees with the other run", meaning: "Whether both runs have the same likeliest token here." },
};

function valueOf(run, quantity, lens, row, column) {
  const place = run.at(row, column), found = run.answers[lens];
  if (quantity === "residual" || quantity === "cosine") return run.motion[quantity][place];
  if (quantity === "best") return found.probabilities[place * found.kept];
  if (quantity === "answer") return found.tokens[place * found.kept];
  if (quantity === "rank") return found.rank[place] || NaN;
  return found[quantity][place];
}

// A run never changes, so what is computed over all its cells is computed once for each quantity and lens.
function remembered(compute) {
  const all = new WeakMap();
  return (subject, ...words) => {
    if (!all.has(subject)) all.set(subject, new Map());
    const known = all.get(subject), key = words.join(" ");
    if (!known.has(key)) known.set(key, compute(subject, ...words));
    return known.get(key);
  };
}

// The limits of a quantity over all runs, so that a colour means the same in each.
const limits = remembered((runs, quantity, lens) => {
  const kind = QUANTITIES[quantity];
  if (kind.low !== undefined) return [kind.low, kind.high];
  let low = Infinity, high = -Infinity;
  for (const run of runs) {
    for (let row = 0; row < run.rows; row++) {
      for (let column = 0; column < run.columns; column++) {
        const value = valueOf(run, quantity, lens, row, column);
        if (Number.isFinite(value) && (value > 0 || !kind.log)) [low, high] = [Math.min(low, value), Math.max(high, value)];
      }
    }
  }
  if (low > high) return [0, 1];
  if (kind.log) low = Math.max(low, kind.floor || 1);
  else low = Math.min(low, 0);
  return [low, Math.max(high, kind.log ? low * 1.01 : low + 1e-9)];
});

function share(value, [low, high], log) {
  if (!Number.isFinite(value)) return NaN;
  const t = log ? Math.log(Math.max(value, low) / low) / Math.log(high / low) : (value - low) / (high - low);
  return Math.min(1, Math.max(0, t));
}

function ramp(t) {
  const x = t * (RAMP.length - 1), left = Math.min(Math.floor(x), RAMP.length - 2);
  return RAMP[left].map((from, i) => Math.round(from + (RAMP[left + 1][i] - from) * (x - left)));
}

function mixed(colour, ground, t) {
  const parse = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  const [a, b] = [parse(ground), parse(colour)];
  return a.map((from, i) => Math.round(from + (b[i] - from) * t));
}

const css = (rgb) => `rgb(${rgb.join(" ")})`;
const inkOn = ([r, g, b]) => (0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#101216" : "#ffffff");

// Tokens that are answered most get colours of their own.
function kindsOf(runs, lens) {
  const counts = new Map();
  for (const run of runs) {
    const found = run.answers[lens];
    for (let i = 0; i < found.tokens.length; i += found.kept) {
      counts.set(found.tokens[i], (counts.get(found.tokens[i]) || 0) + 1);
    }
  }
  const often = [...counts.entries()].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, KINDS.length);
  return new Map(often.map(([token], i) => [token, KINDS[i]]));
}

// What the colours of a map stand for.
function drawScale(page, holder) {
  holder.replaceChildren();
  if (page.quantity === "agrees") {
    swatch(holder, KINDS[0], "same answer");
    swatch(holder, KINDS[1], "another answer");
  } else if (page.quantity === "answer") {
    for (const [token, colour] of page.kinds) swatch(holder, colour, cut(page.text(token), 16));
    swatch(holder, REST, "any other");
  } else {
    const [low, high] = page.limits, { log } = QUANTITIES[page.quantity];
    const whole = page.quantity === "rank", told = new Set();
    for (const step of [0, 0.25, 0.5, 0.75, 1]) {
      let value = log ? low * (high / low) ** step : low + (high - low) * step;
      if (whole) value = Math.round(value);
      if (told.has(value)) continue;
      told.add(value);
      const t = share(value, page.limits, log);
      swatch(holder, css(ramp(t)), (step === 0 && log && !whole ? "≤ " : "") + said(value));
    }
  }
}
