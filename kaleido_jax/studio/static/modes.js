// The modes of a caption: sampled latents in groups, with their shares; the pictures of one; the baseline's pictures.
// The last ones survive a reload, in the tab that found them.

import { openGroup, takePicture } from "./actions.js";
import { byId, h, keyed, setText } from "./dom.js";
import * as draft from "./draft.js";
import { progressBar } from "./progress.js";
import { sentence, set, state } from "./store.js";

const WITHOUT_LATENTS = "This model is a baseline: it draws without latents, and so has no modes to find.";
const PLACE = "kaleido-studio-modes"; // key in sessionStorage

let bar;
let kept = {}; // what is stored there, without the weights

export function start() {
  bar = progressBar();
  byId("modes-progress").replaceChildren(bar, h("p", { class: "hint", id: "modes-line" }));
  byId("more-pictures").addEventListener("click", () => openGroup(state.modes.opened));
}

// The view and the modes of this tab, if they are of the same weights; and what was asked for, if it is the view.
export function restore() {
  try {
    const { weights, ...found } = JSON.parse(sessionStorage.getItem(PLACE) ?? "{}");
    if (weights !== state.model.weights) return;
    kept = found;
    set(found);
    if (found.view !== "modes" || !found.modes) return;
    const { caption, settings, seed } = found.modes;
    draft.edit({ caption, settings: { ...state.draft.settings, ...settings } });
    set({ seed });
  } catch (error) {
    console.warn(`The modes of this tab are not restored: ${error}`);
  }
}

// What does not fit goes without pictures: they are drawn again at a click.
function keep() {
  const { view, modes } = state;
  if (kept.view === view && kept.modes === modes) return;
  kept = { view, modes };
  const { weights } = state.model;
  const bare = modes && { ...modes, baseline: [], opened: null, pictures: [] };
  for (const one of [modes, bare]) {
    try {
      sessionStorage.setItem(PLACE, JSON.stringify({ weights, view, modes: one }));
      return;
    } catch (error) {
      if (error.name !== "QuotaExceededError") {
        console.warn(`The modes of this tab are not stored: ${error}`);
        return;
      }
    }
  }
}

export function update() {
  keep();
  const { modes, job } = state;
  const isSampling = job?.kind === "modes";
  bar.update();
  setText(byId("modes-line"), modes ? summary(modes) : "");
  byId("modes-line").hidden = !bar.hidden;
  byId("modes-progress").hidden = bar.hidden && !modes;
  byId("no-modes").hidden = Boolean(modes) || isSampling;
  if (!state.model.segments.length) setText(byId("no-modes"), WITHOUT_LATENTS);
  keyed(
    byId("groups"),
    isSampling ? [] : (modes?.groups ?? []),
    (group, i) => `${modes.seed} ${i} ${group.label}`,
    groupRow,
  );
  updatePictures(modes, job);
  updateBaseline(modes, job);
}

function summary({ caption, count, groups, seed }) {
  return `${groups.length} ${groups.length === 1 ? "mode" : "modes"} in ${count} latents of “${caption}”, seed ${seed}`;
}

function groupRow(_, index) {
  const label = h("span", { class: "group-label" });
  const share = h("span", { class: "group-share" });
  const fill = h("span", { class: "group-bar" });
  const button = h(
    "button",
    { type: "button", class: "group", on: { click: () => openGroup(index) } },
    label,
    share,
    fill,
  );
  const element = h("li", {}, button);
  element.update = (group) => {
    setText(label, group.label);
    setText(share, `${Math.round(100 * group.share)} %`);
    fill.style.width = `${(100 * group.count) / state.modes.groups[0].count}%`;
    button.setAttribute(
      "aria-label",
      `${group.label}: ${group.count} of ${state.modes.count}, ${Math.round(100 * group.share)} %`,
    );
    button.setAttribute("aria-pressed", state.modes.opened === index);
    button.title = `${group.count} of ${state.modes.count}`;
    button.disabled = Boolean(state.job);
  };
  return element;
}

function updatePictures(modes, job) {
  const group = modes && job?.kind !== "modes" ? modes.groups[modes.opened] : null;
  setText(byId("group-title"), group ? group.label : "Pictures");
  byId("no-group").hidden = Boolean(group);
  const drawn = group ? modes.pictures.map((image) => ({ png: image.png, image })) : [];
  const coming = job?.kind === "group" ? Array.from({ length: job.tiles }, (_, i) => ({ png: job.previews[i] })) : [];
  keyed(
    byId("group-pictures"),
    [...drawn, ...coming],
    (_, i) => i,
    () => wallPicture(true),
  );
  const rest = group ? group.count - drawn.length - coming.length : 0;
  byId("more-pictures").hidden = rest <= 0 || Boolean(job);
  setText(byId("more-pictures"), `Draw ${Math.min(rest, state.model.limits.variations)} more`);
}

function updateBaseline(modes, job) {
  const { baseline: name, baseline_problem: problem } = state.model;
  byId("baseline").hidden = !name && !problem;
  const isSampling = job?.kind === "modes";
  const pictures = isSampling ? job.previews : (modes?.baseline ?? []);
  setText(
    byId("no-baseline"),
    problem
      ? sentence(problem)
      : `What ${name} draws for the same caption: the same net, trained the same way, but without latents.`,
  );
  keyed(
    byId("baseline-pictures"),
    pictures.map((png) => ({ png })),
    (_, i) => i,
    () => wallPicture(false),
  );
}

function wallPicture(canOpen) {
  const image = h("img", { alt: "" });
  const element = canOpen ? h("button", { type: "button", class: "tile" }, image) : h("div", { class: "tile" }, image);
  if (canOpen) element.addEventListener("click", () => element.item.image && takePicture(element.item.image));
  element.update = (item, i) => {
    element.item = item;
    if (item.png && image.src !== item.png) image.src = item.png;
    image.hidden = !item.png;
    if (!canOpen) image.alt = `Picture ${i + 1} of the baseline`;
    else element.setAttribute("aria-label", `Open picture ${i + 1} in the studio`);
    if (canOpen) element.disabled = !item.image;
  };
  return element;
}
