// The first panel: texts, their heat map, and what shorter vectors would cost.

import { embed } from "./api.js";
import { byId, bytes, isBusy, make, makeSvg, plural, polyline, showError, whileBusy } from "./dom.js";
import { heatmap } from "./heatmap.js";
import { cosines, costs, meanChange, nearest, stops } from "./vectors.js";

const MOST_TEXTS = 16; // a larger table is read by nobody
const EXAMPLES = {
  languages: [
    "The president visited the university in Paris.",
    "Der Präsident besuchte die Universität in Paris.",
    "El presidente visitó la universidad de París.",
    "Le président a visité l’université de Paris.",
    "A cat is asleep on the warm windowsill.",
  ],
  paraphrases: [
    "A cat sleeps on the warm windowsill.",
    "The kitten is napping in the sun.",
    "The central bank raised interest rates.",
    "Borrowing money has become more expensive.",
    "How do I bake sourdough bread?",
  ],
  senses: [
    "She sat on the bank and watched the river.",
    "The shore was muddy after the flood.",
    "The bank refused to lend her the money.",
    "My credit union turned down the loan.",
  ],
};

/**
 * @param {() => {id: string, mrl_dimensions: number[]} | undefined} chosenModel the embedding model of the requests.
 * @param {(size: number | null) => void} onSize told of the size that the slider is at; null for the full one.
 */
