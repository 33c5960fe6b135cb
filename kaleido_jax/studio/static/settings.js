// How pictures are sampled: guidance weight, steps, sampler, guidance rule, the prior's temperature, and the seed.

import { byId, h, iconButton, showValue } from "./dom.js";
import * as draft from "./draft.js";
import { clamp } from "./geometry.js";
import { changed, set, state } from "./store.js";

const GAMMA_OF_SLIDER = 12; // its right end; the field beside it takes more
let fields = [];

export function start() {
  const { limits, samplers, guidances } = state.model;
  fields = [
    gamma(limits.gamma),
    number("num_steps", "Steps", limits.steps[0], limits.steps[1], 1),
    choice("sampler", "Sampler", samplers),
    choice("guidance", "Guidance", guidances),
    number("temperature", "Temperature", 0, 10, 0.05),
    number("top_p", "Top p", 0, 1, 0.01),
  ].filter((field) => field.name in state.model.settings);
  byId("settings-fields").replaceChildren(...fields.map((field) => field.element), seed());
}

export function update() {
  for (const field of fields) field.show(state.draft.settings[field.name]);
  const disabled = Boolean(state.job);
  if (byId("settings-fields").inert !== disabled) byId("settings-fields").inert = disabled;
  showValue(byId("seed"), state.seed);
  byId("keep-seed").checked = state.keepSeed;
}

function gamma([low, high]) {
  const slider = h("input", {
    type: "range",
    min: low,
    max: Math.min(high, GAMMA_OF_SLIDER),
    step: 0.5,
    "aria-label": "Guidance weight gamma, slider",
  });
  slider.addEventListener("input", () => draft.editSetting("gamma", Number(slider.value), "gamma"));
  const { element, show, name } = number("gamma", "Gamma", low, high, 0.5);
  element.classList.add("with-slider");
  const input = element.querySelector("input");
  input.setAttribute("aria-label", "Guidance weight gamma");
  element.append(h("div", { class: "row" }, slider, input));
  return {
    name,
    element,
    show: (value) => {
      show(value);
      showValue(slider, value);
    },
  };
}

function number(name, title, low, high, step) {
  const input = h("input", {
    type: "number",
    min: low,
    max: high,
    step: step < 1 ? "any" : step,
    inputmode: "decimal",
    id: `setting-${name}`,
  });
  input.addEventListener("change", () => {
    const value = Number(input.value);
    const known = state.draft.settings[name];
    const next =
      input.value === "" || !Number.isFinite(value) ? known : clamp(step === 1 ? Math.round(value) : value, low, high);
    if (next !== known) draft.editSetting(name, next, `setting ${name}`);
    input.shown = null;
    showValue(input, next);
  });
  const element = h("label", { class: "setting" }, h("span", { text: title }), input);
  return { name, element, show: (value) => showValue(input, value) };
}

function choice(name, title, options) {
  const select = h("select", {
    id: `setting-${name}`,
    on: { change: () => draft.editSetting(name, select.value, null) },
  });
  const show = (value) => {
    // A recipe may use one that this list lacks.
    const all = options.includes(value) ? options : [...options, value];
    if (select.options.length !== all.length)
      select.replaceChildren(...all.map((one) => h("option", { value: one, text: one })));
    showValue(select, value);
  };
  return { name, element: h("label", { class: "setting" }, h("span", { text: title }), select), show };
}

function seed() {
  const [low, high] = state.model.limits.seed;
  const input = h("input", {
    type: "number",
    id: "seed",
    min: low,
    max: high,
    step: 1,
    inputmode: "numeric",
    "aria-label": "Seed",
  });
  input.addEventListener("change", () => {
    const value = Math.round(Number(input.value));
    // A seed that was chosen is meant to be used.
    set({ seed: clamp(Number.isFinite(value) ? value : 0, low, high), keepSeed: true });
  });
  const dice = iconButton("dice", "Another seed", () =>
    set({ seed: Math.floor(Math.random() * 1_000_000), keepSeed: true }),
  );
  const keep = h("input", { type: "checkbox", id: "keep-seed" });
  keep.addEventListener("change", () => {
    state.keepSeed = keep.checked;
    changed();
  });
  const title = h("span", {}, "Seed", h("label", { class: "check" }, keep, "keep"));
  return h("div", { class: "setting seed" }, title, h("div", { class: "row" }, input, dice));
}
