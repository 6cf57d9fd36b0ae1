// Which tools the model is told of: those of the server that are picked, and those that were pasted.

import { el, visible } from "./dom.js";
import { load, save } from "./storage.js";

export class Tools {
  // `changed()` is called when another set is chosen.
  constructor({ list, area, problem, changed }) {
    this.list = list;
    this.area = area;
    this.problemLine = problem;
    this.changed = changed;
    this.offered = [];
    this.pasted = [];
    this.problem = "";
    this.picked = new Set(load("tools.picked", []));
    area.value = load("tools.pasted", "");
    area.addEventListener("input", () => {
      save("tools.pasted", area.value);
      this.read();
      this.changed();
    });
    this.read();
  }

  // The tools that the server runs, as it lists them.
  offer(tools) {
    this.offered = tools;
    this.list.replaceChildren(...tools.map((tool) => this.row(tool)));
    if (!tools.length) {
      this.list.append(el("p", { className: "muted" }, "None: the server was started without tools."));
    }
    this.read();
    this.changed();
  }

  // Declarations as a request holds them.
  chosen() {
    const picked = this.offered.filter((tool) => this.picked.has(tool.function.name));
    return [...picked.map(({ type, function: declared }) => ({ type, function: declared })), ...this.pasted];
  }

  // Whether the server runs this tool; a person answers for the others.
  runs(name) {
    return this.picked.has(name) && this.offered.some((tool) => tool.function.name === name);
  }

  row(tool) {
    const { name, description = "" } = tool.function;
    const box = el("input", { type: "checkbox", checked: this.picked.has(name) });
    box.addEventListener("change", () => {
      if (box.checked) this.picked.add(name);
      else this.picked.delete(name);
      save("tools.picked", [...this.picked]);
      this.read();
      this.changed();
    });
    const head = el("span", { className: "tool-name" }, el("code", {}, visible(name)), " ");
    head.append(el("small", { className: "badge" }, visible(tool.origin)));
    return el("label", { className: "tool" }, box, el("span", {}, head, el("small", {}, visible(description))));
  }

  read() {
    this.pasted = [];
    this.problem = "";
    try {
      const picked = this.offered.filter((tool) => this.picked.has(tool.function.name));
      this.pasted = declarations(this.area.value, picked.map((tool) => tool.function.name));
    } catch (error) {
      this.problem = `Pasted tools: ${error.message}`;
    }
    this.problemLine.textContent = this.problem;
    if (this.problem) this.area.setAttribute("aria-invalid", "true");
    else this.area.removeAttribute("aria-invalid");
  }
}

// The tools in `text`, a list of declarations or one. Throws an Error of one line.
function declarations(text, taken) {
  if (!text.trim()) return [];
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error(`not JSON (${error.message})`);
  }
  const names = new Set(taken);
  return (Array.isArray(value) ? value : [value]).map((tool, at) => {
    const problem = declarationProblem(tool, names);
    if (problem) throw new Error(`[${at}]${problem}`);
    names.add(tool.function.name);
    return tool;
  });
}

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

function declarationProblem(tool, names) {
  if (!isObject(tool)) return ": expected an object.";
  if (tool.type !== "function") return '.type: expected "function".';
  if (!isObject(tool.function)) return ".function: expected an object with name and parameters.";
  const { name, description, parameters } = tool.function;
  if (typeof name !== "string" || !name) return ".function.name: expected a name.";
  if (names.has(name)) return `.function.name: ${name} is there already.`;
  if (description !== undefined && typeof description !== "string") return ".function.description: expected text.";
  if (parameters !== undefined && !isObject(parameters)) return ".function.parameters: expected a JSON schema.";
  return "";
}
