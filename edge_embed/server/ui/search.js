// The panel over indexed files, which is there only where the server was given a database.

import { search } from "./api.js";
import { byId, count, isBusy, make, showError, unseen, whileBusy } from "./dom.js";
import { format } from "./heatmap.js";

/** @returns {{show: (database: {chunks: number, model: string} | null) => void}} */
export function searchPanel() {
  async function run() {
    const question = byId("question").value.trim();
    if (!question) return showError(byId("search-error"), new Error("There is no question."));
    try {
      const started = performance.now();
      const results = await search(question, byId("search-mode").value);
      const ms = Math.round(performance.now() - started);
      showError(byId("search-error"), null);
      byId("search-note").textContent = results.length ? `in ${ms} ms` : "Nothing was found.";
      byId("found").replaceChildren(...results.map(item));
      byId("found-empty").hidden = results.length > 0;
    } catch (error) {
      showError(byId("search-error"), error);
      byId("search-note").textContent = "";
    }
  }

  byId("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const button = byId("search");
    if (!isBusy(button)) whileBusy(button, "Searching …", run);
  });

  return {
    show(database) {
      byId("search-panel").hidden = !database;
      if (database) byId("search-facts").textContent = `${count(database.chunks)} places, found by ${database.model}.`;
    },
  };
}

/** One place: its file, where in it, headings, and the part of the text with the question's words marked. */
function item(result) {
  const where = result.line !== null ? `:${result.line}` : result.page !== null ? `, page ${result.page}` : "";
  const heading = result.heading ? [make("span", { class: "quiet" }, result.heading)] : [];
  const score = make("span", { class: "score", title: String(result.score) }, unseen("score "), format(result.score));
  const place = make("span", { class: "document" }, make("strong", {}, result.path + where), ...heading);
  return make("li", { class: "place" }, place, score, make("p", { class: "found-text" }, ...marked(result.snippet)));
}

/** The words of a snippet, those of the question in <mark>. Places count characters, not UTF-16 units. */
function marked({ text, marks }) {
  const characters = [...text];
  const parts = [];
  let done = 0;
  for (const [start, stop] of marks) {
    parts.push(characters.slice(done, start).join(""), make("mark", {}, characters.slice(start, stop).join("")));
    done = stop;
  }
  return [...parts, characters.slice(done).join("")].filter((part) => part !== "");
}
