// Lines by iteration, and the path of the state in the plane.

const WIDE = 360, TALL = 210, LEFT = 46, BOTTOM = 26, TOP = 8, RIGHT = 10;

function shape(parent, name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return parent.appendChild(made);
}

function ticksOf(low, high, log) {
  if (log) {
    const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
    const every = Math.max(1, Math.ceil((last - first) / 4));
    const found = [];
    for (let power = first; power <= last; power += every) found.push(10 ** power);
    if (found.length > 1) return found;
    const finer = [-3, -2, -1, 0, 1].flatMap((more) => [1, 2, 5].map((n) => n * 10 ** (first + more)));
    const within = finer.filter((tick) => tick >= low && tick <= high);
    return within.length > 1 ? within : [low, high];
  }
  const rough = (high - low) / 4, ten = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * ten).find((n) => n >= rough);
  const found = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + 1e-9; tick += step) found.push(Number(tick.toPrecision(6)));
  return found;
}

// series: [{ colour, dash, counts, values, className }]
function lineChart(holder, title, series, { log, low, high }) {
  const figure = holder.appendChild(document.createElement("figure"));
  figure.appendChild(document.createElement("figcaption")).textContent = title;
  const svg = shape(figure, "svg", { viewBox: `0 0 ${WIDE} ${TALL}`, role: "img", "aria-label": `${title} by iteration` });
  const last = Math.max(...series.map((each) => each.counts[each.counts.length - 1]), 2);
  const x = (count) => LEFT + ((count - 1) / (last - 1)) * (WIDE - LEFT - RIGHT);
  const y = (value) => TOP + (1 - share(value, [low, high], log)) * (TALL - TOP - BOTTOM);
  for (const tick of ticksOf(low, high, log)) {
    shape(svg, "path", { class: "axis", d: `M${LEFT} ${y(tick)}H${WIDE - RIGHT}` });
    shape(svg, "text", { x: LEFT - 5, y: y(tick) + 4, "text-anchor": "end" }, said(tick));
  }
  const marks = [...new Set([1, ...ticksOf(1, last).filter((tick) => Number.isInteger(tick) && tick > 1), last])];
  for (const tick of marks.filter((tick) => tick === last || last - tick > last * 0.06)) {
    shape(svg, "text", { x: x(tick), y: TALL - 8, "text-anchor": "middle" }, tick);
  }
  for (const { colour, dash, counts, values, className } of series) {
    let d = "", down = false;
    counts.forEach((count, i) => {
      const known = Number.isFinite(values[i]);
      if (known) d += `${down ? "L" : "M"}${x(count).toFixed(1)} ${y(values[i]).toFixed(1)}`;
      down = known;
    });
    const attributes = { d: d || "M0 0", fill: "none" };
    if (className) attributes.class = className;
    else Object.assign(attributes, { stroke: colour, "stroke-width": 2, "stroke-dasharray": dash ? "6 4" : "none" });
    shape(svg, "path", attributes);
  }
}

// paths: [{ colour, dash, points: [[x, y], ...] }], drawn up to the iteration `until` (a place in the list)
function pathChart(holder, paths, until, shares) {
  const wide = 560, tall = 380, edge = 34;
  const svg = shape(holder, "svg", {
    viewBox: `0 0 ${wide} ${tall}`, role: "img",
    "aria-label": "paths of the chosen states in their first two principal components",
  });
  const all = paths.flatMap((each) => each.points).filter((point) => point.every(Number.isFinite));
  if (!all.length) return;
  const [left, right] = [Math.min(...all.map((p) => p[0])), Math.max(...all.map((p) => p[0]))];
  const [low, high] = [Math.min(...all.map((p) => p[1])), Math.max(...all.map((p) => p[1]))];
  const scale = Math.min((wide - 2 * edge) / (right - left || 1), (tall - 2 * edge) / (high - low || 1)); // one for both axes
  const x = (value) => wide / 2 + (value - (left + right) / 2) * scale;
  const y = (value) => tall / 2 - (value - (low + high) / 2) * scale;
  shape(svg, "rect", { class: "axis", x: 1, y: 1, width: wide - 2, height: tall - 2 });
  const percent = (part) => `${Math.round(100 * part)} %`;
  shape(svg, "text", { x: wide / 2, y: tall - 8, "text-anchor": "middle" }, `first component, ${percent(shares[0])} of the variance`);
  shape(svg, "text", { transform: `translate(16 ${tall / 2}) rotate(-90)`, "text-anchor": "middle" }, `second, ${percent(shares[1])}`);
  for (const { colour, dash, points } of paths) {
    const shown = points.slice(0, until + 1);
    const line = shown.map((p, i) => `${i ? "L" : "M"}${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`).join("");
    shape(svg, "path", { d: line, fill: "none", stroke: colour, "stroke-width": 1.5, "stroke-dasharray": dash ? "5 4" : "none", opacity: 0.75 });
    shown.forEach((p, i) => {
      const now = i === shown.length - 1;
      shape(svg, "circle", { cx: x(p[0]).toFixed(1), cy: y(p[1]).toFixed(1), r: now ? 6 : 2, fill: dash && now ? "none" : colour, stroke: colour, "stroke-width": 2 });
    });
  }
}
