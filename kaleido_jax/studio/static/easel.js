// The middle of the page: toolbar, picture, the bar below it (changes or progress), pictures drawn at once, messages.

import { dismiss, editAgain, offerOf, redraw, savePicture, saveRecipe } from "./actions.js";
import * as compare from "./compare.js";
import { byId, h, iconButton, keyed, moveFocus, setText } from "./dom.js";
import * as draft from "./draft.js";
import * as history from "./history.js";
import { easelJob } from "./jobs.js";
import { progressBar } from "./progress.js";
import { changed, segmentName, segmentNames, set, state } from "./store.js";

let parts = {};

export function start() {
  const views = [
    ["picture", "Picture"],
    ["slider", "Slider"],
    ["sides", "Side by side"],
  ].map(([name, title]) =>
    h("button", { type: "button", "data-name": name, text: title, on: { click: () => set({ compare: name }) } }),
  );
  const layers = ["bbox", "blob"].map((name) =>
    h("button", {
      type: "button",
      "data-name": name,
      text: segmentName(name),
      class: "toggle",
      on: { click: () => toggle(name) },
    }),
  );
  parts = {
    views,
    layers,
    undo: iconButton("undo", "Undo", draft.undo),
    redo: iconButton("redo", "Redo", draft.redo),
    save: iconButton("save", "Save the picture, recipe inside", savePicture, { id: "save-picture" }),
    recipe: iconButton("recipe", "Save the recipe as JSON", saveRecipe, { id: "save-recipe" }),
    bar: progressBar(),
    changes: changesBar(),
  };
  byId("toolbar").replaceChildren(
    h("div", { class: "segmented", role: "group", "aria-label": "Compare with the picture before" }, views),
    h("div", { class: "toggles", role: "group", "aria-label": "Shown over the picture" }, layers),
    h("div", { class: "icons" }, parts.undo, parts.redo, parts.save, parts.recipe),
  );
  byId("action").replaceChildren(parts.bar, parts.changes);
  startRedrawBelow();
  byId("strip").addEventListener("keydown", (event) => moveFocus(event, [...byId("strip").children]));
}

// On a phone the latents are far below the bar: the button then comes along.
function startRedrawBelow() {
  const button = byId("redraw-below");
  button.addEventListener("click", () => {
    redraw();
    byId("picture").scrollIntoView({ block: "center" });
  });
  new IntersectionObserver(([entry]) => {
    parts.isBarInSight = entry.isIntersecting;
    changed();
  }).observe(byId("action"));
}

function toggle(name) {
  state.show[name] = !state.show[name];
  changed();
}

export function update() {
  const node = history.get(state.node);
  const isDrawing = easelJob() !== null;
  updateToolbar(node);
  parts.bar.update();
  parts.changes.hidden = Boolean(state.job);
  parts.changes.update();
  showPicture(node, isDrawing);
  updateStrip(isDrawing);
  byId("messages").inert = Boolean(state.job);
  keyed(byId("messages"), messagesOf(node), (message) => `${node.id} ${message.text} ${message.follow}`, messageLine);
}

function updateToolbar(node) {
  const canCompare = Boolean(node?.difference);
  for (const button of parts.views) {
    const { name } = button.dataset;
    button.setAttribute("aria-pressed", name === (canCompare ? state.compare : "picture"));
    button.disabled = name !== "picture" && !canCompare;
    button.title = button.disabled ? "An edited picture can be compared with the one before" : "";
  }
  for (const button of parts.layers) {
    button.hidden = !state.model.segments.includes(button.dataset.name);
    button.setAttribute("aria-pressed", state.show[button.dataset.name]);
    button.disabled = canCompare && state.compare !== "picture";
  }
  parts.undo.disabled = Boolean(state.job) || !draft.canUndo();
  parts.redo.disabled = Boolean(state.job) || !draft.canRedo();
  parts.save.disabled = parts.recipe.disabled = !node;
}

// ------------------------------------------------------------------------------------------------------ the picture
function showPicture(node, isDrawing) {
  const image = byId("image");
  // Until the first preview comes, the picture before stays in sight, but faded.
  const preview = isDrawing ? state.job.previews[state.job.shown] : null;
  const source = preview ?? node?.png ?? null;
  byId("picture").classList.toggle("is-faded", isDrawing && !preview);
  const view = !isDrawing && node?.difference ? state.compare : "picture";
  if (source && image.src !== source) image.src = source;
  image.hidden = !source || view !== "picture";
  image.alt = isDrawing ? "The picture, half drawn" : altOf(node);
  byId("placeholder").hidden = Boolean(source);
  byId("picture").classList.toggle("is-drawing", isDrawing);
  byId("picture").setAttribute("aria-busy", isDrawing);
  byId("picture").classList.toggle("is-wide", view === "sides");
  compare.update(view, node);
}

function altOf(node) {
  const text = node && history.latentsOf(node)?.text;
  return node ? text || history.rowOf(node).caption : "";
}

