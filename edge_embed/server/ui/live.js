// The last panel: what the server does at this moment. Asks every two seconds, and not while nobody looks.

import { status } from "./api.js";
import { byId, bytes, count, make, makeSvg, plural, polyline } from "./dom.js";

const EVERY_MS = 2000;
const RATE_OVER = 5; // answers: a rate is that of the last ten seconds
const HISTORY = 60; // two minutes

/**
 * @param {(answer: object) => void} onStatus told of each answer of /api/status.
 * @param {(error: Error) => void} onError told why there was none.
 */
export function livePanel(onStatus, onError) {
  const answers = [];
  const history = { texts: [], tokens: [] };
  let timer = null;
  let asking = false;

  async function poll() {
    clearTimeout(timer);
    if (asking || document.hidden) return;
    asking = true;
    try {
      const answer = await status();
      show(answer);
      onStatus(answer);
    } catch (error) {
      answers.length = 0; // what comes next may be another process, that counts from zero
      onError(error);
      if (error.status === 401) return; // the key's form asks again
    } finally {
      asking = false;
    }
    if (!document.hidden) timer = setTimeout(poll, EVERY_MS);
  }

  function show(answer) {
    if (answers.length && answer.totals.tokens < answers[0].totals.tokens) answers.length = 0;
    answers.push(answer);
    if (answers.length > RATE_OVER + 1) answers.shift();
    for (const what of ["texts", "tokens"]) {
      const rate = rateOf(what);
      history[what].push(rate);
      if (history[what].length > HISTORY) history[what].shift();
      byId(`live-${what}`).textContent = rate > 0 && rate < 10 ? rate.toFixed(1) : count(rate);
      const points = polyline(history[what], 24, 2, Math.max(...history[what], 1));
      byId(`live-${what}-line`).replaceChildren(makeSvg("polyline", { points, "vector-effect": "non-scaling-stroke" }));
    }
    const { queue, requests, memory, models } = answer;
    byId("live-queue").textContent = plural(queue.texts, "text");
    byId("live-queue-more").textContent =
      `${plural(queue.tokens, "token")} of ${plural(queue.requests, "request")}; ${count(requests.under_way)} being answered`;
    byId("live-memory").textContent = bytes(memory.models_bytes);
    byId("live-memory-more").textContent =
      memory.limit_bytes === null ? "as planned; no limit was set" : `as planned, of ${bytes(memory.limit_bytes)}`;
    byId("live-models").replaceChildren(...models.map(row));
    byId("server-facts").textContent = `Up for ${duration(answer.uptime_seconds)}. Asked every two seconds while you look.`;
    byId("version").textContent = `edge-embed ${answer.version}`;
  }

  /** A second's worth of a total, over the last answers. */
  function rateOf(what) {
    const first = answers[0];
    const last = answers[answers.length - 1];
    const seconds = last.uptime_seconds - first.uptime_seconds;
    return seconds > 0 ? (last.totals[what] - first.totals[what]) / seconds : 0;
  }

  function row(model) {
    const state = !model.available ? "not here" : model.loaded ? "in memory" : "loaded on first use";
    return make("tr", { "data-loaded": model.loaded },
      make("th", { scope: "row" }, model.id),
      make("td", {}, model.kind ?? "–"),
      make("td", {}, model.kind === "embedding" ? count(model.dimensions) : "–"),
      make("td", {}, state),
      make("td", {}, model.memory_bytes === null ? "–" : bytes(model.memory_bytes)),
    );
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) clearTimeout(timer);
    else poll();
  });
  return { poll };
}

function duration(seconds) {
  const parts = [[86400, "day"], [3600, "hour"], [60, "minute"], [1, "second"]];
  const [unit, word] = parts.find(([unit]) => seconds >= unit) ?? [1, "second"];
  return plural(Math.floor(seconds / unit), word);
}
