// The bar of a running job: what is done, how far it is, and a button to cancel. Also says so to screen readers.

import { byId, h, setText } from "./dom.js";
import { cancel } from "./jobs.js";
import { state } from "./store.js";

export function progressBar() {
  const title = h("span", { class: "title" });
  const line = h("span", { class: "line" });
  const fill = h("div", { class: "fill" });
  const track = h("div", { class: "track", role: "progressbar", "aria-label": "Progress", "aria-valuemin": 0 }, fill);
  const stop = h("button", { type: "button", class: "cancel", on: { click: cancel } }, "Cancel");
  const bar = h(
    "div",
    { class: "progress", hidden: true },
    h("div", { class: "grow" }, h("p", {}, title, line), track),
    stop,
  );
  bar.update = () => {
    const { job } = state;
    bar.hidden = !job;
    if (bar.hidden) return;
    setText(title, job.title);
    setText(line, job.line);
    track.classList.toggle("is-unknown", !job.of);
    fill.style.transform = `scaleX(${job.of ? job.step / job.of : 0})`;
    track.setAttribute("aria-valuemax", job.of || 1);
    if (job.of) track.setAttribute("aria-valuenow", job.step);
    else track.removeAttribute("aria-valuenow");
    stop.disabled = Boolean(job.wantsEnd);
  };
  return bar;
}

let said = "";
let last = null; // the job of which something was said

// Steps are too many to be read out; begin, what is waited for, and the end are not.
export function announce() {
  const { job } = state;
  let text = said;
  if (job) text = job.step ? `${job.title}.` : `${job.title}. ${job.line}.`;
  else if (last) text = state.notices.length ? "" : "Done.";
  last = job;
  if (text === said) return;
  said = text;
  setText(byId("live"), text);
}
