// Templates, counts and large numbers, as a person reads them.
"use strict";

const copyOf = (id) => element(id).content.firstElementChild.cloneNode(true);

const counted = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

function large(value) {
  const units = ["", " k", " M", " G", " T", " P"];
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value < 10 ? Number(value.toFixed(2)) : value < 100 ? Number(value.toFixed(1)) : Math.round(value)}${units[unit]}`;
}
