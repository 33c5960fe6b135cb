// The panel of latents: a card for each segment with its lock, and in it words, objects, visual tokens or JSON.

import { lockLine, resample } from "./actions.js";
import { byId, h, iconButton, keyed, setIcon, setText, showValue } from "./dom.js";
import * as draft from "./draft.js";
import * as history from "./history.js";
import { easelJob } from "./jobs.js";
import { objectList } from "./objects.js";
import { changed, segmentName, state } from "./store.js";
import { vokenChips } from "./vokens.js";

const HINTS = {
  text: "What the picture shows",
  bbox: "Where the objects are",
  blob: "Their extent and tilt",
  voken: "Details, by number",
};

export function update() {
  const segments = shown() ? state.model.segments : [];
  keyed(byId("segments"), segments, (name) => name, card);
  setText(byId("lock-line"), lockLine());
  byId("no-latents").hidden = segments.length > 0;
  setText(byId("no-latents"), emptyLine());
  byId("segments").inert = Boolean(state.job);
}

// While latents of the next picture are sampled the panel shows them as soon as they are there.
function shown() {
  const job = easelJob();
  return job?.latents[job.shown] ?? state.draft.latents;
}

function emptyLine() {
  if (!state.model.segments.length) return "This model is a baseline: it draws without latents.";
  const node = history.get(state.node);
  if (node?.problem) return `The latents of this picture cannot be read: ${node.problem}`;
  return "The latents of a picture appear here: its description, boxes, ellipses and visual tokens. All of them can be edited.";
}

function card(name) {
  const body = bodyOf(name);
  const badge = h("span", { class: "badge", text: "edited" });
  const lock = iconButton("unlock", "", () => toggleLock(name));
  const again = iconButton("again", `Sample ${segmentName(name).toLowerCase()} anew`, () => resample(name));
  const head = h(
    "header",
    { class: "card-head" },
    h("h3", { text: segmentName(name) }),
    badge,
    h("span", { class: "hint", text: HINTS[name] ?? "" }),
    body.button,
    again,
    lock,
  );
  const element = h("section", { class: "card", "data-segment": name, "aria-label": segmentName(name) }, head, body);
  element.update = () => {
    const value = shown()[name];
    const isLocked = state.locks.has(name);
    const edited = !state.job && draft.changes().segments.includes(name);
    element.classList.toggle("is-locked", isLocked);
    element.classList.toggle("is-edited", edited);
    badge.hidden = !edited;
    setIcon(lock.firstChild, isLocked ? "lock" : "unlock");
    lock.setAttribute("aria-pressed", isLocked);
    lock.setAttribute("aria-label", `Lock ${segmentName(name).toLowerCase()}`);
    lock.title = isLocked ? "Locked: stays as it is" : "Lock: stays as it is when others are sampled";
    again.disabled = isLocked || Boolean(state.job);
    body.update(value);
  };
  return element;
}

function toggleLock(name) {
  if (!state.locks.delete(name)) state.locks.add(name);
  changed();
}

function bodyOf(name) {
  if (name === "text") return wordsField();
  if (name === "bbox" || name === "blob") return objectList(name);
  if (name === "voken") return vokenChips();
  return jsonField(name);
}

function wordsField() {
  const field = h("textarea", {
    rows: 2,
    class: "words",
    "aria-label": "Text",
    maxlength: state.model.limits.text,
    spellcheck: "false",
  });
  field.addEventListener("input", () => draft.editSegment("text", field.value.replace(/\n/g, " "), "text"));
  field.addEventListener("blur", draft.endStep);
  const body = h("div", { class: "card-body" }, field);
  body.update = (value) => {
    showValue(field, value);
    field.style.height = "auto";
    field.style.height = `${field.scrollHeight + 2}px`;
  };
  return body;
}

// Kinds of latents that others registered.
function jsonField(name) {
  const field = h("textarea", { rows: 4, class: "words json", "aria-label": `${name}, JSON`, spellcheck: "false" });
  field.addEventListener("change", () => {
    try {
      draft.editSegment(name, JSON.parse(field.value), null);
      field.removeAttribute("aria-invalid");
    } catch (error) {
      console.info(error.message);
      field.setAttribute("aria-invalid", "true");
    }
  });
  const body = h("div", { class: "card-body" }, field);
  body.update = (value) => showValue(field, JSON.stringify(value, null, 1));
  return body;
}
