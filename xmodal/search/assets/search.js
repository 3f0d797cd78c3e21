
// What is looked for: a text, and an image (a file of the user's) or a sample of the index. Nothing that comes from
// the user or the index is ever read as HTML: all of it goes through textContent and attributes.
const find = (selector) => document.querySelector(selector);
const form = find("form"), text = find("#text"), file = find("#file"), chip = find("#chip"), weight = find("#weight");
const status = find("#status"), results = find("#results"), drop = find("#drop"), balance = find("#balance");
const warning = find("#warning"), more = find("#more");
const TOP = 48, MOST = 1000, PAUSE = 300; // results at a time and at most; milliseconds after the last letter
let picture = null, sample = null, request = null, timer = 0, about = null, asked = null, wanted = TOP, described = null;

const among = () => (find("[name=among]:checked") || { value: "image" }).value;
const thumbnail = (row) => "/api/thumbnail/" + row + "?v=" + about.version;

// `message` is a function: it is asked again when the reader chooses another language.
function say(message, failed = false) {
  described = () => { status.textContent = message(); };
  described();
  status.classList.toggle("failed", failed);
}

const unreachable = () => t("The server does not answer.");
const inLanguage = (found, name) => (inChinese() && found[name + "_zh"]) || found[name];

class Failure extends Error {
  constructor(found) {
    super(found.error);
    this.told = () => (inChinese() && found.zh) || found.error;
  }
}

function warn(found) {
  warning.hidden = !found.warning;
  warning.replaceChildren();
  for (const [tag, text] of [["t-en", found.warning], ["t-zh", found.warning_zh]]) {
    if (text) warning.append(node(tag, "", text));
  }
}

function showPicture(url) {
  const old = chip.querySelector("img");
  if (old.src.startsWith("blob:")) URL.revokeObjectURL(old.src);
  if (url) old.src = url; else old.removeAttribute("src");
  chip.hidden = !url;
}

function take(blob) {
  if (!blob || !blob.type.startsWith("image/")) return say(() => t("That is no image: JPEG, PNG, WebP, GIF and BMP are read."), true);
  picture = blob;
  sample = null;
  showPicture(URL.createObjectURL(blob));
  search();
}

function like(row) {
  sample = row;
  picture = null;
  text.value = "";
  showPicture(about.thumbnails ? thumbnail(row) : "");
  window.scrollTo(0, 0);
  search();
}

function forget() {
  picture = sample = null;
  file.value = "";
  showPicture("");
}

function node(tag, name, content) {
  const made = document.createElement(tag);
  made.className = name;
  if (content !== undefined) made.textContent = content;
  return made;
}

function card(hit) {
  const item = document.createElement("li"), button = node("button", "card");
  button.type = "button";
  button.dataset.row = hit.row;
  if (about.thumbnails) {
    const figure = document.createElement("figure"), image = document.createElement("img");
    image.alt = hit.caption || hit.key;
    image.loading = "lazy";
    image.src = thumbnail(hit.row);
    figure.append(image);
    button.append(figure);
  }
  const facts = node("span", "facts");
  facts.append(node("span", "key", hit.key), node("span", "score", hit.score === undefined ? "" : hit.score.toFixed(3)));
  button.append(node("span", "caption", hit.caption), facts);
  button.addEventListener("click", () => like(hit.row));
  item.append(button);
  item.relabel = () => { button.title = t("More like this: {name}", { name: hit.shard + "/" + hit.key }); };
  item.relabel();
  if (text.value.trim() && !about.no_maps) item.append(mapButton(hit));
  return item;
}

// The address holds all but the user's image, which goes nowhere but to this server.
function question() {
  const parameters = new URLSearchParams();
  if (text.value.trim()) parameters.set("q", text.value.trim());
  if (sample !== null) parameters.set("like", sample);
  if (about.among.length > 1 && among() !== about.among[0]) parameters.set("among", among());
  return parameters;
}

function remember(push) {
  const parameters = question();
  if (mapped) parameters.set("map", mapped.row);
  if (mapped && mapped.word !== null) parameters.set("word", mapped.word);
  const address = "?" + parameters;
  if (address === (location.search || "?")) return;
  if (push) history.pushState({ map: mapped !== null }, "", address); else history.replaceState(history.state, "", address);
}

function search(push = true, count = TOP) {
  clearTimeout(timer);
  if (request) request.abort();
  wanted = count;
  const words = text.value.trim(), shown = picture !== null || sample !== null;
  balance.hidden = !(words && shown);
  asked = question().toString();
  remember(push);
  if (!words && !shown) {
    return show("/api/samples", {}, () => about.reads.includes("text")
      ? t("Some of what is there. Type what to look for, or drop an image.")
      : t("Some of what is there. Drop or choose an image."));
  }
  const parameters = new URLSearchParams({ top: count, among: among(), weight: weight.value });
  if (words) parameters.set("text", words);
  if (sample !== null) parameters.set("sample", sample);
  const options = {};
  if (picture) Object.assign(options, { method: "POST", body: picture, headers: { "Content-Type": picture.type } });
  return show("/api/search?" + parameters, options, (found) => {
    const count = found.results.length.toLocaleString("en"), total = about.samples.toLocaleString("en");
    return t("{count} nearest of {total}, {time} ms", { count, total, time: found.milliseconds.toFixed(0) });
  });
}

