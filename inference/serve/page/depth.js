// How long to think: a slider on a logarithmic scale, and the rule that stops earlier.
"use strict";

// The counts that the slider offers: all small ones, then eight to each doubling, and always the trained one and the last.
function countsUpTo(most, mean) {
  const counts = new Set([Math.min(mean, most), most]);
  for (let count = 1; count <= most; count += Math.max(1, 2 ** Math.floor(Math.log2(count) - 3))) counts.add(count);
  return [...counts].sort((a, b) => a - b);
}

class Depth {
  // `about` is what the server says of a model; `name` tells two of these apart.
  constructor(holder, about, name, iterations) {
    const field = copyOf("depth"), part = (word) => field.querySelector(`.${word}`);
    holder.append(field);
    Object.assign(this, { field, about });
    [this.slider, this.words, this.rule, this.threshold, this.below, this.told] =
      ["iterations", "words", "rule", "threshold", "below", "about"].map(part);
    field.querySelector("legend").textContent = name;
    this.counts = countsUpTo(about.most, about.mean);
    this.slider.max = this.counts.length - 1;
    this.iterations = iterations;
    this.slider.addEventListener("input", () => this.say());
    for (const [value, words] of [["", "never"], ...about.exits.map((exit) => [exit.name, `by ${exit.name}`])]) {
      add(this.rule, "option", words).value = value;
    }
    part("stops").hidden = !about.exits.length;
    this.rule.addEventListener("change", () => this.choose());
    this.mark(part("marks"));
    this.choose();
  }

  get iterations() { return this.counts[Number(this.slider.value)]; }

  set iterations(count) {
    const place = this.counts.findIndex((each) => each >= count);
    this.slider.value = place < 0 ? this.counts.length - 1 : place;
  }

  get exit() { return this.rule.value ? `${this.rule.value}:${this.threshold.value}` : null; }

  // The first, the trained and the last count below the slider, where its thumb stands at each.
  mark(marks) {
    const { mean, most } = this.about, partOf = (count) => this.counts.indexOf(count) / Math.max(1, this.counts.length - 1);
    const near = (count) => mean <= most && Math.abs(partOf(count) - partOf(mean)) < 0.06; // words would lie on each other
    const shown = [...(mean <= most ? [[mean, `${mean}, as trained`]] : []), ...[1, most].filter((count) => !near(count)).map((count) => [count, count])];
    for (const [count, words] of shown) {
      const item = add(marks, "span", words), part = partOf(count);
      item.style.left = `calc(${part * 100}% + ${8 - part * 16}px)`;
      item.style.transform = `translateX(${-100 * part}%)`;
    }
  }

  choose() {
    const exit = this.about.exits.find((each) => each.name === this.rule.value);
    this.below.hidden = this.threshold.disabled = !exit;
    this.told.textContent = exit ? exit.words : "";
    if (exit) this.threshold.value = exit.threshold;
    this.say();
  }

  say() {
    const count = this.iterations, unit = count === 1 ? "iteration" : "iterations";
    this.words.textContent = `${this.rule.value ? "At most " : ""}${count} ${unit}`;
    this.slider.setAttribute("aria-valuetext", `${this.words.textContent}${count === this.about.mean ? ", as trained" : ""}`);
  }
}
