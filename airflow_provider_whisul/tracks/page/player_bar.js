// The bar at the bottom: what plays, buttons, position and volume.

import { keep, readKept } from "./browser_storage.js";
import { formatDuration } from "./durations.js";
import { element, setText } from "./elements.js";
import { icon } from "./icons.js";

const VOLUME = "volume";

let bar = null;

// `actions` are called by the buttons, `currentMedia` returns the element that plays, null if there is none.
export function createBar({ toggle, next, previous, seek, find }, currentMedia) {
  if (bar !== null) return;
  const title = element("button", "now");
  title.type = "button";
  title.dir = "auto";
  title.addEventListener("click", find);
  const message = element("p", "facts");
  message.setAttribute("role", "status");
  const play = button("Play", "play", toggle);
  const position = slider("Position", 1);
  const time = element("p", "time");
  position.addEventListener("input", () => seek(Number(position.value)));
  const volume = slider("Volume", 0.05);
  volume.max = 1;
  const mute = button("Mute", "sound", () => {
    settings.muted = !settings.muted;
    apply();
  });
  const kept = readKept(VOLUME);
  const settings = { level: kept?.level >= 0 && kept.level <= 1 ? kept.level : 1, muted: kept?.muted === true };
  const apply = () => {
    keep(VOLUME, settings);
    showVolume();
  };
  const showVolume = () => {
    const audio = currentMedia();
    if (audio !== null) [audio.volume, audio.muted] = [settings.level, settings.muted];
    volume.value = settings.muted ? 0 : settings.level;
    volume.setAttribute("aria-valuetext", settings.muted ? "Muted" : `${Math.round(settings.level * 100)} %`);
    mute.replaceChildren(icon(settings.muted ? "muted" : "sound"));
    mute.setAttribute("aria-pressed", String(settings.muted));
  };
  volume.addEventListener("input", () => {
    [settings.level, settings.muted] = [Number(volume.value), false];
    apply();
  });
  const player = element("div", "");
  player.hidden = true;
  const buttons = element("div", "buttons", button("Previous song", "previous", previous), play);
  buttons.append(button("Next song", "next", next));
  const container = element(
    "section",
    "bar",
    element("div", "what", title, message),
    buttons,
    element("div", "position", position, time),
    element("div", "volume", mute, volume),
    player,
  );
  container.setAttribute("aria-label", "Player");
  container.hidden = true;
  document.body.append(container);
  bar = { container, title, message, play, position, time, player, showVolume };
}

// Shows the bar, with what plays if that is given, and returns the container of the element that plays.
export function showBar(shown = null) {
  bar.container.hidden = false;
  document.documentElement.classList.add("with-bar");
  bar.showVolume();
  if (shown === null) return bar.player;
  const { title, isPlaying, seconds, total, message } = shown;
  setText(bar.title, title);
  bar.title.title = `Show ${title}`;
  setText(bar.message, message);
  const label = isPlaying ? "Pause" : "Play";
  if (bar.play.getAttribute("aria-label") !== label) {
    bar.play.setAttribute("aria-label", label);
    bar.play.title = label;
    bar.play.replaceChildren(icon(isPlaying ? "pause" : "play"));
  }
  const at = Math.floor(seconds);
  bar.position.max = Math.max(total, seconds, 1);
  bar.position.value = seconds;
  bar.position.setAttribute("aria-valuetext", `${formatDuration(at)} of ${formatDuration(total)}`);
  setText(bar.time, `${formatDuration(at)} / ${formatDuration(total)}`);
  return bar.player;
}

export function clearBar() {
  if (bar === null) return;
  bar.player.replaceChildren();
  bar.container.hidden = true;
  document.documentElement.classList.remove("with-bar");
  setText(bar.title, "");
  bar.title.title = "";
}

function button(label, name, press) {
  const created = element("button", "icon", icon(name));
  created.type = "button";
  created.title = label;
  created.setAttribute("aria-label", label);
  created.addEventListener("click", press);
  return created;
}

function slider(label, step) {
  const created = element("input", "");
  Object.assign(created, { type: "range", min: 0, max: 1, step, value: 0 });
  created.setAttribute("aria-label", label);
  return created;
}
