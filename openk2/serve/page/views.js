// How messages look. The dialogue itself is chat.js's.

import { button, copyButton, el, fitHeight, icon, indentJson, renderText, setText, visible } from "./dom.js";

export class UserView {
  // `edited(text)` is called with what the message is to say instead.
  constructor(text, edited) {
    this.text = text;
    this.edited = edited;
    this.body = el("div", { className: "bubble", dir: "auto" }, visible(text));
    this.actions = el("div", { className: "actions" }, copyButton(() => this.text));
    this.actions.append(button("Edit", "edit", () => this.edit()));
    this.root = el("article", { className: "user", ariaLabel: "You" }, this.body, this.actions);
  }

  edit() {
    if (this.form) return this.form.querySelector("textarea").focus();
    const area = el("textarea", { value: this.text, rows: 1, ariaLabel: "Edit your message", dir: "auto" });
    const send = el("button", { type: "submit", className: "primary" }, "Send");
    const cancel = el("button", { type: "button", className: "secondary", onclick: () => this.endEdit() }, "Cancel");
    const hint = el("small", { className: "muted" }, "What follows it will be replaced.");
    this.form = el("form", { className: "edit" }, area, el("div", { className: "row" }, hint, cancel, send));
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (area.value.trim()) this.edited(area.value.trim());
    });
    area.addEventListener("input", () => fitHeight(area));
    sendOnEnter(area, this.form);
    this.form.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      this.endEdit();
    });
    this.root.classList.add("editing");
    this.body.replaceWith(this.form);
    fitHeight(area);
    area.focus();
  }

  endEdit() {
    this.form.replaceWith(this.body);
    this.form = null;
    this.root.classList.remove("editing");
    document.getElementById("message").focus();
  }
}

export class AnswerView {
  constructor() {
    this.body = el("div", { className: "text" });
    this.calls = el("div", { className: "calls" });
    this.foot = el("div", { className: "foot" });
    this.root = el("article", { className: "answer", ariaLabel: "Answer", ariaBusy: "true" });
    this.root.append(this.body, this.calls, this.foot);
  }

  setText(text) {
    renderText(this.body, text);
  }

  addCall(name) {
    const view = new CallView(name);
    this.calls.append(view.root);
    return view;
  }

  setStats(text) {
    this.stats ??= this.foot.appendChild(el("span", { className: "stats" }));
    setText(this.stats, text);
  }

  // No more will come. `note` says why, where that is not plain.
  end(note = "", kind = "note") {
    this.root.ariaBusy = "false";
    if (note) this.foot.before(el("p", { className: kind }, visible(note)));
  }

  addActions(text, retry) {
    const actions = el("div", { className: "actions" });
    if (text()) actions.append(copyButton(text));
    actions.append(button("Retry", "retry", retry));
    this.foot.append(actions);
  }
}

const STATES = {
  writing: "writing …",
  running: "running …",
  done: "done",
  refused: "refused",
  waiting: "waits for you",
  dropped: "not run",
};

export class CallView {
  constructor(name) {
    this.preview = el("code", { className: "preview" });
    this.state = el("span", { className: "state" });
    this.arguments = el("pre", { tabIndex: 0, dir: "ltr", ariaLabel: "Arguments" });
    this.inside = el("div", { className: "inside" }, el("h4", {}, "Arguments"), this.arguments);
    const summary = el("summary", {}, icon("tool"), el("b", {}, visible(name)), this.preview, this.state);
    this.name = name;
    this.root = el("details", { className: "call", open: true }, summary, this.inside);
    summary.addEventListener("click", () => (this.touched = true));
    this.setState("writing");
  }

  setArguments(text) {
    setText(this.preview, oneLine(text));
    setText(this.arguments, indentJson(text));
  }

  setState(state) {
    this.root.dataset.state = state;
    this.state.textContent = STATES[state];
  }

  setResult(text, state) {
    this.setState(state);
    this.preview.append(" → ", visible(oneLine(text)));
    const shown = el("pre", { tabIndex: 0, dir: "auto", className: "result", ariaLabel: "Result" });
    shown.textContent = visible(text);
    this.inside.append(el("h4", {}, state === "refused" ? "Refused" : "Result"), shown);
    if (!this.touched) this.root.open = false;
  }

  // Ask the person for the result; rejects with the signal's reason where the answer is stopped.
  async ask(signal, problem = "") {
    signal.throwIfAborted();
    this.setState("waiting");
    const area = el("textarea", { rows: 2, dir: "auto", ariaLabel: `Result of ${visible(this.name)}` });
    area.placeholder = "What the tool would answer";
    const send = el("button", { type: "submit", className: "primary" }, "Send result");
    const hint = el("small", { className: "muted" }, "The model goes on when you send it.");
    const form = el("form", { className: "ask" }, el("h4", {}, "Result"), area, el("div", { className: "row" }, hint, send));
    if (problem) form.prepend(el("p", { className: "error" }, visible(problem)));
    sendOnEnter(area, form);
    this.root.open = true;
    this.inside.append(form);
    area.focus({ preventScroll: true });
    this.root.scrollIntoView({ block: "end" });
    return new Promise((resolve, reject) => {
      const end = (settle, value) => {
        form.remove();
        settle(value);
      };
      signal.addEventListener("abort", () => end(reject, signal.reason), { once: true });
      form.addEventListener("submit", (event) => {
        event.preventDefault();
        end(resolve, area.value);
      });
    });
  }
}

const oneLine = (text) => text.replace(/\s+/g, " ").slice(0, 200);

export function sendOnEnter(area, form) {
  area.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
}
