// The page in headless Chromium; test_browser.py builds and serves it, and runs these tests one by one.
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";

const { SITE, CHROMIUM, PACKAGE, EXPECTED, FOLDER } = process.env;
const { chromium } = createRequire(PACKAGE)("playwright-core");
const DIGITS = JSON.parse(readFileSync(new URL("strokes.json", import.meta.url)));

let browser;
before(async () => {
  browser = await chromium.launch({ executablePath: CHROMIUM });
});
after(() => browser?.close());

/** A page of its own, whose errors fail the test. */
async function opened(options = {}, prepare = async () => {}) {
  const context = await browser.newContext({ viewport: { width: 1000, height: 900 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(30_000);
  page.on("pageerror", (error) => assert.fail(error));
  await prepare(page);
  await page.goto(SITE);
  return page;
}

const ready = (page) => page.waitForSelector("body[data-ready]");
const said = (page, text) => page.locator("#said", { hasText: text }).waitFor();
const button = (page, name) => page.getByRole("button", { name, exact: true });

/** Draw strokes with the mouse, and wait for the answer. */
async function draw(page, strokes) {
  await page.locator("#pad").scrollIntoViewIfNeeded();
  const box = await page.locator("#pad").boundingBox();
  for (const stroke of strokes) {
    const points = stroke.map(([x, y]) => [box.x + x * box.width, box.y + y * box.height]);
    await page.mouse.move(...points[0]);
    await page.mouse.down();
    for (const point of points) await page.mouse.move(...point, { steps: 4 });
    await page.mouse.up();
  }
  await page.locator("#said", { hasText: /It looks like|Drawing \d of/ }).waitFor();
}

/** The letter A as a hand draws it the n-th time. */
function letterA(n) {
  const wobble = (k) => 0.05 * Math.sin(7.3 * n + 2.1 * k);
  const foot = [0.2 + wobble(1), 0.9 + wobble(2)];
  const head = [0.5 + wobble(3), 0.12 + wobble(4)];
  return [
    [foot, head, [0.8 + wobble(5), 0.9 + wobble(6)]],
    [[0.32 + wobble(7), 0.6 + wobble(8)], [0.7 + wobble(9), 0.6 + wobble(10)]],
  ];
}

/** What the browser has kept, from its database. */
function kept(page) {
  return page.evaluate(
    () =>
      new Promise((resolve, reject) => {
        const asked = indexedDB.open("spela-browser-example");
        asked.onerror = () => reject(asked.error);
        asked.onsuccess = () => {
          const all = asked.result.transaction("taught").objectStore("taught").getAll();
          all.onsuccess = () => {
            const [record] = all.result;
            const sum = (values) => values.reduce((total, value, index) => total + value * Math.cos(index), 0);
            const weights = record && Object.entries(record.weights).map(([name, { values }]) => [name, sum(values)]);
            resolve(record && { ...record, weights: Object.fromEntries(weights) });
            asked.result.close();
          };
        };
      }),
  );
}

test("digits drawn with the mouse are read by both layers", async () => {
  const page = await opened();
  await ready(page);
  const answers = [];
  for (const strokes of Object.values(DIGITS)) {
    await draw(page, strokes);
    answers.push(await page.locator("#answer").textContent());
    assert.equal(await page.locator(".layer .winner").count(), 2);
    await button(page, "Clear").click();
    await page.locator("#answer", { hasText: "?" }).waitFor();
  }
  const right = Object.keys(DIGITS).filter((digit, index) => answers[index] === digit);
  assert.ok(right.length >= 8, `answers to 0 ... 9: ${answers}`);
});

test("answers and steps have the values that onnxruntime gives in Python", async () => {
  const page = await opened();
  await ready(page);
  const { image, target, shares, losses, weights } = JSON.parse(readFileSync(EXPECTED));
  const found = await page.evaluate(
    async ({ image, target }) => {
      const { Network } = await import("./network.js");
      const network = await Network.open();
      const grey = Float32Array.from(image);
      const shares = await network.answer(grey, 10);
      const losses = await network.learn([{ images: [grey, grey], classes: [target, target] }]);
      const weights = Object.entries(network.weights).map(([name, { values }]) => [name, [...values.slice(0, 50)]]);
      return { shares, losses: losses[0], weights: Object.fromEntries(weights) };
    },
    { image, target },
  );
  const near = (one, other, most, what) =>
    one.forEach((value, index) => assert.ok(Math.abs(value - other[index]) <= most, `${what}: ${value} ${other[index]}`));
  shares.forEach((row, layer) => near(row, found.shares[layer], 1e-5, `layer ${layer + 1}`));
  near(losses, found.losses, 1e-5, "losses");
  assert.deepEqual(Object.keys(found.weights).sort(), Object.keys(weights).sort());
  for (const [name, values] of Object.entries(weights)) near(values, found.weights[name], 1e-5, name);
});

test("ten drawings of a new class teach it, and it is kept after a reload", async () => {
  const page = await opened();
  await ready(page);
  await draw(page, letterA(0));
  assert.notEqual(await page.locator("#answer").textContent(), "A");
  assert.equal(await page.locator("#taught").textContent(), "Nothing taught yet.");
  await page.fill("#name", "A");
  await button(page, "Add a new class").click();
  await button(page, "Keep this drawing").click();
  for (let n = 1; n < 5; n++) {
    await said(page, `${n} of 5 kept`);
    assert.equal(await page.locator(".slot.filled").count(), n);
    await draw(page, letterA(n));
    await button(page, "Keep this drawing").click();
  }
  await said(page, "A is a class now");
  for (let n = 5; n < 10; n++) {
    await draw(page, letterA(n));
    await button(page, "It is A").click();
    await said(page, /(Confirmed|Corrected): it is A/);
  }
  await draw(page, letterA(23));
  assert.equal(await page.locator("#answer").textContent(), "A");
  assert.match(await page.locator("#taught").textContent(), /^10 drawings taught, weights moved by [1-9]/);
  const before = await kept(page);
  assert.equal(before.drawings[10].length, 10);

  await page.reload();
  await ready(page);
  await said(page, "Welcome back: 10 drawings taught");
  await draw(page, letterA(31));
  assert.equal(await page.locator("#answer").textContent(), "A");
  await button(page, "Clear").click();
  await draw(page, DIGITS[7]);
  assert.equal(await page.locator("#answer").textContent(), "7"); // the old classes are known still
  assert.deepEqual(await kept(page), before);

  await button(page, "It is 7").click();
  await said(page, "Confirmed: it is 7");
  const later = await kept(page);
  assert.notEqual(later.weights["2.weight"], before.weights["2.weight"]);
  assert.equal(later.taught, 11);
  page.once("dialog", (dialog) => dialog.accept());
  await button(page, "Forget what I taught").click();
  await said(page, "Forgotten");
  assert.equal(await kept(page), undefined);
  assert.equal(await button(page, "It is A").count(), 0);
});

test("it works without a network once it was visited", async () => {
  const page = await opened();
  await ready(page);
  await page.locator("#offline", { hasText: "works without a network" }).waitFor();
  await page.context().setOffline(true);
  await page.reload();
  await ready(page);
  await draw(page, DIGITS[0]);
  assert.equal(await page.locator("#answer").textContent(), "0");
  await button(page, "It is 0").click();
  await said(page, "Confirmed: it is 0");
});

test("a page that was built anew takes over at the next visit", async () => {
  const page = await opened();
  await ready(page);
  await page.locator("#offline", { hasText: "works without a network" }).waitFor();
  const changes = [
    ["style.css", (text) => text.replace("max-width: 60rem", "max-width: 50rem")],
    ["offline.js", (text) => text.replace('VERSION = "', 'VERSION = "newer-')],
  ];
  const kept = changes.map(([name]) => readFileSync(`${FOLDER}/${name}`, "utf-8"));
  const width = () => getComputedStyle(document.body).maxWidth;
  assert.equal(await page.evaluate(width), "960px");
  try {
    changes.forEach(([name, change], index) => writeFileSync(`${FOLDER}/${name}`, change(kept[index])));
    await page.goto(SITE);
    await page.waitForFunction(() => getComputedStyle(document.body).maxWidth === "800px");
  } finally {
    changes.forEach(([name], index) => writeFileSync(`${FOLDER}/${name}`, kept[index]));
  }
});

test("nothing is loaded from elsewhere", async () => {
  const foreign = [];
  const page = await opened({}, async (page) => {
    page.on("request", (request) => {
      if (!request.url().startsWith(SITE) && !/^(data|blob):/.test(request.url())) foreign.push(request.url());
    });
  });
  await ready(page);
  await draw(page, DIGITS[3]);
  assert.deepEqual(foreign, []);
});

test("the keyboard alone draws and teaches", async () => {
  const page = await opened();
  await ready(page);
  const press = async (key, times = 1) => {
    for (let n = 0; n < times; n++) await page.keyboard.press(key);
  };
  while ((await page.evaluate(() => document.activeElement.id)) !== "pad") await press("Tab");
  await press("ArrowUp", 9);
  await press(" ");
  await said(page, "Pen down");
  await press("ArrowDown", 18);
  await press(" ");
  await said(page, "It looks like");
  while ((await page.evaluate(() => document.activeElement.getAttribute("aria-label"))) !== "It is 1") await press("Tab");
  await press("Enter");
  await said(page, ": it is 1");
  assert.match(await page.locator("#taught").textContent(), /^1 drawing taught/);
  const [stroke] = (await kept(page)).drawings[1][0];
  const ends = [stroke[0], stroke.at(-1)].flat().map((value) => value.toFixed(3));
  assert.deepEqual([stroke.length, ...ends], [19, "0.500", "0.125", "0.500", "0.875"]);
});

test("a finger draws at a phone's width", async () => {
  const page = await opened({ viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true });
  await ready(page);
  const box = await page.locator("#pad").boundingBox();
  const session = await page.context().newCDPSession(page);
  const touch = (type, points) =>
    session.send("Input.dispatchTouchEvent", {
      type,
      touchPoints: points.map(([x, y]) => ({ x: box.x + x * box.width, y: box.y + y * box.height })),
    });
  for (const stroke of DIGITS[7]) {
    await touch("touchStart", [stroke[0]]);
    for (const point of stroke) await touch("touchMove", [point]);
    await touch("touchEnd", []);
  }
  await said(page, "It looks like 7");
  assert.equal(await page.evaluate(() => scrollY), 0); // the finger drew and did not scroll
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
  const small = await page.locator("main button:visible").evaluateAll((all) =>
    all.filter((one) => one.id !== "forget" && Math.min(one.offsetWidth, one.offsetHeight) < 40).map((one) => one.textContent),
  );
  assert.deepEqual(small, []); // all wide enough for a finger
});

test("two tabs do not overwrite what the other was taught", async () => {
  const one = await opened();
  await ready(one);
  const two = await one.context().newPage();
  await two.goto(SITE);
  await ready(two);
  for (const page of [one, two]) {
    await draw(page, DIGITS[1]);
    await button(page, "It is 1").click();
    await said(page, page === one ? ": it is 1" : "Another tab has taught this network since");
  }
  assert.equal((await kept(one)).taught, 1);
});

test("names of new classes are checked", async () => {
  const page = await opened();
  await ready(page);
  for (const [name, sentence] of [
    [" ", "Give the new class a name, such as A."],
    ["7", "7 is known already"],
    ["thirteenchars", "at most 12 letters"],
  ]) {
    await page.fill("#name", name);
    await button(page, "Add a new class").click();
    await said(page, sentence);
  }
  assert.equal(await kept(page), undefined);
  const full = await page.evaluate(async () => {
    const { Teacher } = await import("./teacher.js");
    const teacher = new Teacher({ facts: { names: ["0", "1"], most_classes: 2 } }, []);
    try {
      teacher.begin("A");
    } catch (error) {
      return error.message;
    }
  });
  assert.equal(full, "The network has room for 2 classes, and all are taken.");
});

/** The sentence of a page that cannot start. */
async function refusal(prepare) {
  const page = await opened({ serviceWorkers: "block" }, prepare);
  const sentence = await page.locator("#start[role=alert]").textContent();
  assert.equal(await page.locator("#demo").isVisible(), false);
  await page.context().close();
  return sentence;
}

const AGAIN = /Build the page again/;
const read = async (name) => Buffer.from(await (await fetch(SITE + name)).arrayBuffer());
const serve = (name, body) => (page) => page.route(`**/${name}`, (route) => route.fulfill({ body }));

test("a damaged or missing file ends in a sentence that names it", async () => {
  const step = await read("model/step.onnx");
  const weights = await read("model/step.safetensors");
  const cut = (bytes) => bytes.subarray(0, bytes.length / 2);
  for (const [name, body] of [
    ["model/step.onnx", cut(step)],
    ["model/step.onnx", Buffer.from("<html>no model</html>")],
    ["model/answers.onnx", Buffer.alloc(0)],
    ["model/step.onnx", await read("model/answers.onnx")],
    ["model/step.safetensors", cut(weights)],
    ["model/facts.json", Buffer.from('{"names": 3}')],
    ["model/facts.json", Buffer.from("{")],
    ["model/remembered.bin", Buffer.from("short")],
  ]) {
    const sentence = await refusal(serve(name, body));
    assert.ok(sentence.startsWith(name), sentence);
    assert.match(sentence, AGAIN);
  }
  for (const name of ["model/facts.json", "model/step.safetensors", "runtime/ort.wasm.min.mjs"]) {
    const missing = (page) => page.route(`**/${name}`, (route) => route.fulfill({ status: 404, body: "no" }));
    assert.ok((await refusal(missing)).startsWith(name));
  }
});

test("a browser without WebAssembly or its SIMD instructions gets a sentence", async () => {
  const without = await refusal((page) => page.addInitScript(() => delete globalThis.WebAssembly));
  assert.match(without, /^This browser has no WebAssembly/);
  const old = await refusal((page) => page.addInitScript(() => (WebAssembly.validate = () => false)));
  assert.match(old, /WebAssembly has no SIMD instructions/);
});

test("kept weights that do not fit are left alone and said", async () => {
  const page = await opened();
  await ready(page);
  await draw(page, DIGITS[1]);
  await button(page, "It is 1").click();
  await said(page, ": it is 1");
  await page.evaluate(
    () =>
      new Promise((resolve) => {
        indexedDB.open("spela-browser-example").onsuccess = ({ target: { result: database } }) => {
          const store = database.transaction("taught", "readwrite").objectStore("taught");
          store.openCursor().onsuccess = ({ target: { result: cursor } }) => {
            const record = cursor.value;
            record.weights["2.weight"].values[3] = NaN;
            cursor.update(record).onsuccess = () => (database.close(), resolve());
          };
        };
      }),
  );
  await page.reload();
  await said(page, "does not fit this network: it starts anew");
  await draw(page, DIGITS[0]);
  assert.equal(await page.locator("#answer").textContent(), "0");
});
