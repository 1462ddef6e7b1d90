// The lists of songs, one for each group of entries, which is a task or a run, and the sentence that counts them.

import { address } from "./address.js";
import { element, outsideText } from "./elements.js";
import { addCards, listenForSongs, readAll, readNow, removeCards, retryFailed, updateEntry } from "./entries.js";
import { inOrder, matches, needsAllSongs, NO_FILTER, tagsOf } from "./filters.js";
import { FAVOURITE, HEARD, markedNow } from "./marks.js";
import { describeSubmitted } from "./submissions.js";

const BATCH_HINT = "A batch shows its finished songs in steps, minutes apart.";

const container = document.getElementById("songs");
const shown = new Map();
const sections = new Map();
let cards = [];
let filter = NO_FILTER;
// Of when the filter was set: else a song would vanish while it is played.
let isHeard = markedNow(HEARD);
let isFavourite = markedNow(FAVOURITE);
let whenChanged = () => {};
// The heading of a group that is not a task, and its name.
let createHeading = null;

listenForSongs(arrange);

// `listener` is called when other songs are shown than before.
export function listenForChanges(listener) {
  whenChanged = listener;
}

// `create` returns the heading of a group, and its name: `{ heading, name }`.
export function setHeadings(create) {
  createHeading = create;
}

// Makes the lists show these entries. The cards of an entry that is shown already stay, also while it is read again.
export function showEntries(entries) {
  removeMissing(entries);
  for (const entry of entries) {
    const known = shown.get(entry.id);
    if (known === undefined) {
      addCards(entry);
      shown.set(entry.id, entry);
    } else if (["key", "timestamp", "songs"].some((field) => known[field] !== entry[field])) {
      updateEntry(known, entry);
    }
  }
  // In the order of the list, which may have changed.
  const known = entries.map((entry) => [entry.id, shown.get(entry.id)]);
  shown.clear();
  for (const [id, entry] of known) shown.set(id, entry);
  if (needsAllSongs(filter)) readAllSongs();
  arrange();
}

export function setFilter(next) {
  filter = next;
  isHeard = markedNow(HEARD);
  isFavourite = markedNow(FAVOURITE);
  if (needsAllSongs(filter)) readAllSongs();
  arrange();
}

export function readAllSongs() {
  readAll([...shown.values()]);
}

// Whether the viewer has chosen some songs, or another order.
export function isFiltered() {
  return needsAllSongs(filter);
}

// All cards in the order in which they are shown, also those that are not shown.
export function cardsInOrder() {
  return cards;
}

// Whether the card's song is shown and can be played, null if it was not read yet.
export function isPlayable(card) {
  if (card.isMissing) return false;
  if (card.song === undefined) return null;
  return card.song?.status === "completed" && isShown(card) && !card.controls.isBroken();
}

export function readCard(card) {
  return readNow(card.entry);
}

export function isShown(card) {
  if (card.isMissing) return false;
  if (filter === NO_FILTER) return true;
  if (card.song === undefined) return !needsAllSongs({ ...filter, sort: NO_FILTER.sort });
  return matches(filter, card.song, isHeard, isFavourite);
}

// The tags of all songs that were read, in the order of the alphabet.
export function knownTags() {
  const tags = new Set(cards.flatMap((card) => tagsOf(card.song)));
  return [...tags].sort((left, right) => left.localeCompare(right));
}

// Shows the cards of all entries that the filter leaves, in its order.
function arrange() {
  const cardsByGroup = new Map();
  for (const entry of shown.values()) {
    const group = cardsByGroup.get(entry.group) ?? [];
    group.push(...entry.cards);
    cardsByGroup.set(entry.group, group);
  }
  for (const [group, section] of sections) {
    if (!cardsByGroup.has(group)) {
      section.element.remove();
      sections.delete(group);
    }
  }
  cards = [];
  for (const [group, unordered] of cardsByGroup) {
    const section = sectionFor(group);
    const ordered = inOrder(unordered, filter.sort, (card) => card.song);
    for (const card of ordered) card.item.hidden = !isShown(card);
    section.heading.hidden = createHeading === null && cardsByGroup.size === 1;
    section.element.hidden = ordered.every((card) => card.item.hidden);
    putInOrder(
      section.list,
      ordered.map((card) => card.item),
    );
    cards.push(...ordered);
  }
  putInOrder(
    container,
    [...cardsByGroup.keys()].map((group) => sections.get(group).element),
  );
  whenChanged();
}

export function retryFailedEntries() {
  retryFailed(shown.values());
}

// `pending` is how many songs are not there yet, `hasBatch` whether some of those are of a batch, and `submitted` what
// the tasks have submitted.
export function countSongs({ entries, pending, hasBatch, submitted }, hasEnded, state) {
  const paid = describeSubmitted(submitted);
  const known = entries.filter((entry) => entry.kind !== "expected").reduce((sum, entry) => sum + entry.songs, 0);
  const total = known + pending;
  if (total === 0) return (hasEnded ? describeNoSongs(state) : "No songs yet.") + (paid && ` ${paid}.`);
  const failed = entries.reduce((sum, entry) => sum + entry.failed, 0);
  const parts = [
    [known - failed, entries.some((entry) => entry.kind === "stored") ? "stored" : "done"],
    [failed, "failed"],
    [pending, "pending"],
  ];
  const text = `${total.toLocaleString("en")} ${total === 1 ? "song" : "songs"}${hasEnded ? "" : " so far"}`;
  const counts = parts.filter(([count]) => count > 0).map(([count, word]) => `${count.toLocaleString("en")} ${word}`);
  const outcome = failed === 0 && pending === 0 ? "" : `: ${counts.join(", ")}`;
  return text + outcome + (paid && `, ${paid}`) + (hasBatch ? `. ${BATCH_HINT}` : "");
}

function describeNoSongs(state) {
  if (address.task === null) return "This run has made no songs.";
  if (state === "success") {
    return (
      "This task has no songs. Songs are shown here of tasks that wait for songs of Whisul, or that store them. " +
      "If this task only submits jobs, the task that waits for them shows their songs."
    );
  }
  // A task in any other state has not run, and has no log.
  const hint = state === "failed" || state === "skipped" ? " See its log for the reason." : "";
  return `This task ended (${state}) without a song.${hint}`;
}

function removeMissing(entries) {
  const ids = new Set(entries.map((entry) => entry.id));
  for (const [id, entry] of shown) {
    if (!ids.has(id)) {
      removeCards(entry);
      shown.delete(id);
    }
  }
}

function sectionFor(group) {
  let section = sections.get(group);
  if (section === undefined) {
    const { heading, name } = createHeading?.(group) ?? { heading: outsideText("h2", "", group), name: group };
    const list = element("ol", "songs");
    // Some screen readers do not treat a list without list markers as a list.
    list.setAttribute("role", "list");
    list.setAttribute("aria-label", `Songs of ${name}`);
    section = { element: element("section", "", heading, list), heading, list };
    sections.set(group, section);
  }
  return section;
}

// Without moving a child that is in its place: a frame in it would be loaded again. One that is moved keeps the focus.
function putInOrder(parent, children) {
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  let next = parent.firstChild;
  for (const child of children) {
    if (child === next) next = next.nextSibling;
    else parent.insertBefore(child, next);
  }
  if (focused !== document.activeElement) focused?.focus({ preventScroll: true });
}
