// Small helpers for the page's elements. Text is always set as text, never as HTML.

export const byId = (id) => document.getElementById(id);

/** An element with attributes and children (elements or strings). */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Text for screen readers alone. */
export const unseen = (text) => make("span", { class: "unseen" }, text);

/** Show an error's words in an element with role="alert", or hide it. */
export function showError(element, error) {
  element.hidden = !error;
  element.textContent = error ? error.message : "";
}

/** A button says that it works, and cannot be pressed twice, until the promise is done. */
export async function whileBusy(button, label, work) {
  const before = button.textContent;
  button.textContent = label;
  button.setAttribute("aria-disabled", "true");
  try {
    return await work();
  } finally {
    button.textContent = before;
    button.removeAttribute("aria-disabled");
  }
}

export const isBusy = (button) => button.getAttribute("aria-disabled") === "true";

/** 1536 -> "1.5 KB", in powers of 1000 as files are counted. */
export function bytes(n) {
  const units = ["bytes", "KB", "MB", "GB", "TB"];
  let at = 0;
  while (n >= 1000 && at < units.length - 1) {
    n /= 1000;
    at++;
  }
  return `${at && n < 100 ? n.toFixed(n < 10 ? 2 : 1) : Math.round(n)} ${units[at]}`;
}

export const count = (n) => Math.round(n).toLocaleString("en");

/** 1 -> "1 text", 2 -> "2 texts". */
export const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;

/** A line through values from left to right of an SVG of the given height, the largest at `top`. */
export function polyline(values, height, top, largest = Math.max(...values)) {
  const x = (i) => (values.length > 1 ? (100 * i) / (values.length - 1) : 0);
  const y = (value) => height - 1 - (largest > 0 ? (value / largest) * (height - 1 - top) : 0);
  return values.map((value, i) => `${x(i).toFixed(2)},${y(value).toFixed(2)}`).join(" ");
}

/** An SVG element. */
export function makeSvg(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}
