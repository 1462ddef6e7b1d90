// The cover of a song.

import { element, urlOrNull } from "./elements.js";
import { loadMedia } from "./media.js";

export function createCover(source, title) {
  const container = element("div", "cover");
  const url = urlOrNull(source);
  let broken = false;
  const showMessage = (message) => {
    broken = true;
    container.replaceChildren(element("p", "", message));
  };
  const prepare = (image) => {
    image.alt = `Cover of ${title}`;
    image.decoding = "async";
    image.referrerPolicy = "no-referrer";
  };
  if (url === null) showMessage("No cover");
  return {
    container,
    source,
    mount() {
      if (broken || container.firstChild !== null) return;
      loadMedia(container, "img", url, `Cover of ${title}`, prepare, () => showMessage("The cover cannot be shown."));
    },
    unmount() {
      // A frame takes more memory than an image.
      if (container.firstChild?.localName === "iframe") container.replaceChildren();
    },
  };
}
