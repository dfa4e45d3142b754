// A map of one run: positions across, iterations down. Drawn once into a picture of its own; the cursor lies above it.

class RunMap {
  constructor(page, index, holder) {
    this.page = page;
    this.run = page.runs[index];
    this.index = index;
    const heading = holder.appendChild(document.createElement("h3"));
    heading.textContent = this.run.name;
    const frame = holder.appendChild(document.createElement("div"));
    frame.className = "frame";
    this.side = frame.appendChild(document.createElement("canvas"));
    this.side.setAttribute("aria-hidden", "true");
    this.across = frame.appendChild(document.createElement("div"));
    this.across.className = "across";
    this.canvas = this.across.appendChild(document.createElement("canvas"));
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute(
      "aria-label",
      `${this.run.name}: ${this.run.columns} positions by ${this.run.rows} iterations. ${this.page.keys}`,
    );
    this.picture = document.createElement("canvas");
    this.listen();
  }

  listen() {
    this.across.addEventListener("scroll", () => this.page.scrollTo(this.across));
    this.canvas.addEventListener("pointermove", (event) => this.point(event, false));
    this.canvas.addEventListener("click", (event) => this.point(event, true));
    this.canvas.addEventListener("focus", () => this.page.moveTo(this.index, this.page.cursor.row, this.page.cursor.column));
    this.canvas.addEventListener("keydown", (event) => {
      const { row, column } = this.page.cursor;
      const moves = {
        ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1], ArrowUp: [row - 1, column], ArrowDown: [row + 1, column],
        Home: [0, column], End: [this.run.rows - 1, column], PageUp: [row, column - 16], PageDown: [row, column + 16],
      };
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "Enter" || event.key === " ") this.page.toggle(column);
      else if (moves[event.key]) this.page.moveTo(this.index, ...moves[event.key], true);
      else return;
      event.preventDefault();
    });
  }

  point(event, keep) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / this.width);
    const row = Math.floor((event.clientY - box.top - this.head) / this.height);
    if (row >= this.run.rows || column < 0 || column >= this.run.columns) return;
    const { cursor } = this.page, to = Math.max(row, 0);
    if (cursor.run !== this.index || cursor.row !== to || cursor.column !== column) this.page.moveTo(this.index, to, column);
    if (keep) this.page.toggle(column);
  }

  // Sizes in CSS pixels; the header stands upright where few letters of a token go into a cell.
  measure() {
    const { run, page } = this;
    const longest = Math.max(...[...run.tokens, ...run.labels].map((token) => cut(page.text(token), 8).length), 1);
    this.width = page.zoom;
    this.height = run.rows <= 40 ? 20 : Math.max(5, Math.floor(700 / run.rows));
    this.letters = Math.min(8, Math.floor((this.width - 2) / 7.5));
    this.upright = longest > this.letters && this.letters < 4;
    if (this.upright) this.letters = 8;
    this.line = this.upright ? Math.min(72, longest * 7.5 + 8) : 20;
    this.hasLabels = run.labels.some((label) => label >= 0);
    this.head = this.line * (this.hasLabels ? 2 : 1) + 14;
    return [run.columns * this.width, this.head + run.rows * this.height];
  }

  context(canvas, width, height) {
    const ratio = Math.min(window.devicePixelRatio || 1, 16000 / Math.max(width, height));
    canvas.width = Math.max(1, Math.round(width * ratio));
    canvas.height = Math.max(1, Math.round(height * ratio));
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.textBaseline = "middle";
    return context;
  }

  draw() {
    const [width, height] = this.measure();
    this.drawSide(height);
    const context = this.context(this.picture, width, height);
    this.drawHead(context);
    for (let row = 0; row < this.run.rows; row++) {
      for (let column = 0; column < this.run.columns; column++) this.drawCell(context, row, column);
    }
    this.drawExits(context);
    this.context(this.canvas, width, height);
    this.overlay();
  }

  drawSide(height) {
    const { run, page } = this, context = this.context(this.side, page.gutter, height);
    context.fillStyle = page.theme.quiet;
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "right";
    context.fillText("token", page.gutter - 5, this.line / 2);
    if (this.hasLabels) context.fillText("label", page.gutter - 5, this.line * 1.5);
    context.fillText("iteration", page.gutter - 5, this.head - 7);
    const every = Math.max(1, Math.ceil(13 / this.height));
    for (let row = 0; row < run.rows; row++) {
      if (row % every && row !== run.rows - 1) continue;
      if (row !== run.rows - 1 && run.rows - 1 - row < every) continue;
      context.fillText(run.counts[row], page.gutter - 5, this.head + (row + 0.5) * this.height);
    }
  }

  drawHead(context) {
    const { run, page } = this;
    const lines = this.hasLabels ? [run.tokens, run.labels] : [run.tokens];
    lines.forEach((tokens, line) => {
      tokens.forEach((token, column) => {
        if (token < 0) return;
        context.save();
        context.fillStyle = line ? page.theme.quiet : page.theme.ink;
        context.font = "12px ui-monospace, 'DejaVu Sans Mono', monospace";
        context.translate((column + 0.5) * this.width, line * this.line + (this.upright ? this.line - 3 : this.line / 2));
        if (this.upright) context.rotate(-Math.PI / 2);
        context.textAlign = this.upright ? "left" : "center";
        context.fillText(cut(page.text(token), this.letters), 0, 0);
        context.restore();
      });
    });
  }

  colour(row, column) {
    const { run, page } = this, { quantity, lens } = page;
    if (quantity === "agrees") {
      const other = page.runs[1 - this.index];
      if (row >= other.rows || column >= other.columns) return null;
      const [one, two] = [run, other].map((each) => valueOf(each, "answer", lens, row, column));
      return mixed(one === two ? KINDS[0] : KINDS[1], page.theme.ground, 0.8);
    }
    const value = valueOf(run, quantity, lens, row, column);
    if (quantity === "answer") {
      const sure = 0.2 + 0.8 * valueOf(run, "best", lens, row, column);
      return mixed(page.kinds.get(value) || REST, page.theme.ground, sure);
    }
    const t = share(value, page.limits, QUANTITIES[quantity].log);
    return Number.isNaN(t) ? null : ramp(t);
  }

  drawCell(context, row, column) {
    const { page, width, height } = this, x = column * width, y = this.head + row * height;
    const colour = this.colour(row, column);
    if (!colour) {
      context.fillStyle = page.theme.line;
      context.fillRect(x + width / 2 - 1, y + height / 2 - 1, 2, 2);
      return;
    }
    const gap = width >= 12 && height >= 12 ? 1 : 0;
    context.fillStyle = css(colour);
    context.fillRect(x, y, width - gap, height - gap);
    if (height < 14 || page.quantity === "agrees") return;
    const value = valueOf(this.run, page.quantity, page.lens, row, column);
    const isAnswer = page.quantity === "answer", room = Math.floor((width - 2) / 6.8);
    if (isAnswer && value === this.run.labels[column] && width >= 10) {
      context.fillStyle = inkOn(colour);
      context.beginPath();
      context.moveTo(x + width - gap - 4, y);
      context.lineTo(x + width - gap, y);
      context.lineTo(x + width - gap, y + 4);
      context.fill();
    }
    const text = isAnswer ? page.text(value) : said(value);
    // Too few letters cannot be told from others, and numbers in some cells alone would look like a pattern.
    if (isAnswer ? text.length > room && room < 4 : text.length > room || (room < 5 && page.quantity !== "rank")) return;
    const words = cut(text, room);
    context.font = "11px ui-monospace, 'DejaVu Sans Mono', monospace";
    context.fillStyle = inkOn(colour);
    context.textAlign = "center";
    context.fillText(words, x + width / 2, y + height / 2 + 0.5);
  }

  // A bar under the iteration after which the position leaves.
  drawExits(context) {
    const left = this.run.exits[this.page.exit];
    if (!left) return;
    context.fillStyle = this.page.theme.mark;
    left.forEach((count, column) => {
      const row = this.run.counts.findIndex((each) => each >= count);
      if (count < 1 || row < 0) return;
      context.fillRect(column * this.width, this.head + (row + 1) * this.height - 3, this.width - 1, 3);
    });
  }

  overlay() {
    const { page, width, height, canvas } = this, context = canvas.getContext("2d");
    context.save();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.drawImage(this.picture, 0, 0);
    context.restore();
    page.kept.forEach((column, i) => {
      if (column >= this.run.columns) return;
      context.fillStyle = LINES[i % LINES.length];
      context.fillRect(column * width + 1, this.head - 11, width - 3, 8);
    });
    const { row, column } = page.cursor;
    if (row >= this.run.rows || column >= this.run.columns) return;
    context.strokeStyle = page.theme.mark;
    context.lineWidth = page.cursor.run === this.index ? 3 : 1.5;
    context.strokeRect(column * width + 0.5, this.head + row * height + 0.5, width - 2, height - 2);
  }

  // Keeps the cursor in sight when it is moved by keys.
  follow() {
    const x = this.page.cursor.column * this.width, seen = this.across;
    if (x < seen.scrollLeft) seen.scrollLeft = Math.max(0, x - 40);
    else if (x + this.width > seen.scrollLeft + seen.clientWidth) seen.scrollLeft = x + this.width + 40 - seen.clientWidth;
  }
}

