// What the page loads, checked: a damaged file ends in a sentence that names it.
import { Sentence } from "./sentence.js";

const AGAIN = "Build the page again (make browser-demo) and reload.";

/** The bytes of a file beside the page. */
export async function bytes(name) {
  let answer;
  try {
    answer = await fetch(name);
  } catch {
    throw new Sentence(`${name} cannot be loaded: the server does not answer, and this browser has no copy yet.`);
  }
  if (!answer.ok) throw new Sentence(`${name} is missing (${answer.status}). ${AGAIN}`);
  return answer.arrayBuffer();
}

/** The facts that the build wrote about the network. */
export async function facts(name) {
  try {
    const read = JSON.parse(new TextDecoder().decode(await bytes(name)));
    const { names, scale, step, answers, drawing, remembered } = read;
    const whole = [names, scale, remembered, step?.inputs, step?.outputs, answers?.inputs, answers?.outputs];
    if (!whole.every(Array.isArray) || !(drawing?.size > 0) || !(read.most_classes >= names.length)) throw new Error();
    return read;
  } catch (error) {
    if (error instanceof Sentence) throw error;
    throw new Sentence(`${name} is damaged: it does not describe a network. ${AGAIN}`);
  }
}

/** The float32 tensors of a safetensors file: {name: {dims, values}}. Eight bytes of length, JSON, numbers. */
export async function tensors(name) {
  const buffer = await bytes(name);
  try {
    const length = Number(new DataView(buffer).getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
    const start = 8 + length;
    const found = {};
    for (const [key, entry] of Object.entries(header)) {
      if (key === "__metadata__") continue;
      const [from, to] = entry.data_offsets;
      const values = new Float32Array(buffer.slice(start + from, start + to));
      const count = entry.shape.reduce((product, size) => product * size, 1);
      if (entry.dtype !== "F32" || values.length !== count) throw new Error(key);
      found[key] = { dims: entry.shape, values };
    }
    return found;
  } catch {
    throw new Sentence(`${name} is damaged: its weights cannot be read. ${AGAIN}`);
  }
}

/** Whether a session takes and gives what the facts say; else a sentence. */
export function checkNames(session, { inputs, outputs }, name) {
  const same = (a, b) => a.length === b.length && a.every((entry) => b.includes(entry));
  if (!same(inputs, session.inputNames) || !same(outputs, session.outputNames)) {
    throw new Sentence(`${name} is another model than model/facts.json describes. ${AGAIN}`);
  }
}

/** Training images to remember: bytes 0..255 as grey values 0..1, one array an image. */
export async function images(name, count, pixels) {
  const read = new Uint8Array(await bytes(name));
  if (read.length !== count * pixels) {
    throw new Sentence(`${name} is damaged: it holds ${read.length} bytes instead of ${count * pixels}. ${AGAIN}`);
  }
  return Array.from({ length: count }, (_, index) =>
    Float32Array.from(read.subarray(index * pixels, (index + 1) * pixels), (value) => value / 255),
  );
}
