// The pictures of this browser as a tree: generated ones are roots, edits their children. Kept in localStorage, bounded.
//
// A node is {id, parent, batch, place, kind, made, png, recipe, difference, before, messages, matches, problem}; `made`
// is when, in ms; caption, latents, settings and seed are those of its recipe.
//
// What is over the bound is dropped, the oldest first, but no picture before those that were edited from it.
//
// All tabs with the same weights share one history: each adds to what is stored. Beside it are the ids of removed
// pictures, which another tab may still hold, when it was last written, and the picture that was shown last. Which one a
// tab shows it keeps in sessionStorage; that of all tabs is for a new one.

import { changed, notice, segmentNames, state } from "./store.js";

const PREFIX = "kaleido-studio-history:";
const BESIDE = /:(shown|cleared|used)$/;
const MOST_NODES = 60; // the page and the README name both
const MOST_CHARACTERS = 4_000_000;
const MOST_CLEARED = 1000; // ids

let nodes = [];
let gone = new Set(); // ids that a tab removed
let place = null; // key in localStorage
let warned = false;

export function all() {
  return nodes;
}

export function get(id) {
  return nodes.find((node) => node.id === id) ?? null;
}

export function rowOf(node) {
  return node.recipe.rows[0];
}

export function latentsOf(node) {
  return rowOf(node).latents ?? null;
}

export function childrenOf(id) {
  return nodes.filter((node) => node.parent === id);
}

// Those that were drawn at once with this picture, or with the picture that it was edited from.
export function siblingsOf(id) {
  const root = rootOf(id);
  return root ? nodes.filter((node) => node.batch === root.batch && !get(node.parent)) : [];
}

export function rootOf(id) {
  let node = get(id);
  while (node && get(node.parent)) node = get(node.parent);
  return node;
}

export function add(parts, current) {
  const made = Math.max(Date.now(), nodes.at(-1)?.made ?? 0);
  for (const node of parts) node.made = made;
  nodes.push(...parts);
  const count = save(current);
  if (!count) return;
  const what = count > 1 ? `${count} older ones were removed` : "an older one was removed";
  notice(`The history keeps at most ${MOST_NODES} pictures (4 MB): ${what}.`);
}

export function clear() {
  merge(null);
  const cleared = [...gone, ...nodes.map((node) => node.id)].slice(-MOST_CLEARED);
  nodes = [];
  store(place, "[]"); // makes room for the ids
  store(`${place}:cleared`, JSON.stringify(cleared));
  save(null);
}

export function newId() {
  return crypto.getRandomValues(new Uint32Array(2)).join("-");
}

// Returns the id of the picture that was shown last.
export function restore(model) {
  place = `${PREFIX}${model.name}:${model.step}:${model.weights}`;
  nodes = [];
  merge(null);
  addEventListener("storage", ({ key }) => {
    if (key !== place && key !== `${place}:cleared`) return;
    merge(state.node);
    drop(state.node);
    changed();
  });
  const found = ["sessionStorage", "localStorage"].map((storage) => get(read(`${place}:shown`, storage)));
  return (found[0] ?? found[1] ?? nodes.at(-1))?.id ?? null;
}

export function saveShown(id) {
  store(`${place}:shown`, id ?? "");
  try {
    sessionStorage.setItem(`${place}:shown`, id ?? "");
  } catch (error) {
    console.warn(`The picture that this tab shows is not stored: ${error}`);
  }
}

// A full storage gets the younger half, and that one's younger half, until it fits. Returns how many were dropped.
export function save(current) {
  merge(current);
  const count = drop(current);
  const text = (most) => JSON.stringify(shrunk(nodes, most, current).filter((node) => !gone.has(node.id)));
  for (let most = nodes.length; !store(place, text(most)) && most > 1;) most = Math.floor(most / 2);
  store(`${place}:used`, String(Date.now()));
  saveShown(current);
  return count;
}

