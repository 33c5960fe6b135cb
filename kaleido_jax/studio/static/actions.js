// What the buttons do: sample pictures, edit one, load one, find modes.

import * as draft from "./draft.js";
import * as history from "./history.js";
import { post, run, tell } from "./jobs.js";
import { changed, notice, segmentNames, set, state } from "./store.js";

// ------------------------------------------------------------------------------------------------ new pictures
export async function generate() {
  const caption = draft.words(state.draft.caption);
  if (!caption) {
    notice("Write a caption first.", "error");
    document.getElementById("caption").focus();
    return;
  }
  if (!state.keepSeed) state.seed = freshSeed();
  const keep = keptPrefix();
  const body = { caption, variations: state.variations, seed: state.seed, settings: state.draft.settings, keep };
  const result = await run("/api/generate", body, {
    kind: "generate",
    title: `Drawing ${caption}`,
    tiles: state.variations,
  });
  if (result) addBatch(result.images, "generate");
}

// Locked segments, as far as nothing before them is free: the model samples segments in order.
export function keptPrefix() {
  const keep = {};
  for (const name of state.model.segments) {
    if (!state.locks.has(name) || !state.draft.latents) break;
    keep[name] = draft.clean(state.draft.latents[name]);
  }
  return keep;
}

function freshSeed() {
  return Math.floor(Math.random() * 1_000_000);
}

function addBatch(images, kind) {
  const batch = history.newId();
  const nodes = images.map((image, place) => ({
    id: history.newId(),
    parent: null,
    batch,
    place,
    kind,
    png: image.png,
    recipe: image.recipe,
    problem: image.problem,
    matches: image.matches ?? null,
    messages: [],
  }));
  const first = nodes[Math.min(state.lastShown, nodes.length - 1)];
  history.add(nodes, first.id);
  set({ compare: "picture" });
  draft.open(first.id);
  return nodes;
}

// -------------------------------------------------------------------------------------------------------- edits
export function redraw(order = {}) {
  const node = history.get(state.node);
  if (!node || !(order.resample || draft.isChanged())) return null;
  const { segments, caption, settings } = draft.changes();
  const body = { recipe: node.recipe, follow: order.resample ? null : state.follow, seed: seedOfEdit() };
  if (caption) body.caption = draft.words(state.draft.caption);
  if (segments.length) {
    body.latents = Object.fromEntries(segments.map((name) => [name, draft.clean(state.draft.latents[name])]));
  }
  if (Object.keys(settings).length) body.settings = settings;
  const lock = state.model.segments.filter((name) => state.locks.has(name) && !segments.includes(name));
  if (lock.length) body.lock = lock;
  if (order.resample) body.resample = order.resample;
  return sendEdit(node, body);
}

// The picture's own seed would sample its own latents again. With a kept one, the server takes one that follows from it.
function seedOfEdit() {
  return state.keepSeed ? null : freshSeed();
}

export function resample(segment) {
  return redraw({ resample: [segment] });
}

// The edit that made a picture once more, but what is behind the edited segments is sampled anew, or stays.
export function editAgain(node, follow) {
  const parent = history.get(node.parent);
  if (!parent) {
    notice("The picture before this edit is no longer in the history.", "error");
    return null;
  }
  return sendEdit(parent, { ...node.request, recipe: parent.recipe, follow, seed: seedOfEdit() });
}

async function sendEdit(node, body) {
  const result = await run("/api/edit", body, { kind: "edit", title: "Redrawing", tiles: 1 });
  if (!result) return;
  const { recipe: _, ...asked } = body;
  const edited = {
    id: history.newId(),
    parent: node.id,
    batch: node.batch,
    place: node.place,
    kind: "edit",
    png: result.image.png,
    recipe: result.image.recipe,
    problem: result.image.problem,
    // Drawn again, the picture before is the same one, as a rule.
    before: result.before.png === node.png ? null : result.before.png,
    difference: result.difference,
    messages: result.messages,
    request: asked,
  };
  history.add([edited], edited.id);
  draft.open(edited.id);
}

export function dismiss(node, line) {
  node.messages = node.messages.filter((one) => one !== line);
  history.save(state.node);
  changed();
}

