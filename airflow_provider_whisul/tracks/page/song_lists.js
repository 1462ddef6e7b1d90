// The lists of songs, one for each task, and the sentence that counts them.

import { address } from "./address.js";
import { element, outsideText } from "./elements.js";
import { addCards, removeCards, retryFailed } from "./entries.js";

const container = document.getElementById("songs");
const shown = new Map();
const sections = new Map();

// Makes the lists show these entries. The cards of an entry that is shown already stay as they are.
export function showEntries(entries) {
  removeOutdated(entries);
  const itemsByTask = new Map();
  for (const entry of entries) {
    if (!shown.has(entry.id)) {
      addCards(entry);
      shown.set(entry.id, entry);
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

export function countSongs(entries, hasEnded, state) {
  const total = entries.reduce((sum, entry) => sum + entry.songs, 0);
  if (total === 0) return hasEnded ? describeNoSongs(state) : "No songs yet. They appear here when they are completed.";
  const failed = entries.reduce((sum, entry) => sum + entry.failed, 0);
  const completed = total - failed;
  let text = `${completed.toLocaleString("en")} ${completed === 1 ? "song" : "songs"}`;
  if (failed) text += `, ${failed.toLocaleString("en")} failed`;
  return hasEnded ? text : `${text} so far`;
}

function describeNoSongs(state) {
  if (address.task === null) return "This run has made no songs.";
  if (state === "success") {
    return "This task has no songs. If it only submits jobs, the task that waits for them shows their songs.";
  }
  // A task in any other state has not run, and has no log.
  const hint = state === "failed" || state === "skipped" ? " See its log for the reason." : "";
  return `This task ended (${state}) without a song.${hint}`;
}

function removeOutdated(entries) {
  const latest = new Map(entries.map((entry) => [entry.id, entry]));
  for (const [id, entry] of shown) {
    const same = latest.get(id);
    if (same === undefined || same.key !== entry.key || same.timestamp !== entry.timestamp) {
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
