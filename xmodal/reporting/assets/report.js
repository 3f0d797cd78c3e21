"use strict";

// Read-out: the pointer's step and each line's value there; without a pointer the last values stand.
function show(chart) {
  const data = JSON.parse(chart.dataset.chart);
  const values = [...chart.querySelectorAll(".legend b")];
  const last = values.map((value) => value.textContent);
  const format = (y) => (data.share ? (100 * y).toPrecision(3) + " %" : String(Number(y.toPrecision(4))));

  function nearest(xs, step) {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] < step) low = middle; else high = middle;
    }
    return step - xs[low] < xs[high] - step ? low : high;
  }

  for (const plot of chart.querySelectorAll(".plot")) {
    const cursor = plot.querySelector(".cursor"), at = plot.querySelector(".at");
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      const pointed = data.low + share * (data.high - data.low);
      const steps = data.lines.map(([xs]) => xs[nearest(xs, pointed)]);
      const step = steps.reduce((a, b) => (Math.abs(b - pointed) < Math.abs(a - pointed) ? b : a));
      data.lines.forEach(([xs, ys], i) => {
        const y = ys[nearest(xs, step)];
        values[i].textContent = y === null ? "–" : format(y);
      });
      at.textContent = data.unit + " " + step.toLocaleString("en");
      const place = (100 * (step - data.low)) / (data.high - data.low) + "%";
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
