
// The horizontal axis: charts over steps can be shown over samples and time, by the knots of the run's clock.
const axes = document.querySelector(".axes"), clock = axes ? JSON.parse(axes.dataset.clock) : null;
let axis = "step";

function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle; else high = middle;
  }
  return x - xs[low] < xs[high] - x ? low : high;
}

// What a step is on the chosen axis, and back; between knots along a straight line.
function along(x, from, to) {
  if (from === to) return x;
  const xs = clock[from], ys = clock[to];
  let i = 1;
  while (i < xs.length - 1 && xs[i] < x) i++;
  const span = xs[i] - xs[i - 1];
  return ys[i - 1] + (span ? (x - xs[i - 1]) / span : 0) * (ys[i] - ys[i - 1]);
}

function shortNumber(x) {
  for (const [unit, name] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "K"]]) {
    if (Math.abs(x) >= unit) return Number((x / unit).toPrecision(3)) + name;
  }
  return String(Number(x.toPrecision(4)));
}

function duration(seconds) {
  const s = Math.round(seconds), two = (x) => String(x).padStart(2, "0");
  if (s >= 86400) return Math.floor(s / 86400) + "d" + two(Math.floor(s / 3600) % 24) + "h";
  if (s >= 3600) return Math.floor(s / 3600) + "h" + two(Math.floor(s / 60) % 60) + "m";
  return s >= 60 ? Math.floor(s / 60) + "m" + two(s % 60) + "s" : s + "s";
}

function ticks(low, high) {
  const round = axis === "time"
    ? [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 432000, 864000]
    : [1, 2, 2.5, 5, 10].map((m) => m * 10 ** Math.floor(Math.log10((high - low) / 4)));
  const step = round.find((size) => size >= ((high - low) / 4) * (1 - 1e-9)) || round[round.length - 1];
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-9); i++) found.push(i * step);
  return found;
}

// Moves everything that the server drew over steps; the drawing over steps itself is kept to go back to.
function redraw(chart) {
  const data = JSON.parse(chart.dataset.chart);
  if (!clock || data.unit !== "step") return;
  const low = along(data.low, "step", axis), high = along(data.high, "step", axis);
  const share = (step) => (high > low ? (along(step, "step", axis) - low) / (high - low) : 0);
  for (const path of chart.querySelectorAll(".plot path:not(.grid, .reference)")) {
    if (!path.dataset.d) path.dataset.d = path.getAttribute("d");
    path.setAttribute("d", path.dataset.d.replace(/([ML])(-?[\d.]+) (-?[\d.]+)/g, (all, pen, x, y) =>
      `${pen}${(1000 * share(data.low + (x / 1000) * (data.high - data.low))).toFixed(1)} ${y}`));
  }
  for (const plot of chart.querySelectorAll(".plot")) {
    if (!plot.kept) plot.kept = [...plot.querySelectorAll(".x")];
    for (const old of plot.querySelectorAll(".x")) old.remove();
    const made = axis === "step" ? plot.kept : ticks(low, high).map((at) => {
      const label = document.createElement("span");
      label.className = "x";
      label.textContent = axis === "time" ? duration(at) : shortNumber(at);
      label.style.left = (100 * (at - low)) / (high - low || 1) + "%";
      return label;
    });
    plot.append(...made);
  }
}

function chooseAxis(name) {
  axis = name;
  document.body.dataset.axis = name;
  for (const button of axes.querySelectorAll("button")) button.setAttribute("aria-pressed", button.dataset.axis === name);
  document.querySelectorAll(".chart").forEach(redraw);
}

if (axes) {
  axes.hidden = false;
  for (const button of axes.querySelectorAll("button")) button.addEventListener("click", () => chooseAxis(button.dataset.axis));
}

// Read-out: where the pointer is, and each line's value there; without a pointer the last values stand.
function show(chart) {
  const data = JSON.parse(chart.dataset.chart);
  const values = [...chart.querySelectorAll(".legend .last")];
  const last = values.map((value) => value.textContent);
  const format = (y) => (data.share ? (100 * y).toPrecision(3) + " %" : String(Number(y.toPrecision(4))));
  const shown = (x) => {
    if (data.unit === "sample") return t("{count} samples", { count: x.toLocaleString("en") });
    if (axis === "time") return duration(along(x, "step", "time"));
    if (axis === "sample") return t("{count} samples", { count: Math.round(along(x, "step", "sample")).toLocaleString("en") });
    return t("step {step}", { step: x.toLocaleString("en") });
  };

  for (const plot of chart.querySelectorAll(".plot")) {
    const cursor = plot.querySelector(".cursor"), at = plot.querySelector(".at");
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect(), own = data.unit === "step" && clock ? axis : data.unit, from = data.unit;
      const low = along(data.low, from, own), high = along(data.high, from, own);
      const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      const pointed = along(low + share * (high - low), own, from);
      const steps = data.lines.map(([xs]) => xs[nearest(xs, pointed)]);
      const step = steps.reduce((a, b) => (Math.abs(b - pointed) < Math.abs(a - pointed) ? b : a));
      data.lines.forEach(([xs, ys], i) => {
        const y = ys[nearest(xs, step)];
        values[i].textContent = y === null ? "–" : format(y);
      });
      at.textContent = shown(step);
      const place = (100 * (along(step, from, own) - low)) / (high - low || 1) + "%";
      cursor.style.left = place;
      at.style.transform = "translateX(-" + place + ")"; // stays inside the chart at both ends
      cursor.style.display = "block";
    });
    plot.addEventListener("pointerleave", () => {
      cursor.style.display = "none";
      values.forEach((value, i) => { value.textContent = last[i]; });
    });
  }
}

document.querySelectorAll(".chart").forEach(show);

// Search of the configuration: keys and values that contain every typed word stay.
for (const search of document.querySelectorAll(".search")) {
  const rows = [...search.parentElement.querySelectorAll(".facts > div")];
  search.addEventListener("input", () => {
    const wanted = search.value.toLowerCase().split(/\s+/);
    for (const row of rows) row.hidden = !wanted.every((word) => row.textContent.toLowerCase().includes(word));
  });
}
