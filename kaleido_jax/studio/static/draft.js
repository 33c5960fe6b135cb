// What the user makes of the shown picture: another caption, latents or settings. Undo walks back over every change and
// over every picture that was opened.

import * as history from "./history.js";
import { changed, same, state } from "./store.js";

const MOST_STEPS = 200;

let steps = []; // {node, draft, tag}
let at = -1;

// What the picture itself has.
export function original() {
  const node = history.get(state.node);
  return node ? draftOf(node) : null;
}

function draftOf(node) {
  const row = history.rowOf(node);
  const settings = {};
  for (const name of Object.keys(state.model.settings)) {
    settings[name] = node.recipe.sample[name] ?? state.draft.settings[name];
  }
  return { caption: row.caption, latents: history.latentsOf(node), settings };
}

export function open(id) {
  const node = history.get(id);
  if (!node) return;
  state.node = id;
  state.draft = draftOf(node);
  state.selected = null;
  record(null);
  history.saveShown(id);
}

// Changes parts of the draft. Changes with the same tag that follow each other are one step of undo.
export function edit(parts, tag) {
  state.draft = { ...state.draft, ...parts };
  record(tag);
}

export function editSegment(segment, value, tag) {
  edit({ latents: { ...state.draft.latents, [segment]: value } }, tag);
}

export function editSetting(name, value, tag) {
  edit({ settings: { ...state.draft.settings, [name]: value } }, tag);
}

function record(tag) {
  const step = { node: state.node, draft: state.draft, tag };
  const joins = tag && at >= 0 && steps[at].tag === tag && steps[at].node === state.node;
  steps = [...steps.slice(0, joins ? at : at + 1), step].slice(-MOST_STEPS);
  at = steps.length - 1;
  changed();
}

// The next change begins a step of its own, whatever its tag.
export function endStep() {
  if (at >= 0) steps[at].tag = null;
}

export function canUndo() {
  return findStep(-1) !== null;
}

export function canRedo() {
  return findStep(1) !== null;
}

export function undo() {
  go(findStep(-1));
}

export function redo() {
  go(findStep(1));
}

// Pictures that the bound of the history dropped are stepped over.
function findStep(by) {
  for (let i = at + by; i >= 0 && i < steps.length; i += by) {
    if (steps[i].node === null || history.get(steps[i].node)) return i;
  }
  return null;
}

function go(i) {
  if (i === null) return;
  at = i;
  endStep();
  state.node = steps[i].node;
  state.draft = steps[i].draft;
  const objects = state.selected && state.draft.latents?.[state.selected.segment];
  if (!objects || state.selected.index >= objects.length) state.selected = null;
  history.saveShown(state.node);
  changed();
}

export function begin() {
  steps = [];
  at = -1;
  record(null);
}

// What differs from the picture: {segments, caption, settings}.
export function changes() {
  const before = original();
  const none = { segments: [], caption: false, settings: {} };
  if (!before) return none;
  const settings = {};
  for (const [name, value] of Object.entries(state.draft.settings)) {
    if (!same(value, before.settings[name])) settings[name] = value;
  }
  const segments = before.latents
    ? state.model.segments.filter((name) => !same(clean(state.draft.latents[name]), before.latents[name]))
    : [];
  return { segments, caption: words(state.draft.caption) !== before.caption, settings };
}

export function isChanged() {
  const { segments, caption, settings } = changes();
  return segments.length > 0 || caption || Object.keys(settings).length > 0;
}

export function revert(part) {
  const before = original();
  if (part === "caption" || part === "settings") edit({ [part]: before[part] });
  else editSegment(part, before.latents[part]);
}

export function words(string) {
  return string.replace(/\s+/g, " ").trim();
}

// A segment as it is sent: words with single spaces.
export function clean(value) {
  if (typeof value === "string") return words(value);
  if (!Array.isArray(value)) return value;
  return value.map((one) => (typeof one?.phrase === "string" ? { ...one, phrase: words(one.phrase) } : one));
}
