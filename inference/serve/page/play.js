// The page: what is asked, and what is shown of it.
"use strict";

let abouts = [], about = null, depths = [], running = null;

// What this page needs of a model as /v1/models tells it.
function aboutOf(model) {
  const told = model.mull, limit = told.max_iterations;
  return {
    name: model.id, purpose: told.purpose, prompt: told.prompt, exits: told.exits, capacity: told.capacity,
    mean: told.iterations, most: limit && Math.min(limit, Math.max(64, 4 * told.iterations)), maxTokens: told.max_tokens,
    room: told.max_traced,
  };
}

async function start() {
  try {
    const response = await request("v1/models");
    abouts = (await response.json()).data.map(aboutOf);
  } catch (error) {
    if (error.status === 401) askForKey();
    else element("trouble").textContent = error.message;
    return;
  }
  element("trouble").textContent = "";
  element("key-form").hidden = true;
  const select = element("model");
  select.replaceChildren();
  for (const each of abouts) add(select, "option", each.name).value = each.name;
  element("model-label").hidden = abouts.length < 2;
  element("ask").hidden = false;
  choose(abouts[0]);
  if (window.matchMedia("(pointer: fine)").matches) element("prompt").focus(); // elsewhere a keyboard would pop up
}

// The key was missing or wrong.
function askForKey() {
  element("key-error").textContent = key ? "this is not the key of the server" : "";
  key = "";
  element("ask").hidden = true;
  element("key-form").hidden = false;
  element("key").focus();
}

function choose(chosen) {
  about = chosen;
  document.title = `${about.name} · mull`;
  element("title").textContent = about.name;
  element("purpose").textContent = about.purpose || "";
  const loops = about.mean !== null;
  const way = about.capacity === null
    ? "Before it writes a token (a piece of text), this model goes through the same layers again and again, as often as you say: that is how it thinks."
    : "Tokens (pieces of text) that this model finds hard go through some of its layers again, as often as you say: that is how it thinks.";
  element("lead").textContent = loops
    ? `${way} Ask it at 1 iteration and at ${Math.min(about.mean > 1 ? about.mean : 8, about.most)}, and see what changes.`
    : "This model has no loop: it thinks as long about every token.";
  element("explanation").hidden = element("compare").parentElement.hidden = !loops;
  if (!loops) element("compare").checked = false;
  element("prompt").value = about.prompt || "";
  const length = element("max-tokens");
  length.max = about.maxTokens;
  length.value = Math.min(64, about.maxTokens);
  element("capacity-label").hidden = element("capacity-words").hidden = about.capacity === null;
  element("capacity").value = about.capacity ?? "";
  depths = [];
  lay();
}

// One depth, or two of them, beside each other.
function lay() {
  const holder = element("depths"), two = element("compare").checked;
  if (about.mean === null) return holder.replaceChildren();
  if (!depths.length) {
    holder.replaceChildren();
    depths.push(new Depth(holder, about, "How long to think", Math.min(about.mean, about.most)));
  }
  if (two && depths.length < 2) depths.push(new Depth(holder, about, "Second depth", depths[0].iterations > 1 ? 1 : about.mean));
  if (!two && depths.length > 1) depths.pop().field.remove();
  depths[0].field.querySelector("legend").textContent = two ? "First depth" : "How long to think";
  holder.classList.toggle("two", two);
}

function wishOf(depth) {
  const wish = {
    model: about.name, prompt: element("prompt").value, max_tokens: Number(element("max-tokens").value),
    temperature: Number(element("temperature").value), seed: Number(element("seed").value),
  };
  if (about.capacity !== null && element("capacity").value !== "" && Number(element("capacity").value) !== about.capacity) {
    wish.capacity = Number(element("capacity").value);
  }
  if (depth) wish.iterations = depth.iterations;
  if (depth && depth.exit) wish.exit = depth.exit;
  return wish;
}

const nameOf = (wish) => (wish.iterations
  ? `${wish.exit ? "at most " : ""}${counted(wish.iterations, "iteration")}${wish.exit ? `, ${wish.exit}` : ""}` : "Answer");

async function ask() {
  if (running) running.abort();
  const controller = (running = new AbortController()), wishes = depths.length ? depths.map(wishOf) : [wishOf(null)];
  const holder = element("answers");
  holder.replaceChildren();
  holder.hidden = false;
  holder.classList.toggle("two", wishes.length > 1);
  thought.hide();
  element("trouble").textContent = element("progress").textContent = "";
  element("stop").hidden = false;
  const answers = wishes.map((wish) => new Answer(holder, nameOf(wish)));
  await Promise.all(answers.map((answer, index) => answer.write(wishes[index], controller.signal)));
  if (!running || running === controller) finish(answers, wishes, controller.signal); // else it is asked anew
}

// All answers are there, or as much of them as there will be.
async function finish(answers, wishes, signal) {
  const ranges = answers.map((answer) => answer.range); // of all answers together, so that a colour means the same in each
  const range = [Math.min(...ranges.map(([least]) => least)), Math.max(...ranges.map(([, most]) => most))];
  answers.forEach((answer) => answer.colour(range, answer.pieces));
  if (answers.length > 1 && answers.every((answer) => answer.whole)) {
    const differing = differingWords(...answers.map((answer) => answer.text));
    answers.forEach((answer, index) => {
      answer.mark(differing[index]);
      answer.compare(answers[1 - index]);
    });
  }
  if (signal.aborted) return;
  try {
    if (about.mean !== null) await map(answers, wishes, signal);
  } catch (error) {
    if (error.name !== "AbortError") element("trouble").textContent = `no map: ${error.message}`;
  }
  if (!signal.aborted) end();
}

// The map of every answer that is whole.
async function map(answers, wishes, signal) {
  const found = [];
  let short = false;
  if (answers.some((answer) => answer.whole)) element("progress").textContent = "looking into the thought …";
  for (const [index, answer] of answers.entries()) {
    if (!answer.whole) continue;
    const wish = wishes[index], { tokens, cut } = answer.read(Math.floor(about.room / wish.iterations));
    const body = { model: wish.model, prompt: wish.prompt, answer: tokens, iterations: wish.iterations, top: 3 };
    for (const name of ["exit", "capacity"]) if (wish[name] !== undefined) body[name] = wish[name];
    found.push({ answer, trace: await (await request("mull/trace", body, signal)).json() });
    short ||= cut;
  }
  if (found.length) thought.show(found);
  element("cut").hidden = !short;
}

function end() {
  running = null;
  element("progress").textContent = "";
  if (document.activeElement === element("stop")) element("prompt").focus();
  element("stop").hidden = true;
  document.documentElement.dataset.ready = String(Number(document.documentElement.dataset.ready || 0) + 1);
}

element("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = element("key").value;
  element("key").value = "";
  start();
});
element("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
element("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  element("ask").requestSubmit();
});
function stop() {
  if (!running) return;
  running.abort();
  end();
}

element("stop").addEventListener("click", stop);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });
element("compare").addEventListener("change", lay);
element("model").addEventListener("change", (event) => {
  stop();
  element("answers").hidden = true;
  thought.hide();
  choose(abouts.find((each) => each.name === event.target.value));
});
element("settings").addEventListener("invalid", () => { element("settings").open = true; }, true); // else nobody sees what is
element("quantity").addEventListener("change", (event) => {
  thought.quantity = event.target.value;
  thought.draw();
});
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => thought.draw());
start();
