// Shows the songs of all runs of a DAG, or of all DAGs, newest first. Older ones are read when the viewer comes to the
// end of the list.

import { address, tracksTabUrl } from "./address.js";
import { describeError, isFinal } from "./airflow_api.js";
import { element, setText } from "./elements.js";
import { readOldest, readRuns } from "./history.js";
import { firstPeriod, periodBefore } from "./periods.js";
import { stop } from "./player.js";
import { openLink } from "./song_links.js";
import { countSongs, isFiltered, retryFailedEntries, setHeadings, showEntries } from "./song_lists.js";
import { setStoredEntries } from "./stored_songs.js";
import { followTheme } from "./theme.js";
import { createToolbar } from "./toolbar.js";

const REFRESH_MS = 60_000;
// The page waits at least this many times as long as the refresh before took.
const MIN_PAUSE_FACTOR = 20;
// How far from the viewport the end of the list is when older songs are read.
const NEAR = "800px";
// After as many periods in a row without songs, older ones are read only when the viewer asks for them: each makes
// Airflow search its XComs.
const MAX_EMPTY = 5;

const countElement = document.getElementById("count");
const noticeElement = document.getElementById("notice");
const olderElement = document.getElementById("older");

let timer = null;
let working = false;
// Whether older songs are read next.
let wantsOlder = false;
// The periods that were read, newest first, each with its runs.
let periods = [];
// When the first run was, null if there is none.
let oldest = null;
const heads = new Map();

function isComplete() {
  return periods.length > 0 && (oldest === null || periods.at(-1).from <= oldest);
}

function showNotice(text) {
  setText(noticeElement, text);
  noticeElement.hidden = !text;
}

function show() {
  const runs = periods.flatMap((period) => period.runs);
  for (const run of runs) heads.set(run.id, { ...heads.get(run.id), run });
  showEntries(runs.flatMap((run) => run.entries));
  setStoredEntries(runs.flatMap((run) => run.stored));
  for (const { run } of heads.values()) showHead(run);
  setText(countElement, periods.length ? describe(runs) : "");
  olderElement.hidden = periods.length === 0 || isComplete();
}

function formatDate(time, style = {}) {
  return new Date(time).toLocaleString(undefined, { dateStyle: "medium", ...style });
}

function describe(runs) {
  const since = isComplete() ? "" : ` since ${formatDate(periods.at(-1).from)}`;
  if (runs.length === 0) return since ? `No songs${since}.` : "No run has made songs.";
  const all = {
    entries: runs.flatMap((run) => run.entries),
    pending: runs.reduce((sum, run) => sum + run.pending, 0),
    hasBatch: false,
    submitted: runs.flatMap((run) => run.submitted),
  };
  const count = `${runs.length.toLocaleString("en")} ${runs.length === 1 ? "run" : "runs"}${since}`;
  return `${count}. ${countSongs(all, true)}`;
}

function createHeading(id) {
  const { run } = heads.get(id);
  const date = formatDate(run.at, { timeStyle: "short" });
  const name = address.dag ? date : `${run.dagName ?? run.dag}, ${date}`;
  const link = openLink(name, tracksTabUrl(run.dag, run.run), name);
  link.title = run.run;
  const count = element("p", "facts");
  heads.set(id, { run, count });
  return { heading: element("div", "run", element("h2", "", link), count), name };
}

function showHead(run) {
  const { count } = heads.get(run.id);
  if (count) setText(count, countSongs(run, run.hasEnded));
}

// Does one thing at a time. What fails is tried again at the next refresh.
async function work(read) {
  if (working) return;
  working = true;
  clearTimeout(timer);
  const startedAt = performance.now();
  let failure = null;
  try {
    await read();
    show();
    showNotice("");
    retryFailedEntries();
  } catch (error) {
    failure = error;
    if (isFinal(error)) {
      stop();
      periods = [];
      show();
      heads.clear();
    }
    showNotice(`${describeError(error)}${isFinal(error) ? "" : " Trying again."}`);
  } finally {
    working = false;
  }
  if (failure !== null && isFinal(failure)) return;
  if (!document.hidden) {
    timer = setTimeout(refresh, Math.max(REFRESH_MS, MIN_PAUSE_FACTOR * (performance.now() - startedAt)));
  }
  if (failure !== null) return;
  if (wantsOlder) readOlder();
  // The end of the list has moved, and perhaps not far enough.
  else observeEnd();
}

// Reads the latest period again, and those with runs that had not ended.
function refresh() {
  return work(async () => {
    if (periods.length === 0) {
      oldest = await readOldest();
      const first = firstPeriod(Date.now());
      periods = [{ ...first, runs: await readRuns(first) }];
      return;
    }
    for (const period of periods) {
      if (period.to === null || period.runs.some((run) => !run.hasEnded)) period.runs = await readRuns(period);
    }
  });
}

function readOlder() {
  wantsOlder = working;
  if (working || periods.length === 0 || isComplete()) return;
  work(async () => {
    const last = periods.at(-1);
    const songs = last.runs.flatMap((run) => run.entries).reduce((sum, entry) => sum + entry.songs, 0);
    const next = periodBefore(last, songs);
    periods.push({ ...next, runs: await readRuns(next) });
  });
}

// Returns whether older songs are read.
function readOlderByItself() {
  const latest = periods.slice(-MAX_EMPTY);
  const isEmpty = latest.length === MAX_EMPTY && latest.every((period) => period.runs.length === 0);
  if (isComplete() || isFiltered() || isEmpty) return false;
  readOlder();
  return true;
}

const observer = new IntersectionObserver(
  (changes) => {
    if (changes.at(-1).isIntersecting) readOlderByItself();
  },
  { root: document, rootMargin: `${NEAR} 0px` },
);

function observeEnd() {
  observer.unobserve(olderElement);
  observer.observe(olderElement);
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(timer);
  else refresh();
});

olderElement.firstElementChild.addEventListener("click", readOlder);

followTheme();
setHeadings(createHeading);
createToolbar(document.getElementById("toolbar"), {
  // Asked where "Play all" has come to the end of the list.
  mayGrow: readOlderByItself,
});
refresh();
