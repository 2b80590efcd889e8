// The second panel: documents in the order in which they answer a query.

import { embed, rerank } from "./api.js";
import { byId, isBusy, make, plural, showError, unseen, whileBusy } from "./dom.js";
import { format } from "./heatmap.js";
import { cosine } from "./vectors.js";

/**
 * @param {() => {id: string} | undefined} chosenModel the embedding model, where there is no reranker.
 * @param {() => {id: string} | undefined} chosenReranker the reranker, if one is served.
 */
export function rankingPanel(chosenModel, chosenReranker) {
  async function run() {
    const query = byId("query").value.trim();
    const documents = byId("documents").value.split("\n").map((line) => line.trim()).filter(Boolean);
    const problem = !query ? "There is no query." : !documents.length ? "There are no documents." : "";
    if (problem) return showError(byId("rank-error"), new Error(problem));
    const reranker = chosenReranker();
    try {
      const started = performance.now();
      const results = reranker
        ? await rerank(reranker.id, query, documents)
        : await byEmbedding(chosenModel(), query, documents);
      const ms = performance.now() - started;
      showError(byId("rank-error"), null);
      byId("rank-note").textContent =
        `${plural(documents.length, "document")}${reranker ? "" : ", by embedding"}, in ${Math.round(ms)} ms`;
      show(results, documents);
    } catch (error) {
      showError(byId("rank-error"), error);
      byId("rank-note").textContent = "";
    }
  }

  async function byEmbedding(model, query, documents) {
    const [asked, answered] = await Promise.all([
      embed(model.id, [query], "query"),
      embed(model.id, documents, "document"),
    ]);
    return answered.vectors
      .map((vector, index) => ({ index, score: cosine(asked.vectors[0], vector) }))
      .sort((one, other) => other.score - one.score);
  }

  function show(results, documents) {
    // Probabilities and cosines have bars of their own size; scores without bounds are drawn beside the largest.
    const bounded = results.every(({ score }) => Math.abs(score) <= 1);
    const largest = bounded ? 1 : Math.max(...results.map(({ score }) => Math.abs(score)));
    byId("ranking").replaceChildren(
      ...results.map(({ index, score }) => {
        const bar = make("span", { class: "bar", "aria-hidden": "true" });
        bar.style.setProperty("--share", Math.max(score, 0) / largest);
        const value = make("span", { class: "score", title: String(score) }, unseen("score "), format(score));
        return make("li", { "data-index": index }, make("span", { class: "document" }, documents[index]), value, bar);
      }),
    );
    byId("ranking-empty").hidden = true;
  }

  byId("rerank-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const button = byId("rank");
    if (!isBusy(button) && (chosenReranker() || chosenModel())) whileBusy(button, "Ranking …", run);
  });
}
