// The dialogue: what was said, and the rounds of answers and calls that follow a message.
//
// Invariants: at most one answer is under way; a request holds only what the model can go on from (no empty answers, no
// calls without a result). Left out: keeping dialogues; a reload begins anew.

import { AnswerView, UserView } from "./views.js";

const MAX_ROUNDS = 8;

export class Chat {
  // `show(view)` and `grown()` put on the page; `changed()` follows each change of `busy` and `used`, `say(text)` tells
  // screen readers.
  constructor({ api, settings, tools, show, grown, changed, say }) {
    Object.assign(this, { api, settings, tools, show, grown, changed, say });
    this.entries = [];
    this.controller = null;
    this.under = Promise.resolve();
    this.used = 0;
    this.newDialogue();
  }

  get busy() {
    return this.controller !== null;
  }

  send(text) {
    const entry = { role: "user", content: text };
    entry.view = new UserView(text, (edited) => this.edit(entry, edited));
    this.entries.push(entry);
    this.show(entry.view);
    this.under = this.answer();
  }

  async edit(entry, text) {
    await this.stop();
    if (!this.entries.includes(entry)) return;
    this.cut(this.entries.indexOf(entry));
    this.send(text);
  }

  editLast() {
    this.entries.findLast((entry) => entry.role === "user")?.view.edit();
  }

  // Answer the message before `entry` anew.
  async retry(entry) {
    await this.stop();
    if (!this.entries.includes(entry)) return;
    const at = this.entries.indexOf(entry);
    this.cut(this.entries.findLastIndex((other, index) => index <= at && other.role === "user") + 1);
    this.under = this.answer();
  }

  async clear() {
    await this.stop();
    this.cut(0);
    this.used = 0;
    this.newDialogue();
    this.changed();
  }

  // Until nothing is under way, also where several wait for that and one of them begins anew.
  async stop() {
    while (this.busy) {
      this.controller.abort();
      await this.under;
    }
  }

  cut(at) {
    for (const entry of this.entries.splice(at)) entry.view.root.remove();
  }

  // What the server's tools keep (notes) is kept by dialogue.
  newDialogue() {
    this.name = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  async answer() {
    this.controller = new AbortController();
    this.changed();
    this.say("Answering");
    const [note, kind] = await this.rounds(this.controller.signal);
    const last = this.entries.at(-1);
    for (const call of last.calls) if (call.result === undefined) call.view.setState("dropped");
    last.view.end(note, kind);
    last.view.addActions(() => last.content, () => this.retry(last));
    this.grown();
    this.controller = null;
    this.changed();
    this.say(note || "The answer is complete");
  }

  // Answers and calls until an answer calls nothing; what there is to note at the end, and whether it is an error.
  async rounds(signal) {
    try {
      for (let round = 0; round < MAX_ROUNDS; round++) {
        const entry = { role: "assistant", content: "", calls: [], view: new AnswerView() };
        const messages = this.messages();
        this.entries.push(entry);
        this.show(entry.view);
        const problem = this.settings.check() || this.tools.problem;
        if (problem) return [problem, "error"];
        const body = { ...this.settings.body(round), messages };
        const reason = await this.stream(entry, body, signal);
        if (reason === "length") return ["Cut: no more tokens were allowed, or the context is full.", "note"];
        if (reason !== "tool_calls") return ["", "note"];
        entry.view.end();
        await Promise.all(entry.calls.map((call) => this.run(call, signal)));
      }
      return [`Stopped after ${MAX_ROUNDS} rounds of calls.`, "note"];
    } catch (error) {
      if (signal.aborted) return ["Stopped.", "note"];
      if (!("status" in error)) console.error(error); // a mistake of this page
      return [error.message, "error"];
    }
  }

  // Fill `entry` as its answer comes; why it ended.
  async stream(entry, body, signal) {
    const clock = { begin: performance.now(), first: 0, chunks: 0 };
    let reason = "", frame = 0;
    const draw = () => {
      frame = 0;
      entry.view.setText(entry.content);
      for (const call of entry.calls) call.view.setArguments(call.arguments);
      entry.view.setStats(statsText(clock, clock.chunks, "about "));
      this.grown();
    };
    try {
      for await (const { choices, usage } of this.api.stream("v1/chat/completions", body, signal)) {
        for (const { delta, finish_reason } of choices) {
          reason = finish_reason ?? reason;
          if (!delta.content && !delta.tool_calls) continue;
          clock.first ||= performance.now();
          clock.chunks++;
          take(entry, delta);
          frame ||= requestAnimationFrame(draw);
        }
        if (usage) {
          clock.usage = usage;
          this.used = usage.total_tokens;
          this.changed();
        }
      }
    } finally {
      cancelAnimationFrame(frame);
      clock.end = performance.now();
      draw();
      if (clock.usage) entry.view.setStats(statsText(clock, clock.usage.completion_tokens));
    }
    return reason;
  }

  // Set the call's result: the server's, or the person's where the server does not run that tool or failed to.
  async run(call, signal) {
    let problem = "";
    if (this.tools.runs(call.name)) {
      call.view.setState("running");
      try {
        const body = { name: call.name, arguments: call.arguments, dialogue: this.name };
        const { content } = await (await this.api.post("v1/tools/call", body, signal)).json();
        return finish(call, content, "done");
      } catch (error) {
        if (signal.aborted || !("status" in error)) throw error;
        if (error.code === "tool_refused") return finish(call, `error: ${error.message}`, "refused");
        problem = error.message;
      }
    }
    this.say(`The model calls ${call.name} and waits for its result`);
    return finish(call, await call.view.ask(signal, problem), "done");
  }

  // The dialogue as the API takes it.
  messages() {
    const system = this.settings.system;
    const found = system ? [{ role: "system", content: system }] : [];
    for (const { role, content, calls = [] } of this.entries) {
      const answered = calls.filter((call) => call.result !== undefined);
      if (role === "user") found.push({ role, content });
      else if (content || answered.length) found.push({ role, content, ...(answered.length && { tool_calls: answered.map(told) }) });
      for (const call of answered) found.push({ role: "tool", tool_call_id: call.id, content: call.result });
    }
    return found;
  }
}

const told = (call) => ({ id: call.id, type: "function", function: { name: call.name, arguments: call.arguments } });

function finish(call, result, state) {
  call.result = result;
  call.view.setResult(result, state);
}

// Add what a chunk brings: text, new calls, more of their arguments.
function take(entry, delta) {
  entry.content += delta.content ?? "";
  for (const { index, id, function: { name, arguments: more } } of delta.tool_calls ?? []) {
    entry.calls[index] ??= { id, name, arguments: "", view: entry.view.addCall(name) };
    entry.calls[index].arguments += more ?? "";
  }
}

function statsText(clock, tokens, about = "") {
  if (!clock.first) return "";
  const seconds = ((clock.end ?? performance.now()) - clock.first) / 1000;
  const speed = tokens > 1 && seconds > 0 ? ` · ${((tokens - 1) / seconds).toFixed(1)} tokens/s` : "";
  const first = ((clock.first - clock.begin) / 1000).toFixed(2);
  return `${about}${tokens.toLocaleString("en")} token${tokens === 1 ? "" : "s"}${speed} · first after ${first} s`;
}
