"use strict";
// Curves: one plot for each panel, the runs over each other; the dash identifies the run, the colour the number
// (if a panel has one number only, the colour identifies the run, too).

const DASHES = [[], [6, 4], [2, 3], [12, 4], [12, 4, 2, 4], [4, 8]]; // of the runs, again from the first if there are more
const FEW = 60; // points that are marked one by one
const HEIGHT = 230;
const WHOLE = [0, 1, 2, 3, 4, 5, 6, 7, 8].flatMap((power) => [1, 2, 5].map((first) => first * 10 ** power)); // steps apart

function smooth(values, width) {
  const means = values.map(() => null);
  let sum = 0;
  for (let i = 0; i < values.length; i++) {
    sum += values[i];
    if (i >= width) sum -= values[i - width];
    if (i >= width - 1) means[i - Math.floor(width / 2)] = sum / width;
  }
  return means;
}

// A moving mean helps with noise; it would only blur a schedule.
function noisy(values) {
  if (values.length <= FEW || values.includes(null)) return false;
  let jumps = 0;
  for (let i = 1; i < values.length; i++) jumps += Math.abs(values[i] - values[i - 1]);
  return jumps / (values.length - 1) >= 0.02 * (Math.max(...values) - Math.min(...values));
}

// By itself uPlot draws a score of 0 on an axis up to 100, and the one evaluation of a run in the middle of twice its steps.
function stepRange(plot, low, high) {
  const steps = plot.data[0];
  return steps.length === 1 ? [0, Math.max(steps[0], 1)] : [low, high];
}

function valueRange(_, low, high) {
  if (low == null) return [null, null];
  return low === 0 && high === 0 ? [0, 1] : uPlot.rangeNum(low, high, 0.1, true);
}

function drawPanel(figure, panel, runs) {
  const place = figure.querySelector(".plot");
  const labels = [...new Set(panel.series.map((s) => s.label))];
  const lines = panel.series.map((s) => ({
    ...s,
    colour: () => theme.colours[(labels.length > 1 ? labels.indexOf(s.label) : s.run) % COLOURS],
    name: [panel.series.length > labels.length || runs.length > 1 ? runs[s.run] : null, labels.length > 1 ? s.label : null]
      .filter(Boolean).join(", ") || s.label,
  }));
  const drawn = [];
  for (const line of lines) {
    const width = noisy(line.values) ? Math.floor(line.values.length / 30) : 0;
    if (width > 1) drawn.push({ line, values: line.values, pale: true });
    drawn.push({ line, values: width > 1 ? smooth(line.values, width) : line.values, few: line.values.length <= FEW });
  }
  const data = uPlot.join(drawn.map((d) => [d.line.steps, d.values]));
  const key = lines.map((line) => ({ line, now: element("span", { class: "now" }) }));
  const legend = element("ul", { class: "key" }, ...key.map(({ line, now }) => {
    const swatch = drawing(26, 8, { d: "M0 4H26", fill: "none", "stroke-width": 3, "stroke-dasharray": DASHES[line.run % DASHES.length].join(" ") });
    const paint = () => swatch.firstChild.setAttribute("stroke", line.colour());
    paint();
    theme.listeners.push(paint);
    return element("li", {}, swatch, line.name, " ", now);
  }));
  const axis = { stroke: () => theme.soft, grid: { stroke: () => theme.line, width: 1 }, ticks: { stroke: () => theme.line } };
  const plot = new uPlot({
    width: place.clientWidth, height: HEIGHT,
    legend: { show: false },
    scales: { x: { time: false, range: stepRange }, y: { range: valueRange } },
    cursor: { y: false, points: { size: 7 } },
    axes: [{ ...axis, incrs: WHOLE }, { ...axis, size: 58, values: (_, ticks) => ticks.map((tick) => format(tick)) }],
    series: [{}, ...drawn.map(({ line, pale, few }) => ({
      stroke: line.colour, width: pale ? 1 : 2, alpha: pale ? 0.3 : 1, dash: DASHES[line.run % DASHES.length],
      points: { show: Boolean(few), size: 6, fill: line.colour, stroke: line.colour },
      spanGaps: false,
    }))],
    hooks: { setCursor: [(u) => {
      const step = u.cursor.idx == null ? null : u.data[0][u.cursor.idx];
      for (const { line, now } of key) {
        const i = step == null ? -1 : line.steps.indexOf(step);
        now.textContent = i < 0 ? "" : `${format(line.values[i])} at ${step.toLocaleString("en")}`;
      }
    }] },
  }, data, place);
  place.setAttribute("role", "img");
  place.setAttribute("aria-label", lines.map(describe).join("; "));
  place.after(legend);
  new ResizeObserver(() => plot.setSize({ width: place.clientWidth, height: HEIGHT })).observe(place);
  theme.listeners.push(() => plot.redraw());
  const details = figure.querySelector("details");
  details.addEventListener("toggle", () => {
    if (details.open && !details.querySelector("table")) details.append(panelTable(panel.title, lines));
  });
}

function describe(line) {
  const finite = line.values.filter((value) => value != null);
  if (!finite.length) return `${line.name}: never finite`;
  const last = line.values.length - 1;
  return `${line.name}: from ${format(line.values[0])} at step ${line.steps[0]} to ${format(line.values[last])} at step ` +
    `${line.steps[last]}, between ${format(Math.min(...finite))} and ${format(Math.max(...finite))}`;
}

function panelTable(title, lines) {
  const steps = [...new Set(lines.flatMap((line) => line.steps))].sort((a, b) => a - b);
  const found = lines.map((line) => new Map(line.steps.map((step, i) => [step, line.values[i]])));
  const rows = steps.map((step) => [step, ...found.map((values) => (values.has(step) ? format(values.get(step)) : ""))]);
  return table(title, ["Step", ...lines.map((line) => line.name)], rows);
}
