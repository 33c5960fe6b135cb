// Building elements. Text only ever becomes text nodes or attributes, never HTML.

const SVG = "http://www.w3.org/2000/svg";

// Paths on a 24 x 24 canvas, stroked.
const ICONS = {
  lock: ["M6 11h12v9H6z", "M8.5 11V8a3.5 3.5 0 0 1 7 0v3"],
  unlock: ["M6 11h12v9H6z", "M8.5 11V7.5a3.5 3.5 0 0 1 6.7-1.4"],
  again: ["M19 12a7 7 0 1 1-2.2-5.1", "M19.5 3.5v4h-4"],
  undo: ["M9 6 4.5 10.5 9 15", "M5 10.5h9a5 5 0 0 1 0 10h-3"],
  redo: ["m15 6 4.5 4.5L15 15", "M19 10.5h-9a5 5 0 0 0 0 10h3"],
  save: ["M12 4v11", "m7.5 11 4.5 4.5 4.5-4.5", "M5 20h14"],
  recipe: [
    "M9 5c-2 0-2.5 1-2.5 3s0 4-2.5 4c2.5 0 2.5 2 2.5 4s.5 3 2.5 3",
    "M15 5c2 0 2.5 1 2.5 3s0 4 2.5 4c-2.5 0-2.5 2-2.5 4s-.5 3-2.5 3",
  ],
  open: ["M12 16V5", "m7.5 9 4.5-4.5L16.5 9", "M5 20h14"],
  sun: [
    "M12 8a4 4 0 1 1 0 8 4 4 0 0 1 0-8z",
    "M12 2.5v2M12 19.5v2M2.5 12h2M19.5 12h2M5.3 5.3l1.4 1.4M17.3 17.3l1.4 1.4M5.3 18.7l1.4-1.4M17.3 6.7l1.4-1.4",
  ],
  moon: ["M19.5 14.5A8 8 0 0 1 9.5 4.5a8 8 0 1 0 10 10z"],
  system: ["M4 5h16v11H4z", "M9 20h6M12 16v4"],
  plus: ["M12 5v14M5 12h14"],
  remove: ["M6 6l12 12M18 6 6 18"],
  dice: ["M5 5h14v14H5z", "M9 9h.01M15 9h.01M12 12h.01M9 15h.01M15 15h.01"],
  help: ["M9.3 9a2.8 2.8 0 1 1 4.2 2.4c-1 .6-1.5 1.2-1.5 2.3", "M12 17.2h.01"],
};

export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") for (const [type, listener] of Object.entries(value)) element.addEventListener(type, listener);
    else if (name === "text") element.textContent = value;
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  setIcon(svg, name);
  return svg;
}

export function setIcon(svg, name) {
  if (svg.dataset.name === name) return;
  svg.dataset.name = name;
  const paths = ICONS[name].map((d) => {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", d);
    return path;
  });
  svg.replaceChildren(...paths);
}

export function iconButton(name, label, click, props = {}) {
  return h(
    "button",
    { type: "button", class: "icon-button", "aria-label": label, title: label, on: { click }, ...props },
    icon(name),
  );
}

// The children of `parent` become one element for each item, kept by key, so that focus and selection survive.
// `make` gives an element with a method `update(item, index)`.
export function keyed(parent, items, key, make) {
  const keys = items.map((item, i) => String(key(item, i)));
  const wanted = new Set(keys);
  const old = new Map();
  for (const child of [...parent.children]) {
    if (wanted.has(child.dataset.key)) old.set(child.dataset.key, child);
    else child.remove();
  }
  items.forEach((item, i) => {
    const element = old.get(keys[i]) ?? make(item, i);
    element.dataset.key = keys[i];
    if (parent.children[i] !== element) parent.insertBefore(element, parent.children[i] ?? null);
    element.update?.(item, i);
  });
}

// A field follows the state, except for what is just being typed into it: that is the state already, or not yet valid.
export function showValue(field, value) {
  if (field.shown === value) return;
  field.shown = value;
  if (
    field.value !== String(value) &&
    !(field.type === "number" && field.value !== "" && Number(field.value) === value)
  ) {
    field.value = value;
  }
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function byId(id) {
  return document.getElementById(id);
}

export function isTextEntry(element) {
  return element?.matches?.("input:not([type=range]):not([type=checkbox]):not([type=file]), textarea") ?? false;
}

// Whether a key belongs to an input method, which composes a word: Enter takes a candidate, Escape drops it. Safari has
// ended the composition by then, and says so by the code 229 alone.
export function isComposing(event) {
  return event.isComposing || event.keyCode === 229;
}

// Up, down, home and end move the focus among the elements of a list, of which one is in the tab order.
export function moveFocus(event, elements) {
  const at = elements.indexOf(document.activeElement);
  const to = {
    ArrowDown: at + 1,
    ArrowUp: at - 1,
    ArrowRight: at + 1,
    ArrowLeft: at - 1,
    Home: 0,
    End: elements.length - 1,
  };
  if (at < 0 || !(event.key in to)) return;
  event.preventDefault();
  elements[Math.min(Math.max(to[event.key], 0), elements.length - 1)].focus();
}
