// The page: what is chosen, and what is drawn again when the choice changes.

const data = JSON.parse(element("data").textContent);
const labelled = data.runs.some((run) => run.labels.some((label) => label >= 0));

const page = {
  runs: data.runs.map(readRun),
  words: data.vocabulary.map(visible),
  quantity: "answer", lens: "coda", exit: "", zoom: 24, kept: [], until: 0,
  cursor: { run: 0, row: 0, column: 0 },
  gutter: data.runs.some((run) => run.routers) ? 108 : 62, // pixels for what stands left of the maps
  keys: "Arrow keys move, Enter keeps a position.",
  theme: {}, maps: [],

  text(token) { return token < 0 ? "" : this.words[token]; },

  moveTo(run, row, column, follow) {
    const { rows, columns } = this.runs[run];
    this.cursor = { run, row: Math.max(0, Math.min(row, rows - 1)), column: Math.max(0, Math.min(column, columns - 1)) };
    if (follow) this.maps[run].follow();
    this.drawCursor();
  },

  toggle(column) {
    if (this.kept.includes(column)) this.kept = this.kept.filter((each) => each !== column);
    else this.kept = [...this.kept, column].slice(-LINES.length);
    this.drawCursor();
  },

  // What stands beside or below each other shows the same positions.
  scrollTo(moved) {
    for (const other of document.querySelectorAll(".across")) {
      if (other !== moved && Math.abs(other.scrollLeft - moved.scrollLeft) > 1) other.scrollLeft = moved.scrollLeft;
    }
  },

  drawCursor() {
    this.maps.forEach((map) => map.overlay());
    drawCell();
    drawCurves();
    drawPath();
  },

  drawAll() {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["ground", "ink", "quiet", "line", "mark"]) this.theme[name] = style.getPropertyValue(`--${name}`).trim();
    this.limits = this.quantity === "agrees" ? [0, 1] : limits(this.runs, this.quantity, this.lens);
    this.kinds = kindsOf(this.runs, this.lens);
    this.maps.forEach((map) => map.draw());
    element("meaning").textContent = QUANTITIES[this.quantity].meaning
      + (this.quantity === "answer" && labelled ? " A corner is marked where it is the label." : "")
      + (this.exit ? ` The bar is where ${this.exit} lets the position leave.` : "");
    drawScale(this, element("scale"));
    drawRouterMaps();
    this.drawCursor();
  },
};

function drawCell() {
  const holder = element("cell"), { run: index, row, column } = page.cursor, run = page.runs[index];
  holder.replaceChildren();
  const heading = add(holder, "div"), place = run.at(row, column);
  add(heading, "strong", `position ${column}, iteration ${run.counts[row]}`);
  add(heading, "span", page.runs.length > 1 ? ` of ${run.name}` : "");
  const facts = add(holder, "div");
  facts.className = "facts";
  const table = () => {
    const body = add(add(facts, "table"), "tbody");
    return (name, text, code) => {
      const line = add(body, "tr");
      add(line, "td", name);
      add(add(line, "td"), code ? "code" : "span", text);
    };
  };
  const fact = table(), label = run.labels[column];
  fact("token", page.text(run.tokens[column]), true);
  if (label >= 0) fact("label", page.text(label), true);
  fact("residual", said(run.motion.residual[place]));
  fact("cosine of steps", said(run.motion.cosine[place]));
  if (Number.isFinite(run.motion.residual[run.at(run.rows - 1, column)])) fact("in the end", run.settled[column] ? "settled" : "not settled");
  for (const [rule, left] of Object.entries(run.exits)) fact(rule, left[column] ? `leaves after ${left[column]}` : "never ran");
  if (run.routers) {
    const { layers, passes, selected } = run.routers;
    layers.forEach((layer, i) => {
      const taken = [];
      for (let t = 0; t < passes; t++) if (selected[(column * layers.length + i) * passes + t]) taken.push(t + 1);
      fact(`layer ${layer}`, taken.length ? `takes pass ${taken.join(", ")}` : "takes no routed pass");
    });
  }
  for (const [lens, found] of Object.entries(run.answers)) {
    const say = table();
    say("read by", LENS_NAMES[lens]);
    for (let k = 0; k < found.kept; k++) {
      const at = place * found.kept + k;
      say(k ? "" : "answers", `${page.text(found.tokens[at])}  ${said(found.probabilities[at])}`, true);
    }
    if (label >= 0) say("label", `probability ${said(found.truth[place])}, rank ${found.rank[place]}`);
    say("entropy", `${said(found.entropy[place])} nats`);
    say("KL to the last", `${said(found.kl[place])} nats`);
  }
}

const LENS_NAMES = { coda: "coda, the model's own", logit: "head without coda" };
const CURVES = ["truth", "best", "kl", "residual", "cosine"];

// Positions whose lines are drawn: those that are kept, and that of the cursor.
function chosen() {
  const lines = page.kept.map((column, i) => ({ column, colour: LINES[i % LINES.length] }));
  if (!page.kept.includes(page.cursor.column)) lines.push({ column: page.cursor.column, colour: page.theme.mark });
  return lines;
}

