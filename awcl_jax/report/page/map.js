"use strict";
// The map: uPlot keeps canvas, pixels and size; a centre and a scale, the same for both axes, set the visible part.

const REACH = 14; // greatest distance in pixels from the pointer to a point
const SIDE = 10000; // of the square of places
const PATHS = {
  circle: (c, x, y, r) => { c.moveTo(x + r, y); c.arc(x, y, r, 0, 2 * Math.PI); },
  triangle: (c, x, y, r) => { c.moveTo(x, y - 1.2 * r); c.lineTo(x + 1.1 * r, y + 0.8 * r); c.lineTo(x - 1.1 * r, y + 0.8 * r); c.closePath(); },
  square: (c, x, y, r) => c.rect(x - 0.9 * r, y - 0.9 * r, 1.8 * r, 1.8 * r),
  diamond: (c, x, y, r) => { c.moveTo(x, y - 1.3 * r); c.lineTo(x + 1.3 * r, y); c.lineTo(x, y + 1.3 * r); c.lineTo(x - 1.3 * r, y); c.closePath(); },
};
const SWATCHES = { circle: "M7 2a5 5 0 1 0 .01 0Z", triangle: "M7 1L13 12H1Z", square: "M2 2H12V12H2Z", diamond: "M7 0L14 7L7 14L0 7Z" };

class FrameMap {
  constructor(root, frames, onChoose) {
    Object.assign(this, { root, frames, onChoose, place: root.querySelector(".plot"), colourBy: "anatomy", pointed: -1, chosen: -1 });
    this.x = frames.data.x;
    this.y = frames.data.y;
    this.tip = element("div", { class: "tip", hidden: true });
    this.all();
    this.plot = new uPlot({
      width: this.place.clientWidth, height: this.place.clientHeight, mode: 2, padding: [0, 0, 0, 0],
      legend: { show: false }, cursor: { show: false }, axes: [{ show: false }, { show: false }],
      scales: { x: { time: false, range: () => this.range("x") }, y: { range: () => this.range("y") } },
      series: [{}, { paths: () => null }],
      hooks: { draw: [(u) => this.draw(u.ctx)] },
    }, [null, [this.x, this.y]], this.place);
    this.place.append(this.tip);
    this.listen();
    new ResizeObserver(() => {
      this.plot.setSize({ width: this.place.clientWidth, height: this.place.clientHeight });
    }).observe(this.place);
    theme.listeners.push(() => { this.redraw(); this.legend(); });
    this.legend();
  }

  get width() { return this.place.clientWidth || 1; }
  get height() { return this.place.clientHeight || 1; }

  range(axis) {
    const half = ((axis === "x" ? this.width : this.height) / 2) * this.unit;
    const centre = axis === "x" ? this.centre[0] : this.centre[1];
    return [centre - half, centre + half];
  }

  all() {
    const ends = (values) => values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
    const [x0, x1] = ends(this.x), [y0, y1] = ends(this.y);
    this.centre = [(x0 + x1) / 2, (y0 + y1) / 2];
    this.unit = 1.06 * Math.max((x1 - x0) / this.width, (y1 - y0) / this.height, SIDE / 1e4);
    if (this.plot) this.redraw();
  }

  zoom(factor, at = [this.width / 2, this.height / 2]) {
    const unit = Math.min(Math.max(this.unit * factor, 0.01), SIDE / 50);
    this.centre[0] += (at[0] - this.width / 2) * (this.unit - unit);
    this.centre[1] -= (at[1] - this.height / 2) * (this.unit - unit);
    this.unit = unit;
    this.redraw();
  }

  move(right, down) {
    this.centre[0] += right * this.unit;
    this.centre[1] -= down * this.unit;
    this.redraw();
  }

