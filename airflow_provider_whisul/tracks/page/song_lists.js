// The lists of songs, one for each task, and the sentence that counts them.

import { address } from "./address.js";
import { element, outsideText } from "./elements.js";
import { addCards, removeCards, retryFailed, updateEntry } from "./entries.js";

const BATCH_HINT = "A batch shows its finished songs in steps, minutes apart.";

const container = document.getElementById("songs");
const shown = new Map();
const sections = new Map();

// Makes the lists show these entries. The cards of an entry that is shown already stay, also while it is read again.
export function showEntries(entries) {
  removeMissing(entries);
  const itemsByTask = new Map();
  for (const entry of entries) {
    const known = shown.get(entry.id);
    if (known === undefined) {
      addCards(entry);
      shown.set(entry.id, entry);
    } else if (["key", "timestamp", "songs"].some((field) => known[field] !== entry[field])) {
      updateEntry(known, entry);
    }
    const items = itemsByTask.get(entry.task) ?? [];
    items.push(...shown.get(entry.id).cards.map((card) => card.item));
    itemsByTask.set(entry.task, items);
  }
  for (const [task, section] of sections) {
    if (!itemsByTask.has(task)) {
      section.element.remove();
      sections.delete(task);
    }
  }
  for (const [task, items] of itemsByTask) {
    const section = sectionFor(task);
    section.heading.hidden = itemsByTask.size === 1;
    putInOrder(section.list, items);
  }
  putInOrder(
    container,
    [...itemsByTask.keys()].map((task) => sections.get(task).element),
  );
}

export function retryFailedEntries() {
  retryFailed(shown.values());
}

// `pending` is how many songs are not there yet, and `hasBatch` whether some of those are of a batch.
export function countSongs({ entries, pending, hasBatch }, hasEnded, state) {
  const known = entries.filter((entry) => entry.kind !== "expected").reduce((sum, entry) => sum + entry.songs, 0);
  const total = known + pending;
  if (total === 0) return hasEnded ? describeNoSongs(state) : "No songs yet.";
  const failed = entries.reduce((sum, entry) => sum + entry.failed, 0);
  const parts = [
    [known - failed, entries.some((entry) => entry.kind === "stored") ? "stored" : "done"],
    [failed, "failed"],
    [pending, "pending"],
  ];
  const text = `${total.toLocaleString("en")} ${total === 1 ? "song" : "songs"}${hasEnded ? "" : " so far"}`;
  if (failed === 0 && pending === 0) return text;
  const counts = parts.filter(([count]) => count > 0).map(([count, word]) => `${count.toLocaleString("en")} ${word}`);
  return `${text}: ${counts.join(", ")}${hasBatch ? `. ${BATCH_HINT}` : ""}`;
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

function sectionFor(task) {
  let section = sections.get(task);
  if (section === undefined) {
    const heading = outsideText("h2", "", task);
    const list = element("ol", "songs");
    // Some screen readers do not treat a list without list markers as a list.
    list.setAttribute("role", "list");
    list.setAttribute("aria-label", `Songs of ${task}`);
    section = { element: element("section", "", heading, list), heading, list };
    sections.set(task, section);
  }
  return section;
}

// Without moving a child that is in its place: moving it would stop its player.
function putInOrder(parent, children) {
  let next = parent.firstChild;
  for (const child of children) {
    if (child === next) next = next.nextSibling;
    else parent.insertBefore(child, next);
  }
}
