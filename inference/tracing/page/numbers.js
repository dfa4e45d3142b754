// Numbers as inference/tracing/pages.py packed them: one byte each, or two, 65535 where there is none.

const UNKNOWN = 65535;

function unpacked(packed) {
  const bytes = atob(packed.data);
  const codes = new Uint16Array(bytes.length / packed.bytes);
  for (let i = 0; i < bytes.length; i++) {
    codes[Math.floor(i / packed.bytes)] |= bytes.charCodeAt(i) << (8 * (i % packed.bytes));
  }
  if (packed.scale === "whole") return codes;
  const step = (packed.high - packed.low) / (UNKNOWN - 1);
  return Float64Array.from(codes, (code) => {
    if (code === UNKNOWN) return NaN;
    const value = packed.low + code * step;
    return packed.scale === "linear" ? value : code === 0 ? 0 : 10 ** value;
  });
}

function readRun(run) {
  const rows = run.counts.length, columns = run.tokens.length;
  const all = (found) => Object.fromEntries(Object.entries(found).map(([name, packed]) => [name, unpacked(packed)]));
  const answers = {};
  for (const [lens, found] of Object.entries(run.answers)) {
    answers[lens] = all(found);
    answers[lens].kept = answers[lens].tokens.length / (rows * columns);
  }
  return {
    ...run, rows, columns, answers,
    motion: all(run.motion),
    path: run.path && { shares: run.path.shares, axes: run.path.axes.map(unpacked) },
    routers: run.routers && {
      ...run.routers,
      selected: unpacked(run.routers.selected),
      logits: run.routers.logits && unpacked(run.routers.logits),
      low: run.routers.logits && run.routers.logits.low,
      high: run.routers.logits && run.routers.logits.high,
    },
    at: (row, column) => row * columns + column,
  };
}

function said(value) {
  if (!Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size < 0.001 || size >= 1e5 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

// Blanks and control characters are shown; a token that is nothing else would be invisible.
function visible(text) {
  return Array.from(text, (letter) => {
    if (letter === " ") return "␣";
    if (letter === "\n") return "↵";
    if (letter === "\t") return "⇥";
    return /[\p{C}\p{Z}]/u.test(letter) ? `⟨${letter.codePointAt(0).toString(16)}⟩` : letter;
  }).join("");
}

function cut(text, most) {
  const letters = Array.from(text);
  return letters.length <= most ? text : letters.slice(0, most - 1).join("") + "…";
}
