// The line above the songs: play and download all, filter and sort. And the keys of the player.

import { keep, readKept } from "./browser_storage.js";
import { downloadAll } from "./downloads.js";
import { element, setText } from "./elements.js";
import { needsAllSongs, NO_FILTER } from "./filters.js";
import { icon } from "./icons.js";
import { listenForKeys } from "./keys.js";
import {
  listChanged,
  playNext,
  playPrevious,
  playsEverything,
  seekBy,
  setPlaylist,
  togglePlay,
  togglePlayAll,
} from "./player.js";
import {
  cardsInOrder,
  isPlayable,
  isShown,
  knownTags,
  listenForChanges,
  readAllSongs,
  readCard,
  setFilter,
} from "./song_lists.js";
import { findStoredUrl } from "./stored_songs.js";

const KEYS = "Space: play or pause. ← →: five seconds back or on. n, p: next or previous song.";
const KEYS_ARE_ON = "keys";
const SHOWN = { all: "All songs", done: "Done", failed: "Failed", unheard: "Not heard", favourites: "Favourites" };
const SORTS = {
  made: "In order",
  title: "By title",
  longest: "Longest first",
  shortest: "Shortest first",
  fastest: "Fastest first",
  slowest: "Slowest first",
};
const ACTIONS = {
  toggle: togglePlay,
  back: () => seekBy(-1),
  forward: () => seekBy(1),
  next: () => playNext(),
  previous: () => playPrevious(),
};

// Fills a container of the page, and starts the player. `mayGrow` says whether more songs may come.
export function createToolbar(container, { mayGrow }) {
  let filter = NO_FILTER;
  const change = (field, value) => {
    filter = { ...filter, [field]: value };
    setFilter(needsAllSongs(filter) ? filter : NO_FILTER);
  };
  const play = button("Play all", "play", togglePlayAll);
  const text = element("input", "");
  Object.assign(text, { type: "search", placeholder: "Filter", maxLength: 200 });
  text.setAttribute("aria-label", "Filter by title, prompt or tag");
  text.addEventListener("input", () => change("text", text.value));
  const show = choice("Show", SHOWN, (value) => change("show", value));
  const tag = choice("Tag", {}, (value) => change("tag", value));
  // Else it would offer only the tags of the songs that the viewer has scrolled to.
  tag.addEventListener("focus", readAllSongs);
  const sort = choice("Sort", SORTS, (value) => change("sort", value));
  const shownCount = status();
  const downloaded = status();
  const download = createDownload(downloaded);
  container.append(
    element("div", "tools", play, text, show, tag, sort, download, createKeys()),
    element("p", "facts", shownCount),
    element("p", "facts", downloaded),
  );

  const changed = () => {
    const text = playsEverything() ? "Pause" : "Play all";
    if (play.textContent !== text) play.replaceChildren(icon(playsEverything() ? "pause" : "play"), text);
  };
  setPlaylist({ cards: cardsInOrder, isPlayable, read: readCard, mayGrow, findStoredUrl, changed });
  listenForChanges(() => {
    const cards = cardsInOrder().filter((card) => !card.isMissing);
    container.hidden = cards.length < 2;
    fillTags(tag, knownTags());
    setText(shownCount, filter === NO_FILTER || !needsAllSongs(filter) ? "" : describeShown(cards));
    listChanged();
  });
}

function describeShown(cards) {
  const unread = cards.filter((card) => card.song === undefined).length;
  const count = cards.filter((card) => card.song !== undefined && isShown(card)).length;
  const text = `Shows ${count.toLocaleString("en")} of ${cards.length.toLocaleString("en")} songs`;
  return unread > 0 ? `${text}, and reads ${unread.toLocaleString("en")} more…` : text;
}

function createDownload(report) {
  // Of the download that is running, null if there is none.
  let running = null;
  const created = button("Download all", null, async () => {
    if (running !== null) {
      running.abort();
      return;
    }
    running = new AbortController();
    created.textContent = "Stop";
    setText(report, "Reading the songs…");
    await Promise.all(cardsInOrder().map(readCard));
    const songs = cardsInOrder().filter((card) => card.song?.status === "completed" && isShown(card));
    await downloadAll(
      songs.map((card) => card.song),
      (words) => setText(report, words),
      running.signal,
    );
    running = null;
    created.textContent = "Download all";
  });
  created.title = "Download all songs that are shown";
  return created;
}

function createKeys() {
  const on = element("input", "");
  on.type = "checkbox";
  on.checked = readKept(KEYS_ARE_ON) !== false;
  on.addEventListener("change", () => keep(KEYS_ARE_ON, on.checked));
  listenForKeys((action) => on.checked && ACTIONS[action]() !== false);
  const label = element("label", "", on, " Use them");
  return element("details", "keys", element("summary", "", "Keys"), element("p", "", KEYS), label);
}

function fillTags(select, tags) {
  const values = ["", ...tags];
  if (values.length === select.options.length && values.every((tag, at) => select.options[at].value === tag)) return;
  const chosen = select.value;
  select.replaceChildren(...values.map((tag) => new Option(tag || "All tags", tag)));
  if (values.includes(chosen)) select.value = chosen;
}

function choice(label, options, change) {
  const select = element("select", "");
  select.append(...Object.entries(options).map(([value, text]) => new Option(text, value)));
  select.setAttribute("aria-label", label);
  select.addEventListener("change", () => change(select.value));
  return select;
}

function button(label, iconName, press) {
  const created = element("button", "tool", iconName && icon(iconName), label);
  created.type = "button";
  created.addEventListener("click", press);
  return created;
}

function status() {
  const created = element("span", "");
  created.setAttribute("role", "status");
  return created;
}
