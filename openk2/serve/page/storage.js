// What the browser remembers, as JSON. Where storage is switched off, nothing is remembered.

export function load(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(`openk2.${name}`)) ?? fallback;
  } catch {
    return fallback;
  }
}

export function save(name, value) {
  try {
    localStorage.setItem(`openk2.${name}`, JSON.stringify(value));
  } catch {
    // full or switched off: the page works without
  }
}

// The key is kept apart, and only as long as the tab is open.
const KEY = "openk2.key";
let key = "";

export function loadKey() {
  try {
    return sessionStorage.getItem(KEY) ?? key;
  } catch {
    return key;
  }
}

export function saveKey(text) {
  key = text;
  try {
    sessionStorage.setItem(KEY, text);
  } catch {
    // kept in memory
  }
}
