// What the visitor taught, kept in this browser (IndexedDB): one record a model, written whole or not at all.
import { Sentence } from "./sentence.js";

const STORE = "taught";

function opened() {
  return new Promise((resolve, reject) => {
    const asked = indexedDB.open("spela-browser-example", 1);
    asked.onupgradeneeded = () => asked.result.createObjectStore(STORE);
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}

/** Run `work(store)` in one transaction; `work` gets what is stored under `model` first. */
async function changed(model, mode, work) {
  const database = await opened();
  try {
    return await new Promise((resolve, reject) => {
      const transaction = database.transaction(STORE, mode);
      const store = transaction.objectStore(STORE);
      const asked = store.get(model);
      let result;
      let refused;
      asked.onsuccess = () => {
        try {
          result = work(store, asked.result);
        } catch (error) {
          refused = error;
          transaction.abort();
        }
      };
      transaction.oncomplete = () => resolve(result);
      transaction.onabort = () => reject(refused ?? transaction.error);
    });
  } finally {
    database.close();
  }
}

/** The record of a model; undefined: none. */
export function load(model) {
  return changed(model, "readonly", (_, kept) => kept);
}

/**
 * Keep a record; the returned revision goes into the next call.
 * Refused where another tab has kept one since: what it was taught would be lost.
 */
export function save(model, record, revision) {
  return changed(model, "readwrite", (store, kept) => {
    if ((kept?.revision ?? 0) !== revision) {
      throw new Sentence("Another tab has taught this network since. Reload this page to go on from there.");
    }
    store.put({ ...record, revision: revision + 1 }, model);
    return revision + 1;
  });
}

/** Drop the record of a model. */
export function forget(model) {
  return changed(model, "readwrite", (store) => store.delete(model) && 0);
}
