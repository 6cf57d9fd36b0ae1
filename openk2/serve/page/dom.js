// Elements and text. Whatever a model, a tool or a person wrote reaches the page as text nodes, never as markup.

const SVG = "http://www.w3.org/2000/svg";

// A new element; what is no property of it becomes an attribute.
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

// One of the symbols in index.html.
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export function button(label, iconName, onclick) {
  return el("button", { type: "button", className: "quiet", onclick }, icon(iconName), el("span", {}, label));
}

// Control characters, overrides of the writing direction and half surrogates are spelled out: a browser would not show
// them, or would obey them.
const INVISIBLE = /[\p{Cc}\p{Cs}\u202a-\u202e\u2066-\u2069\ufffe\uffff]/gu;

export function visible(text) {
  return text.replace(INVISIBLE, (found) => {
    if (found === "\n" || found === "\t") return found;
    const code = found.charCodeAt(0).toString(16);
    return code.length > 2 ? `\\u${code.padStart(4, "0")}` : `\\x${code.padStart(2, "0")}`;
  });
}

// Paragraphs and fenced code, in order.
function blocks(text) {
  const found = [];
  let open = null;
  for (const line of text.split("\n")) {
    const fence = line.match(/^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/);
    if (open?.fence) {
      if (fence && fence[1].startsWith(open.fence) && !fence[2].trim()) open = null;
      else open.lines.push(line);
    } else if (fence) {
      found.push((open = { fence: fence[1], language: fence[2].trim(), lines: [] }));
    } else if (!line.trim()) {
      open = null;
    } else {
      if (!open) found.push((open = { lines: [] }));
      open.lines.push(line);
    }
  }
  return found;
}

// Show `text` in `container`. Called again with more text, it changes only what is new.
export function renderText(container, text) {
  const wanted = blocks(text);
  wanted.forEach((block, at) => {
    const kind = block.fence ? "code" : "text";
    let node = container.children[at];
    if (node?.dataset.kind !== kind) {
      const fresh = kind === "code" ? codeBlock() : el("p", { dir: "auto" });
      fresh.dataset.kind = kind;
      if (node) node.replaceWith(fresh);
      else container.append(fresh);
      node = fresh;
    }
    if (kind === "code") setText(node.querySelector("figcaption > span"), block.language || "code");
    if (kind === "code") setText(node.querySelector("code"), block.lines.join("\n"));
    else setParagraph(node, visible(block.lines.join("\n")));
  });
  while (container.children.length > wanted.length) container.lastElementChild.remove();
}

export function setText(node, text) {
  const shown = visible(text);
  if (node.textContent !== shown) node.textContent = shown;
}

// A paragraph, what stands between `backticks` as code.
function setParagraph(node, text) {
  if (node.dataset.text === text) return;
  node.dataset.text = text;
  const parts = text.split(/`([^`\n]+)`/);
  node.replaceChildren(...parts.map((part, at) => (at % 2 ? el("code", {}, part) : part)));
}

function codeBlock() {
  const code = el("code", { dir: "ltr" });
  const copy = copyButton(() => code.textContent);
  return el("figure", { className: "code" }, el("figcaption", {}, el("span"), copy), el("pre", { tabIndex: 0 }, code));
}

export function copyButton(text) {
  const made = button("Copy", "copy", async () => {
    const label = made.querySelector("span");
    label.textContent = (await copyText(text())) ? "Copied" : "Not copied";
    setTimeout(() => (label.textContent = "Copy"), 1500);
  });
  return made;
}

async function copyText(text) {
  if (navigator.clipboard) {
    return navigator.clipboard.writeText(text).then(() => true, () => false);
  }
  // Pages that come by plain HTTP from another computer have no clipboard but this one.
  const area = el("textarea", { value: text, className: "offscreen" });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}

// JSON with one member a line, also where it is still being written. Works on the text: numbers keep their digits.
export function indentJson(text) {
  let out = "", depth = 0, inString = false;
  const newLine = () => "\n" + "  ".repeat(Math.max(depth, 0));
  for (let at = 0; at < text.length; at++) {
    const char = text[at];
    if (inString) {
      out += char;
      if (char === "\\") out += text[++at] ?? "";
      else if (char === '"') inString = false;
    } else if (char === '"') {
      inString = true;
      out += char;
    } else if (char === "{" || char === "[") {
      const close = char === "{" ? "}" : "]";
      const empty = text.slice(at + 1).match(/^\s*([}\]])/);
      if (empty?.[1] === close) {
        out += char + close;
        at += empty[0].length;
      } else {
        depth++;
        out += char + newLine();
      }
    } else if (char === "}" || char === "]") {
      depth--;
      out += newLine() + char;
    } else if (char === ",") out += char + newLine();
    else if (char === ":") out += ": ";
    else if (!/\s/.test(char)) out += char;
  }
  return out;
}

// As tall as its text, up to what the style allows.
export function fitHeight(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
}
