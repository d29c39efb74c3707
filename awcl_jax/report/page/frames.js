"use strict";
// The frames of a map: labels, thumbnail and neighbours of each, and which are shown.

class Frames {
  constructor(data) {
    this.data = data;
    this.count = data.ids.length;
    this.filters = {}; // label -> code
    this.shown = new Uint8Array(this.count).fill(1);
  }

  text(label, i) {
    const { codes, names } = this.data.labels[label];
    return codes[i] < 0 ? "unknown" : names[codes[i]];
  }

  caption(i) {
    return `${this.data.ids[i]}, ${this.text("anatomy", i)}`;
  }

  // The labels with more than one name.
  labels() {
    return Object.keys(this.data.labels).filter((label) => this.data.labels[label].names.length > 1);
  }

  filter(label, code) {
    if (code === "") delete this.filters[label];
    else this.filters[label] = Number(code);
    const wanted = Object.entries(this.filters).map(([name, value]) => [this.data.labels[name].codes, value]);
    for (let i = 0; i < this.count; i++) this.shown[i] = wanted.every(([codes, value]) => codes[i] === value) ? 1 : 0;
    return this.shown.reduce((sum, one) => sum + one, 0);
  }

  // [frame, cosine] of the nearest, of the same scan ("same") or of others ("others").
  nearest(which, i) {
    const { frames, cosines } = this.data[which];
    const found = [];
    for (let j = i * this.data.k; j < (i + 1) * this.data.k; j++) if (frames[j] >= 0) found.push([frames[j], cosines[j] / 1000]);
    return found;
  }

  // A sheet is decoded only when one of its thumbnails is shown.
  thumbnail(i, size) {
    const { edge, count, row, sheets } = this.data.thumbnails;
    const made = element("span", { class: "thumb", "aria-hidden": "true" });
    made.style.width = made.style.height = `${size}px`;
    if (i >= count) return made;
    const sheet = Math.floor(i / row ** 2), at = i % row ** 2, scale = size / edge;
    made.style.backgroundImage = `url("${sheets[sheet]}")`;
    made.style.backgroundSize = `${row * edge * scale}px auto`;
    made.style.backgroundPosition = `${-(at % row) * size}px ${-Math.floor(at / row) * size}px`;
    return made;
  }
}

const PAGE_ROWS = 25;

// The same frames as a table, for people who do not use the map: a page at a time, made on demand.
function listFrames(details, frames, choose) {
  let start = 0;
  const body = element("tbody"), where = element("span", { role: "status" });
  const step = (by) => () => { start += by; fill(); };
  const back = element("button", { type: "button", onclick: step(-PAGE_ROWS) }, "Earlier frames");
  const on = element("button", { type: "button", onclick: step(PAGE_ROWS) }, "Later frames");
  const labels = frames.labels();
  function fill() {
    const shown = [];
    for (let i = 0; i < frames.count; i++) if (frames.shown[i]) shown.push(i);
    start = Math.max(0, Math.min(start, Math.floor((shown.length - 1) / PAGE_ROWS) * PAGE_ROWS));
    const some = shown.slice(start, start + PAGE_ROWS);
    body.replaceChildren(...some.map((i) => element("tr", {},
      element("td", {}, frames.thumbnail(i, 40)),
      element("th", { scope: "row" }, frames.data.ids[i]),
      ...labels.map((label) => element("td", {}, frames.text(label, i))),
      element("td", {}, element("button", { type: "button", "aria-label": `Neighbours of ${frames.data.ids[i]}`, onclick: () => choose(i, true) }, "Neighbours")))));
    where.textContent = some.length ? `${(start + 1).toLocaleString("en")} to ${(start + some.length).toLocaleString("en")} of ${shown.length.toLocaleString("en")}` : "no frames";
    back.disabled = start === 0;
    on.disabled = start + PAGE_ROWS >= shown.length;
  }
  let made = false;
  details.addEventListener("toggle", () => {
    if (!details.open || made) return;
    made = true;
    const head = ["Picture", "Frame", ...labels.map((label) => label[0].toUpperCase() + label.slice(1)), "Similar frames"];
    details.append(
      element("div", { class: "pages" }, back, on, where),
      element("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Frames on the map" },
        element("table", {}, element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)))), body)));
    fill();
  });
  return () => { if (made) { start = 0; fill(); } };
}
