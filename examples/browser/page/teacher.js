// What is learnt from drawings, and with which old ones beside them.
import { image, varied } from "./raster.js";
import { Sentence } from "./sentence.js";

/** Drawings that a new class is learnt from. */
export const FIRST = 5;
const STEPS = 20;
// Images of one step: of the class just taught, of all drawings so far, of the training data.
const TAUGHT = 8;
const DRAWN = 8;
const REMEMBERED = 64;
// Drawings kept of each class; older ones make room.
const KEPT = 30;
const LONGEST_NAME = 12;

export class Teacher {
  /**
   * @param network a `Network`
   * @param images training images to remember, as `files.images` gives them; classes are in the facts
   */
  constructor(network, images, random = Math.random) {
    this.network = network;
    this.images = images;
    this.random = random;
    this.forget();
  }

  /** Back to the network and the classes that came with the page. */
  forget() {
    this.network.weights = this.network.first;
    this.names = [...this.network.facts.names];
    this.drawings = this.names.map(() => []); // of each class: [strokes]
    this.fresh = null; // the class to come: {name, drawings}
    this.taught = 0;
  }

  /** What every layer answers: the shares of the classes known. */
  answer(strokes) {
    return this.network.answer(image(strokes, this.network.facts.drawing), this.names.length);
  }

  /** Start a new class, which is learnt with its fifth drawing. */
  begin(text) {
    const name = text.trim();
    if (!name) throw new Sentence("Give the new class a name, such as A.");
    if ([...name].length > LONGEST_NAME) throw new Sentence(`Give the new class a name of at most ${LONGEST_NAME} letters.`);
    if (this.names.includes(name)) throw new Sentence(`${name} is known already: draw it and press its button.`);
    if (this.names.length >= this.network.facts.most_classes) {
      throw new Sentence(`The network has room for ${this.names.length} classes, and all are taken.`);
    }
    this.fresh = { name, drawings: [] };
  }

  /** Add a drawing to the new class; the fifth makes it a class and teaches it. True: it was the fifth. */
  async add(strokes) {
    const { name, drawings } = this.fresh;
    const all = [...drawings, strokes];
    if (all.length < FIRST) {
      this.fresh = { name, drawings: all };
      return false;
    }
    await this.learn(this.names.length, all);
    this.names = [...this.names, name];
    this.drawings = [...this.drawings, all];
    this.fresh = null;
    this.taught += FIRST;
    return true;
  }

  /** Learn that a drawing is of a class. */
  async teach(index, strokes) {
    await this.learn(index, [strokes]);
    this.drawings = this.drawings.map((kept, at) => (at === index ? [...kept, strokes].slice(-KEPT) : kept));
    this.taught += 1;
  }

  /** Steps on new drawings of one class, joined with all earlier drawings and with training images. */
  async learn(index, strokes) {
    const own = this.drawings.flatMap((kept, at) => kept.map((drawing) => ({ drawing, at })));
    const fresh = strokes.map((drawing) => ({ drawing, at: index }));
    const batches = [];
    for (let step = 0; step < STEPS; step++) {
      const drawn = [...this.some(fresh, TAUGHT), ...this.some([...own, ...fresh], DRAWN)];
      const old = this.some([...this.images.keys()], REMEMBERED);
      batches.push({
        images: [
          ...drawn.map(({ drawing }) => image(varied(drawing, this.random), this.network.facts.drawing)),
          ...old.map((row) => this.images[row]),
        ],
        classes: [...drawn.map(({ at }) => at), ...old.map((row) => this.network.facts.remembered[row])],
      });
    }
    return this.network.learn(batches);
  }

  /** `count` draws with replacement. */
  some(items, count) {
    return Array.from({ length: count }, () => items[Math.floor(this.random() * items.length)]);
  }

  /** All that a later visit needs, as plain values. */
  record() {
    const { names, drawings, fresh, taught } = this;
    return { names, drawings, fresh, taught, weights: this.network.weights };
  }

  /** Take up a record; false, and nothing changed, where it is not of this network. */
  restore(record) {
    const whole =
      Array.isArray(record.names) &&
      record.names.length <= this.network.facts.most_classes &&
      this.network.facts.names.every((name, index) => record.names[index] === name) &&
      record.drawings?.length === record.names.length &&
      this.network.fits(record.weights);
    if (!whole) return false;
    this.network.weights = record.weights;
    this.names = record.names;
    this.drawings = record.drawings;
    this.fresh = record.fresh ?? null;
    this.taught = record.taught ?? 0;
    return true;
  }
}
