// One job of the server at a time: started by a POST, followed by its events, ended by done, failed or cancelled.

import * as carried from "./carried.js";
import { changed, notice, sentence, set, state } from "./store.js";

const OF_THE_EASEL = ["generate", "edit", "draw"]; // kinds of jobs; the others are of the modes
const MOST_RETRIES = 6; // reconnections without an event in between

export async function request(path, options = {}) {
  const response = await fetch(path, options);
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw failure(answer.message ?? `The server answered ${response.status}.`, response.status === 409);
  return answer;
}

// A server that was started again with other weights refuses: their pictures would get into the history of these.
export function post(path, type, body) {
  const headers = { "Content-Type": type, "Kaleido-Weights": state.model.weights };
  return request(path, { method: "POST", headers, body });
}

function failure(message, isOfOtherModel) {
  return Object.assign(new Error(message), { isOfOtherModel });
}

export function tell(error) {
  if (!error.isOfOtherModel) {
    notice(sentence(lineOf(error)), "error");
    return;
  }
  carried.keepAtReload();
  notice(sentence(error.message), "error", { title: "Reload", run: () => location.reload() });
}

// The job whose picture and latents the studio view shows, while it runs.
export function easelJob() {
  return OF_THE_EASEL.includes(state.job?.kind) ? state.job : null;
}

// `title` says what is done, `tiles` how many pictures are coming, `kind` where they are shown.
export async function run(path, body, { title, tiles, kind }) {
  if (state.job) return null;
  const job = {
    kind,
    title,
    tiles,
    id: null,
    line: "Sending",
    step: 0,
    of: 0,
    previews: [],
    latents: [],
    shown: 0,
    ended: false,
  };
  set({ job, notices: [] });
  const focused = document.activeElement;
  try {
    job.id = (await post(path, "application/json", JSON.stringify(body))).job;
    if (job.wantsEnd) cancel();
    return await follow(job);
  } catch (error) {
    tell(error);
    return null;
  } finally {
    job.ended = true;
    set({ job: null, lastShown: job.shown });
    setTimeout(() => giveBackFocus(focused));
  }
}

// What is edited cannot have the focus while it is drawn.
function giveBackFocus(element) {
  if (document.activeElement === document.body && element.isConnected) element.focus({ preventScroll: true });
}

// A network error of fetch has a message of the browser's own, which says little.
export function lineOf(error) {
  return error instanceof TypeError ? "The server does not answer; nothing is lost, try again." : error.message;
}

function follow(job) {
  return new Promise((resolve, reject) => {
    const source = new EventSource(`/api/jobs/${job.id}/events`);
    let retries = 0;
    job.close = (result) => {
      source.close();
      resolve(result);
    };
    const on = (name, handle) =>
      source.addEventListener(name, (event) => {
        retries = 0;
        handle(JSON.parse(event.data));
        changed();
      });
    on("queued", ({ position }) => (job.line = position ? `Waiting for ${position} before this` : "Starting"));
    on("waiting", ({ message }) => (job.line = sentence(message)));
    on("latents", ({ latents }) => Object.assign(job, { latents, line: "Latents are sampled" }));
    on("progress", (news) => Object.assign(job, news, { line: progressLine(job, news) }));
    on("done", ({ notices = [], ...result }) => {
      for (const line of notices) notice(sentence(line));
      job.close(result);
    });
    on("cancelled", () => {
      notice("Cancelled.");
      job.close(null);
    });
    on("failed", ({ message, reload = false }) => {
      source.close();
      reject(failure(message, reload));
    });
    source.onerror = () => {
      retries += 1;
      job.line = "Connecting again";
      changed();
      if (source.readyState === EventSource.CLOSED || retries > MOST_RETRIES) {
        source.close();
        reject(new Error("The connection to the server was lost; nothing is lost here, try again."));
      }
    };
  });
}

function progressLine({ kind, tiles }, { step, of, previews }) {
  if (kind === "modes") {
    return previews.length ? `Baseline, picture ${previews.length} of ${tiles}` : `Latents ${step} of ${of}`;
  }
  return tiles > 1 ? `Picture ${previews.length} of ${tiles}` : `Step ${step} of ${of}`;
}

export async function cancel() {
  const { job } = state;
  if (!job || job.ended) return;
  job.line = "Cancelling";
  job.wantsEnd = true;
  changed();
  if (!job.id) return;
  try {
    await request(`/api/jobs/${job.id}`, { method: "DELETE" });
  } catch (error) {
    notice(lineOf(error), "error");
    job.close?.(null);
  }
}

// A page that goes away leaves no work behind.
addEventListener("pagehide", () => {
  if (state.job?.id) fetch(`/api/jobs/${state.job.id}`, { method: "DELETE", keepalive: true });
});