// Further results go behind those that are there, which stay as they are, with their images and the focus.
function fill(found) {
  const rows = [...results.querySelectorAll(".card")].map((old) => Number(old.dataset.row));
  const same = rows.length && wanted > TOP && rows.every((row, i) => i < found.results.length && row === found.results[i].row);
  if (same) results.append(...found.results.slice(rows.length).map(card));
  else results.replaceChildren(...found.results.map(card));
  const asking = "query" in found;
  more.hidden = !asking || found.results.length < wanted || wanted >= Math.min(MOST, about.samples);
}

async function show(address, options, describe) {
  const own = (request = new AbortController());
  results.classList.add("waiting");
  try {
    const response = await fetch(address, { ...options, signal: own.signal }), found = await response.json();
    if (!response.ok) throw new Failure(found);
    fill(found);
    warn(found);
    say(() => describe(found));
  } catch (error) {
    if (error.name === "AbortError") return;
    results.replaceChildren();
    more.hidden = true;
    warn({});
    say(error.told || unreachable, true);
  }
  if (own === request) results.classList.remove("waiting");
}

const numbered = (parameters, name) => /^[0-9]{1,12}$/.test(parameters.get(name)) ? Number(parameters.get(name)) : null;

// What the address says; where its question is the one that is answered already, only the map is opened or closed.
async function restore() {
  const parameters = new URLSearchParams(location.search), row = numbered(parameters, "map"), own = new URLSearchParams(parameters);
  const word = numbered(parameters, "word");
  own.delete("map");
  own.delete("word");
  mapped = row === null || about.no_maps ? null : { row, word };
  if (own.toString() !== asked) await ask(parameters);
  if (mapped && text.value.trim()) return showMap();
  mapped = null;
  map.close();
}

function ask(parameters) {
  const row = numbered(parameters, "like");
  forget();
  text.value = parameters.get("q") || "";
  if (row !== null) {
    sample = row;
    showPicture(about.thumbnails ? thumbnail(sample) : "");
  }
  for (const choice of document.querySelectorAll("[name=among]")) {
    choice.checked = choice.value === (parameters.get("among") || about.among[0]);
  }
  return search(false);
}

// The arrows go through the grid as it is seen; up from its first row leads back to the text.
function move(key) {
  const cards = [...results.querySelectorAll(".card")], at = cards.indexOf(document.activeElement);
  if (!cards.length) return false;
  if (at < 0) {
    if (key !== "ArrowDown") return false;
    cards[0].focus();
    return true;
  }
  const top = cards[0].getBoundingClientRect().top;
  const columns = cards.filter((one) => one.getBoundingClientRect().top === top).length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  if (at + step < 0) text.focus(); else cards[Math.min(at + step, cards.length - 1)].focus();
  return true;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (map.open) { // where Escape closes by itself
    if (event.key.startsWith("Arrow")) {
      event.preventDefault();
      moveInMap(event.key);
    }
    return;
  }
  // In an empty field, as it is right after loading, the slash is the key and no text.
  if (event.key === "/" && (document.activeElement !== text || !text.value)) {
    event.preventDefault();
    text.focus();
    text.select();
  } else if (event.key === "Escape") {
    forget();
    text.value = "";
    text.focus();
    search();
  } else if (event.key === "m" && document.activeElement.dataset.row) {
    openMap(Number(document.activeElement.dataset.row));
  } else if (event.key.startsWith("Arrow") && !["weight", "file"].includes(document.activeElement.id)) {
    if (document.activeElement.type !== "radio" && move(event.key)) event.preventDefault();
  }
});

form.addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
text.addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(() => search(false), PAUSE);
});
weight.addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(() => search(false), PAUSE / 3);
});
for (const choice of document.querySelectorAll("[name=among]")) choice.addEventListener("change", () => search());
file.addEventListener("change", () => file.files[0] && take(file.files[0]));
chip.querySelector("button").addEventListener("click", () => {
  forget();
  text.focus();
  search();
});
more.querySelector("button").addEventListener("click", () => search(false, Math.min(MOST, wanted + TOP)));
document.addEventListener("language", () => {
  if (described) described();
  for (const item of results.querySelectorAll("li")) if (item.relabel) item.relabel();
  if (map.open) showMap();
});
document.addEventListener("paste", (event) => {
  const pasted = [...event.clipboardData.files][0];
  if (pasted) {
    event.preventDefault();
    take(pasted);
  }
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.hidden = false;
});
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.hidden = true; });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.hidden = true;
  if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
});
window.addEventListener("popstate", restore);

fetch("/api/index").then((response) => response.json()).then((found) => {
  about = found;
  restore();
}).catch(() => say(unreachable, true));