// Messages name arguments of Python; the page has buttons instead. An offer is what the other choice would be.
const OFFERS = [
  { follow: true, form: /[;,]? \(?follow=True resamples [^=()]+?(, follow=False keeps (it|them))?\)?$/ },
  { follow: false, form: /[;,]? \(?follow=False keeps (it|them)\)?$/ },
];

export function offerOf(line) {
  for (const { follow, form } of OFFERS) {
    const found = line.match(form);
    if (!found) continue;
    const named = follow ? found[0] : line;
    const segments = state.model.segments.filter((name) => new RegExp(`\\b${name}\\b`).test(named));
    return { line, text: line.slice(0, found.index), follow, segments };
  }
  return { line, text: line, follow: null, segments: [] };
}

// -------------------------------------------------------------------------------------------------------- files
export async function load(file) {
  if (state.job) return;
  if (file.size > state.model.limits.recipe_bytes) {
    notice(`${file.name} is larger than ${Math.round(state.model.limits.recipe_bytes / 2 ** 20)} MB.`, "error");
    return;
  }
  try {
    const { recipe } = await post("/api/recipe", "application/octet-stream", file);
    const result = await run("/api/draw", { recipe }, { kind: "draw", title: `Drawing ${file.name} again`, tiles: 1 });
    if (!result) return;
    set({ view: "studio" });
    addBatch(result.images, "load");
    const [{ matches }] = result.images;
    if (matches === true) notice("Drawn again from its recipe: the same picture, bit for bit.");
    if (matches === false) notice("Drawn again from its recipe; the last bits differ from the picture it remembers.");
  } catch (error) {
    tell(error);
  }
}

export function savePicture() {
  const node = history.get(state.node);
  if (node) download(node.png, `${fileName(node)}.png`);
}

export function saveRecipe() {
  const node = history.get(state.node);
  if (!node) return;
  const url = URL.createObjectURL(new Blob([JSON.stringify(node.recipe, null, 2)], { type: "application/json" }));
  download(url, `${fileName(node)}.json`);
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

function fileName(node) {
  const words = history.rowOf(node).caption.toLowerCase().normalize("NFC").match(/[\p{L}\p{M}\p{N}]+/gu) ?? [];
  const caption = [...words.join("-")].slice(0, 40).join("").replace(/-$/, "");
  const edits = node.recipe.history.length;
  return `${caption || "picture"}-seed${node.recipe.seed}-${node.place + 1}${edits ? `-edit${edits}` : ""}`;
}

function download(url, name) {
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
}

// -------------------------------------------------------------------------------------------------------- modes
export async function findModes(count) {
  const caption = draft.words(state.draft.caption);
  if (!caption) {
    notice("Write a caption first.", "error");
    return;
  }
  if (!state.keepSeed) state.seed = freshSeed();
  const body = { caption, count, seed: state.seed, settings: state.draft.settings };
  const result = await run("/api/modes", body, {
    kind: "modes",
    title: `Sampling ${count} latents of ${caption}`,
    tiles: count,
  });
  if (result) set({ modes: { ...result, settings: body.settings, opened: null, pictures: [] } });
}

// The pictures of a group, a few at a time; a second call draws the next ones.
export async function openGroup(index) {
  const { modes, model } = state;
  if (state.job) return;
  if (modes.opened !== index) set({ modes: { ...modes, opened: index, pictures: [] } });
  const group = modes.groups[index];
  const drawn = state.modes.pictures.length;
  const indices = group.indices.slice(drawn, drawn + model.limits.variations);
  if (!indices.length) return;
  const body = {
    caption: modes.caption,
    variations: indices.length,
    seed: modes.seed,
    settings: modes.settings,
    indices,
  };
  const result = await run("/api/generate", body, {
    kind: "group",
    title: `Drawing ${group.label}`,
    tiles: indices.length,
  });
  if (result) set({ modes: { ...state.modes, pictures: [...state.modes.pictures, ...result.images] } });
}

export function takePicture(image) {
  set({ view: "studio" });
  addBatch([image], "generate");
}

export function lockLine() {
  const kept = Object.keys(keptPrefix());
  const others = state.model.segments.filter((name) => state.locks.has(name) && !kept.includes(name));
  if (others.length && state.draft.latents) {
    return `New pictures keep ${segmentNames(others)} only with all before locked`;
  }
  return kept.length ? `New pictures keep ${segmentNames(kept)}` : "";
}