// Takes what other tabs stored, and leaves what they removed; the picture that is shown here stays until it is left.
function merge(current) {
  const own = new Set(nodes.map((node) => node.id));
  const isWhole = (node) => node?.id && node.png?.startsWith("data:image/png") && node.recipe?.rows?.length;
  const others = readList(place).filter((node) => isWhole(node) && !own.has(node.id));
  gone = new Set(readList(`${place}:cleared`));
  nodes = [...nodes, ...others].filter((node) => !gone.has(node.id) || node.id === current);
  nodes.sort((a, b) => (a.made ?? 0) - (b.made ?? 0));
}

function read(key, storage = "localStorage") {
  try {
    return window[storage].getItem(key); // the storage itself may be refused
  } catch (error) {
    warn(error);
    return null;
  }
}

function readList(key) {
  try {
    return [...JSON.parse(read(key) ?? "[]")];
  } catch (error) {
    warn(error);
    return [];
  }
}

// A full storage first loses the histories of other models and steps, the one that was written longest ago before others.
function store(key, text) {
  for (;;) {
    try {
      localStorage.setItem(key, text);
      return true;
    } catch (error) {
      if (error.name === "QuotaExceededError" && removeOldest()) continue;
      warn(error);
      return false;
    }
  }
}

// Whether there was one.
function removeOldest() {
  const keys = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
  const used = (name) => Number(localStorage.getItem(`${name}:used`) ?? 0);
  const others = new Set(keys.map((key) => key.replace(BESIDE, "")).filter((name) => name !== place));
  const oldest = [...others].sort((a, b) => used(a) - used(b))[0];
  if (!oldest) return false;
  for (const key of keys) if (key.replace(BESIDE, "") === oldest) localStorage.removeItem(key);
  const [, name, step] = oldest.slice(PREFIX.length).match(/^(.*?)(?::(\d+))?(?::[0-9a-f]+)?$/);
  notice(`The browser's storage was full: the pictures of ${name}, step ${step}, were removed from it.`);
  return true;
}

// Returns how many.
function drop(current) {
  const count = nodes.length;
  nodes = shrunk(nodes, MOST_NODES, current);
  while (nodes.length > 1 && nodes.reduce((sum, node) => sum + sizeOf(node), 0) > MOST_CHARACTERS) {
    nodes = shrunk(nodes, nodes.length - 1, current);
  }
  return count - nodes.length;
}

// A chain that ends in the shown picture has no other leaf: it loses its beginning, which the next one keeps to compare.
function shrunk(list, most, current) {
  let kept = list;
  while (kept.length > most) {
    const parents = new Set(kept.map((node) => node.parent));
    const others = kept.filter((node) => node.id !== current);
    const oldest = others.find((node) => !parents.has(node.id)) ?? others[0];
    const heir = (node) => (node.parent === oldest.id ? { ...node, before: node.before ?? oldest.png } : node);
    kept = kept.filter((node) => node !== oldest).map(heir);
  }
  return kept;
}

const sizes = new WeakMap();

function sizeOf(node) {
  if (!sizes.has(node)) sizes.set(node, JSON.stringify(node).length);
  return sizes.get(node);
}

function warn(error) {
  if (warned) return;
  warned = true;
  notice(`The browser stores only a part of the history (${error.name}); the rest stays until this page is closed.`);
}

// What was done to get a picture, in a few words.
export function labelOf(node) {
  if (node.kind !== "edit") return rowOf(node).caption;
  const last = node.recipe.history.at(-1);
  if (!last) return "drawn again";
  const parts = [];
  if (last.changed.length) parts.push(`${segmentNames(last.changed)} edited`);
  if (last.resampled.length) parts.push(`${segmentNames(last.resampled)} sampled anew`);
  for (const [name, value] of Object.entries(last.settings)) parts.push(`${name.replace("_", " ")} ${value}`);
  const line = parts.join("; ") || "drawn again";
  return line[0].toUpperCase() + line.slice(1);
}
