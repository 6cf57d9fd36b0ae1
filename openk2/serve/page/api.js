// The server's API. Every failure is an Error whose message is one line for people; `status` and `code` are the server's.

import { loadKey, saveKey } from "./storage.js";

export class ApiError extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export class Api {
  // `askKey(wrong)` resolves to a key, or to null where the person gives none.
  constructor(askKey) {
    this.askKey = askKey;
    this.asking = null;
  }

  async get(path) {
    return (await this.request(path, {})).json();
  }

  async post(path, body, signal) {
    const headers = { "content-type": "application/json" };
    return this.request(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  }

  // The chunks of a streamed answer. Throws unless the stream is whole.
  async *stream(path, body, signal) {
    const response = await this.post(path, body, signal);
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(chunk.error.message, 0, chunk.error.code);
      yield chunk;
    }
    throw new ApiError("The connection was cut before the answer was complete.");
  }

  async request(path, options) {
    for (let wrong = false; ; wrong = true) {
      const key = loadKey();
      const response = await this.fetch(path, options, key);
      if (response.ok) return response;
      const error = await refusal(response);
      if (error.status !== 401 || !(await this.newKey(key, wrong || key !== ""))) throw error;
    }
  }

  async fetch(path, options, key) {
    const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
    try {
      return await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The server cannot be reached; is it still running?");
    }
  }

  // Several requests may be refused at once: the person is asked once.
  async newKey(refused, wrong) {
    if (loadKey() !== refused) return true;
    this.asking ??= this.askKey(wrong).finally(() => (this.asking = null));
    const key = await this.asking;
    if (key) saveKey(key);
    return Boolean(key);
  }
}

async function refusal(response) {
  const body = await response.json().catch(() => null);
  const { message, code } = body?.error ?? {};
  return new ApiError(message ?? `The server answered with status ${response.status}.`, response.status, code);
}

// The data of server-sent events, each of one line.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((error) => {
        if (error.name === "AbortError") throw error;
        throw new ApiError("The connection was cut before the answer was complete.");
      });
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
