// Which words of two texts differ: those outside their longest common subsequence.
"use strict";

const MOST_PAIRS = 4e6;

// For each text, the places [from, to) of the words that the other does not have there.
function differingWords(one, two) {
  const words = [one, two].map((text) => [...text.matchAll(/\S+/gu)].map((found) => ({ text: found[0], at: found.index })));
  const [first, second] = words;
  if (first.length * second.length > MOST_PAIRS) return [[], []];
  const wide = second.length + 1, common = new Uint32Array((first.length + 1) * wide);
  for (let i = first.length - 1; i >= 0; i--) {
    for (let j = second.length - 1; j >= 0; j--) {
      common[i * wide + j] = first[i].text === second[j].text
        ? common[(i + 1) * wide + j + 1] + 1
        : Math.max(common[(i + 1) * wide + j], common[i * wide + j + 1]);
    }
  }
  const differ = [[], []], keep = (side, word) => differ[side].push([word.at, word.at + word.text.length]);
  let i = 0, j = 0;
  while (i < first.length || j < second.length) {
    if (i < first.length && j < second.length && first[i].text === second[j].text) {
      i += 1;
      j += 1;
    } else if (j >= second.length || (i < first.length && common[(i + 1) * wide + j] >= common[i * wide + j + 1])) {
      keep(0, first[i++]);
    } else {
      keep(1, second[j++]);
    }
  }
  return differ;
}
