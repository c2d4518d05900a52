// The history: one record for each request that has made pictures, in this browser's own database.
//
//   {id, time, request, answer, pictures: [{index, seed, width, height, blob}]}

const KEPT = 200;

let memory = null;
let opened = null;

function open() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("darkroom", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("runs", { keyPath: "id" });
    request.onsuccess = () => {
      // A browser closes it when its data are deleted; the next call opens another one.
      request.result.onclose = () => (opened = null);
      resolve(request.result);
    };
    request.onerror = () => reject(request.error);
  });
  return opened;
}

async function transact(mode, work) {
  const database = await open();
  return new Promise((resolve, reject) => {
    const transaction = database.transaction("runs", mode);
    const request = work(transaction.objectStore("runs"));
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onerror = () => reject(transaction.error);
    transaction.onabort = () => reject(transaction.error);
  });
}

/** Returns all records, the newest first, and whether they outlive the page: not every browser keeps data. */
export async function load() {
  try {
    const runs = await transact("readonly", (store) => store.getAll());
    return { runs: runs.sort((a, b) => b.id - a.id), kept: true };
  } catch {
    memory ??= [];
    return { runs: [...memory], kept: false };
  }
}

/** Keeps a record, in place of its last version, and drops the oldest beyond the most that are kept. Returns the ids that were dropped. */
export async function save(run) {
  if (memory) {
    memory = [run, ...memory.filter(({ id }) => id !== run.id)];
    return memory.splice(KEPT).map(({ id }) => id);
  }
  await transact("readwrite", (store) => store.put(run));
  const ids = await transact("readonly", (store) => store.getAllKeys());
  const old = ids.slice(0, Math.max(0, ids.length - KEPT));
  for (const id of old) await remove(id);
  return old;
}

export async function remove(id) {
  if (memory) memory = memory.filter((run) => run.id !== id);
  else await transact("readwrite", (store) => store.delete(id));
}

export async function clear() {
  if (memory) memory = [];
  else await transact("readwrite", (store) => store.clear());
}
