// Shows the songs of a DAG run or of a task instance, and refreshes them while more may come.

import { describeError, isFinal, listEntries, readState } from "./airflow_api.js";
import { setText } from "./elements.js";
import { stop } from "./player.js";
import { countSongs, retryFailedEntries, showEntries } from "./song_lists.js";
import { setStoredEntries } from "./stored_songs.js";
import { followTheme } from "./theme.js";
import { createToolbar } from "./toolbar.js";

const REFRESH_MS = 10_000;
// A run that has ended may be cleared, and then run again.
const REFRESH_ENDED_MS = 60_000;
// The page waits at least this many times as long as the refresh before took.
const MIN_PAUSE_FACTOR = 20;

const countElement = document.getElementById("count");
const noticeElement = document.getElementById("notice");

let timer = null;
let refreshing = false;
// The end of the run or the task after which its songs were last listed, null if they have to be listed again.
let listedEnd = null;

function showNotice(text) {
  setText(noticeElement, text);
  noticeElement.hidden = !text;
}

async function refresh() {
  if (refreshing) return;
  clearTimeout(timer);
  refreshing = true;
  const startedAt = performance.now();
  let pause = REFRESH_MS;
  try {
    // In this order: a list that is read after the end is complete.
    const { state, end } = await readState();
    if (end === null || end !== listedEnd) {
      const list = await listEntries(end !== null);
      // Before the entries are shown: the player asks then whether more songs may come.
      listedEnd = end;
      showEntries(list.entries);
      setStoredEntries(list.stored);
      setText(countElement, countSongs(list, end !== null, state));
    }
    showNotice("");
    retryFailedEntries();
    if (end !== null) pause = REFRESH_ENDED_MS;
  } catch (error) {
    if (isFinal(error)) {
      pause = null;
      listedEnd = null;
      stop();
      showEntries([]);
      setStoredEntries([]);
      setText(countElement, "");
      showNotice(describeError(error));
    } else {
      showNotice(`${describeError(error)} Trying again.`);
    }
  } finally {
    refreshing = false;
  }
  if (pause !== null && !document.hidden) {
    timer = setTimeout(refresh, Math.max(pause, MIN_PAUSE_FACTOR * (performance.now() - startedAt)));
  }
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    clearTimeout(timer);
  } else {
    // List the songs again, too: the viewer's role may have changed.
    listedEnd = null;
    refresh();
  }
});

followTheme();
createToolbar(document.getElementById("toolbar"), { mayGrow: () => listedEnd === null });
refresh();
