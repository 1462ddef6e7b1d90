// The card of a song: empty, with the song, with the reason why there is none, with the prompt of a song that is
// pending, or with the reason why it was not read.

import { createControls } from "./controls.js";
import { createCover } from "./cover.js";
import { formatDuration } from "./durations.js";
import { element, keepFocus, outsideText, setText, textOrNull, urlOrNull } from "./elements.js";
import { tagsOf } from "./filters.js";
import { downloadLink, openLink } from "./song_links.js";

const UNREADABLE =
  "Its data is kept outside Airflow's database, by an XCom backend of your own, where this page cannot read it.";

// `entry` is the XCom entry that holds the song, `near` whether the card is near the viewport.
export function createCard(entry) {
  const body = element("div", "body", element("p", "hidden", "Loading"));
  const item = element("li", "card", element("div", "cover"), body);
  item.setAttribute("aria-busy", "true");
  return {
    entry,
    item,
    near: false,
    media: [],
    // Undefined until it was read, and null where the page cannot read it.
    song: undefined,
    // Whether the entry has no song for this card.
    isMissing: false,
    controls: null,
    shown: null,
    loadError: null,
  };
}

export function setNear(card, near) {
  card.near = near;
  for (const media of card.media) {
    if (near) media.mount();
    else media.unmount();
  }
}

export function showSong(card, song) {
  // What is shown already stays as it is.
  const shown = JSON.stringify(song);
  if (card.shown === shown) return;
  card.song = song !== null && typeof song === "object" ? song : null;
  fill(card, () => {
    if (card.song === null) fillWithMessage(card, UNREADABLE);
    else if (song.status === "failed") fillWithFailure(card, song);
    else if (song.status === "pending") fillWithPending(card, song);
    else fillWithSong(card, song);
  });
  card.shown = shown;
}

// Shows that the song could not be read. `retry` reads it again. A card that shows the song already keeps it.
export function showLoadError(card, message, retry) {
  if (card.shown !== null) return;
  // If the card shows an error already, only the text changes, so that the button keeps the focus.
  if (card.loadError) setText(card.loadError, message);
  else fill(card, () => fillWithMessage(card, message, retry));
}

function fill(card, change) {
  card.loadError = null;
  card.item.classList.remove("failed", "pending", "current");
  const onPlay = document.activeElement?.classList.contains("play") ? ["button.play"] : [];
  keepFocus(card.item, [...onPlay, "h3", ".broken"], change);
  card.item.removeAttribute("aria-busy");
  if (card.near) for (const media of card.media) media.mount();
}

function fillWithSong(card, song) {
  const title = textOrNull(song.title) ?? "Untitled";
  const facts = [];
  if (song.bpm >= 0 && Number.isFinite(song.bpm)) facts.push(`${song.bpm} bpm`);
  const duration = song.duration_seconds;
  if (duration >= 0 && Number.isFinite(duration)) facts.push(formatDuration(duration));
  const stored = textOrNull(song.stored_as);
  const [oldCover] = card.media;
  const cover = oldCover?.source === song.image_url ? oldCover : createCover(song.image_url, title);
  card.controls = createControls(card, title);
  const body = element(
    "div",
    "body",
    outsideText("h3", "title", title),
    promptElement(song),
    facts.length ? element("p", "facts", facts.join(" · ")) : null,
    stored && outsideText("p", "job", `Stored as ${stored}`),
    tagsElement(song),
    card.controls.container,
    actionsElement(song, title),
  );
  card.item.replaceChildren(cover.container, body);
  card.media = [cover];
}

function fillWithFailure(card, song) {
  card.item.classList.add("failed");
  const job = textOrNull(song.job_id);
  const reason = textOrNull(song.error) ?? "No reason was given.";
  const heading = textOrNull(song.prompt) ?? (job === null ? "No song" : `Job ${job}`);
  showBare(
    card,
    "Failed",
    outsideText("h3", "title", heading),
    outsideText("p", "reason", reason),
    job === null || reason.includes(job) || heading.includes(job) ? null : element("p", "job", `Job ${job}`),
  );
}

function fillWithPending(card, song) {
  card.item.classList.add("pending");
  const job = textOrNull(song.job_id);
  const since = new Date(textOrNull(song.since) ?? "");
  const time = Number.isNaN(since.getTime()) ? null : element("time", "", since.toLocaleString());
  if (time !== null) time.dateTime = since.toISOString();
  showBare(
    card,
    // Without a time it is of a batch, which may be finished: its task is told in steps.
    time === null ? "Pending" : "Being made",
    outsideText("h3", "title", textOrNull(song.prompt) ?? (job === null ? "A song" : `Job ${job}`)),
    time && element("p", "facts", "Since ", time),
    job === null ? null : element("p", "job", `Job ${job}`),
  );
}

function fillWithMessage(card, text, retry = null) {
  const message = element("p", "broken", text);
  let button = null;
  if (retry !== null) {
    button = element("button", "", "Try again");
    button.type = "button";
    button.addEventListener("click", () => {
      // Only from here on: a screen reader need not announce the errors of all other cards.
      message.setAttribute("role", "status");
      setText(message, "Loading it again…");
      retry();
    });
    card.loadError = message;
  }
  showBare(card, null, message, button);
}

// A card without media.
function showBare(card, label, ...children) {
  card.media = [];
  card.controls = null;
  const cover = element("div", "cover", label && element("p", "", label));
  card.item.replaceChildren(cover, element("div", "body", ...children));
}

function promptElement(song) {
  const prompt = textOrNull(song.prompt);
  if (prompt === null) return null;
  const created = outsideText("p", "prompt", prompt);
  created.title = prompt;
  return created;
}

function tagsElement(song) {
  const tags = tagsOf(song);
  if (tags.length === 0) return null;
  const list = element("ul", "tags", ...tags.map((tag) => outsideText("li", "", tag)));
  list.setAttribute("aria-label", "Tags");
  list.title = tags.join(", ");
  return list;
}

function actionsElement(song, title) {
  const url = urlOrNull(song.song_url);
  if (url === null) return null;
  const status = element("span", "facts");
  status.setAttribute("role", "status");
  return element("p", "actions", openLink(title, url), downloadLink(title, url, status), status);
}
