// The network: two exported functions, run by onnxruntime-web, and the weights that go from call to call.
import { checkNames, facts, tensors } from "./files.js";
import { Sentence } from "./sentence.js";

// A function that uses one SIMD instruction: a browser that finds it invalid cannot run the runtime.
const SIMD = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11,
]);

/** The runtime, set up for one thread: more would need headers that a plain server does not send. */
async function runtime() {
  if (typeof WebAssembly !== "object") {
    throw new Sentence("This browser has no WebAssembly, in which the network runs. Please try a current browser.");
  }
  if (!WebAssembly.validate(SIMD)) {
    throw new Sentence(
      "This browser's WebAssembly has no SIMD instructions, which the network needs. Please try a current browser.",
    );
  }
  let ort;
  try {
    ort = await import("./runtime/ort.wasm.min.mjs");
  } catch {
    throw new Sentence("runtime/ort.wasm.min.mjs cannot be loaded. Build the page again (make browser-demo) and reload.");
  }
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = new URL("./runtime/", import.meta.url).href;
  ort.env.logLevel = "error";
  return ort;
}

export class Network {
  /** Load everything; a `Sentence` says what is wrong with a file or the browser. */
  static async open() {
    const ort = await runtime();
    const known = await facts("model/facts.json");
    const first = await tensors("model/step.safetensors");
    const missing = known.step.inputs.slice(3).find((name) => !first[name]);
    if (missing) throw new Sentence(`model/step.safetensors does not hold ${missing}. Build the page again and reload.`);
    const open = async (name, what) => {
      let session;
      try {
        session = await ort.InferenceSession.create(name);
      } catch (error) {
        throw new Sentence(
          `${name} cannot be read as a model: it is damaged or missing. Build the page again (make browser-demo) and ` +
            `reload. The runtime says: ${error.message}`,
        );
      }
      checkNames(session, what, name);
      return session;
    };
    const answers = await open("model/answers.onnx", known.answers);
    const step = await open("model/step.onnx", known.step);
    return new Network(ort, known, first, answers, step);
  }

  constructor(ort, known, first, answers, step) {
    this.facts = known;
    this.pixels = known.drawing.size ** 2;
    this.ort = ort;
    this.first = first;
    this.sessions = { answers, step };
    this.weights = first;
    this.last = Promise.resolve(); // the runtime runs one call at a time
  }

  /** Whether weights are those of this network, by name and size. */
  fits(weights) {
    return Object.entries(this.first).every(
      ([name, { dims, values }]) =>
        weights?.[name]?.values instanceof Float32Array &&
        weights[name].values.length === values.length &&
        String(weights[name].dims) === String(dims) &&
        weights[name].values.every(Number.isFinite),
    );
  }

  /**
   * What every layer answers to one image.
   * @returns one array a layer: the shares (sum 1) of the first `count` classes, by the layer's own softmax.
   */
  async answer(image, count) {
    const { size } = this.facts.drawing;
    const x = new this.ort.Tensor("float32", image, [1, 1, size, size]);
    const found = await this.run("answers", { x });
    return this.facts.scale.map((scale, layer) =>
      softmax(found[`scores.${layer + 1}`].data.slice(0, count), scale),
    );
  }

  /**
   * Steps of learning, one a batch; if one fails, the weights stay as they were before the first.
   * @param batches of {images: [Float32Array], classes: [index]}
   * @returns losses of every layer before each step.
   */
  async learn(batches) {
    const { size } = this.facts.drawing;
    const before = this.weights;
    const losses = [];
    try {
      for (const { images, classes } of batches) {
        await new Promise((resolve) => setTimeout(resolve)); // the page stays alive between steps
        const x = new Float32Array(images.length * this.pixels);
        images.forEach((image, index) => x.set(image, index * this.pixels));
        const found = await this.run("step", {
          x: new this.ort.Tensor("float32", x, [images.length, 1, size, size]),
          target: new this.ort.Tensor("int64", BigInt64Array.from(classes, BigInt), [classes.length]),
          lr: new this.ort.Tensor("float32", [this.facts.lr], []),
        });
        if (!found.losses.data.every(Number.isFinite)) throw new Sentence("Learning went astray and was undone.");
        losses.push([...found.losses.data]);
        this.weights = Object.fromEntries(
          Object.keys(this.first).map((name) => {
            const { dims, data } = found[`new.${name}`];
            return [name, { dims: [...dims], values: data }];
          }),
        );
      }
    } catch (error) {
      this.weights = before;
      throw error;
    }
    return losses;
  }

  /** How far the weights are from those that came with the page: |w - w0| / |w0|, optimizer state left out. */
  moved() {
    let [difference, size] = [0, 0];
    for (const name of this.facts.answers.inputs.slice(1)) {
      const { values } = this.first[name];
      this.weights[name].values.forEach((value, index) => {
        difference += (value - values[index]) ** 2;
        size += values[index] ** 2;
      });
    }
    return Math.sqrt(difference / size);
  }

  /** One call of an exported function, after those that were asked for before. */
  run(which, given) {
    const call = this.last.then(() => {
      const feeds = { ...given };
      for (const name of this.facts[which].inputs) {
        const held = this.weights[name];
        if (held) feeds[name] = new this.ort.Tensor("float32", held.values, held.dims);
      }
      return this.sessions[which].run(feeds);
    });
    this.last = call.catch(() => {});
    return call;
  }
}

function softmax(scores, scale) {
  const most = Math.max(...scores);
  const powers = Array.from(scores, (score) => Math.exp(scale * (score - most)));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}
