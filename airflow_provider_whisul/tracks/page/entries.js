// XCom entries, which hold some songs each. An entry is read when one of its cards comes near the viewport.

import { describeError, readSongs } from "./airflow_api.js";
import { createCard, setNear, showLoadError, showSong } from "./cards.js";

const MAX_CONCURRENT_REQUESTS = 4;
// How far from the viewport a card is filled.
const NEAR = "800px";

const cards = new WeakMap();
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

// Gives an entry of the list its cards, which are still empty. Its state is new, waiting, reading, filled or removed.
export function addCards(entry) {
  entry.state = "new";
  entry.cards = Array.from({ length: entry.songs }, () => {
    const card = createCard(entry);
    cards.set(card.item, card);
    observer.observe(card.item);
    return card;
  });
}

export function removeCards(entry) {
  entry.state = "removed";
  for (const { item } of entry.cards) {
    observer.unobserve(item);
    item.remove();
  }
}

// Reads the entries that could not be read before. All others that are near have been requested.
export function retryFailed(entries) {
  for (const entry of entries) if (isNear(entry)) push(entry);
  readNext();
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
    if (!isNear(entry)) {
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
  try {
    songs = await readSongs(entry);
  } catch (error) {
    if (entry.state === "removed") return;
    entry.state = "new";
    const reason = error.status === 404 ? "Airflow no longer has it." : describeError(error);
    const retry = () => {
      push(entry);
      readNext();
    };
    for (const card of entry.cards) showLoadError(card, `This song could not be loaded. ${reason}`, retry);
    return;
  }
  if (entry.state === "removed") return;
  entry.state = "filled";
  entry.cards.forEach((card, index) => showSong(card, songs?.[index] ?? null));
}
