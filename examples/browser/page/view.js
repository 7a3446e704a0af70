// What the page shows of answers, classes and drawings.
import { paint } from "./pad.js";

const percent = (share) => `${Math.round(100 * share)} %`;

export function best(shares) {
  return shares.indexOf(Math.max(...shares));
}

/** An element with attributes and children. */
function made(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Every layer's shares as a row of bars; null: nothing drawn. */
export function showLayers(place, shares, names, layers) {
  const rows = Array.from({ length: layers }, (_, layer) => {
    const row = shares?.[layer];
    const winner = row ? best(row) : -1;
    const sure = row ? `${names[winner]}, ${percent(row[winner])}` : "no answer yet";
    const bars = names.map((name, index) => {
      const bar = made("span", { class: "bar" });
      bar.style.setProperty("--share", row ? row[index] : 0);
      return made("span", { class: index === winner ? "class winner" : "class" }, bar, made("span", { class: "name" }, name));
    });
    return made(
      "li",
      { class: "layer" },
      made("p", { class: "title" }, `Layer ${layer + 1}`, made("strong", {}, row ? sure : "")),
      made("div", { class: "bars", role: "img", "aria-label": `Layer ${layer + 1}: ${sure}` }, ...bars),
    );
  });
  place.replaceChildren(...rows);
}

/** A button a class; the layers' answer is marked. */
export function showClasses(place, names, answer, enabled, choose) {
  const focused = [...place.children].indexOf(document.activeElement);
  const buttons = names.map((name, index) => {
    const button = made("button", { type: "button", "aria-label": `It is ${name}` }, name);
    button.classList.toggle("answer", index === answer);
    button.disabled = !enabled;
    button.addEventListener("click", () => choose(index));
    return button;
  });
  place.replaceChildren(...buttons);
  buttons[focused]?.focus();
}

/** The five places of a new class, filled with its drawings so far. */
export function showSlots(place, drawings, count) {
  const slots = Array.from({ length: count }, (_, index) => {
    const slot = made("canvas", { class: "slot", width: 96, height: 96 });
    slot.classList.toggle("filled", Boolean(drawings[index]));
    return slot;
  });
  place.replaceChildren(...slots);
  place.setAttribute("aria-label", `${drawings.length} of ${count} drawings kept`);
  drawings.forEach((drawing, index) => paint(slots[index], drawing, 0.08));
}

/** The image that the network gets, enlarged. */
export function showImage(canvas, grey, size) {
  canvas.width = canvas.height = size;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(size, size);
  grey?.forEach((ink, index) => pixels.data.set([255 * ink, 255 * ink, 255 * ink, 255], 4 * index));
  context.putImageData(pixels, 0, 0);
}
