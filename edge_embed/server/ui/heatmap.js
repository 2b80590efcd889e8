// The table of cosines. It is a real table, so a screen reader walks through it as the eye does.

import { make, unseen } from "./dom.js";

const STRONG = 0.6; // where the ground turns dark and the ink light: style.css leaves a gap in between

/**
 * A table of cosines.
 * @param {string[]} texts what the rows and columns stand for.
 * @param {number[][]} table their cosines.
 * @param {number[]} nearest for each row, the column that is ringed; -1 for none.
 */
export function heatmap(texts, table, nearest, size) {
  const head = make("tr", {}, make("td", {}), ...texts.map((text, j) => heading(text, j, "col")));
  const rows = table.map((row, i) =>
    make("tr", {}, heading(texts[i], i, "row"), ...row.map((value, j) => cell(value, i, j, nearest[i] === j))),
  );
  const caption = make("caption", { class: "unseen" }, `Cosine of each pair of texts, at ${size} values a vector`);
  return make("table", {}, caption, make("thead", {}, head), make("tbody", {}, ...rows));
}

function heading(text, index, scope) {
  return make("th", { scope, title: text }, String(index + 1), unseen(`: ${text}`));
}

function cell(value, row, column, isNearest) {
  const element = make("td", { "data-row": row, "data-column": column, title: value.toFixed(6) }, format(value));
  if (row === column) {
    element.className = "same";
    return element;
  }
  element.className = value < 0 ? "negative" : value >= STRONG ? "strong" : "weak";
  element.style.setProperty("--value", Math.min(Math.abs(value), 1).toFixed(4)); // by CSSOM: no style in the markup
  if (isNearest) {
    element.classList.add("nearest");
    element.append(unseen(", nearest"));
  }
  return element;
}

/** Two digits, with a true minus sign, and no "-0.00". */
export function format(value) {
  const digits = value.toFixed(2);
  return digits === "-0.00" ? "0.00" : digits.replace("-", "−");
}
