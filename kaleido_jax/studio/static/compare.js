// Before, after and difference of an edit: one over the other with a slider, or side by side.

import { byId, h } from "./dom.js";
import * as history from "./history.js";

let slider;
let sides;

export function start() {
  const before = h("img", { alt: "Before the edit" });
  const after = h("img", { alt: "After the edit" });
  const line = h("div", { class: "divider" });
  const range = h("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "Share of the picture before" });
  const cut = () => {
    before.style.clipPath = `inset(0 ${100 - range.value}% 0 0)`;
    line.style.left = `${range.value}%`;
  };
  range.addEventListener("input", cut);
  cut();
  byId("slider").replaceChildren(
    after,
    before,
    line,
    h("span", { class: "tag left", text: "Before" }),
    h("span", { class: "tag right", text: "After" }),
    range,
  );
  slider = { before, after };
  sides = ["Before", "After", "Difference"].map((name) => {
    const image = h("img", { alt: name });
    return { image, figure: h("figure", {}, image, h("figcaption", { text: name })) };
  });
  byId("sides").replaceChildren(...sides.map((one) => one.figure));
}

export function update(view, node) {
  byId("slider").hidden = view !== "slider";
  byId("sides").hidden = view !== "sides";
  if (view === "picture") return;
  const before = node.before ?? history.get(node.parent)?.png ?? node.png;
  const pictures =
    view === "slider"
      ? [
          [slider.before, before],
          [slider.after, node.png],
        ]
      : sides.map((one, i) => [one.image, [before, node.png, node.difference][i]]);
  for (const [image, source] of pictures) {
    if (image.src !== source) image.src = source;
  }
}
