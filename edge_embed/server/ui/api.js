// The server's public routes, and the key that they may ask for. Everything that the page sends goes through here.

/** The address that the page came from, also where a proxy puts the server below a path. Ends with a slash. */
export const ADDRESS = new URL("./", location.href).href;

const KEY = "edge-embed-api-key"; // in sessionStorage: gone with the tab, and never in a URL

/** An answer that is an error, with the server's own words. */
export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const getKey = () => sessionStorage.getItem(KEY) ?? "";

export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

async function request(path, body, signal) {
  const headers = { Accept: "application/json" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (getKey()) headers.Authorization = `Bearer ${getKey()}`;
  let response;
  try {
    response = await fetch(ADDRESS + path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer. Is it still running?", 0);
  }
  const text = await response.text();
  let answer = null;
  try {
    answer = JSON.parse(text);
  } catch {
    // Not JSON: what it says is shown below.
  }
  if (response.ok && answer !== null) return answer;
  const error = new ServerError(messageOf(answer, text) || `The server answered ${response.status}.`, response.status);
  if (response.status === 401) document.dispatchEvent(new CustomEvent("key-needed", { detail: error.message }));
  throw error;
}

/** What an error body says: OpenAI's shape, or one of the plainer ones. */
function messageOf(answer, text) {
  if (answer === null) return text.slice(0, 300);
  return answer.error?.message ?? answer.message ?? (typeof answer.error === "string" ? answer.error : "");
}

/** What is served and how busy it is. */
export const status = (signal) => request("api/status", undefined, signal);

/**
 * Embed texts.
 * @param {string} role "query" or "document" for the model's prompt of that name, "" for its default.
 * @returns {Promise<{vectors: Float32Array[], tokens: number}>} float32 as the model gives them, uncut.
 */
export async function embed(model, texts, role = "", signal = undefined) {
  const name = role ? `${model}:${role}` : model;
  const answer = await request("v1/embeddings", { model: name, input: texts, encoding_format: "base64" }, signal);
  const rows = [...answer.data].sort((one, other) => one.index - other.index);
  return { vectors: rows.map((row) => floats(row.embedding)), tokens: answer.usage.prompt_tokens };
}

/** Scores of documents for a query. @returns {Promise<{index: number, score: number}[]>} best first. */
export async function rerank(model, query, documents, signal = undefined) {
  const answer = await request("v1/rerank", { model, query, documents }, signal);
  return answer.results.map((result) => ({ index: result.index, score: result.relevance_score }));
}

/** Places in the indexed files that answer a question, best first. */
export async function search(query, mode, signal = undefined) {
  return (await request("v1/search", { query, mode }, signal)).results;
}

/** Little-endian float32 in base64. */
function floats(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
}