const meansOf = remembered((run, name, lens) => run.counts.map((_, row) => {
  const values = Array.from({ length: run.columns }, (_, column) => valueOf(run, name, lens, row, column));
  const known = values.filter(Number.isFinite);
  return known.length ? known.reduce((sum, each) => sum + each, 0) / known.length : NaN;
}));

function drawCurves() {
  const holder = element("curves"), legend = element("legend");
  holder.replaceChildren();
  legend.replaceChildren();
  for (const { column, colour } of chosen()) {
    const run = page.runs.find((each) => column < each.columns), item = swatch(legend, colour, `position ${column} `);
    add(item, "code", run ? page.text(run.tokens[column]) : "");
  }
  add(legend, "span", `dotted: mean of all positions${page.runs.length > 1 ? ` of the first run; dashed: ${page.runs[1].name}` : ""}`);
  for (const name of CURVES) {
    if (name === "truth" && !labelled) continue;
    const series = [];
    page.runs.forEach((run, index) => {
      const value = (row, column) => valueOf(run, name, page.lens, row, column);
      if (index === 0) {
        series.push({ className: "mean", counts: run.counts, values: meansOf(run, name, page.lens) });
      }
      for (const { column, colour } of chosen()) {
        if (column >= run.columns) continue;
        series.push({ colour, dash: index > 0, counts: run.counts, values: run.counts.map((_, row) => value(row, column)) });
      }
    });
    const [low, high] = limits(page.runs, name, page.lens);
    lineChart(holder, QUANTITIES[name].name, series, { log: QUANTITIES[name].log, low, high });
  }
}

function drawPath() {
  const withPath = page.runs.filter((run) => run.path);
  element("path-section").hidden = !withPath.length;
  if (!withPath.length) return;
  const paths = [];
  page.runs.forEach((run, index) => {
    if (!run.path) return;
    for (const { column, colour } of chosen()) {
      if (column >= run.columns) continue;
      const points = run.counts.map((_, row) => run.path.axes.map((axis) => axis[run.at(row, column)]));
      paths.push({ colour, dash: index > 0, points });
    }
  });
  element("path").replaceChildren();
  const counts = withPath.reduce((most, run) => (run.rows > most.length ? run.counts : most), []);
  element("until-value").textContent = counts[page.until];
  pathChart(element("path"), paths, page.until, withPath[0].path.shares);
}

function drawRouterMaps() {
  const routed = page.runs.filter((run) => run.routers), holder = element("routers");
  element("router-section").hidden = !routed.length;
  holder.replaceChildren();
  routed.forEach((run) => drawRouters(page, run, add(holder, "div")));
}

function choices(id, entries, value, choose) {
  const select = element(id);
  for (const [key, name] of entries) add(select, "option", name).value = key;
  select.value = value;
  select.addEventListener("change", () => { choose(select.value); page.drawAll(); });
}

function start() {
  element("title").textContent = data.title;
  for (const line of data.about) add(element("about"), "li", line);
  const { runs } = page, lenses = Object.keys(runs[0].answers), rules = Object.keys(runs[0].exits);
  const offered = Object.entries(QUANTITIES).filter(([name]) =>
    name === "agrees" ? runs.length > 1 : labelled || (name !== "truth" && name !== "rank"));
  page.lens = lenses[0];
  page.exit = rules[0] || "";
  choices("quantity", offered.map(([key, kind]) => [key, kind.name]), page.quantity, (value) => { page.quantity = value; });
  choices("lens", lenses.map((lens) => [lens, LENS_NAMES[lens]]), page.lens, (value) => { page.lens = value; });
  choices("exit", [["", "no rule"], ...rules.map((rule) => [rule, rule])], page.exit, (value) => { page.exit = value; });
  element("lens-label").hidden = lenses.length < 2;
  element("exit-label").hidden = !rules.length;

  const most = Math.max(...runs.map((run) => run.columns)), holder = element("maps");
  for (const grid of [holder, element("routers")]) {
    grid.classList.toggle("two", runs.length > 1);
    grid.classList.toggle("short", most <= 34);
  }
  const beside = runs.length > 1 && most <= 34 && window.innerWidth >= 1280 ? 2 : 1;
  const room = (holder.clientWidth - 24 * (beside - 1)) / beside - page.gutter - 2;
  page.zoom = Math.max(14, Math.min(46, Math.floor(room / most / 2) * 2));
  element("zoom").value = page.zoom;
  element("zoom").addEventListener("input", (event) => { page.zoom = Number(event.target.value); page.drawAll(); });

  element("curves-section").hidden = runs.every((run) => run.rows < 2); // one point is no curve
  page.maps = runs.map((_, index) => new RunMap(page, index, add(holder, "div")));
  page.cursor = { run: 0, row: runs[0].rows - 1, column: runs[0].columns - 1 };
  const counts = runs.filter((run) => run.path).map((run) => run.rows), until = element("until");
  until.min = 0;
  until.max = page.until = Math.max(0, ...counts.map((rows) => rows - 1));
  until.value = page.until;
  until.addEventListener("input", () => { page.until = Number(until.value); drawPath(); });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => page.drawAll());
  page.drawAll();
  document.documentElement.dataset.ready = "yes"; // nothing failed on the way here
}

start();