// Who took each routed pass: passes down, layer by layer; positions across, as in the map above.
function drawRouters(page, run, holder) {
  const heading = holder.appendChild(document.createElement("h3"));
  heading.textContent = run.name;
  const box = holder.appendChild(document.createElement("div"));
  box.className = "across frame";
  box.addEventListener("scroll", () => page.scrollTo(box));
  const canvas = box.appendChild(document.createElement("canvas"));
  const { layers, passes, selected, logits } = run.routers, lines = layers.length * passes;
  const width = page.zoom, height = 20, side = page.gutter;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `routed passes of ${layers.length} layers by ${run.columns} positions; each cell above says its own`);
  const context = RunMap.prototype.context(canvas, side + run.columns * width, lines * height + 4);
  const [low, high] = logits ? [run.routers.low, run.routers.high] : [0, 1];
  for (let line = 0; line < lines; line++) {
    const layer = Math.floor(line / passes), pass = line % passes;
    context.fillStyle = page.theme.quiet;
    context.font = "12px system-ui, sans-serif";
    context.textAlign = "right";
    context.fillText(`layer ${layers[layer]}, pass ${pass + 1}`, side - 8, (line + 0.5) * height + 2);
    for (let column = 0; column < run.columns; column++) {
      const place = (column * layers.length + layer) * passes + pass;
      const colour = logits && Number.isFinite(logits[place]) ? ramp((logits[place] - low) / (high - low || 1)) : mixed(REST, page.theme.ground, 0.8);
      const box = [side + column * width + 1, line * height + 3, width - 3, height - 4];
      context.fillStyle = context.strokeStyle = css(colour);
      if (selected[place]) context.fillRect(...box);
      else context.strokeRect(box[0] + 0.5, box[1] + 0.5, box[2] - 1, box[3] - 1);
    }
  }
}
