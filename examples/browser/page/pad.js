// The drawing area: mouse, finger, pen or arrow keys make strokes.

const KEY_STEP = 1 / 24;
// Points nearer than this to the last one add nothing.
const LEAST = 0.004;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Draw strokes into a canvas of any size. */
export function paint(canvas, strokes, width = 0.06) {
  const context = canvas.getContext("2d");
  const { width: side } = canvas;
  context.clearRect(0, 0, side, side);
  context.lineCap = context.lineJoin = "round";
  context.lineWidth = width * side;
  context.strokeStyle = getComputedStyle(canvas).color;
  for (const stroke of strokes) {
    context.beginPath();
    context.moveTo(stroke[0][0] * side, stroke[0][1] * side);
    for (const [x, y] of stroke) context.lineTo(x * side, y * side);
    context.stroke();
  }
}

/** Events: `change` while something is drawn, `stroke` when a stroke has ended, `pen` when a key lifts or lowers it. */
export class Pad extends EventTarget {
  constructor(canvas) {
    super();
    this.canvas = canvas;
    this.strokes = [];
    this.finished = false; // the next stroke begins a new drawing
    this.active = null; // the stroke being drawn
    this.pen = [0.5, 0.5]; // where the keys draw
    this.pressed = new Set();
    this.byKeys = false;
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => this.end());
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("keyup", (event) => this.pressed.delete(event.key));
    canvas.addEventListener("blur", () => this.left());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    new ResizeObserver(() => this.resize()).observe(canvas);
  }

  get empty() {
    return !this.strokes.length;
  }

  /** A copy that later strokes do not change. */
  drawing() {
    return this.strokes.map((stroke) => stroke.map(([x, y]) => [x, y]));
  }

  clear() {
    this.strokes = [];
    this.active = null;
    this.finished = false;
    this.changed("stroke");
  }

  undo() {
    this.strokes.pop();
    this.active = null;
    this.finished = false;
    this.changed("stroke");
  }

  down(event) {
    if (event.button || this.active) return;
    this.byKeys = false;
    this.canvas.setPointerCapture(event.pointerId);
    this.begin(this.place(event));
  }

  move(event) {
    if (!this.active || this.byKeys) return;
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) this.extend(this.place(each));
  }

  begin(point) {
    if (this.finished) this.strokes = [];
    this.finished = false;
    this.active = [point];
    this.strokes.push(this.active);
    this.changed("change");
  }

  extend(point) {
    const [x, y] = this.active.at(-1);
    if (Math.hypot(point[0] - x, point[1] - y) < LEAST) return;
    this.active.push(point);
    this.changed("change");
  }

  end() {
    if (!this.active) return;
    this.active = null;
    this.changed("stroke");
  }

  left() {
    this.pressed.clear();
    this.byKeys = false;
    this.end();
    this.draw();
  }

  key(event) {
    const { key } = event;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (ARROWS[key]) {
      this.byKeys = true;
      this.pressed.add(key);
      for (const held of this.pressed) {
        this.pen = this.pen.map((value, axis) => within(value + KEY_STEP * ARROWS[held][axis]));
      }
      if (this.active) this.extend(this.pen);
    } else if (key === " ") {
      this.byKeys = true;
      if (this.active) this.end();
      else this.begin(this.pen);
      this.dispatchEvent(new CustomEvent("pen", { detail: Boolean(this.active) }));
    } else if (key === "Backspace") this.undo();
    else if (key === "Delete" || key === "Escape") this.clear();
    else return;
    event.preventDefault();
    this.draw();
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [within((event.clientX - box.left) / box.width), within((event.clientY - box.top) / box.height)];
  }

  resize() {
    const side = Math.round(this.canvas.clientWidth * devicePixelRatio);
    if (side && side !== this.canvas.width) this.canvas.width = this.canvas.height = side;
    this.draw();
  }

  changed(name) {
    this.draw();
    this.dispatchEvent(new Event(name));
  }

  draw() {
    paint(this.canvas, this.strokes);
    if (!this.byKeys) return;
    const { width: side } = this.canvas;
    const context = this.canvas.getContext("2d");
    const [x, y] = this.pen.map((value) => value * side);
    context.lineWidth = side / 150;
    context.strokeStyle = getComputedStyle(this.canvas).getPropertyValue("--accent");
    context.beginPath();
    context.arc(x, y, side / (this.active ? 60 : 30), 0, 2 * Math.PI);
    context.stroke();
  }
}

function within(value) {
  return Math.min(1, Math.max(0, value));
}
