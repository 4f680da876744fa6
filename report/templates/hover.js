// Under the pointer, a chart's legend tells the values of that step; the page reads the same without this.
for (const chart of document.querySelectorAll("svg.chart")) {
  const card = chart.closest(".card"), note = card.querySelector(".note"), said = note.textContent;
  const outputs = [...card.querySelectorAll(".legend output")], last = outputs.map((one) => one.textContent);
  const range = (name) => chart.dataset[name].split(" ").map(Number);
  const plot = chart.querySelector("svg"), width = plot.width.baseVal.value, height = plot.height.baseVal.value - 4;
  const [x0, x1] = range("x"), [y0, y1] = range("y");
  const lines = [...chart.querySelectorAll("[data-line]")];
  chart.addEventListener("pointermove", (event) => {
    const scale = 360 / chart.getBoundingClientRect().width;
    const at = (event.clientX - chart.getBoundingClientRect().left) * scale - plot.x.baseVal.value;
    let step = null;
    for (const line of lines) {
      let best = null;
      for (const point of line.points) if (!best || Math.abs(point.x - at) < Math.abs(best.x - at)) best = point;
      if (!best) continue;
      step = Math.round(x0 + (best.x / width) * (x1 - x0));
      outputs[line.dataset.line].textContent = (y0 + (1 - best.y / height) * (y1 - y0)).toPrecision(3);
    }
    if (step !== null) note.textContent = "step " + step;
  });
  chart.addEventListener("pointerleave", () => {
    note.textContent = said;
    outputs.forEach((output, number) => (output.textContent = last[number]));
  });
}
