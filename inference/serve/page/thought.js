// The map of the thought: what `mull trace` shows of a run, for one answer or two.
"use strict";

const MOST_PASSES = 40; // lines that are shown of routed passes
const SHOWN = ["answer", "best", "kl", "residual", "agrees"];

const thought = {
  runs: [], words: [], maps: [], kept: [], theme: {},
  quantity: "answer", lens: "coda", exit: "", zoom: 24, gutter: 62, keys: "Arrow keys move.",
  cursor: { run: 0, row: 0, column: 0 },

  text(token) { return token < 0 ? "" : this.words[token]; },

  moveTo(run, row, column, follow) {
    const { rows, columns } = this.runs[run];
    this.cursor = { run, row: Math.max(0, Math.min(row, rows - 1)), column: Math.max(0, Math.min(column, columns - 1)) };
    if (follow) this.maps[run].follow();
    this.drawCursor();
  },

  toggle() {},

  scrollTo(moved) {
    for (const other of document.querySelectorAll(".across")) {
      if (other !== moved && Math.abs(other.scrollLeft - moved.scrollLeft) > 1) other.scrollLeft = moved.scrollLeft;
    }
  },

  // Each of `found` has a trace as the server gives it, and the answer that it is of. The cursor begins where the prompt
  // ends, and the answer was thought of.
  show(found) {
    const known = new Map();
    this.runs = found.map(({ trace, answer }) => joined(trace, answer, known));
    this.words = [...known.keys()].map(visible);
    this.exit = this.runs.some((run) => run.exits.rule) ? "rule" : "";
    this.cursor = { run: 0, row: this.runs[0].rows - 1, column: Math.min(found[0].answer.whole.asked, this.runs[0].columns) - 1 };
    this.gutter = this.routed().length ? 108 : 62;
    const section = element("thought"), holder = element("maps"), two = this.runs.length > 1;
    section.hidden = false;
    holder.replaceChildren();
    const most = Math.max(...this.runs.map((run) => run.columns));
    holder.classList.toggle("two", two);
    holder.classList.toggle("short", most <= 34);
    const beside = two && most <= 34 && window.innerWidth >= 1280 ? 2 : 1;
    const room = (holder.clientWidth - 24 * (beside - 1)) / beside - this.gutter - 2;
    this.zoom = Math.max(18, Math.min(46, Math.floor(room / most / 2) * 2));
    if (!two && this.quantity === "agrees") this.quantity = "answer";
    this.choices(two);
    this.maps = this.runs.map((_, index) => new RunMap(this, index, add(holder, "div")));
    this.draw();
  },

  routed() {
    return this.runs.filter(({ routers }) => routers && routers.layers.length * routers.passes <= MOST_PASSES);
  },

  hide() {
    element("thought").hidden = true;
    this.runs = [];
  },

  choices(two) {
    const select = element("quantity");
    select.replaceChildren();
    for (const name of SHOWN.filter((each) => two || each !== "agrees")) add(select, "option", QUANTITIES[name].name).value = name;
    select.value = this.quantity;
  },

  draw() {
    if (!this.runs.length) return;
    const style = getComputedStyle(document.documentElement);
    for (const name of ["ground", "ink", "quiet", "line", "mark"]) this.theme[name] = style.getPropertyValue(`--${name}`).trim();
    this.limits = this.quantity === "agrees" ? [0, 1] : limits(this.runs, this.quantity, this.lens);
    this.kinds = kindsOf(this.runs, this.lens);
    this.maps.forEach((map) => map.draw());
    element("meaning").textContent = this.quantity === "answer"
      ? "A cell is what the model would write next if it stopped there; faint ones are unsure."
      : QUANTITIES[this.quantity].meaning;
    element("exit-meaning").hidden = !this.exit;
    drawScale(this, element("scale"));
    element("routed").hidden = !this.routed().length;
    element("routers").replaceChildren();
    this.routed().forEach((run) => drawRouters(this, run, add(element("routers"), "div")));
    this.drawCursor();
  },

  drawCursor() {
    this.maps.forEach((map) => map.overlay());
    const { run: index, row, column } = this.cursor, run = this.runs[index], place = run.at(row, column), found = run.answers.coda;
    const holder = element("cell");
    holder.replaceChildren();
    const said = (text, code) => add(holder, code ? "code" : "span", text);
    said(`${this.runs.length > 1 ? `${run.name}: p` : "P"}osition ${column + 1} of ${run.columns} reads `);
    said(this.text(run.tokens[column]), true);
    said(`. After ${counted(run.counts[row], "iteration")} the model would write `);
    for (let k = 0; k < found.kept; k++) {
      const at = place * found.kept + k, share = 100 * found.probabilities[at];
      if (k && share < 0.5) break;
      said(`${k ? ", or " : ""}`);
      said(this.text(found.tokens[at]), true);
      said(` (${share.toFixed(0)} %)`);
    }
    const moved = run.motion.residual[place], left = run.exits[this.exit];
    if (Number.isFinite(moved)) said(`. This iteration moved its state by ${moved < 0.0005 ? "almost nothing" : `${(100 * moved).toPrecision(2)} %`}`);
    said(left && left[column] ? `. The rule let it go after ${left[column]}.` : ".");
  },
};

// A run of a trace, its tokens as places in a vocabulary that all runs share. Labels are left out: what is typed need not
// be what the model is to answer. The exits of the answer's tokens are those that were: a rule that reads answers may let
// a token go elsewhere when all are read at once.
function joined(trace, answer, known) {
  const run = readRun(trace.runs[0]);
  const place = trace.vocabulary.map((word) => {
    if (!known.has(word)) known.set(word, known.size);
    return known.get(word);
  });
  const [exits] = Object.values(run.exits);
  if (exits) answer.counts.forEach((count, i) => { exits[answer.whole.asked - 1 + i] = count; });
  const answers = { coda: { ...run.answers.coda, tokens: run.answers.coda.tokens.map((token) => place[token]) } };
  return {
    ...run, name: answer.name, answers, tokens: run.tokens.map((token) => place[token]), labels: run.labels.map(() => -1),
    exits: exits ? { rule: exits.slice(0, run.columns) } : {},
  };
}
