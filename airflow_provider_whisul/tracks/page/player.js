// Plays the songs of the page, one after the other, in the bar at the bottom.

import { textOrNull, urlOrNull } from "./elements.js";
import { HEARD, setMark } from "./marks.js";
import { loadMedia } from "./media.js";
import { clearBar, createBar, showBar } from "./player_bar.js";
import { findNext, indexOfCurrent } from "./playlist.js";

// After as many songs in a row that cannot be played, play does not go on to the next one by itself.
const MAX_FAILURES = 3;
const SEEK_SECONDS = 5;
const RESTART_SECONDS = 3;

// What the page hands to the player: `cards()` are all cards of the page in their order, `isPlayable(card)` is null for
// one that was not read yet, `read(card)` reads it, `mayGrow()` says whether more songs may come, and
// `findStoredUrl(job, tasksUrl)` resolves to the address of a stored song of a run, or to null. `changed()` is called when
// the player plays something else, or pauses.
let page = null;
// The song in the bar, null if there is none.
let current = null;
let media = null;
let wantsToPlay = false;
let playsAll = false;
let waitsForMore = false;
// Whether there was no song left.
let hasEnded = false;
let message = "";
let failures = 0;
let lastIndex = 0;
let searches = 0;
// The jobs that were played since "Play all" was pressed, and whether only others are still to be played: those that
// have come since.
let played = new Set();
let playsRest = false;

export function setPlaylist(playlist) {
  page = playlist;
  const find = () => current?.card.item.scrollIntoView({ block: "center" });
  createBar({ toggle: togglePlay, next: playNext, previous: playPrevious, seek: seekTo, find }, () => media);
}

// Plays the song of a card, or pauses it.
export function toggleCard(card) {
  if (isCurrent(card)) togglePlay();
  else {
    playsRest = false;
    start(card, false);
  }
}

export function isCurrent(card) {
  return current !== null && current.card === card && current.job === jobOf(card);
}

export function isPlaying(card) {
  return wantsToPlay && isCurrent(card);
}

export function playsEverything() {
  return playsAll && wantsToPlay;
}

// Plays all songs from the top, or pauses that, or goes on with it.
export function togglePlayAll() {
  if (playsAll && current !== null && !hasEnded) {
    togglePlay();
    return;
  }
  playsAll = true;
  played = new Set();
  playsRest = false;
  failures = 0;
  // From the top.
  advance(() => -1, 1, true);
}

export function playNext() {
  playsRest = false;
  goOn();
}

// From its first seconds on a song starts again instead.
export function playPrevious() {
  if ((media?.currentTime ?? 0) > RESTART_SECONDS) seekTo(0);
  else {
    playsRest = false;
    advance(currentIndex, -1, true);
  }
}

// Each returns whether there is a song that it is about.
export function togglePlay() {
  if (current === null) return false;
  wantsToPlay = !wantsToPlay;
  if (current.hasFailed) {
    start(current.card, false);
    return true;
  }
  [waitsForMore, message] = [false, ""];
  if (wantsToPlay) beginToPlay();
  else if (media !== null) {
    media.autoplay = false;
    media.pause();
  }
  show();
  return true;
}

function beginToPlay() {
  const begun = media;
  if (begun === null) return;
  begun.autoplay = true;
  begun.play().catch((error) => {
    // The browser wants the viewer to press play. All other errors are those of loading, or of another song's start.
    if (error.name !== "NotAllowedError" || begun !== media) return;
    wantsToPlay = false;
    show();
  });
}

export function seekBy(direction) {
  return seekTo((media?.currentTime ?? 0) + direction * SEEK_SECONDS);
}

function seekTo(seconds) {
  if (current === null || media === null || !Number.isFinite(media.duration)) return false;
  media.currentTime = Math.min(Math.max(seconds, 0), media.duration);
  show();
  return true;
}

// Goes on to songs that have come since, where "Play all" has played all others.
export function listChanged() {
  if (waitsForMore) goOn();
}

// Removes the bar, and what it says of a song.
export function stop() {
  searches += 1;
  const last = current;
  [current, media, wantsToPlay, playsAll, waitsForMore, message] = [null, null, false, false, false, ""];
  clearBar();
  last?.card.controls?.update();
  page.changed();
}

function jobOf(card) {
  return textOrNull(card.song?.job_id);
}

function currentIndex() {
  if (current === null) return -1;
  const cards = page.cards();
  const index = indexOfCurrent(cards, current.card, lastIndex);
  if (cards[index] === current.card) lastIndex = index;
  return index;
}

function goOn() {
  advance(currentIndex, 1, true);
}