// ------------------------------------------------------------------------------------------------------ what is edited
function changesBar() {
  const chips = h("ul", { class: "changes" });
  const hint = h("p", { class: "hint" });
  const follow = h(
    "select",
    { "aria-label": "Segments behind an edited one", title: "What happens to the segments behind an edited one" },
    [
      h("option", { value: "null", text: "Others: as needed" }),
      h("option", { value: "true", text: "Others: follow" }),
      h("option", { value: "false", text: "Others: stay" }),
    ],
  );
  follow.addEventListener("change", () => set({ follow: JSON.parse(follow.value) }));
  const go = h("button", { type: "button", class: "primary", id: "redraw", on: { click: () => redraw() } }, "Redraw");
  const bar = h("div", { class: "change-bar" }, h("div", { class: "grow" }, chips, hint), follow, go);
  bar.update = () => {
    const { segments, caption, settings } = draft.changes();
    const items = [
      ...(caption ? [["caption", "Caption"]] : []),
      ...segments.map((name) => [name, segmentName(name)]),
      ...(Object.keys(settings).length ? [["settings", settingsLine(settings)]] : []),
    ];
    keyed(chips, items, ([name]) => name, changeChip);
    chips.hidden = !items.length;
    hint.hidden = items.length > 0;
    setText(hint, hintLine());
    follow.hidden = !state.draft.latents;
    follow.value = String(state.follow);
    go.hidden = !state.draft.latents;
    go.disabled = !items.length || Boolean(state.job) || !history.get(state.node) || !state.draft.latents;
    byId("redraw-below").hidden = go.disabled || parts.isBarInSight || state.view !== "studio";
  };
  return bar;
}

function hintLine() {
  if (!state.node) return "What you change will be listed here.";
  return state.draft.latents ? "Drag a box, turn an ellipse, change a word; then redraw." : "";
}

function settingsLine(settings) {
  return Object.entries(settings)
    .map(([name, value]) => `${name.replace("_", " ")} ${value}`)
    .join(", ");
}

function changeChip([part]) {
  const text = h("span");
  const back = iconButton("remove", "", () => draft.revert(part));
  const element = h("li", { class: "chip" }, text, back);
  element.update = ([, title]) => {
    setText(text, title);
    back.setAttribute("aria-label", `Take back: ${title}`);
    back.title = "Take back";
  };
  return element;
}

// ------------------------------------------------------------------------------------------------------ drawn at once
function updateStrip(isDrawing) {
  const { job } = state;
  const root = history.rootOf(state.node);
  const items =
    isDrawing && job.kind === "generate"
      ? Array.from({ length: job.tiles }, (_, i) => ({
          key: `job ${i}`,
          png: job.previews[i],
          isOn: i === job.shown,
          take: () => (job.shown = i),
        }))
      : history
          .siblingsOf(state.node)
          .map((node) => ({
            key: node.id,
            png: node.png,
            isOn: node === root,
            take: () => isDrawing || draft.open(node.id),
          }));
  keyed(byId("strip"), items, (item) => item.key, tile);
}

function tile() {
  const image = h("img", { alt: "" });
  const element = h("button", { type: "button", class: "tile" }, image);
  element.addEventListener("click", () => {
    element.item.take();
    changed();
  });
  element.update = (item, i) => {
    element.item = item;
    if (item.png && image.src !== item.png) image.src = item.png;
    image.hidden = !item.png;
    element.classList.toggle("is-on", item.isOn);
    element.setAttribute("aria-pressed", item.isOn);
    element.setAttribute("aria-label", `Picture ${i + 1}`);
    element.tabIndex = item.isOn ? 0 : -1;
  };
  return element;
}

// ------------------------------------------------------------------------------------------------------ messages
function messagesOf(node) {
  if (!node) return [];
  const problem = node.problem ? [{ line: "", text: node.problem, follow: null }] : [];
  return [...problem, ...node.messages.map(offerOf)];
}

function messageLine({ line, text, follow, segments }) {
  const node = history.get(state.node);
  const other = follow ? `Let ${segmentNames(segments)} follow` : "Keep them as they were";
  const buttons = [
    follow !== null && h("button", { type: "button", on: { click: () => editAgain(node, follow) } }, other),
    follow && h("button", { type: "button", class: "quiet", on: { click: () => dismiss(node, line) } }, "Keep"),
  ].filter(Boolean);
  const close = line && !follow && iconButton("remove", "Dismiss", () => dismiss(node, line));
  const body = h(
    "div",
    { class: "grow" },
    h("p", { text: inWords(text) }),
    buttons.length > 0 && h("div", { class: "buttons" }, buttons),
  );
  return h("div", { class: "message" }, body, close);
}

// The server names segments as Python does.
function inWords(text) {
  const line = text
    .replace(/\bbbox\.(\d+)/g, (_, i) => `box ${Number(i) + 1}`)
    .replace(/\bblob\.(\d+)/g, (_, i) => `ellipse ${Number(i) + 1}`)
    .replace(/\b(bbox|blob|voken)\b/g, (name) => segmentName(name).toLowerCase())
    .replace(/\b(boxes|ellipses|tokens) is\b/g, "$1 are")
    .replace(/\b(boxes|ellipses|tokens) contradicts\b/g, "$1 contradict");
  return line[0].toUpperCase() + line.slice(1);
}
