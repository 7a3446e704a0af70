// Puts the parts together: drawing, answers, learning, memory.
import { images } from "./files.js";
import { forget, load, save } from "./memory.js";
import { Network } from "./network.js";
import { Pad } from "./pad.js";
import { image } from "./raster.js";
import { told } from "./sentence.js";
import { FIRST, Teacher } from "./teacher.js";
import { best, showClasses, showImage, showLayers, showSlots } from "./view.js";

const at = (id) => document.getElementById(id);

/** One line below the drawing, read aloud. */
function say(text, trouble = false) {
  at("said").textContent = text;
  at("said").classList.toggle("trouble", trouble);
}

/** Instead of the page: why it cannot start. */
function fail(error) {
  at("start").textContent = told(error);
  at("start").className = "trouble";
  at("start").setAttribute("role", "alert");
}

class Page {
  constructor(teacher) {
    this.teacher = teacher;
    this.pad = new Pad(at("pad"));
    this.revision = 0;
    this.shares = null; // what the layers answer to what is drawn
    this.busy = false; // learning or saving
    this.asking = false; // an answer is on its way
    this.stale = false; // the drawing has changed since the last one was asked for
    this.ended = false; // and that was the end of a stroke
    this.pad.addEventListener("change", () => this.ask());
    this.pad.addEventListener("stroke", () => this.ask(true));
    this.pad.addEventListener("pen", ({ detail }) => say(detail ? "Pen down." : "Pen up."));
    at("clear").addEventListener("click", () => this.pad.clear());
    at("undo").addEventListener("click", () => this.pad.undo());
    at("keep").addEventListener("click", () => this.work(() => this.keep()));
    at("cancel").addEventListener("click", () => this.work(() => this.cancel()));
    at("new").addEventListener("submit", (event) => {
      event.preventDefault();
      this.work(() => this.begin());
    });
    at("forget").addEventListener("click", () => this.work(() => this.forget()));
  }

  get model() {
    return this.teacher.network.facts.model;
  }

  /** Take up what an earlier visit kept. */
  async start() {
    try {
      const record = await load(this.model);
      if (record) {
        this.revision = record.revision;
        if (this.teacher.restore(record)) say(`Welcome back: ${this.taughtText()}.`);
        else say("What this browser has kept does not fit this network: it starts anew.", true);
      }
    } catch {
      say("This browser keeps nothing between visits: what you teach ends with this tab.", true);
    }
    this.show();
  }

  /** One thing at a time; what goes wrong is said. */
  async work(action) {
    if (this.busy) return;
    this.busy = true;
    this.show();
    try {
      await action();
    } catch (error) {
      say(told(error), true);
    }
    this.busy = false;
    await this.ask();
  }

  /** Ask the layers about the drawing as it is, and once more if it changes meanwhile. */
  async ask(strokeEnded = false) {
    this.stale = true;
    this.ended ||= strokeEnded;
    if (this.asking || this.busy) return;
    this.asking = true;
    const ended = this.ended;
    this.stale = this.ended = false;
    await new Promise(requestAnimationFrame);
    try {
      this.shares = this.pad.empty ? null : await this.teacher.answer(this.pad.drawing());
      if (ended && this.shares) this.tell();
    } catch (error) {
      say(told(error), true);
    }
    this.asking = false;
    this.show();
    if (this.stale) await this.ask();
  }

  /** What is said when a stroke has ended. */
  tell() {
    const { fresh, names } = this.teacher;
    if (fresh) say(`Drawing ${fresh.drawings.length + 1} of ${FIRST}: keep it, or draw on.`);
    else say(`It looks like ${names[this.answer()]}.`);
  }

  /** The last layer's answer, as a class index; -1: none. */
  answer() {
    return this.shares ? best(this.shares.at(-1)) : -1;
  }

  async teach(index) {
    const right = this.answer() === index;
    say("Learning…");
    const time = await this.taken((strokes) => this.teacher.teach(index, strokes));
    await this.store();
    const what = `${right ? "Confirmed" : "Corrected"}: it is ${this.teacher.names[index]}`;
    say(`${what}. Learnt in ${time} ms; draw the next one.`);
  }

