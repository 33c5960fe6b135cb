// Visual tokens: entries of a codebook, one number for each part of the picture, replaced or exchanged.

import { h, keyed, showValue } from "./dom.js";
import * as draft from "./draft.js";
import { clamp } from "./geometry.js";
import { changed, state } from "./store.js";

let held = null; // place of the token that waits for its partner

export function vokenChips() {
  const chips = h("ol", { class: "vokens" });
  const hint = h("p", { class: "hint", text: "Press two swatches, or drag one onto another, to exchange them." });
  const body = h("div", { class: "card-body" }, chips, hint);
  body.update = (vokens) =>
    keyed(
      chips,
      vokens,
      (_, i) => i,
      (_, i) => chip(i),
    );
  return body;
}

export function letGo() {
  const had = held !== null;
  held = null;
  if (had) changed();
  return had;
}

function chip(place) {
  const swatch = h("button", { type: "button", class: "swatch", draggable: "true", on: { click: () => press(place) } });
  const most = state.model.codebook_size - 1;
  const input = h("input", {
    type: "number",
    min: 0,
    max: most,
    step: 1,
    inputmode: "numeric",
    "aria-label": `Visual token ${place + 1}`,
  });
  input.addEventListener("change", () => {
    const value = Math.round(Number(input.value));
    const vokens = [...state.draft.latents.voken];
    if (input.value !== "" && Number.isFinite(value)) vokens[place] = clamp(value, 0, most);
    draft.editSegment("voken", vokens, `voken ${place}`);
    input.shown = null;
    showValue(input, vokens[place]);
  });
  const element = h("li", { class: "voken" }, swatch, input);
  swatch.addEventListener("dragstart", (event) => event.dataTransfer.setData("text/x-voken", String(place)));
  element.addEventListener("dragover", (event) => event.preventDefault());
  element.addEventListener("drop", (event) => {
    const from = event.dataTransfer.getData("text/x-voken");
    if (from === "") return;
    event.preventDefault();
    exchange(Number(from), place);
  });
  element.update = (value) => {
    // One token has one color wherever it stands; the golden angle keeps neighbors apart.
    swatch.style.backgroundColor = `hsl(${(value * 137.508) % 360} 55% 58%)`;
    swatch.setAttribute("aria-pressed", held === place);
    swatch.setAttribute("aria-label", `Exchange visual token ${place + 1}, now ${value}`);
    showValue(input, value);
  };
  return element;
}

function press(place) {
  if (held === null || held === place) {
    held = held === null ? place : null;
    changed();
    return;
  }
  exchange(held, place);
}

function exchange(a, b) {
  const vokens = [...state.draft.latents.voken];
  [vokens[a], vokens[b]] = [vokens[b], vokens[a]];
  held = null;
  draft.editSegment("voken", vokens, null);
}
