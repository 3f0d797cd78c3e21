"use strict";

// The language of the page: as the reader chose before, or else the first of the browser's that the page has.
const chineseOf = JSON.parse(document.body.dataset.messages || "{}");
const languages = [...document.querySelectorAll("[data-language]")].map((button) => button.dataset.language);

function inChinese() {
  return document.documentElement.lang.startsWith("zh");
}

// A message of the table (messages.json), with values for its {places}.
function t(english, values = {}) {
  const text = inChinese() ? chineseOf[english] || english : english;
  return text.replace(/\{(\w+)\}/g, (place, name) => (name in values ? values[name] : place));
}

function setLanguage(language) {
  document.documentElement.lang = language;
  const chinese = inChinese();
  for (const name of ["title", "placeholder", "aria-label", "alt"]) {
    for (const element of document.querySelectorAll(`[data-zh-${name}]`)) {
      const english = `data-en-${name}`;
      if (!element.hasAttribute(english)) element.setAttribute(english, element.getAttribute(name));
      element.setAttribute(name, element.getAttribute(chinese ? `data-zh-${name}` : english));
    }
  }
  const title = document.querySelector("title[data-zh]");
  if (title) {
    if (!title.dataset.en) title.dataset.en = document.title;
    document.title = chinese ? title.dataset.zh : title.dataset.en;
  }
  for (const button of document.querySelectorAll("[data-language]")) {
    button.setAttribute("aria-pressed", button.dataset.language === language);
  }
  document.dispatchEvent(new Event("language"));
}

function preferredLanguage() {
  try {
    const kept = localStorage.getItem("xmodal-language");
    if (languages.includes(kept)) return kept;
  } catch { /* a page from a file may have no storage */ }
  for (const wanted of navigator.languages || [navigator.language]) {
    const found = languages.find((language) => language.split("-")[0] === wanted.toLowerCase().split("-")[0]);
    if (found) return found;
  }
  return "en";
}

for (const button of document.querySelectorAll("[data-language]")) {
  button.addEventListener("click", () => {
    setLanguage(button.dataset.language);
    try {
      localStorage.setItem("xmodal-language", button.dataset.language);
    } catch { /* then the choice lasts as long as the page */ }
  });
}
for (const place of document.querySelectorAll(".languages")) place.hidden = false;
setLanguage(preferredLanguage());
