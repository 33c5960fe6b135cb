// Boxes [x1, y1, x2, y2] and ellipses [xc, yc, r_major, r_minor, theta] in 0..1000, x to the right and y down.
// theta is in degrees from +x towards +y, clockwise as seen, in [0, 180); the same rules as segments/bbox.py and blob.py.

export const MAX = 1000;
const HALF_TURN = 180;

export function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

export function nearestMultiple(value, step) {
  return Math.floor((value + step / 2) / step) * step;
}

// A box of any numbers as a valid one, its corners at multiples of the step.
export function snapBox(box, step) {
  const [xa, ya, xb, yb] = box.map((v) => nearestMultiple(clamp(v, 0, MAX), step));
  const x1 = Math.min(xa, xb, MAX - step);
  const y1 = Math.min(ya, yb, MAX - step);
  return [x1, y1, Math.max(xa, xb, x1 + step), Math.max(ya, yb, y1 + step)];
}

// An ellipse of any radii and angle as a valid one: the longer axis first, its numbers at multiples of the step.
export function snapBlob([xc, yc, radiusX, radiusY, degrees], step) {
  const turned = radiusX < radiusY;
  const theta = turned ? degrees + 90 : degrees;
  const radius = (v) => clamp(nearestMultiple(v, step), step, MAX);
  return [
    nearestMultiple(clamp(xc, 0, MAX), step),
    nearestMultiple(clamp(yc, 0, MAX), step),
    radius(Math.max(radiusX, radiusY)),
    radius(Math.min(radiusX, radiusY)),
    modulo(nearestMultiple(modulo(theta, HALF_TURN), step), HALF_TURN),
  ];
}

// The same ellipse with the rotation nearest to a given one, so that a handle stays where the hand left it: theta and
// theta + 180 are one ellipse, and so is a quarter turn with the axes exchanged.
export function blobNear([x, y, major, minor, theta], rotation) {
  const quarter = Math.round((rotation - theta) / 90);
  const straight = quarter % 2 === 0;
  return {
    x,
    y,
    radiusX: straight ? major : minor,
    radiusY: straight ? minor : major,
    rotation: theta + 90 * quarter,
  };
}

export function moveBox([x1, y1, x2, y2], dx, dy) {
  const x = clamp(dx, -x1, MAX - x2);
  const y = clamp(dy, -y1, MAX - y2);
  return [x1 + x, y1 + y, x2 + x, y2 + y];
}

// The lower right corner follows; snapping keeps the box valid.
export function growBox([x1, y1, x2, y2], dx, dy) {
  return [x1, y1, clamp(x2 + dx, x1 + 1, MAX), clamp(y2 + dy, y1 + 1, MAX)];
}

export function ellipseTop([xc, yc, major, minor, theta]) {
  const angle = (theta * Math.PI) / HALF_TURN;
  return [xc, yc - Math.hypot(major * Math.sin(angle), minor * Math.cos(angle))];
}

function modulo(value, by) {
  return ((value % by) + by) % by;
}