// Plays the next song in a direction. Cards that were not read yet are read until there is one. `startIndex` is called
// again after each: the list may have changed meanwhile.
async function advance(startIndex, step, goesOn) {
  searches += 1;
  const search = searches;
  const unreadable = new Set();
  const isPlayable = (card) => (unreadable.has(card) ? false : page.isPlayable(card));
  const isNew = (card) => (card.song && (jobOf(card) === null || played.has(jobOf(card))) ? false : isPlayable(card));
  for (;;) {
    const cards = page.cards();
    let next = playsRest ? null : findNext(cards, startIndex(), step, isPlayable);
    if (next === null && playsAll && step > 0) {
      // Songs that have come since may be above those that were played.
      playsRest = true;
      next = findNext(cards, -1, 1, isNew);
    }
    if (next === null) {
      end(step);
      return;
    }
    if (isPlayable(next) === true) {
      start(next, goesOn);
      return;
    }
    await page.read(next);
    if (search !== searches) return;
    if (isPlayable(next) === null) unreadable.add(next);
  }
}

function end(step) {
  if (step < 0) return;
  hasEnded = true;
  waitsForMore = playsAll && page.mayGrow();
  if (current === null) return;
  message = waitsForMore ? "Waiting for more songs" : "";
  show();
}

// `goesOn` says whether another song is tried if this one cannot be played.
function start(card, goesOn) {
  searches += 1;
  if (!goesOn) failures = 0;
  const last = current;
  const title = textOrNull(card.song.title) ?? "Untitled";
  const seconds = Number.isFinite(card.song.duration_seconds) ? card.song.duration_seconds : 0;
  current = { card, job: jobOf(card), title, seconds, goesOn, tried: new Set(), resumeAt: 0 };
  lastIndex = page.cards().indexOf(card);
  [wantsToPlay, waitsForMore, hasEnded, message] = [true, false, false, ""];
  if (current.job !== null) played.add(current.job);
  last?.card.controls?.update();
  show();
  loadFrom(current);
}

// Loads a song from the first of its addresses that was not tried yet.
async function loadFrom(song) {
  const url = await nextUrl(song);
  if (song !== current) return;
  if (url === null) {
    fail(song);
    return;
  }
  song.tried.add(url);
  const container = showBar();
  const [lastMedia, lastContent] = [media, container.firstChild];
  loadMedia(container, "audio", url, `Player of ${song.title}`, prepare, () => {
    if (song !== current) return;
    // An address that was tried meanwhile has none.
    song.resumeAt = media?.currentTime || song.resumeAt;
    loadFrom(song);
  });
  // A frame has none before it is loaded.
  if (media === lastMedia && container.firstChild !== lastContent) media = null;
  if (wantsToPlay) beginToPlay();
  else if (media !== null) media.autoplay = false;
}

// The address of a song may change, such as where it is signed again.
async function nextUrl(song) {
  const isNew = (url) => url !== null && !song.tried.has(url);
  const latest = jobOf(song.card) === song.job ? song.card.song : null;
  const known = [latest?.song_url, latest?.stored_url].map(urlOrNull).find(isNew);
  if (known !== undefined) return known;
  const stored = song.job === null ? null : urlOrNull(await page.findStoredUrl(song.job, song.card.entry.tasksUrl));
  return isNew(stored) ? stored : null;
}

function fail(song) {
  failures += 1;
  wantsToPlay = false;
  song.hasFailed = true;
  message = failures < MAX_FAILURES ? "It cannot be played." : `${failures} songs in a row cannot be played.`;
  show();
  if (jobOf(song.card) === song.job) song.card.controls?.showBroken();
  if (song.goesOn && failures < MAX_FAILURES) goOn();
}

function prepare(created) {
  media = created;
  created.preload = "none";
  created.autoplay = wantsToPlay;
  const on = (name, handle) =>
    created.addEventListener(name, () => {
      if (created !== media || current === null) return;
      handle();
      show();
    });
  on("loadedmetadata", () => {
    if (current.resumeAt > 0) created.currentTime = current.resumeAt;
  });
  on("timeupdate", () => {
    if (created.currentTime >= created.duration / 2) markHeard();
  });
  on("durationchange", () => {});
  on("playing", () => {
    failures = 0;
  });
  on("play", () => {
    wantsToPlay = true;
  });
  on("pause", () => {
    // Such as by a key of the keyboard for media. A song that ends or cannot be loaded pauses, too.
    if (!created.ended && created.readyState > 0) wantsToPlay = false;
  });
  on("ended", () => {
    markHeard();
    wantsToPlay = false;
    goOn();
  });
}

function markHeard() {
  if (current.job === null || current.isHeard) return;
  current.isHeard = true;
  setMark(HEARD, current.job, true);
}

function show() {
  if (current === null) return;
  showBar({
    title: current.title,
    isPlaying: wantsToPlay,
    seconds: media?.currentTime ?? 0,
    total: Number.isFinite(media?.duration) ? media.duration : current.seconds,
    message,
  });
  current.card.controls?.update();
  page.changed();
}
