"use strict";
// The frames of a cell of a confusion matrix: ids, and thumbnails of those that are on the map.

const CELL_FRAMES = 120; // shown at most

function startCells(place, cells, map) {
  const frames = map && new Frames(map);
  const buttons = [...place.parentElement.querySelectorAll(".confusion .cell")];
  const show = (button) => {
    const [row, column] = [Number(button.dataset.true), Number(button.dataset.predicted)];
    const found = [];
    for (let i = 0; i < cells.ids.length; i++) if (cells.true[i] === row && cells.predicted[i] === column) found.push(i);
    for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
    const answer = row === column ? "correct" : `taken for ${cells.names[column]}`;
    const some = found.length > CELL_FRAMES ? `the first ${CELL_FRAMES} of ${found.length.toLocaleString("en")} frames` : `${found.length} frame${found.length === 1 ? "" : "s"}`;
    const hidden = found.slice(0, CELL_FRAMES).filter((i) => !hasThumbnail(frames, cells.places[i])).length;
    place.replaceChildren(
      element("strong", {}, `${cells.names[row]}, ${answer}: ${some}`),
      ...(hidden ? [element("p", { class: "hint" }, `${hidden} of them without a picture: they are not on the map.`)] : []),
      element("ul", {}, ...found.slice(0, CELL_FRAMES).map((i) => element("li", {},
        ...(hasThumbnail(frames, cells.places[i]) ? [frames.thumbnail(cells.places[i], 96)] : []), cells.ids[i]))));
    place.focus({ preventScroll: true });
    place.scrollIntoView({ block: "nearest" });
  };
  for (const button of buttons) button.addEventListener("click", () => show(button));
}

function hasThumbnail(frames, i) {
  return Boolean(frames) && i >= 0 && i < frames.data.thumbnails.count;
}
