"use strict";
// Colours of the page for what is drawn on canvases, and small helpers to make elements. Texts go in as texts only.

const COLOURS = 7;
const SHAPES = ["circle", "triangle", "square", "diamond"];

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

const theme = {
  colours: [],
  read() {
    this.colours = Array.from({ length: COLOURS }, (_, i) => css(`--c${i}`));
    for (const name of ["ink", "soft", "line", "faint", "unknown", "focus"]) this[name] = css(`--${name}`);
    this.dark = matchMedia("(prefers-color-scheme: dark)").matches;
  },
  // A colour and a shape for each of some names; for more than can be distinguished, hues only.
  mark(i, count) {
    if (i < 0) return { colour: this.unknown, shape: "circle" };
    if (count <= COLOURS * SHAPES.length) {
      return { colour: this.colours[i % COLOURS], shape: SHAPES[Math.floor(i / COLOURS) % SHAPES.length] };
    }
    return { colour: `hsl(${Math.round(i * 137.508) % 360} 65% ${this.dark ? 62 : 42}%)`, shape: "circle" };
  },
  // Code that draws on canvases subscribes to changes of the theme.
  listeners: [],
  watch() {
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.read();
      this.listeners.forEach((listener) => listener());
    });
  },
};

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

function drawing(width, height, ...paths) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  made.setAttribute("viewBox", `0 0 ${width} ${height}`);
  made.setAttribute("aria-hidden", "true");
  for (const attributes of paths) {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    for (const [name, value] of Object.entries(attributes)) path.setAttribute(name, value);
    made.append(path);
  }
  return made;
}

function table(caption, head, rows) {
  const cells = (row) => row.map((cell, i) => element(i ? "td" : "th", i ? { class: "number" } : { scope: "row" }, cell));
  return element("div", { class: "wide", tabindex: "0", role: "region", "aria-label": caption },
    element("table", {},
      element("caption", {}, caption),
      element("thead", {}, element("tr", {}, ...head.map((name) => element("th", { scope: "col" }, name)))),
      element("tbody", {}, ...rows.map((row) => element("tr", {}, ...cells(row))))));
}

function format(number) {
  if (number == null) return "not finite";
  const rounded = +number.toPrecision(4);
  return Math.abs(rounded) >= 1e4 && Math.abs(rounded) < 1e9 ? rounded.toLocaleString("en") : String(rounded);
}