export function similarityPanel(chosenModel, onSize) {
  const list = byId("texts");
  const slider = byId("size");
  const number = byId("size-number");
  let shown = null; // what the heat map stands for: {texts, vectors, full, exact, nearest, sizes, marks}
  let running = null;

  const fields = () => [...list.querySelectorAll("textarea")];

  // Texts

  function addText(text = "") {
    const field = make("textarea", { rows: 1, spellcheck: "false", placeholder: "A sentence, or a paragraph" });
    field.value = text;
    field.addEventListener("input", noteEdit);
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("texts-form").requestSubmit();
    });
    const remove = make("button", { type: "button", class: "remove" }, "×");
    remove.addEventListener("click", () => removeText(remove.closest("li")));
    list.append(make("li", {}, field, remove));
    renumber();
    return field;
  }

  function removeText(item) {
    const next = item.nextElementSibling ?? item.previousElementSibling;
    item.remove();
    renumber();
    noteEdit();
    next.querySelector("textarea").focus();
  }

  function renumber() {
    const all = fields();
    all.forEach((field, i) => {
      field.setAttribute("aria-label", `Text ${i + 1}`);
      const remove = field.nextElementSibling;
      remove.setAttribute("aria-label", `Remove text ${i + 1}`);
      remove.hidden = all.length <= 2;
    });
    byId("add").disabled = all.length >= MOST_TEXTS;
  }

  function noteEdit() {
    if (!shown) return;
    const same = shown.texts.join("\n\n") === texts().join("\n\n");
    byId("embed-note").textContent = same ? "" : "Edited. Embed again to see it.";
  }

  const texts = () => fields().map((field) => field.value.trim()).filter(Boolean);

  function showExample(name) {
    list.replaceChildren();
    EXAMPLES[name].forEach((text) => addText(text));
  }

  // Vectors

  async function run() {
    const model = chosenModel();
    const wanted = texts();
    if (!model) return;
    if (wanted.length < 2) {
      showError(byId("embed-error"), new Error("Two texts at least: there is nothing to compare otherwise."));
      return;
    }
    running?.abort();
    const mine = (running = new AbortController());
    try {
      const started = performance.now();
      const answer = await embed(model.id, wanted, "", mine.signal);
      const ms = performance.now() - started;
      const [first] = answer.vectors;
      const full = first.length;
      const exact = cosines(answer.vectors, full);
      const marks = model.mrl_dimensions.filter((size) => size < full);
      const sizes = stops(full, marks);
      shown = { texts: wanted, vectors: answer.vectors, full, exact, nearest: nearest(exact), sizes, marks };
      showError(byId("embed-error"), null);
      byId("embed-note").textContent =
        `${plural(wanted.length, "text")}, ${plural(answer.tokens, "token")}, in ${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
      setUpSlider();
      setSize(full);
    } catch (error) {
      if (error.name !== "AbortError") {
        showError(byId("embed-error"), error);
        byId("embed-note").textContent = "";
      }
    }
  }

  function submit() {
    const button = byId("embed");
    return isBusy(button) ? undefined : whileBusy(button, "Embedding …", run);
  }

  // The cut

  function setUpSlider() {
    slider.max = String(shown.sizes.length - 1);
    number.max = String(shown.full);
    byId("size-of").textContent = `of ${shown.full}`;
    byId("cut").hidden = false;
    const curve = costs(shown.vectors, shown.sizes);
    const points = polyline(curve, 32, 3);
    byId("curve").replaceChildren(
      makeSvg("polygon", { points: `0,32 ${points} 100,32` }),
      makeSvg("polyline", { points, "vector-effect": "non-scaling-stroke" }),
      makeSvg("line", { id: "curve-at", y1: 0, y2: 32, "vector-effect": "non-scaling-stroke" }),
    );
    const trained = shown.marks.length > 0;
    const octaves = shown.sizes.filter((size) => Number.isInteger(Math.log2(size)));
    const goals = new Set([...(trained ? shown.marks : octaves), shown.full]);
    byId("marks").replaceChildren(...[...goals].map(mark));
    placeInRows(byId("marks"));
    byId("marks-note").textContent =
      (trained ? "Marked are the sizes that this model was trained for. " : "This model was not trained for shorter vectors. ") +
      `The curve is how far cosines move, from ${curve[0].toFixed(2)} at ${plural(shown.sizes[0], "value")} to 0 at ${shown.full}.`;
  }

  function mark(size) {
    const button = make("button", { type: "button", "data-size": size }, String(size));
    button.style.setProperty("--at", shown.sizes.indexOf(size) / (shown.sizes.length - 1 || 1));
    button.addEventListener("click", () => setSize(size));
    return button;
  }

  /** On a phone, a mark whose label would run into another's stands in the first row below that has room. */
  function placeInRows(marks) {
    const ends = []; // of each row, where its last mark is
    for (const button of marks.children) {
      const at = Number(button.style.getPropertyValue("--at"));
      const free = ends.findIndex((end) => at - end >= 0.03 * button.textContent.length);
      const row = free < 0 ? ends.length : free;
      ends[row] = at;
      button.style.setProperty("--row", row);
    }
    marks.style.setProperty("--rows", ends.length);
  }

  /** Show everything as it is with the first `size` values of each vector. */
  function setSize(size) {
    const table = cosines(shown.vectors, size);
    const neighbours = nearest(table);
    byId("heatmap").replaceChildren(heatmap(shown.texts, table, neighbours, size));
    byId("heatmap-empty").hidden = true;
    byId("heatmap-legend").hidden = false;

    const position = shown.sizes.findLastIndex((stop) => stop <= size);
    slider.value = String(Math.max(position, 0));
    slider.setAttribute("aria-valuetext", `${size} of ${shown.full} values`);
    number.value = String(size);
    const at = (100 * slider.value) / (slider.max || 1);
    byId("curve-at").setAttribute("x1", at);
    byId("curve-at").setAttribute("x2", at);
    for (const button of byId("marks").children) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.size) === size));
    }

    const change = meanChange(table, shown.exact);
    const moved = neighbours.map((other, i) => (other === shown.nearest[i] ? null : [i, shown.nearest[i], other])).filter(Boolean);
    const share = size === shown.full ? "" : ` (${Math.round((100 * size) / shown.full)} %)`;
    byId("figure-bytes").textContent = `${bytes(4 * size)}${share}`;
    byId("figure-change").textContent = change.toFixed(3);
    byId("figure-nearest").textContent = `${neighbours.length - moved.length} of ${neighbours.length}`;
    byId("cut-changes").textContent = moved
      .map(([i, before, now]) => `Text ${i + 1} is nearest to ${now + 1} instead of ${before + 1}.`)
      .join(" ");
    onSize(size === shown.full ? null : size);
  }

  byId("texts-form").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  byId("add").addEventListener("click", () => {
    addText().focus();
    noteEdit();
  });
  for (const chip of document.querySelectorAll("[data-example]")) {
    chip.addEventListener("click", () => {
      showExample(chip.dataset.example);
      submit();
    });
  }
  slider.addEventListener("input", () => setSize(shown.sizes[Number(slider.value)]));
  number.addEventListener("change", () => {
    const size = Math.round(Number(number.value)) || shown.full;
    setSize(Math.min(Math.max(size, 1), shown.full));
  });

  showExample("languages");
  return { submit };
}
