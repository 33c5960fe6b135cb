// The pictures of this browser as a tree: generated ones are roots, edits their children. Kept in localStorage, bounded.
//
// A node is {id, parent, batch, place, kind, png, recipe, difference, before, messages, matches, problem}; caption,
// latents, settings and seed are those of its recipe.

import { notice, segmentNames } from "./store.js";

const MOST_NODES = 60;
const MOST_CHARACTERS = 4_000_000;

let nodes = [];
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
  nodes.push(...parts);
  drop(current);
  save(current);
}

export function clear() {
  nodes = [];
  save(null);
}

export function newId() {
  return crypto.getRandomValues(new Uint32Array(2)).join("-");
}

// Returns the id of the picture that was shown last.
export function restore(model) {
  place = `kaleido-studio-history:${model.name}:${model.step}`;
  try {
    const saved = JSON.parse(localStorage.getItem(place) ?? "[]");
    nodes = saved.filter((node) => node.id && node.png?.startsWith("data:image/png") && node.recipe?.rows?.length);
    return get(localStorage.getItem(`${place}:shown`))?.id ?? nodes.at(-1)?.id ?? null;
  } catch (error) {
    warn(error);
    nodes = [];
    return null;
  }
}

export function saveShown(id) {
  store(`${place}:shown`, id ?? "");
}

// A full storage gets the younger half, and that one's younger half, until it fits.
export function save(current) {
  for (let count = nodes.length; !store(place, JSON.stringify(youngest(count, current))) && count > 1;) {
    count = Math.floor(count / 2);
  }
  saveShown(current);
}

function store(key, text) {
  try {
    localStorage.setItem(key, text);
    return true;
  } catch (error) {
    warn(error);
    return false;
  }
}

function drop(current) {
  nodes = youngest(MOST_NODES, current);
  let size = nodes.reduce((sum, node) => sum + sizeOf(node), 0);
  while (size > MOST_CHARACTERS && nodes.length > 1) {
    const oldest = nodes.find((node) => node.id !== current);
    size -= sizeOf(oldest);
    nodes = nodes.filter((node) => node !== oldest);
  }
}

function youngest(count, current) {
  const kept = nodes.slice(Math.max(nodes.length - count, 0));
  const shown = get(current);
  return !shown || kept.includes(shown) ? kept : [shown, ...kept.slice(1)];
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
