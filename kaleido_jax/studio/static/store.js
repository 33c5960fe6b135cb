// The page's state, and who is told when it changes.

export const state = {
  model: null, // answer of /api/model
  waiting: "", // what the server waits for
  view: "studio", // or "modes"
  compare: "picture", // or "slider", "sides"
  node: null, // id of the picture in the history that is shown
  draft: { caption: "", latents: null, settings: {} }, // what the user made of it so far
  locks: new Set(), // segments
  follow: null, // what happens to segments behind an edited one: true, false, or null for what the server thinks right
  seed: 0,
  keepSeed: false,
  variations: 4,
  selected: null, // {segment, index} of a box or ellipse
  show: { bbox: true, blob: true },
  job: null,
  lastShown: 0, // which of the last job's pictures was looked at
  notices: [], // lines about what just happened: {text, kind, action}, an action being {title, run}
  modes: null, // the last answer of /api/modes, with the pictures of the opened group
};

const NOTICE_MS = 8000;

const listeners = new Set();
let due = false;

export function subscribe(listener) {
  listeners.add(listener);
}

// Listeners run once after a burst of changes.
export function changed() {
  if (due) return;
  due = true;
  queueMicrotask(() => {
    due = false;
    for (const listener of listeners) listener(state);
  });
}

export function set(values) {
  Object.assign(state, values);
  changed();
}

// Errors stay until they are dismissed or the next job begins.
export function notice(text, kind = "info", action = null) {
  const one = { text, kind, action };
  state.notices = [...state.notices.filter((other) => other.text !== text), one].slice(-3);
  changed();
  if (kind === "info") setTimeout(() => set({ notices: state.notices.filter((other) => other !== one) }), NOTICE_MS);
}

const NAMES = { text: "Text", bbox: "Boxes", blob: "Ellipses", voken: "Visual tokens" };

export function segmentName(segment) {
  return NAMES[segment] ?? segment;
}

// A list of segments inside a sentence.
export function segmentNames(segments) {
  const names = segments.map((segment) => segmentName(segment).toLowerCase());
  return [names.slice(0, -1).join(", "), names.at(-1)].filter(Boolean).join(" and ");
}

// A line of the server as the page begins one.
export function sentence(line) {
  return line[0].toUpperCase() + line.slice(1);
}

export function same(a, b) {
  return JSON.stringify(a) === JSON.stringify(b);
}
