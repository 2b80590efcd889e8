// What holds the page together: which models there are, which is chosen, and whether a key is needed.

import { getKey, setKey } from "./api.js";
import { byId, count, make, plural, showError } from "./dom.js";
import { livePanel } from "./live.js";
import { rankingPanel } from "./ranking.js";
import { searchPanel } from "./search.js";
import { similarityPanel } from "./similarity.js";
import { snippetsPanel } from "./snippets.js";

let models = [];
let size = null; // that the slider is at; null for the full one
let started = false; // whether the first heat map was asked for

const find = (id) => models.find((model) => model.id === id);
const chosenModel = () => find(byId("model").value);
const chosenReranker = () => find(byId("reranker").value);

const snippets = snippetsPanel();
const similarity = similarityPanel(chosenModel, (chosenSize) => {
  size = chosenSize;
  snippets.show(byId("model").value, size);
});
rankingPanel(chosenModel, chosenReranker);
const files = searchPanel();
const live = livePanel(onStatus, onError);

function onStatus(answer) {
  models = answer.models.filter((model) => model.available);
  fill(byId("model"), "embedding");
  fill(byId("reranker"), "reranker");
  byId("key-form").hidden = true;
  files.show(answer.search);
  const words = { ready: "Ready", starting: "Starting …", ending: "Ending" };
  if (chosenModel()) say(answer.state, words[answer.state]);
  else say("error", "No embedding model");
  showFacts();
  if (started || !chosenModel()) return;
  started = true;
  snippets.show(chosenModel().id, size);
  if (chosenModel().loaded && answer.state === "ready") similarity.submit(); // a page that is only opened does not load gigabytes
}

/** The models of a kind become a list's options; what was chosen stays so. */
function fill(select, kind) {
  const names = models.filter((model) => model.kind === kind).map((model) => model.id);
  if (names.join("\n") === [...select.options].map((option) => option.value).join("\n")) return;
  const before = select.value;
  select.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
  if (names.includes(before)) select.value = before;
}

function showFacts() {
  const model = chosenModel();
  byId("model-facts").textContent = model
    ? `${plural(model.dimensions, "value")} a vector, up to ${count(model.max_tokens)} tokens a text.` +
      (model.loaded ? "" : " The first request loads the model.")
    : "No embedding model is served here.";
  const reranker = chosenReranker();
  byId("reranker-pick").hidden = !reranker;
  byId("rerank-facts").textContent = reranker
    ? `${reranker.id} reads the query with each document.${reranker.loaded ? "" : " The first request loads it."}`
    : "No reranker is served here, so documents are ranked by embedding: the cosine with the query.";
}

function onError(error) {
  if (error.status === 401) say("error", "Key needed");
  else say("error", error.message);
}

/** The one word on top. Set only when it changes: it is read out. */
function say(state, words) {
  const element = byId("state");
  if (element.textContent === words) return;
  element.dataset.state = state;
  element.textContent = words;
}

document.addEventListener("key-needed", (event) => {
  const form = byId("key-form");
  showError(byId("key-error"), getKey() ? new Error(event.detail) : null);
  if (!form.hidden) return;
  form.hidden = false;
  byId("key").focus();
});

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value.trim());
  byId("key").value = "";
  if (started) snippets.show(byId("model").value, size);
  live.poll();
});

byId("model").addEventListener("change", () => {
  showFacts();
  snippets.show(byId("model").value, size);
  similarity.submit();
});
byId("reranker").addEventListener("change", showFacts);

live.poll();
