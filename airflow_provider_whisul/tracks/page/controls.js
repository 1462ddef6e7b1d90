// The buttons of a card: play, favourite, and the mark of a song that was heard.

import { element, keepFocus, textOrNull, urlOrNull } from "./elements.js";
import { icon } from "./icons.js";
import { FAVOURITE, HEARD, hasMark, setMark } from "./marks.js";
import { isCurrent, isPlaying, toggleCard } from "./player.js";

export function createControls(card, title) {
  const job = textOrNull(card.song.job_id);
  const container = element("div", "controls");
  const word = element("span", "");
  const play = element("button", "play", icon("play"), word);
  play.type = "button";
  play.addEventListener("click", (event) => {
    // After the mouse the space bar is to pause what plays then, not to press this button again.
    if (event.detail > 0) play.blur();
    toggleCard(card);
  });
  const heard = element("span", "heard", "Heard");
  const favourite = element("button", "icon", icon("star"));
  favourite.type = "button";
  favourite.setAttribute("aria-label", `Favourite ${title}`);
  favourite.title = "Favourite";
  favourite.addEventListener("click", () => {
    setMark(FAVOURITE, job, !hasMark(FAVOURITE, job));
    showMarks();
  });
  let broken = null;

  const showMarks = () => {
    favourite.setAttribute("aria-pressed", String(hasMark(FAVOURITE, job)));
    heard.hidden = !hasMark(HEARD, job);
  };
  const showBroken = (reason = "The song cannot be played.") => {
    broken = element("p", "broken", reason);
    keepFocus(container, [".broken"], () => play.replaceWith(broken));
  };
  const update = () => {
    const plays = isPlaying(card);
    if (plays && broken !== null) {
      broken.replaceWith(play);
      broken = null;
    }
    card.item.classList.toggle("current", isCurrent(card));
    showMarks();
    if (play.dataset.plays === String(plays)) return;
    play.dataset.plays = plays;
    word.textContent = plays ? "Pause" : "Play";
    play.setAttribute("aria-label", `${word.textContent} ${title}`);
    play.firstChild.replaceWith(icon(plays ? "pause" : "play"));
  };

  container.append(play, favourite, heard);
  update();
  favourite.hidden = job === null;
  const addresses = [card.song.song_url, card.song.stored_url].map(urlOrNull);
  if (addresses.every((url) => url === null)) showBroken("There is no address to play it from.");
  return { container, update, showBroken, isBroken: () => broken !== null };
}
