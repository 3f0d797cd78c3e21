
// Word maps: a result, large, and clear where the chosen word of the text points to. What is shown is part of the
// address, and an entry of the history: on a phone Back closes it.
const map = find("#map"), words = find("#words"), shown = find("#shown"), told = find("#told");
const drawn = find("#drawn"), doubt = find("#doubt");
let mapped = null, mapRequest = null; // { row, word }: word is null until the server has said which stands out

function mapButton(hit) {
  const button = node("button", "where"), label = t("Where the words point to");
  button.type = "button";
  button.title = label + " (m)";
  button.setAttribute("aria-label", label + ": " + (hit.caption || hit.key));
  button.append(document.importNode(find("#eye").content, true));
  button.addEventListener("click", () => openMap(hit.row));
  return button;
}

function openMap(row) {
  if (about.no_maps) return say(() => t("There are no word maps: {reason}.", { reason: inLanguage(about, "no_maps") }), true);
  if (!text.value.trim()) return say(() => t("Type some words first: a map shows where each of them points to."), true);
  mapped = { row, word: null };
  remember(true);
  showMap();
}

function tell(message, failed = false) {
  told.textContent = message;
  told.classList.toggle("failed", failed);
}

async function showMap() {
  if (!map.open) {
    map.showModal();
    words.replaceChildren(text.value.trim());
    words.focus();
    tell(t("Finding out where the words point to …"));
  }
  if (mapRequest) mapRequest.abort();
  const own = (mapRequest = new AbortController()), parameters = new URLSearchParams({ text: text.value.trim() });
  if (mapped.word !== null) parameters.set("word", mapped.word);
  find("#before").disabled = !neighbour(-1);
  find("#after").disabled = !neighbour(1);
  map.classList.add("waiting");
  try {
    const response = await fetch("/api/map/" + mapped.row + "?" + parameters, { signal: own.signal });
    const found = await response.json();
    if (!response.ok) throw new Failure(found);
    mapped.word = found.word;
    remember(false);
    drawMap(found);
  } catch (error) {
    if (error.name === "AbortError") return;
    drawn.hidden = doubt.hidden = true;
    find("#caption").textContent = "";
    tell((error.told || unreachable)(), true);
  }
  if (own === mapRequest) map.classList.remove("waiting");
}

function drawMap(found) {
  const focused = words.contains(document.activeElement);
  words.replaceChildren(...found.pieces.map(([piece, number]) => {
    if (number === null) return document.createTextNode(piece);
    const button = node("button", "word", piece);
    button.type = "button";
    button.setAttribute("aria-pressed", number === found.word);
    button.addEventListener("click", () => chooseWord(number));
    return button;
  }));
  if (focused) words.querySelector("[aria-pressed=true]").focus();
  const word = found.pieces.find(([, number]) => number === found.word)[0], [row, column] = found.best, [rows, columns] = found.grid;
  find("#caption").textContent = found.caption;
  shown.src = found.picture;
  shown.alt = t("“{word}” fits best in row {row}, column {column} of {rows} × {columns} patches",
    { word, row: row + 1, column: column + 1, rows, columns });
  const share = (part, whole) => (100 * part) / whole + "%";
  Object.assign(find("#best").style, {
    top: share(row, rows), left: share(column, columns), height: share(1, rows), width: share(1, columns),
  });
  drawn.hidden = false;
  doubt.hidden = about.aligns_words;
  tell(t("Clear where “{word}” fits well, grey where badly. Best in the frame: cosine {highest}; least: {lowest}.",
    { word, highest: found.highest.toFixed(3), lowest: found.lowest.toFixed(3) }));
}

function chooseWord(number) {
  mapped.word = number;
  showMap();
}

const cardOf = (row) => results.querySelector(`.card[data-row="${row}"]`);

function neighbour(step) {
  const cards = [...results.querySelectorAll(".card")], at = cards.indexOf(cardOf(mapped.row));
  return at < 0 ? undefined : cards[at + step];
}

function turnMap(step) {
  const next = neighbour(step);
  if (!next) return;
  mapped.row = Number(next.dataset.row);
  showMap();
}

// The arrows: to the sides through the words, up and down through the results.
function moveInMap(key) {
  const count = words.querySelectorAll(".word").length, step = { ArrowLeft: -1, ArrowRight: 1 }[key];
  if (step && count && mapped.word !== null) chooseWord((mapped.word + step + count) % count);
  else if (!step) turnMap(key === "ArrowDown" ? 1 : -1);
}

map.addEventListener("close", () => {
  if (mapRequest) mapRequest.abort();
  words.replaceChildren();
  drawn.hidden = doubt.hidden = true;
  find("#caption").textContent = "";
  shown.removeAttribute("src");
  if (!mapped) return; // it was closed by going back
  const card = cardOf(mapped.row);
  mapped = null;
  if (history.state && history.state.map) history.back(); else remember(false);
  if (card) card.focus();
});
map.addEventListener("click", (event) => { if (event.target === map) map.close(); });
find("#before").addEventListener("click", () => turnMap(-1));
find("#after").addEventListener("click", () => turnMap(1));
find("#close").addEventListener("click", () => map.close());
