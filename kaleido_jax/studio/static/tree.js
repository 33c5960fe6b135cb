// The history as a tree: a heading for each caption, its pictures, and below them what they were edited into.

import { byId, h, keyed, setText } from "./dom.js";
import * as draft from "./draft.js";
import * as history from "./history.js";
import { set, state } from "./store.js";

const SPARE_PX = 12; // beside what is brought into sight

let shown = null;

export function start() {
  byId("clear-history").addEventListener("click", clear);
  byId("tree").addEventListener("keydown", onKey);
}

export function update() {
  const batches = batchesOf();
  keyed(byId("tree"), batches, (batch) => batch.key, batchGroup);
  byId("no-history").hidden = batches.length > 0;
  byId("clear-history").hidden = !batches.length;
  byId("tree").inert = Boolean(state.job);
  if (shown !== state.node) {
    shown = state.node;
    bringIntoSight(byId("tree").querySelector("[aria-selected=true]"));
  }
}

// Within the panel where that scrolls; on a phone the page must not jump to the history.
function bringIntoSight(element) {
  const panel = byId("tree").closest(".panel");
  if (!element || panel.scrollHeight <= panel.clientHeight) return;
  const { top, bottom } = element.getBoundingClientRect();
  const frame = panel.getBoundingClientRect();
  if (top < frame.top) panel.scrollTop -= frame.top - top + SPARE_PX;
  else if (bottom > frame.bottom) panel.scrollTop += bottom - frame.bottom + SPARE_PX;
}

function clear() {
  if (!confirm("Remove all pictures from the history?")) return;
  history.clear();
  state.node = null;
  state.draft = { ...state.draft, latents: null };
  draft.begin();
  set({ selected: null, compare: "picture" });
}

// The youngest batch first; those whose picture before was dropped stand for themselves.
function batchesOf() {
  const batches = new Map();
  for (const node of history.all()) {
    if (history.get(node.parent)) continue;
    const key = node.kind === "edit" ? node.id : node.batch;
    if (!batches.has(key)) batches.set(key, { key, roots: [] });
    batches.get(key).roots.push(node);
  }
  return [...batches.values()].reverse();
}

function batchGroup() {
  const title = h("p", { class: "batch-title" });
  const roots = h("div", { class: "roots" });
  const edits = h("div", { class: "edits" });
  const element = h("div", { class: "batch", role: "group" }, title, roots, edits);
  element.update = ({ roots: nodes }) => {
    setText(title, history.labelOf(nodes[0]));
    element.setAttribute("aria-label", history.labelOf(nodes[0]));
    keyed(
      roots,
      nodes,
      (node) => node.id,
      () => item("root"),
    );
    const rows = nodes.flatMap((node) => descendants(node.id, nodes.length > 1 ? node.place + 1 : null, 0));
    keyed(
      edits,
      rows,
      (row) => row.node.id,
      () => item("edit"),
    );
  };
  return element;
}

// Children in the order of the tree. A chain of edits stays at one depth; only branches are indented.
function descendants(id, of, depth) {
  const children = history.childrenOf(id);
  const deeper = depth + (children.length > 1 ? 1 : 0);
  return children.flatMap((node, i) => [
    { node, of: depth === 0 && i === 0 ? of : null, depth: deeper },
    ...descendants(node.id, null, Math.max(deeper, 1)),
  ]);
}

function item(kind) {
  const image = h("img", { alt: "" });
  const of = h("span", { class: "of" });
  const label = h("span", { class: "label" });
  const element = h("div", { class: kind, role: "treeitem" }, of, image, kind === "edit" && label);
  element.addEventListener("click", () => draft.open(element.dataset.key));
  element.update = (given) => {
    const node = given.node ?? given;
    const isShown = node.id === state.node;
    const name = history.labelOf(node);
    if (image.src !== node.png) image.src = node.png;
    setText(label, name);
    setText(of, given.of ? `${given.of}` : "");
    of.hidden = !given.of;
    element.style.setProperty("--depth", Math.min(given.depth ?? 0, 4));
    element.setAttribute("aria-selected", isShown);
    element.setAttribute("aria-level", levelOf(node));
    element.setAttribute(
      "aria-label",
      kind === "root" ? `${name}, picture ${node.place + 1}, seed ${node.recipe.seed}` : name,
    );
    element.title = `${name}\nseed ${node.recipe.seed}, gamma ${node.recipe.sample.gamma}`;
    element.tabIndex = isShown ? 0 : -1;
  };
  return element;
}

function levelOf(node) {
  let level = 1;
  for (let one = history.get(node.parent); one; one = history.get(one.parent)) level += 1;
  return level;
}

// Up and down go through the tree in order, left to the picture before, right to the first edit.
function onKey(event) {
  const items = [...byId("tree").querySelectorAll("[role=treeitem]")];
  const here = event.target.closest("[role=treeitem]");
  if (!here) return;
  const at = items.indexOf(here);
  const node = history.get(here.dataset.key);
  const find = (id) => items.find((one) => one.dataset.key === id);
  const to = {
    ArrowDown: () => items[at + 1],
    ArrowUp: () => items[at - 1],
    Home: () => items[0],
    End: () => items.at(-1),
    ArrowLeft: () => find(node.parent) ?? items[at - 1],
    ArrowRight: () => find(history.childrenOf(node.id)[0]?.id) ?? items[at + 1],
    Enter: () => here,
    " ": () => here,
  }[event.key];
  if (!to) return;
  event.preventDefault();
  const target = to();
  if (!target) return;
  draft.open(target.dataset.key);
  target.focus();
}
