// Drawings as images like those that the network was trained on. A drawing is a list of strokes, a stroke a list of
// points [x, y] in units of the drawing area, y downwards. No canvas takes part: the same numbers come out anywhere.

// A drawing smaller than this is a dot, and is not blown up to the whole image.
const SMALLEST = 0.1;

/** Grey values (size * size, row by row, 0 paper to 1 ink) of a drawing; `form` is `drawing` of facts.json. */
export function image(strokes, form) {
  const { size, box, pen, centre } = form;
  const [left, top, right, bottom] = bounds(strokes);
  const scale = (box - pen) / Math.max(right - left, bottom - top, SMALLEST);
  const placed = mapped(strokes, ([x, y]) => [
    (x - (left + right) / 2) * scale + size / 2,
    (y - (top + bottom) / 2) * scale + size / 2,
  ]);
  const grey = painted(placed, form);
  if (centre === "box") return grey;
  const [massX, massY] = centreOfMass(grey, size);
  return painted(mapped(placed, ([x, y]) => [x + size / 2 - massX, y + size / 2 - massY]), form);
}

/** The drawing turned, slanted and scaled a little, as the same hand might draw it next time. */
export function varied(strokes, random = Math.random) {
  const draw = (most) => most * (2 * random() - 1);
  const angle = draw(0.2);
  const slant = draw(0.25);
  const [wide, high] = [1 + draw(0.15), 1 + draw(0.15)];
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  return mapped(strokes, ([x, y]) => [
    cos * wide * x + (slant - sin) * y,
    sin * x + cos * high * y,
  ]);
}

/** [left, top, right, bottom] of all points. */
function bounds(strokes) {
  const box = [Infinity, Infinity, -Infinity, -Infinity];
  for (const [x, y] of strokes.flat()) {
    box[0] = Math.min(box[0], x);
    box[1] = Math.min(box[1], y);
    box[2] = Math.max(box[2], x);
    box[3] = Math.max(box[3], y);
  }
  return box;
}

function mapped(strokes, change) {
  return strokes.map((stroke) => stroke.map(change));
}

/** Each pixel by its centre's distance from the nearest line: ink within half a pen, then an edge that fades. */
function painted(strokes, { size, pen, edge }) {
  const grey = new Float32Array(size * size);
  for (let row = 0; row < size; row++) {
    for (let column = 0; column < size; column++) {
      const distance = Math.sqrt(nearest(strokes, column + 0.5, row + 0.5));
      const ink = (pen / 2 - distance) / edge + 0.5;
      grey[row * size + column] = Math.min(1, Math.max(0, ink));
    }
  }
  return grey;
}

/** Squared distance of a point from the nearest line of the drawing. */
function nearest(strokes, x, y) {
  let least = Infinity;
  for (const stroke of strokes) {
    let [fromX, fromY] = stroke[0];
    for (const [toX, toY] of stroke) {
      const [alongX, alongY] = [toX - fromX, toY - fromY];
      const length = alongX * alongX + alongY * alongY;
      const share = length ? ((x - fromX) * alongX + (y - fromY) * alongY) / length : 0;
      const part = Math.min(1, Math.max(0, share));
      const [offX, offY] = [x - fromX - part * alongX, y - fromY - part * alongY];
      least = Math.min(least, offX * offX + offY * offY);
      [fromX, fromY] = [toX, toY];
    }
  }
  return least;
}

function centreOfMass(grey, size) {
  let [mass, x, y] = [0, 0, 0];
  grey.forEach((ink, index) => {
    mass += ink;
    x += ink * ((index % size) + 0.5);
    y += ink * (Math.floor(index / size) + 0.5);
  });
  return mass ? [x / mass, y / mass] : [size / 2, size / 2];
}
