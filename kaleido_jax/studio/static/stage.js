// Boxes and ellipses over the picture: dragged, resized and turned with Konva, in the coordinates 0..1000 of the latents.

import { byId } from "./dom.js";
import * as draft from "./draft.js";
import { blobNear, clamp, ellipseTop, MAX, snapBlob, snapBox } from "./geometry.js";
import { same, set, state } from "./store.js";

// Okabe and Ito, as in the pictures that render_latents makes.
const COLORS = ["#56b4e9", "#e69f00", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#0072b2"];
const LABEL_PX = 12;

let stage;
let group; // scaled to 0..1000
let labels;
let transformer;
let side = 0; // of the picture, px
let gesture = 0; // one undo step each
let active = null; // the shape that is in the hand
let held = null; // the latents as its gesture left them
let drawn = null; // what the shapes were made of
const rotations = new Map(); // of ellipses, as the hand left them

export function colorOf(index) {
  return COLORS[index % COLORS.length];
}

export function start() {
  const place = byId("overlay");
  stage = new Konva.Stage({ container: place, width: 10, height: 10 });
  const layer = new Konva.Layer();
  group = new Konva.Group();
  labels = new Konva.Group({ listening: false });
  transformer = new Konva.Transformer({
    flipEnabled: false,
    keepRatio: false,
    rotateAnchorOffset: 26,
    anchorSize: matchMedia("(pointer: coarse)").matches ? 16 : 10,
    anchorCornerRadius: 8,
    anchorFill: "#fff",
    ignoreStroke: true,
  });
  layer.add(group, labels, transformer);
  stage.add(layer);
  stage.on("click tap", (event) => {
    if (event.target === stage) set({ selected: null });
  });
  stage.on("mouseover", (event) => (stage.container().style.cursor = event.target.draggable?.() ? "move" : ""));
  stage.on("mouseout", () => (stage.container().style.cursor = ""));
  new ResizeObserver(resize).observe(byId("picture"));
  resize();
}

function resize() {
  const margin = -byId("overlay").offsetLeft;
  const now = byId("picture").clientWidth;
  if (!now || now === side) return;
  side = now;
  stage.size({ width: side + 2 * margin, height: side + 2 * margin });
  group.setAttrs({ x: margin, y: margin, scaleX: side / MAX, scaleY: side / MAX });
  drawn = null;
  update();
}

// ------------------------------------------------------------------------------------------------ following the state
export function update() {
  if (!side) return;
  const hidden = state.job || state.compare !== "picture" || state.view !== "studio";
  const { latents } = state.draft;
  if (active && !hidden && latents === held) return;
  letGo();
  const kinds = ["bbox", "blob"].filter((name) => !hidden && state.show[name] && Array.isArray(latents?.[name]));
  const of = [kinds, kinds.map((name) => latents[name]), state.selected, side];
  if (same(of, drawn)) return;
  drawn = structuredClone(of);
  group.destroyChildren();
  labels.destroyChildren();
  transformer.nodes([]);
  for (const kind of kinds) latents[kind].forEach((object, index) => addShape(kind, object, index, kinds));
  if (kinds.length) latents[kinds[0]].forEach((object, index) => addLabel(kinds[0], object, index));
  holdSelected();
}

// What is undone, removed or drawn while it is in the hand leaves the hand: its numbers are of latents that are gone.
function letGo() {
  if (!active) return;
  const shape = active;
  active = null;
  drawn = null;
  shape.stopDrag();
  transformer.stopTransform();
}

function addShape(kind, object, index, kinds) {
  const shape = shapeOf(kind, object, index, kinds);
  group.add(shape.rim, shape);
}

function shapeOf(kind, object, index, kinds) {
  const isSelected = same(state.selected, { segment: kind, index });
  const common = {
    name: `${kind}-${index}`,
    draggable: true,
    stroke: colorOf(index),
    strokeWidth: isSelected ? 3 : 2,
    strokeScaleEnabled: false,
    hitStrokeWidth: 16,
    // An ellipse inside its box is taken at its line, so that the box stays within reach.
    fillEnabled: isSelected || kind === "bbox" || !kinds.includes("bbox"),
    fill: "rgba(255, 255, 255, 0.001)",
  };
  const shape =
    kind === "bbox"
      ? new Konva.Rect({ ...common, ...rectangleOf(object.box) })
      : new Konva.Ellipse({ ...common, dash: [7, 5], ...ellipseOf(object, index) });
  // A dark rim, for pictures of the line's own color.
  shape.rim = shape.clone({
    name: "",
    listening: false,
    draggable: false,
    stroke: "#101014",
    strokeWidth: common.strokeWidth + 2,
    opacity: 0.55,
  });
  listen(shape, kind, index);
  return shape;
}

function rectangleOf([x1, y1, x2, y2]) {
  return { x: x1, y: y1, width: x2 - x1, height: y2 - y1 };
}

function ellipseOf(object, index) {
  const near = blobNear(object.blob, rotations.get(index) ?? object.blob[4]);
  rotations.set(index, near.rotation);
  return near;
}

function addLabel(kind, object, index) {
  const text = new Konva.Text({
    text: object.phrase,
    fontSize: LABEL_PX,
    fontFamily: "sans-serif",
    fontStyle: "bold",
    fill: "#16161a",
    padding: 3,
  });
  const [x, y] = kind === "bbox" ? object.box : ellipseTop(object.blob);
  const scale = side / MAX;
  const label = new Konva.Label();
  label.add(new Konva.Tag({ fill: colorOf(index), cornerRadius: 3 }), text);
  label.x(group.x() + clamp(x * scale - 1, 0, Math.max(side - text.width(), 0)));
  label.y(Math.max(group.y() + y * scale - text.height() - 3, 0));
  labels.add(label);
}

function holdSelected() {
  const { selected } = state;
  const shape = selected && group.findOne(`.${selected.segment}-${selected.index}`);
  if (!shape) return;
  shape.rim.moveToTop();
  shape.moveToTop();
  transformer.setAttrs({
    rotateEnabled: selected.segment === "blob",
    borderEnabled: selected.segment === "blob",
    borderStroke: colorOf(selected.index),
    borderDash: [2, 4],
    anchorStroke: colorOf(selected.index),
    anchorStrokeWidth: 2,
  });
  transformer.nodes([shape]);
}

// ------------------------------------------------------------------------------------------------------- gestures
function listen(shape, kind, index) {
  const take = (event) => {
    if (!same(state.selected, { segment: kind, index })) set({ selected: { segment: kind, index } });
    if (event.evt?.type.startsWith("mouse") || event.evt?.type === "click") focusHandle(kind, index);
  };
  const begin = (event) => {
    active = shape;
    held = state.draft.latents;
    gesture += 1;
    take(event);
  };
  const move = () => {
    if (active !== shape) return;
    report(shape, kind, index);
    held = state.draft.latents;
  };
  const end = () => {
    if (active !== shape) return;
    report(shape, kind, index);
    active = null;
    drawn = null;
    update();
  };
  shape.on("click tap", take);
  shape.on("dragstart transformstart", begin);
  shape.on("dragmove transform", move);
  shape.on("dragend transformend", end);
  shape.dragBoundFunc((position) => inside(shape, kind, position));
}

// Boxes stay inside the picture, and centers of ellipses.
function inside(shape, kind, { x, y }) {
  const scale = side / MAX;
  const [width, height] = kind === "bbox" ? [shape.width() * scale, shape.height() * scale] : [0, 0];
  return {
    x: clamp(x, group.x(), group.x() + side - width),
    y: clamp(y, group.y(), group.y() + side - height),
  };
}

function report(shape, kind, index) {
  const step = state.model.coordinate_step;
  const scaleX = shape.scaleX();
  const scaleY = shape.scaleY();
  shape.scale({ x: 1, y: 1 });
  let numbers;
  if (kind === "bbox") {
    shape.setAttrs({ width: shape.width() * scaleX, height: shape.height() * scaleY });
    numbers = snapBox([shape.x(), shape.y(), shape.x() + shape.width(), shape.y() + shape.height()], step);
  } else {
    shape.setAttrs({ radiusX: shape.radiusX() * scaleX, radiusY: shape.radiusY() * scaleY });
    rotations.set(index, shape.rotation());
    numbers = snapBlob([shape.x(), shape.y(), shape.radiusX(), shape.radiusY(), shape.rotation()], step);
  }
  const { x, y, width, height, radiusX, radiusY, rotation } = shape.attrs;
  shape.rim.setAttrs(kind === "bbox" ? { x, y, width, height } : { x, y, radiusX, radiusY, rotation });
  setNumbers(kind, index, numbers, `gesture ${gesture}`);
}

export function setNumbers(kind, index, numbers, tag) {
  const field = kind === "bbox" ? "box" : "blob";
  const objects = state.draft.latents[kind].map((one, i) => (i === index ? { ...one, [field]: numbers } : one));
  draft.editSegment(kind, objects, tag);
}

// The keys of the list of objects then move what was clicked.
function focusHandle(kind, index) {
  queueMicrotask(() => byId(`handle-${kind}-${index}`)?.focus({ preventScroll: true }));
}
