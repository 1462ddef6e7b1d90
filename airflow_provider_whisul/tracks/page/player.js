// The player of a song.

import { element, keepFocus, urlOrNull } from "./elements.js";
import { loadMedia } from "./media.js";

let playing = null;

function playAlone(audio) {
  if (playing !== audio) playing?.pause();
  playing = audio;
}

// The audio element exists only while the card is near the viewport: a thousand of them would make the page slow.
export function createPlayer(source, title) {
  const container = element("div", "player");
  let url = urlOrNull(source);
  // Another address of the same song, for when this one works no longer.
  let nextUrl = null;
  let audio = null;
  let broken = false;
  const fail = (message) => {
    broken = true;
    audio = null;
    keepFocus(container, ".broken", () => container.replaceChildren(element("p", "broken", message)));
  };
  const prepare = (created) => {
    audio = created;
    audio.controls = true;
    audio.preload = "none";
    audio.setAttribute("aria-label", `Play ${title}`);
    audio.addEventListener("play", () => playAlone(created));
  };
  const load = () => {
    loadMedia(container, "audio", url, `Play ${title}`, prepare, () => {
      if (nextUrl === null) {
        fail("The song cannot be played.");
        return;
      }
      [url, nextUrl] = [nextUrl, null];
      load();
    });
  };
  if (url === null) fail("There is no address to play it from.");
  return {
    container,
    source,
    isPlaying: () => audio !== null && !audio.paused,
    setNextSource(next) {
      const found = urlOrNull(next);
      nextUrl = found === url ? null : found;
    },
    mount() {
      if (!broken && container.firstChild === null) load();
    },
    unmount() {
      const focused = container.contains(document.activeElement);
      if (broken || focused || (audio !== null && (!audio.paused || audio.currentTime > 0))) return;
      audio = null;
      container.replaceChildren();
    },
  };
}
