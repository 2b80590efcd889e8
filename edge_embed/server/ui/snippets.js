// Code to copy, with this server's address, the chosen model and, where the server wants one, the key.

import { ADDRESS, getKey } from "./api.js";
import { byId } from "./dom.js";

const HIDDEN = "••••••••"; // the key as it is shown; what is copied has the key itself

const quoted = (text) => JSON.stringify(text); // also a Python string
const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** Each is a function of the model's name, the size (null for the full one) and the key ("" for none). */
const SNIPPETS = {
  curl(model, size, key) {
    const body = JSON.stringify({ model, input: ["A cat sleeps.", "Interest rates rose."], dimensions: size ?? undefined });
    const lines = [`curl ${ADDRESS}v1/embeddings`, "-H 'Content-Type: application/json'"];
    if (key) lines.push(`-H ${shell(`Authorization: Bearer ${key}`)}`);
    lines.push(`-d ${shell(body)}`);
    return lines.join(" \\\n    ");
  },
  python(model, size, key) {
    return [
      "# pip install openai",
      "from openai import OpenAI",
      "",
      `client = OpenAI(base_url=${quoted(`${ADDRESS}v1`)}, api_key=${quoted(key || "not needed")})`,
      "answer = client.embeddings.create(",
      `    model=${quoted(model)},`,
      '    input=["A cat sleeps.", "Interest rates rose."],',
      ...(size ? [`    dimensions=${size},`] : []),
      ")",
      "print(len(answer.data), len(answer.data[0].embedding))",
    ].join("\n");
  },
  langchain(model, size, key) {
    return [
      "# pip install langchain-openai",
      "from langchain_openai import OpenAIEmbeddings",
      "",
      "embeddings = OpenAIEmbeddings(",
      `    base_url=${quoted(`${ADDRESS}v1`)},`,
      `    api_key=${quoted(key || "not needed")},`,
      `    model=${quoted(model)},`,
      ...(size ? [`    dimensions=${size},`] : []),
      "    check_embedding_ctx_length=False,  # send texts, not another model's token ids",
      ")",
      'print(len(embeddings.embed_query("Where is the cat?")))',
    ].join("\n");
  },
};

/** @returns {{show: (model: string, size: number | null) => void}} */
export function snippetsPanel() {
  const tabs = [...document.querySelectorAll('[role="tab"]')];
  let model = "";
  let size = null;

  const chosen = () => tabs.find((tab) => tab.getAttribute("aria-selected") === "true");
  const write = (key) => SNIPPETS[chosen().id.replace("tab-", "")](model, size, key);

  function render() {
    byId("code").textContent = write(getKey() && HIDDEN);
    byId("copy-note").textContent = getKey() ? "Your key is hidden here, and is in what you copy." : "";
  }

  function select(tab) {
    for (const other of tabs) {
      other.setAttribute("aria-selected", String(other === tab));
      other.tabIndex = other === tab ? 0 : -1;
    }
    byId("snippet").setAttribute("aria-labelledby", tab.id);
    render();
  }

  tabs.forEach((tab, i) => {
    tab.addEventListener("click", () => select(tab));
    tab.addEventListener("keydown", (event) => {
      const last = tabs.length - 1;
      const goal = { ArrowRight: i === last ? 0 : i + 1, ArrowLeft: i === 0 ? last : i - 1, Home: 0, End: last }[event.key];
      if (goal === undefined) return;
      event.preventDefault();
      select(tabs[goal]);
      tabs[goal].focus();
    });
  });

  byId("copy").addEventListener("click", async () => {
    const text = write(getKey());
    try {
      await navigator.clipboard.writeText(text); // browsers offer it to https and to this machine's own pages only
      byId("copy-note").textContent = "Copied.";
    } catch {
      getSelection().selectAllChildren(byId("code"));
      byId("copy-note").textContent = "Selected: press Ctrl+C (⌘C).";
    }
  });

  return {
    show(newModel, newSize) {
      model = newModel;
      size = newSize;
      render();
    },
  };
}