  /** Hand the drawing over, so that the next stroke begins a new one; milliseconds that it took. */
  async taken(action) {
    const begun = performance.now();
    const strokes = this.pad.drawing();
    this.pad.finished = true;
    try {
      await action(strokes);
    } catch (error) {
      this.pad.finished = false;
      throw error;
    }
    return Math.round(performance.now() - begun);
  }

  async keep() {
    const { name } = this.teacher.fresh;
    const time = await this.taken((strokes) => this.teacher.add(strokes));
    await this.store();
    const { fresh } = this.teacher;
    if (fresh) say(`${fresh.drawings.length} of ${FIRST} kept. Draw ${name} again.`);
    else say(`${name} is a class now. Learnt in ${time} ms; draw the next one.`);
  }

  async begin() {
    this.teacher.begin(at("name").value);
    at("name").value = "";
    await this.store();
    say(`Draw ${this.teacher.fresh.name} ${FIRST} times, and keep each drawing.`);
    this.show();
    at("pad").focus();
  }

  async cancel() {
    const { name } = this.teacher.fresh;
    this.teacher.fresh = null;
    await this.store();
    say(`${name} was dropped.`);
  }

  async forget() {
    if (!confirm("Forget all that this network was taught here?")) return;
    this.revision = await forget(this.model);
    this.teacher.forget();
    this.pad.clear();
    say("Forgotten: the network is as it came.");
  }

  async store() {
    this.revision = await save(this.model, this.teacher.record(), this.revision);
  }

  taughtText() {
    const { taught, network } = this.teacher;
    const moved = (100 * network.moved()).toFixed(1);
    return `${taught} ${taught === 1 ? "drawing" : "drawings"} taught, weights moved by ${moved} %`;
  }

  show() {
    const { teacher, pad } = this;
    const { facts } = teacher.network;
    const winner = this.answer();
    const sure = this.shares ? Math.round(100 * this.shares.at(-1)[winner]) : 0;
    at("answer").textContent = this.shares ? teacher.names[winner] : "?";
    at("sure").textContent = this.shares ? `${sure} % sure` : "Draw a digit";
    showLayers(at("layers"), this.shares, teacher.names, facts.scale.length);
    const drawn = !pad.empty && !pad.finished;
    const ready = drawn && !this.busy;
    showClasses(at("classes"), teacher.names, winner, ready, (index) => this.work(() => this.teach(index)));
    showImage(at("seen"), pad.empty ? null : image(pad.strokes, facts.drawing), facts.drawing.size);
    const { fresh } = teacher;
    at("teach").hidden = Boolean(fresh);
    at("fresh").hidden = !fresh;
    if (fresh) {
      at("fresh-name").textContent = fresh.name;
      showSlots(at("slots"), fresh.drawings, FIRST);
    }
    at("keep").disabled = !ready;
    at("clear").disabled = at("undo").disabled = pad.empty;
    at("taught").textContent = teacher.taught ? `${this.taughtText()}.` : "Nothing taught yet.";
    at("forget").hidden = !teacher.taught && !fresh;
  }
}

async function start() {
  const network = await Network.open();
  const { facts } = network;
  const remembered = await images("model/remembered.bin", facts.remembered.length, network.pixels);
  const page = new Page(new Teacher(network, remembered));
  const accuracy = Math.round(100 * facts.accuracy.at(-1));
  at("origin").textContent = `It was trained on ${facts.data === "mnist" ? "MNIST" : "scikit-learn's"} digits (${accuracy} % of the test images right), not on your hand.`;
  at("start").hidden = true;
  at("demo").hidden = false;
  await page.start();
  document.body.dataset.ready = "yes";
  return page;
}

/** Visits without a network: kept by the worker, where the browser allows one. */
async function keepOffline(page) {
  try {
    const earlier = navigator.serviceWorker.controller;
    navigator.serviceWorker.addEventListener("controllerchange", () => {
      if (!earlier) return; // the first visit
      if (page.pad.empty) location.reload();
      else say("This page was built anew: reload it to see the new one.");
    });
    await navigator.serviceWorker.register("offline.js");
    await navigator.serviceWorker.ready;
    at("offline").textContent = "This page works without a network.";
  } catch {
    at("offline").textContent = "This browser needs the server at every visit.";
  }
}

start().then(keepOffline, fail);
