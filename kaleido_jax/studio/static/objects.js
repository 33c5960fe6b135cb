// The list of boxes or of ellipses: the way to the shapes on the picture for those who use no mouse.

import { byId, h, iconButton, keyed, setText, showValue } from "./dom.js";
import * as draft from "./draft.js";
import { clamp, growBox, moveBox, snapBlob, snapBox } from "./geometry.js";
import { colorOf, setNumbers } from "./stage.js";
import { same, set, state } from "./store.js";

const KINDS = {
  bbox: {
    field: "box",
    one: "box",
    numbers: ["left", "top", "right", "bottom"],
    most: [1000, 1000, 1000, 1000],
    fresh: [300, 300, 700, 700],
    snap: snapBox,
    move: moveBox,
    grow: growBox,
  },
  blob: {
    field: "blob",
    one: "ellipse",
    numbers: ["x", "y", "long", "short", "angle"],
    most: [1000, 1000, 1000, 1000, 180],
    fresh: [500, 500, 220, 160, 0],
    snap: snapBlob,
    move: ([x, y, ...rest], dx, dy) => [clamp(x + dx, 0, 1000), clamp(y + dy, 0, 1000), ...rest],
    grow: ([x, y, major, minor, theta], dx, dy) => [x, y, major + dx, minor + dy, theta],
  },
};
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export function objectList(kind) {
  const { one } = KINDS[kind];
  const rows = h("ul", { class: "objects" });
  const add = iconButton("plus", `Add ${one === "ellipse" ? "an" : "a"} ${one}`, () => addObject(kind));
  const body = h("div", { class: "card-body" }, rows);
  body.button = add; // of the card's head
  body.update = (objects) => {
    keyed(
      rows,
      objects,
      (_, i) => i,
      (_, i) => row(kind, i),
    );
    add.disabled = objects.length >= state.model.limits.objects;
  };
  return body;
}

function row(kind, index) {
  const { one, numbers, most } = KINDS[kind];
  const handle = h("button", {
    type: "button",
    class: "handle",
    id: `handle-${kind}-${index}`,
    "aria-describedby": "keys-of-objects",
  });
  handle.addEventListener("click", () => set({ selected: { segment: kind, index } }));
  handle.addEventListener("focus", () => set({ selected: { segment: kind, index } }));
  handle.addEventListener("keydown", (event) => onKey(event, kind, index));
  const phrase = h("input", {
    class: "phrase",
    "aria-label": `Words of ${one} ${index + 1}`,
    maxlength: state.model.limits.text,
    spellcheck: "false",
    autocomplete: "off",
  });
  phrase.addEventListener("input", () => setPhrase(kind, index, phrase.value));
  const remove = iconButton("remove", `Remove ${one} ${index + 1}`, () => removeObject(kind, index));
  const fields = numbers.map((name, at) => numberField(kind, index, at, name, most[at]));
  const element = h(
    "li",
    { class: "object" },
    handle,
    phrase,
    remove,
    h(
      "div",
      { class: "numbers" },
      fields.map((field) => field.label),
    ),
  );
  element.update = (object) => {
    handle.style.setProperty("--of-object", colorOf(index));
    handle.setAttribute("aria-label", `${one} ${index + 1}, ${object.phrase}: ${object[KINDS[kind].field].join(", ")}`);
    const isSelected = same(state.selected, { segment: kind, index });
    handle.setAttribute("aria-pressed", isSelected);
    element.classList.toggle("is-selected", isSelected);
    setText(handle, String(index + 1));
    showValue(phrase, object.phrase);
    fields.forEach((field, at) => showValue(field.input, object[KINDS[kind].field][at]));
  };
  return element;
}

function numberField(kind, index, at, name, most) {
  const step = state.model.coordinate_step;
  const input = h("input", {
    type: "number",
    min: 0,
    max: most,
    step,
    inputmode: "numeric",
    "aria-label": `${name} of ${KINDS[kind].one} ${index + 1}`,
  });
  const tag = `${kind} ${index} ${at}`;
  const put = (value) => {
    const numbers = [...numbersOf(kind, index)];
    numbers[at] = value;
    return numbers;
  };
  input.addEventListener("focus", () => set({ selected: { segment: kind, index } }));
  // What is half typed is no number yet: it counts when the field is left, or at once from the arrows.
  input.addEventListener("change", () => {
    const value = Number(input.value);
    const known = numbersOf(kind, index);
    const numbers = input.value === "" || !Number.isFinite(value) ? known : KINDS[kind].snap(put(value), step);
    if (!same(numbers, known)) setNumbers(kind, index, numbers, tag);
    input.shown = null;
    showValue(input, numbers[at]);
  });
  return { input, label: h("label", { class: "number" }, h("span", { text: name }), input) };
}

function numbersOf(kind, index) {
  return state.draft.latents[kind][index][KINDS[kind].field];
}

// Arrows move, with Alt they resize; brackets turn an ellipse; with Shift all go five steps.
function onKey(event, kind, index) {
  const { move, grow, snap } = KINDS[kind];
  const step = state.model.coordinate_step;
  const by = step * (event.shiftKey ? 5 : 1);
  const numbers = numbersOf(kind, index);
  let next = null;
  if (event.key in ARROWS) {
    const [dx, dy] = ARROWS[event.key];
    next = (event.altKey ? grow : move)(numbers, dx * by, dy * by);
  } else if (kind === "blob" && "[]{}".includes(event.key)) {
    next = [...numbers.slice(0, 4), numbers[4] + ("[{".includes(event.key) ? -by : by)];
  } else if (event.key === "Delete" || event.key === "Backspace") {
    event.preventDefault();
    removeObject(kind, index);
    return;
  }
  if (!next) return;
  event.preventDefault();
  setNumbers(kind, index, snap(next, step), `keys ${kind} ${index}`);
}

function setPhrase(kind, index, phrase) {
  const objects = state.draft.latents[kind].map((one, i) => (i === index ? { ...one, phrase } : one));
  draft.editSegment(kind, objects, `phrase ${kind} ${index}`);
}

function addObject(kind) {
  const objects = state.draft.latents[kind];
  const phrase =
    (state.draft.latents.bbox ?? objects)[objects.length]?.phrase ??
    objects.at(-1)?.phrase ??
    draft.words(state.draft.caption);
  draft.editSegment(kind, [...objects, { phrase, [KINDS[kind].field]: KINDS[kind].fresh }], null);
  focusSoon(`handle-${kind}-${objects.length}`);
}

function removeObject(kind, index) {
  const objects = state.draft.latents[kind].filter((_, i) => i !== index);
  state.selected = null;
  draft.editSegment(kind, objects, null);
  if (objects.length) focusSoon(`handle-${kind}-${Math.min(index, objects.length - 1)}`);
}

function focusSoon(id) {
  setTimeout(() => byId(id)?.focus());
}
