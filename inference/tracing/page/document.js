// Elements by id, and new ones. Text goes into the document as text, whoever wrote it.

const element = (id) => document.getElementById(id);

function add(parent, name, text) {
  const made = parent.appendChild(document.createElement(name));
  if (text !== undefined) made.textContent = text;
  return made;
}

// A swatch of a colour, with what it stands for.
function swatch(holder, colour, text) {
  const item = add(holder, "span"), box = add(item, "span");
  box.className = "swatch";
  box.style.background = colour;
  add(item, "span", text);
  return item;
}
