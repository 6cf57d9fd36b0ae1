// The page put together: the composer, the panel, the keyboard, the dialogs.

import { Api } from "./api.js";
import { Chat } from "./chat.js";
import { el, fitHeight, visible } from "./dom.js";
import { Settings } from "./settings.js";
import { load, save } from "./storage.js";
import { Tools } from "./tools.js";
import { sendOnEnter } from "./views.js";

const $ = (id) => document.getElementById(id);
const log = $("log"), message = $("message"), panel = $("panel");
const narrow = matchMedia("(max-width: 900px)");
const dark = matchMedia("(prefers-color-scheme: dark)");
let context = 0;
let following = true; // the newest text is kept in view

const api = new Api(askKey);
const tools = new Tools({
  list: $("offered"),
  area: $("pasted"),
  problem: $("pasted-problem"),
  changed: () => settings.showChoices(),
});
const settings = new Settings($("settings"), tools);
const chat = new Chat({ api, settings, tools, show, grown, changed, say: (text) => ($("status").textContent = visible(text)) });

// What is said ---------------------------------------------------------------------------------------------------------

function show(view) {
  log.append(view.root);
  grown();
}

function grown() {
  if (following) log.scrollTop = log.scrollHeight;
}

function changed() {
  $("send").hidden = chat.busy;
  $("stop").hidden = !chat.busy;
  document.body.classList.toggle("begun", chat.entries.length > 0);
  $("used").textContent = context ? `${chat.used.toLocaleString("en")} of ${context.toLocaleString("en")} tokens` : "";
  $("meter").max = context || 1;
  $("meter").value = chat.used;
}

function submit() {
  const problem = settings.check() || tools.problem;
  $("problem").textContent = visible(problem);
  const text = message.value.trim();
  if (problem || !text || chat.busy) return;
  message.value = "";
  fitHeight(message);
  following = true;
  chat.send(text);
}

async function newChat() {
  await chat.clear();
  $("problem").textContent = "";
  closeDrawer();
  message.focus();
}

log.addEventListener("scroll", () => {
  following = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  $("to-end").hidden = following;
});
new ResizeObserver(grown).observe(log);
$("to-end").addEventListener("click", () => {
  following = true;
  grown();
});
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
message.addEventListener("input", () => fitHeight(message));
sendOnEnter(message, $("composer"));
$("stop").addEventListener("click", () => chat.stop());
for (const made of document.querySelectorAll(".new-chat")) made.addEventListener("click", newChat);

// The panel, which is a drawer where there is little room --------------------------------------------------------------

function setPanel(open) {
  document.body.classList.toggle("panel-open", open);
  $("toggle-panel").ariaExpanded = String(open);
  for (const part of [$("head"), $("main")]) part.inert = open && narrow.matches;
}

function togglePanel() {
  const open = !document.body.classList.contains("panel-open");
  setPanel(open);
  if (narrow.matches) $(open ? "close-panel" : "toggle-panel").focus();
  else save("panel", open);
}

function closeDrawer() {
  if (!narrow.matches || !document.body.classList.contains("panel-open")) return false;
  togglePanel();
  return true;
}

const layPanel = () => setPanel(!narrow.matches && load("panel", true));
narrow.addEventListener("change", layPanel);
$("toggle-panel").addEventListener("click", togglePanel);
$("close-panel").addEventListener("click", togglePanel);
$("shade").addEventListener("click", closeDrawer);
$("reset-settings").addEventListener("click", () => settings.reset());

// Colours, help, key ---------------------------------------------------------------------------------------------------

$("theme").addEventListener("click", () => {
  const now = document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
  save("theme", document.documentElement.dataset.theme);
});
for (const made of document.querySelectorAll(".show-help")) made.addEventListener("click", () => $("help").showModal());
for (const close of document.querySelectorAll("dialog .close")) {
  close.addEventListener("click", () => close.closest("dialog").close());
}

function askKey(wrong) {
  const dialog = $("key-dialog"), field = $("key");
  $("key-problem").textContent = wrong ? "The server refused the key." : "";
  field.value = dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue || null), { once: true });
  });
}
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  $("key-dialog").close($("key").value.trim());
});

// The keyboard ---------------------------------------------------------------------------------------------------------

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, textarea, select");
  if (document.querySelector("dialog[open]")) return;
  if ((event.ctrlKey || event.metaKey) && !event.altKey && event.key.toLowerCase() === "k") {
    event.preventDefault();
    newChat();
  } else if (event.key === "Escape") {
    if (!closeDrawer() && chat.busy) chat.stop();
  } else if (event.key === "?" && (!typing || (event.target === message && !message.value))) {
    event.preventDefault();
    $("help").showModal();
  } else if (event.key === "ArrowUp" && event.target === message && !message.value) {
    event.preventDefault();
    chat.editLast();
  }
});

// The beginning --------------------------------------------------------------------------------------------------------

async function begin() {
  layPanel();
  changed();
  message.focus();
  const [model] = (await api.get("v1/models")).data;
  context = model.max_model_len;
  for (const place of document.querySelectorAll(".model")) place.textContent = visible(model.id);
  document.title = `${visible(model.id)} · chat`;
  changed();
  tools.offer((await api.get("v1/tools")).data);
}

begin().catch((error) => {
  $("problem").textContent = visible(error.message);
  $("offered").replaceChildren(el("p", { className: "muted" }, "Not known: the server did not answer."));
});
