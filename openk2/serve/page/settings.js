// The settings of an answer: fields of the panel <-> what is remembered <-> a request's body.

import { visible } from "./dom.js";
import { load, save } from "./storage.js";

const NUMBERS = [
  "temperature", "top_p", "top_k", "min_p", "max_tokens", "seed",
  "presence_penalty", "frequency_penalty", "repetition_penalty",
];

export class Settings {
  // `form` holds fields with the names of the request's; `tools` tells which tools are chosen.
  constructor(form, tools) {
    this.form = form;
    this.tools = tools;
    const kept = load("settings", {});
    for (const field of form.elements) {
      if (!field.name || !(field.name in kept)) continue;
      if (field.type === "checkbox") field.checked = kept[field.name];
      else field.value = kept[field.name];
    }
    this.choice = kept.tool_choice ?? "auto";
    this.showChoices();
    form.addEventListener("input", () => this.changed());
    form.addEventListener("submit", (event) => event.preventDefault());
    this.check();
  }

  get system() {
    return this.form.elements.system.value.trim();
  }

  // The first thing that is wrong, or "".
  check() {
    const problems = NUMBERS.map((name) => numberProblem(this.form.elements[name]));
    const schema = schemaProblem(this.form.elements.schema.value);
    mark(this.form.elements.schema, schema);
    document.getElementById("schema-problem").textContent = schema;
    return problems.find(Boolean) || schema;
  }

  // The fields of a request besides its messages. `round` counts the answers to one message.
  body(round) {
    const fields = this.form.elements;
    const body = { stream: true, stream_options: { include_usage: true } };
    for (const name of NUMBERS) if (fields[name].value !== "") body[name] = Number(fields[name].value);
    if (fields.schema.value.trim()) {
      const schema = JSON.parse(fields.schema.value);
      body.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
    }
    const tools = this.tools.chosen();
    if (tools.length) {
      body.tools = tools;
      body.parallel_tool_calls = fields.parallel_tool_calls.checked;
      // A call that is demanded is demanded once: otherwise the calls would never end.
      if (round === 0) body.tool_choice = this.toolChoice();
    }
    return body;
  }

  toolChoice() {
    const value = this.form.elements.tool_choice.value;
    return value.startsWith("=") ? { type: "function", function: { name: value.slice(1) } } : value;
  }

  // Offer the chosen tools by name, and keep the choice where it still exists.
  showChoices() {
    const select = this.form.elements.tool_choice;
    const wanted = this.choice;
    const names = this.tools.chosen().map((tool) => tool.function.name);
    select.replaceChildren(
      new Option("the model decides", "auto"),
      new Option("no calls", "none"),
      new Option("some call", "required"),
      ...names.map((name) => new Option(`call ${visible(name)}`, `=${name}`)),
    );
    select.value = wanted;
    if (select.value !== wanted) select.value = "auto";
    select.disabled = this.form.elements.parallel_tool_calls.disabled = names.length === 0;
  }

  changed() {
    this.choice = this.form.elements.tool_choice.value;
    this.check();
    const kept = {};
    for (const field of this.form.elements) {
      if (field.name) kept[field.name] = field.type === "checkbox" ? field.checked : field.value;
    }
    save("settings", kept);
  }

  reset() {
    this.form.reset();
    this.changed();
    this.showChoices();
  }
}

function numberProblem(field) {
  const { validity } = field;
  const range = [field.min && `at least ${field.min}`, field.max && `at most ${field.max}`].filter(Boolean).join(" and ");
  const kind = field.step === "1" ? "a whole number" : "a number";
  const problem = validity.valid ? "" : `${field.labels[0].textContent.trim()}: expected ${kind}${range && `, ${range}`}.`;
  mark(field, problem);
  return problem;
}

function schemaProblem(text) {
  if (!text.trim()) return "";
  try {
    const schema = JSON.parse(text);
    if (schema === null || typeof schema !== "object" || Array.isArray(schema)) {
      return "Answer's schema: expected an object, such as {\"type\": \"object\"}.";
    }
    return "";
  } catch (error) {
    return `Answer's schema: not JSON (${error.message}).`;
  }
}

function mark(field, problem) {
  field.title = problem;
  if (problem) field.setAttribute("aria-invalid", "true");
  else field.removeAttribute("aria-invalid");
}
