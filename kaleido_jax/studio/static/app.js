// Starts the page: asks for the model, brings back the history, wires the parts, and hears the keys.

import { findModes, generate, load, redraw } from "./actions.js";
import * as carried from "./carried.js";
import * as compare from "./compare.js";
import {
  byId,
  h,
  icon,
  iconButton,
  isComposing,
  isTextEntry,
  keyed,
  moveFocus,
  setIcon,
  setText,
  showValue,
} from "./dom.js";
import * as draft from "./draft.js";
import * as easel from "./easel.js";
import * as history from "./history.js";
import { cancel, lineOf, request } from "./jobs.js";
import * as latents from "./latents.js";
import * as modes from "./modes.js";
import { announce } from "./progress.js";
import * as settings from "./settings.js";
import * as stage from "./stage.js";
import { changed, notice, sentence, set, state, subscribe } from "./store.js";
import * as tree from "./tree.js";
import { letGo } from "./vokens.js";

const ASK_AGAIN_MS = 1500;
const MOST_CHIPS = 40;
const SMALL_PX = 200; // pictures up to this size keep their pixels when they are enlarged

// ------------------------------------------------------------------------------------------------------ the start
async function main() {
  startTools();
  let early = false; // whether Enter was pressed before the model was there
  const wait = (event) => {
    event.preventDefault();
    early = true;
    showWaiting("drawing as soon as the model is loaded");
  };
  byId("prompt").addEventListener("submit", wait);
  state.model = await firstAnswer();
  byId("prompt").removeEventListener("submit", wait);
  state.waiting = state.model.waiting;
  state.draft = { caption: "", latents: null, settings: { ...state.model.settings } };
  const typed = byId("caption").value;
  state.seed = Math.floor(Math.random() * 1_000_000);
  state.variations = Math.min(4, state.model.limits.variations);
  setText(
    byId("model"),
    `${state.model.name} · step ${state.model.step.toLocaleString("en")} · ${state.model.image_size} px`,
  );
  document.body.classList.toggle("is-crisp", state.model.image_size <= SMALL_PX);
  startPrompt();
  for (const part of [settings, easel, compare, tree, modes, stage]) part.start();
  const shown = history.restore(state.model);
  if (shown) draft.open(shown);
  else draft.begin();
  if (!early) modes.restore();
  carried.restore();
  if (typed) draft.edit({ caption: typed });
  subscribe(update);
  changed();
  listenToKeys();
  listenToFiles();
  watchWaiting();
  if (early) submit();
  hear(state.model);
}

// Asks until the server knows its model.
async function firstAnswer() {
  for (;;) {
    const answer = await request("/api/model").catch((error) => ({ waiting: "", problem: lineOf(error) }));
    if (answer.segments) return answer;
    showWaiting(answer.problem || answer.waiting);
    await pause();
  }
}

// The page is there before the model is compiled; until then it says what is waited for.
async function watchWaiting() {
  while (state.waiting) {
    await pause();
    const answer = await request("/api/model").catch(() => null);
    if (answer) hear(answer);
    if (answer?.problem) return;
  }
}

// The baseline is loaded after the model, and the model is shown without it too.
let isBaselineTold = false;

function hear({ waiting, problem, baseline, baseline_problem }) {
  if (baseline_problem && !isBaselineTold) notice(sentence(baseline_problem), "error");
  isBaselineTold = Boolean(baseline_problem);
  set({ waiting: problem || waiting, model: { ...state.model, baseline, baseline_problem } });
}

function pause() {
  return new Promise((resolve) => setTimeout(resolve, ASK_AGAIN_MS));
}

function showWaiting(line) {
  byId("waiting").hidden = !line;
  setText(byId("waiting"), line ? sentence(line) : "");
}

function update() {
  showWaiting(state.waiting);
  updateViews();
  updatePrompt();
  keyed(byId("notices"), state.notices, (one) => one.text, noticeLine);
  settings.update();
  latents.update();
  easel.update();
  tree.update();
  modes.update();
  stage.update();
  announce();
}

function noticeLine({ text, kind, action }) {
  const close = iconButton("remove", "Dismiss", () =>
    set({ notices: state.notices.filter((one) => one.text !== text) }),
  );
  return h(
    "div",
    { class: `notice ${kind}`, role: kind === "error" ? "alert" : "status" },
    h("p", { text }),
    action && h("button", { type: "button", text: action.title, on: { click: action.run } }),
    close,
  );
}

// ------------------------------------------------------------------------------------------------------ the caption
function startPrompt() {
  const { limits, suggestions } = state.model;
  const caption = byId("caption");
  caption.maxLength = limits.caption;
  caption.addEventListener("input", () => draft.edit({ caption: caption.value }, "caption"));
  caption.addEventListener("blur", draft.endStep);
  byId("variations").max = limits.variations;
  byId("variations").addEventListener("change", (event) => {
    const value = Math.round(Number(event.target.value)) || 1;
    set({ variations: Math.min(Math.max(value, 1), limits.variations) });
    event.target.value = state.variations;
  });
  byId("modes-count").max = limits.modes;
  byId("modes-count").addEventListener("change", (event) => (event.target.value = countOfModes()));
  byId("prompt").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  const take = (text) => {
    draft.edit({ caption: text });
    submit();
  };
  // A thousand class names are no row of buttons; the field then proposes the others as one types.
  byId("more-suggestions").replaceChildren(...suggestions.slice(MOST_CHIPS).map((value) => h("option", { value })));
  const chips = suggestions
    .slice(0, MOST_CHIPS)
    .map((text) => h("button", { type: "button", class: "suggestion", text, on: { click: () => take(text) } }));
  byId("suggestions").replaceChildren(...chips);
}

