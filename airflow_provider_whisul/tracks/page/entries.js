// XCom entries, which hold some songs each. An entry is read when one of its cards comes near the viewport.

import { describeError, readSongs } from "./airflow_api.js";
import { createCard, setNear, showLoadError, showSong } from "./cards.js";

const MAX_CONCURRENT_REQUESTS = 4;
// How far from the viewport a card is filled.
const NEAR = "800px";

const cards = new WeakMap();
let whenRead = () => {};
// The entries to read, the next one last.
const stack = [];
let requests = 0;

const observer = new IntersectionObserver(
  (changes) => {
    // In reverse order, since the latest of the stack is read first: so cards fill from the top.
    for (const { target, isIntersecting } of changes.reverse()) {
      const card = cards.get(target);
      setNear(card, isIntersecting);
      if (isIntersecting) push(card.entry);
    }
    readNext();
  },
  // In a frame the margin counts only around the frame's own document.
  { root: document, rootMargin: `${NEAR} 0px` },
);

// `listener` is called after the songs of an entry were read.
export function listenForSongs(listener) {
  whenRead = listener;
}

// Gives an entry of the list its cards, which are still empty. Its state is new, waiting, reading, filled or removed.
export function addCards(entry) {
  entry.state = "new";
  // Whether it is read although none of its cards is near, and who waits for that.
  entry.wanted = false;
  entry.waiters = [];
  entry.cards = [];
  fitCards(entry);
}

// Reads an entry that was written again. Until then its cards show what they did.
export function updateEntry(entry, latest) {
  const { songs, failed, key, timestamp } = latest;
  Object.assign(entry, { songs, failed, key, timestamp });
  fitCards(entry);
  if (entry.state === "reading") entry.outdated = true;
  else if (entry.state === "filled") entry.state = "new";
  if (isDue(entry)) push(entry);
  readNext();
}

function fitCards(entry) {
  for (const { item } of entry.cards.splice(entry.songs)) {
    observer.unobserve(item);
    item.remove();
  }
  while (entry.cards.length < entry.songs) {
    const card = createCard(entry);
    entry.cards.push(card);
    cards.set(card.item, card);
    observer.observe(card.item);
  }
}

export function removeCards(entry) {
  entry.state = "removed";
  settle(entry);
  for (const { item } of entry.cards) {
    observer.unobserve(item);
    item.remove();
  }
}

// Reads the entries that could not be read before. All others that are near have been requested.
export function retryFailed(entries) {
  for (const entry of entries) if (isDue(entry)) push(entry);
  readNext();
}

// Reads an entry before all others. Resolves when that was tried, also if it failed.
export function readNow(entry) {
  if (entry.state === "filled" || entry.state === "removed") return Promise.resolve();
  entry.wanted = true;
  if (entry.state === "waiting") stack.push(entry);
  else push(entry);
  const tried = new Promise((resolve) => entry.waiters.push(resolve));
  readNext();
  return tried;
}

// Reads all these entries, after those that are near.
export function readAll(entries) {
  // Also those that wait, whose cards may no longer be near when it is their turn.
  for (const entry of entries) entry.wanted = true;
  const others = entries.filter((entry) => entry.state === "new");
  for (const entry of others) entry.state = "waiting";
  stack.unshift(...others.reverse());
  readNext();
}

function settle(entry) {
  for (const resolve of entry.waiters.splice(0)) resolve();
}

function isDue(entry) {
  return entry.wanted || isNear(entry);
}

function isNear(entry) {
  return entry.cards.some((card) => card.near);
}

function push(entry) {
  if (entry.state !== "new") return;
  entry.state = "waiting";
  stack.push(entry);
}

function readNext() {
  while (requests < MAX_CONCURRENT_REQUESTS && stack.length) {
    // The latest first: its cards are in view, however fast the viewer scrolls.
    const entry = stack.pop();
    if (entry.state !== "waiting") continue;
    if (!isDue(entry)) {
      entry.state = "new";
      continue;
    }
    entry.state = "reading";
    requests += 1;
    read(entry).finally(() => {
      requests -= 1;
      readNext();
    });
  }
}

async function read(entry) {
  let songs;
  let failure = null;
  entry.outdated = false;
  try {
    songs = await readSongs(entry);
  } catch (error) {
    failure = error;
  }
  if (entry.state === "removed") return;
  entry.state = failure !== null || entry.outdated ? "new" : "filled";
  if (entry.outdated) {
    if (isDue(entry)) push(entry);
    return;
  }
  if (failure !== null) {
    const reason = failure.status === 404 ? "Airflow no longer has it." : describeError(failure);
    const retry = () => {
      push(entry);
      readNext();
    };
    for (const card of entry.cards) showLoadError(card, `This song could not be loaded. ${reason}`, retry);
    settle(entry);
    return;
  }
  entry.cards.forEach((card, index) => {
    // A task writes the songs that are pending a moment after those that are done.
    card.isMissing = entry.kind === "expected" && songs !== null && index >= songs.length;
    if (!card.isMissing) showSong(card, songs?.[index] ?? null);
  });
  settle(entry);
  whenRead();
}
