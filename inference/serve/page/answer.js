// One answer: its tokens as they come, and what they took.
"use strict";

class Answer {
  constructor(holder, name) {
    this.article = copyOf("answer");
    holder.append(this.article);
    [this.box, this.asked, this.said, this.error, this.state, this.spent] =
      ["answer", "asked", "said", "error", "thinking", "spent"].map((word) => this.article.querySelector(`.${word}`));
    this.cost = this.article.querySelector("dl");
    this.article.querySelector("h2").textContent = name;
    this.box.setAttribute("aria-label", name);
    Object.assign(this, { name, pieces: [], range: [Infinity, -Infinity], whole: null });
  }

  get text() { return this.pieces.map((piece) => piece.text).join(""); }

  // Ask, and show what comes. Whether all of it came is told by `whole`: what the server says of it, or null.
  async write(body, signal) {
    const start = performance.now();
    this.asked.textContent = body.prompt;
    this.said.setAttribute("aria-busy", "true");
    this.state.textContent = "thinking …";
    this.state.classList.add("busy");
    let words = "";
    try {
      const response = await request("v1/completions", { ...body, stream: true, stream_options: { include_usage: true } }, signal);
      let reason = "";
      for await (const event of eventsOf(response)) {
        signal.throwIfAborted(); // nothing is written any more, though more may have come
        const [choice] = event.choices;
        if (choice && choice.text) this.append(choice.text, event.mull);
        if (choice && choice.finish_reason) reason = choice.finish_reason;
        if (event.usage) this.whole = { ...event.mull, tokens: event.usage.completion_tokens, asked: event.usage.prompt_tokens, reason };
      }
    } catch (error) {
      if (error.name === "AbortError") words = "stopped";
      else this.error.textContent = error.message;
      if (error.status === 401) askForKey();
    }
    this.said.removeAttribute("aria-busy");
    this.state.classList.remove("busy");
    this.state.textContent = words;
    this.tell((performance.now() - start) / 1000);
  }

  append(text, { tokens, iterations }) {
    const span = add(this.said, "span", text);
    const piece = { text, tokens, counts: iterations, span }, before = this.range;
    this.pieces.push(piece);
    this.range = [Math.min(before[0], ...iterations), Math.max(before[1], ...iterations)];
    const same = before.every((end, i) => end === this.range[i]);
    this.colour(this.range, same ? [piece] : this.pieces);
    this.box.scrollTop = this.box.scrollHeight;
  }

  get counts() { return this.pieces.flatMap((piece) => piece.counts); }

  // Bars under tokens, from few iterations to many, where they differ in this answer.
  colour([low, high], pieces) {
    const [least, most] = this.range;
    if (!(least < most)) return;
    const barOf = (count) => css(ramp((count - low) / (high - low)));
    for (const { span, counts: own } of pieces) {
      if (!own.length) continue;
      const count = Math.max(...own);
      span.style.borderBottomColor = barOf(count);
      span.title = counted(count, "iteration");
    }
    this.said.classList.add("barred");
    this.spent.hidden = false;
    this.spent.replaceChildren();
    add(this.spent, "span", "iterations of a token: ");
    for (const count of new Set([least, Math.round((least + most) / 2), most])) swatch(this.spent, barOf(count), count);
  }

  tell(seconds) {
    const fact = (name, text) => {
      const item = add(this.cost, "div");
      add(item, "dt", name);
      add(item, "dd", text);
    };
    const { whole } = this;
    if (!whole) return;
    if (whole.iterations !== null) {
      const mean = Number(whole.mean_iterations.toFixed(2)), all = mean === whole.iterations;
      fact("iterations", all ? `${whole.iterations} before each token` : `${mean} before a token on average, at most ${whole.iterations}`);
    }
    fact("tokens", `${whole.tokens}${whole.reason === "length" ? ", the longest allowed" : ", ended by itself"}`);
    fact("computed", `${large(whole.flops)} FLOPs`);
    if (whole.settled !== null) fact("in the end", whole.settled ? "settled" : "not settled: more iterations may change it");
    fact("took", `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`);
  }

  // Beside another answer: how many times its computation this one took.
  compare(other) {
    const share = this.whole.flops / other.whole.flops;
    if (share < 1.05) return;
    const places = this.cost.querySelectorAll("div"), item = [...places].find((each) => each.firstChild.textContent === "computed");
    item.lastChild.textContent += `, ${Number(share.toPrecision(2))} times the other's`;
  }

  // Mark the words at these places of the text; a word may lie in several tokens, and a token in several words.
  mark(differing) {
    let at = 0;
    for (const { text, span } of this.pieces) {
      const end = at + text.length;
      span.replaceChildren();
      let from = at;
      for (const [first, last] of differing) {
        const [left, right] = [Math.max(first, at), Math.min(last, end)];
        if (left >= right) continue;
        span.append(text.slice(from - at, left - at));
        add(span, "mark", text.slice(left - at, right - at));
        from = right;
      }
      span.append(text.slice(from - at));
      at = end;
    }
  }

  // The tokens whose positions thought about this answer, behind those of the prompt: the last token is written, but not
  // read any more. A trace may have room for a beginning only.
  read(room) {
    const told = this.pieces.flatMap((piece) => piece.tokens);
    const read = told.length === this.whole.tokens ? told.slice(0, -1) : told; // an end without text is not told
    const kept = read.slice(0, Math.max(0, room - this.whole.asked));
    return { tokens: kept, cut: kept.length < read.length };
  }
}
