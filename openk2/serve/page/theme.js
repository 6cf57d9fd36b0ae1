// The chosen colours, before anything is painted. Without a choice the system's are used.
"use strict";
try {
  const theme = JSON.parse(localStorage.getItem("openk2.theme"));
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // storage that is switched off: the system's colours
}