  redraw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.plot.batch(() => {
        for (const axis of ["x", "y"]) {
          const [min, max] = this.range(axis);
          this.plot.setScale(axis, { min, max });
        }
      });
      this.plot.redraw(false);
      if (this.pointed >= 0) this.point(this.pointed);
    });
  }

  // In pixels of the page, from the map's corner.
  at(i) {
    return [(this.x[i] - this.centre[0]) / this.unit + this.width / 2, this.height / 2 - (this.y[i] - this.centre[1]) / this.unit];
  }

  draw(c) {
    const ratio = devicePixelRatio, { codes, names } = this.frames.data.labels[this.colourBy];
    const zoomed = (SIDE / this.width / this.unit) ** 0.35;
    const radius = Math.min(7, Math.max(1.4, (this.frames.count > 5000 ? 2 : 3.2) * zoomed));
    const groups = new Map();
    c.save();
    c.scale(ratio, ratio);
    c.fillStyle = theme.faint;
    for (let i = 0; i < this.frames.count; i++) {
      const [x, y] = this.at(i);
      if (x < -9 || y < -9 || x > this.width + 9 || y > this.height + 9) continue;
      if (!this.frames.shown[i]) c.fillRect(x - 0.7, y - 0.7, 1.4, 1.4);
      else if (groups.has(codes[i])) groups.get(codes[i]).push(x, y);
      else groups.set(codes[i], [x, y]);
    }
    c.globalAlpha = this.frames.count > 5000 ? 0.7 : 0.85;
    for (const [code, places] of groups) {
      const { colour, shape } = theme.mark(code, names.length);
      c.fillStyle = colour;
      c.beginPath();
      for (let j = 0; j < places.length; j += 2) PATHS[shape](c, places[j], places[j + 1], radius);
      c.fill();
    }
    c.globalAlpha = 1;
    this.drawChosen(c, radius);
    c.restore();
  }

  drawChosen(c, radius) {
    const ring = (i, r, colour) => {
      const [x, y] = this.at(i);
      c.strokeStyle = colour;
      c.lineWidth = 2;
      c.beginPath();
      c.arc(x, y, r, 0, 2 * Math.PI);
      c.stroke();
    };
    if (this.chosen >= 0) {
      for (const [which, dash] of [["same", []], ["others", [4, 3]]]) {
        c.setLineDash(dash);
        for (const [i] of this.frames.nearest(which, this.chosen)) {
          c.strokeStyle = theme.ink;
          c.lineWidth = 1;
          c.beginPath();
          c.moveTo(...this.at(this.chosen));
          c.lineTo(...this.at(i));
          c.stroke();
          ring(i, radius + 2.5, theme.ink);
        }
      }
      c.setLineDash([]);
      ring(this.chosen, radius + 5, theme.focus);
    }
    if (this.pointed >= 0 && this.pointed !== this.chosen) ring(this.pointed, radius + 3, theme.ink);
  }

  under(px, py) {
    let best = -1, least = REACH ** 2;
    for (let i = 0; i < this.frames.count; i++) {
      if (!this.frames.shown[i]) continue;
      const [x, y] = this.at(i), distance = (x - px) ** 2 + (y - py) ** 2;
      if (distance < least) [best, least] = [i, distance];
    }
    return best;
  }

  // Show what a frame is, beside it.
  point(i) {
    const before = this.pointed;
    this.pointed = i;
    this.place.classList.toggle("over", i >= 0);
    this.tip.hidden = i < 0;
    if (i >= 0) {
      if (i !== before || !this.tip.firstChild) {
        const lines = this.frames.labels().map((label) => element("div", {}, `${label}: ${this.frames.text(label, i)}`));
        const size = Math.min(96, Math.max(64, this.frames.data.thumbnails.edge));
        const thumb = i < this.frames.data.thumbnails.count ? [this.frames.thumbnail(i, size)] : [];
        this.tip.replaceChildren(...thumb, element("div", {}, element("strong", {}, this.frames.data.ids[i]), ...lines));
      }
      const [x, y] = this.at(i);
      const beside = x + 16 + this.tip.offsetWidth < this.width ? x + 16 : x - 16 - this.tip.offsetWidth;
      this.tip.style.left = `${Math.max(2, beside)}px`;
      this.tip.style.top = `${Math.min(Math.max(2, y - this.tip.offsetHeight / 2), this.height - this.tip.offsetHeight - 2)}px`;
    }
    if (i !== before) this.redraw();
  }

  choose(i) {
    this.chosen = i;
    this.redraw();
  }

  // The nearest shown frame that is more in this direction than aside.
  towards(right, down) {
    const from = this.pointed >= 0 ? this.pointed : this.chosen;
    const [x0, y0] = from >= 0 ? this.at(from) : [this.width / 2, this.height / 2];
    let best = -1, least = Infinity;
    for (let i = 0; i < this.frames.count; i++) {
      if (!this.frames.shown[i] || i === from) continue;
      const [x, y] = this.at(i), along = (x - x0) * right + (y - y0) * down, aside = Math.abs((x - x0) * down + (y - y0) * right);
      if (from >= 0 && (along <= 0 || aside > along)) continue;
      const distance = Math.hypot(x - x0, y - y0);
      if (distance < least) [best, least] = [i, distance];
    }
    return best;
  }

  step(right, down) {
    const i = this.towards(right, down);
    if (i < 0) return -1;
    const [x, y] = this.at(i);
    if (x < 20 || y < 20 || x > this.width - 20 || y > this.height - 20) this.move(x - this.width / 2, y - this.height / 2);
    this.point(i);
    return i;
  }

  listen() {
    const place = this.place, inside = (event) => {
      const box = place.getBoundingClientRect();
      return [event.clientX - box.left - place.clientLeft, event.clientY - box.top - place.clientTop];
    };
    let from = null, moved = 0;
    place.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      from = [event.clientX, event.clientY];
      moved = 0;
      place.setPointerCapture(event.pointerId);
    });
    place.addEventListener("pointermove", (event) => {
      if (!from) return void this.point(this.under(...inside(event)));
      const [dx, dy] = [event.clientX - from[0], event.clientY - from[1]];
      moved += Math.abs(dx) + Math.abs(dy);
      if (moved < 5) return;
      place.classList.add("dragged");
      this.tip.hidden = true;
      this.pointed = -1;
      from = [event.clientX, event.clientY];
      this.move(-dx, -dy);
    });
    place.addEventListener("pointerup", (event) => {
      if (from && moved < 5) {
        const i = this.under(...inside(event));
        if (i >= 0) this.onChoose(i);
      }
      from = null;
      place.classList.remove("dragged");
    });
    place.addEventListener("pointercancel", () => { from = null; place.classList.remove("dragged"); });
    place.addEventListener("pointerleave", () => { if (!from) this.point(-1); });
    place.addEventListener("wheel", (event) => {
      if (document.activeElement !== place && !event.ctrlKey) return;
      event.preventDefault();
      this.zoom(Math.exp(event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), inside(event));
    }, { passive: false });
    place.addEventListener("blur", () => this.point(-1));
  }

  legend() {
    const { codes, names } = this.frames.data.labels[this.colourBy], list = this.root.querySelector(".legend");
    if (names.length > COLOURS * SHAPES.length) {
      return void list.replaceChildren(element("li", {}, `${names.length.toLocaleString("en")} names, too many for a legend. Point at a frame to see its name.`));
    }
    const counts = new Map();
    codes.forEach((code, i) => { if (this.frames.shown[i]) counts.set(code, (counts.get(code) || 0) + 1); });
    list.replaceChildren(...[...names.keys(), -1].filter((code) => counts.has(code)).map((code) => {
      const { colour, shape } = theme.mark(code, names.length);
      return element("li", {}, drawing(14, 14, { d: SWATCHES[shape], fill: colour }), `${code < 0 ? "unknown" : names[code]} (${counts.get(code).toLocaleString("en")})`);
    }));
  }
}
