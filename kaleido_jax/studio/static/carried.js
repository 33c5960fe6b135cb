// What was typed, carried over the reload that brings the page of another model.

import * as draft from "./draft.js";
import { same, set, state } from "./store.js";

const PLACE = "kaleido-studio-carried"; // key in sessionStorage

let isDue = false;

export function keepAtReload() {
  isDue = true;
}

// Settings are carried where they are not the model's own, since the other model has its own too.
addEventListener("pagehide", () => {
  if (!isDue) return;
  const { seed, keepSeed, variations, view, draft: now, model } = state;
  const settings = Object.fromEntries(
    Object.entries(now.settings).filter(([name, value]) => !same(value, model.settings[name])),
  );
  try {
    const kept = { caption: now.caption, settings, rest: { seed, keepSeed, variations, view } };
    sessionStorage.setItem(PLACE, JSON.stringify(kept));
  } catch (error) {
    console.warn(`What was typed is not carried over: ${error}`);
  }
});

export function restore() {
  try {
    const kept = sessionStorage.getItem(PLACE);
    if (!kept) return;
    sessionStorage.removeItem(PLACE);
    const { caption, settings, rest } = JSON.parse(kept);
    draft.edit({ caption, settings: { ...state.draft.settings, ...settings } });
    set(rest);
  } catch (error) {
    console.warn(`What was typed is not carried over: ${error}`);
  }
}
