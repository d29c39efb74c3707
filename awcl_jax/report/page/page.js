"use strict";
// Starts the page: curves, a map for each run that has one, and the cells of confusion matrices.

function showChosen(root, frames, i, choose) {
  const detail = root.querySelector(".detail");
  const facts = element("dl", {}, ...frames.labels().flatMap((label) => [
    element("dt", {}, label), element("dd", {}, frames.text(label, i))]));
  const alike = (which, title, none) => {
    const found = frames.nearest(which, i);
    return [element("h4", {}, title), found.length === 0 ? element("p", { class: "hint" }, none)
      : element("ol", { class: "alike" }, ...found.map(([j, cosine]) => element("li", {},
        element("button", { type: "button", onclick: () => choose(j, true) }, frames.thumbnail(j, 64), element("span", {},
          frames.caption(j), element("br"), frames.text("scan", j), element("br"), `cosine ${cosine.toFixed(3)}`)))))];
  };
  detail.replaceChildren(
    element("h4", {}, frames.data.ids[i]),
    element("div", { class: "chosen" }, ...(i < frames.data.thumbnails.count ? [frames.thumbnail(i, 128)] : []), facts),
    ...alike("same", "Nearest of the same scan", "No other frame of this scan is on the map."),
    ...alike("others", "Nearest of other scans", "No frame of another scan is on the map."));
  detail.scrollTop = 0;
}

function startMap(root, data) {
  const frames = new Frames(data), say = (text) => { root.querySelector("[data-status]").textContent = text; };
  const count = root.querySelector(".count");
  const choose = (i, toDetail) => {
    map.choose(i);
    showChosen(root, frames, i, choose);
    say(`${frames.caption(i)} is selected; its neighbours are listed beside the map.`);
    if (toDetail) root.querySelector(".detail").focus({ preventScroll: false });
  };
  const map = new FrameMap(root, frames, choose);
  const showCount = (shown) => { count.textContent = `${shown.toLocaleString("en")} of ${frames.count.toLocaleString("en")} frames shown`; };
  const refill = listFrames(root.querySelector(".listed"), frames, choose);
  showCount(frames.count);
  for (const select of root.querySelectorAll("[data-filter]")) {
    select.addEventListener("change", () => {
      showCount(frames.filter(select.dataset.filter, select.value));
      if (map.pointed >= 0 && !frames.shown[map.pointed]) map.point(-1);
      map.redraw();
      map.legend();
      refill();
    });
  }
  const colour = root.querySelector("[data-colour]");
  const recolour = () => {
    map.colourBy = colour.value || "anatomy";
    map.redraw();
    map.legend();
  };
  colour.addEventListener("change", recolour);
  recolour();
  const zooms = { in: () => map.zoom(1 / 1.5), out: () => map.zoom(1.5), all: () => map.all() };
  for (const button of root.querySelectorAll("[data-zoom]")) button.addEventListener("click", () => zooms[button.dataset.zoom]());
  const arrows = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
  root.querySelector(".plot").addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const arrow = arrows[event.key];
    if (arrow && event.shiftKey) map.move(60 * arrow[0], 60 * arrow[1]);
    else if (arrow) {
      const i = map.step(...arrow);
      say(i < 0 ? "There is no frame further in this direction." : frames.caption(i));
    } else if (event.key === "+" || event.key === "=") zooms.in();
    else if (event.key === "-") zooms.out();
    else if (event.key === "0") zooms.all();
    else if ((event.key === "Enter" || event.key === " ") && map.pointed >= 0) choose(map.pointed);
    else if (event.key === "Escape") {
      map.point(-1);
      map.choose(-1);
      root.querySelector(".detail").replaceChildren(element("p", { class: "hint" }, "No frame is selected."));
    } else return;
    event.preventDefault();
  });
}

(function start() {
  const { runs, panels, cells, maps } = JSON.parse(document.getElementById("data").textContent);
  theme.read();
  theme.watch();
  const panelOf = new Map(panels.map((panel) => [panel.key, panel]));
  for (const figure of document.querySelectorAll(".curve")) drawPanel(figure, panelOf.get(figure.dataset.panel), runs);
  for (const root of document.querySelectorAll(".map")) startMap(root, maps[root.dataset.run]);
  for (const place of document.querySelectorAll(".cells")) startCells(place, cells[place.dataset.run], maps[place.dataset.run]);
})();
