// The player of a song.

import { element, keepFocus, urlOrNull } from "./elements.js";

// The audio element exists only while the card is near the viewport: a thousand of them would make the page slow.
export function createPlayer(song, title) {
  const container = element("div", "player");
  const url = urlOrNull(song.song_url);
  let audio = null;
  let broken = false;
  const fail = (message) => {
    broken = true;
    audio = null;
    keepFocus(container, ".broken", () => container.replaceChildren(element("p", "broken", message)));
  };
  if (url === null) fail("There is no address to play it from.");
  return {
    container,
    mount() {
      if (audio !== null || broken) return;
      audio = document.createElement("audio");
      audio.controls = true;
      audio.preload = "none";
      audio.setAttribute("aria-label", `Play ${title}`);
      audio.addEventListener("error", () => fail("The song cannot be played."));
      audio.src = url;
      container.replaceChildren(audio);
    },
    unmount() {
      const inUse = audio !== null && (!audio.paused || audio.currentTime > 0 || document.activeElement === audio);
      if (audio === null || inUse) return;
      audio = null;
      container.replaceChildren();
    },
  };
}

export function playOneSongAtATime() {
  document.addEventListener(
    "play",
    (event) => {
      for (const audio of document.querySelectorAll("audio")) if (audio !== event.target) audio.pause();
    },
    // Media events do not bubble.
    true,
  );
}
