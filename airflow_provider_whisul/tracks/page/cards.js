// The card of a song: empty, with the song, with the reason why there is none, or with the reason why it was not read.

import { element, keepFocus, outsideText, setText, textOrNull, urlOrNull } from "./elements.js";
import { createPlayer } from "./player.js";
import { downloadLink, openLink } from "./song_links.js";

const UNREADABLE =
  "Its data is kept outside Airflow's database, by an XCom backend of your own, where this page cannot read it.";

// `entry` is the XCom entry that holds the song, `near` whether the card is near the viewport.
export function createCard(entry) {
  const body = element("div", "body", element("p", "hidden", "Loading"));
  const item = element("li", "card", element("div", "cover"), body);
  item.setAttribute("aria-busy", "true");
  return { entry, item, near: false, player: null, loadError: null };
}

export function setNear(card, near) {
  card.near = near;
  if (near) card.player?.mount();
  else card.player?.unmount();
}

export function showSong(card, song) {
  fill(card, () => {
    if (song === null || typeof song !== "object") fillWithMessage(card, UNREADABLE);
    else if (song.status === "failed") fillWithFailure(card, song);
    else fillWithSong(card, song);
  });
}

// Shows that the song could not be read. `retry` reads it again.
export function showLoadError(card, message, retry) {
  // If the card shows an error already, only the text changes, so that the button keeps the focus.
  if (card.loadError) setText(card.loadError, message);
  else fill(card, () => fillWithMessage(card, message, retry));
}

function fill(card, change) {
  card.loadError = null;
  keepFocus(card.item, "h3, .broken", change);
  card.item.removeAttribute("aria-busy");
  if (card.near) card.player?.mount();
}

function fillWithSong(card, song) {
  const title = textOrNull(song.title) ?? "Untitled";
  const facts = [];
  if (Number.isFinite(song.bpm)) facts.push(`${song.bpm} bpm`);
  if (Number.isFinite(song.duration_seconds)) facts.push(formatDuration(song.duration_seconds));
  const player = createPlayer(song, title);
  card.item.replaceChildren(
    coverElement(song, title),
    element(
      "div",
      "body",
      outsideText("h3", "title", title),
      promptElement(song),
      facts.length ? element("p", "facts", facts.join(" · ")) : null,
      tagsElement(song),
      player.container,
      actionsElement(song, title),
    ),
  );
  card.player = player;
}

function fillWithFailure(card, song) {
  card.item.classList.add("failed");
  const job = textOrNull(song.job_id);
  const prompt = textOrNull(song.prompt);
  const reason = textOrNull(song.error) ?? "No reason was given.";
  card.item.replaceChildren(
    element("div", "cover", element("p", "", "Failed")),
    element(
      "div",
      "body",
      outsideText("h3", "title", prompt ?? "No song"),
      outsideText("p", "reason", reason),
      job === null || reason.includes(job) ? null : element("p", "job", `Job ${job}`),
    ),
  );
}

function fillWithMessage(card, text, retry = null) {
  const message = element("p", "broken", text);
  const body = element("div", "body", message);
  if (retry !== null) {
    const button = element("button", "", "Try again");
    button.type = "button";
    button.addEventListener("click", () => {
      // Only from here on: a screen reader need not announce the errors of all other cards.
      message.setAttribute("role", "status");
      setText(message, "Loading it again…");
      retry();
    });
    body.append(button);
    card.loadError = message;
  }
  card.item.replaceChildren(element("div", "cover"), body);
}

function coverElement(song, title) {
  const cover = element("div", "cover");
  const url = urlOrNull(song.image_url);
  const showMessage = (message) => cover.replaceChildren(element("p", "", message));
  if (url === null) {
    showMessage("No cover");
    return cover;
  }
  const image = document.createElement("img");
  image.alt = `Cover of ${title}`;
  image.loading = "lazy";
  image.decoding = "async";
  image.referrerPolicy = "no-referrer";
  image.addEventListener("error", () => showMessage("The cover cannot be shown."));
  image.src = url;
  cover.append(image);
  return cover;
}

function promptElement(song) {
  const prompt = textOrNull(song.prompt);
  if (prompt === null) return null;
  const created = outsideText("p", "prompt", prompt);
  created.title = prompt;
  return created;
}

function tagsElement(song) {
  const tags = Array.isArray(song.tags) ? song.tags.map(textOrNull).filter((tag) => tag !== null) : [];
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

function formatDuration(seconds) {
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}