function countOfModes() {
  return Math.min(Math.max(Math.round(Number(byId("modes-count").value)) || 1, 1), state.model.limits.modes);
}

// A baseline has no latents, and so no modes.
function canSubmit() {
  return !state.job && (state.view === "studio" || state.model.segments.length > 0);
}

function submit() {
  if (!canSubmit()) return null;
  return state.view === "modes" ? findModes(countOfModes()) : generate();
}

function updatePrompt() {
  showValue(byId("caption"), state.draft.caption);
  showValue(byId("variations"), state.variations);
  const button = byId("generate");
  button.disabled = !canSubmit();
  setText(button, state.view === "modes" ? "Find modes" : "Generate");
  for (const chip of byId("suggestions").children) {
    chip.setAttribute("aria-pressed", chip.textContent === state.draft.caption);
    chip.disabled = !canSubmit();
  }
}

// ------------------------------------------------------------------------------------------------------ the views
function updateViews() {
  const { view } = state;
  if (document.body.dataset.view === view && byId(view).hidden === false) return;
  document.body.dataset.view = view;
  for (const name of ["studio", "modes"]) {
    byId(name).hidden = name !== view;
    byId(`tab-${name}`).setAttribute("aria-selected", name === view);
    byId(`tab-${name}`).tabIndex = name === view ? 0 : -1;
  }
}

function startTools() {
  const file = byId("file");
  const theme = iconButton("system", "", nextTheme, { id: "theme" });
  const help = iconButton("help", "Keys", () => byId("help").showModal(), { id: "keys" });
  const open = h(
    "button",
    {
      type: "button",
      class: "quiet with-icon",
      id: "open",
      title: "Open a saved picture or recipe; or drop it on the page",
      on: { click: () => file.click() },
    },
    icon("open"),
    h("span", { text: "Open" }),
  );
  byId("tools").replaceChildren(open, theme, help);
  showTheme();
  const tabs = ["studio", "modes"].map((name) => byId(`tab-${name}`));
  for (const tab of tabs) {
    tab.addEventListener("click", () => state.model && set({ view: tab.id.replace("tab-", "") }));
    tab.addEventListener("keydown", (event) => {
      moveFocus(event, tabs);
      if (event.defaultPrevented) document.activeElement.click();
    });
  }
}

// ------------------------------------------------------------------------------------------------------ the theme
const THEMES = ["system", "light", "dark"];
const THEME_ICONS = { system: "system", light: "sun", dark: "moon" };

function nextTheme() {
  const { theme = "system" } = document.documentElement.dataset;
  const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  if (next === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem("kaleido-studio-theme", next);
  } catch (error) {
    console.info("the theme lasts until this page is closed", error.name);
  }
  showTheme();
}

function showTheme() {
  const { theme = "system" } = document.documentElement.dataset;
  const label = `Theme: ${theme === "system" ? "as the system" : theme}`;
  byId("theme").setAttribute("aria-label", label);
  byId("theme").title = label;
  setIcon(byId("theme").firstChild, THEME_ICONS[theme]);
}

// ------------------------------------------------------------------------------------------------------ keys and files
function listenToKeys() {
  document.addEventListener("keydown", (event) => {
    if (byId("help").open || isComposing(event)) return;
    const command = event.ctrlKey || event.metaKey;
    const entry = isTextEntry(event.target);
    if (event.key === "Escape") escape();
    else if (event.key === "Enter" && (command || (entry && event.target.closest("#segments")))) enter(event);
    else if (event.key === "?" && !entry) byId("help").showModal();
    else if (command && !entry && !state.job && ["z", "y"].includes(event.key.toLowerCase())) {
      event.preventDefault();
      if (event.key.toLowerCase() === "y" || event.shiftKey) draft.redo();
      else draft.undo();
    }
  });
}

// Escape ends the nearest thing that can be ended.
function escape() {
  if (state.job) cancel();
  else if (!letGo()) set({ selected: null, notices: [] });
}

function enter(event) {
  event.preventDefault();
  // A number that was typed counts from here on.
  event.target.dispatchEvent(new Event("change"));
  if (state.job) return;
  if (state.view === "studio" && draft.isChanged() && state.draft.latents) redraw();
  else if (event.ctrlKey || event.metaKey) submit();
}

function listenToFiles() {
  const file = byId("file");
  file.addEventListener("change", () => {
    if (file.files.length) load(file.files[0]);
    file.value = "";
  });
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    byId("drop").hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) byId("drop").hidden = true;
  });
  addEventListener("drop", (event) => {
    byId("drop").hidden = true;
    if (!hasFiles(event)) return;
    event.preventDefault();
    load(event.dataTransfer.files[0]);
  });
}

main();
