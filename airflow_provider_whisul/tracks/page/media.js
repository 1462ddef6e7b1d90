// Images and players for covers and songs, whose requests never carry the viewer's session.
//
// The browser sends Airflow's cookie with every request to Airflow's host name, whatever the port, also where a media
// host redirects there: to the URL that logs out, say. So a file is requested with CORS and without credentials. Most
// hosts that do not support CORS still work in a frame whose policy allows no other host, redirects included. The frame
// is a document of this page's own origin, so that the page can drive the player in it.

import { element } from "./elements.js";

const hostsWithoutCors = new Set();
// Hosts that may stand in a policy as they are. Others, such as IPv6 addresses, have no place in its grammar.
const HOST = /^[a-z0-9.-]+$/;

// Fills a container with an `img` or `audio` element, once more if the host does not support CORS. `prepare` gets each
// new element before its URL is set. An element that is there already is used again: browsers let a player that the
// viewer has started go on to another song. `fail` is called when the file cannot be loaded, or can no longer be.
export function loadMedia(container, name, url, label, prepare, fail) {
  const { origin, hostname } = new URL(url);
  // Cookies do not distinguish ports.
  const mayBeFramed = hostname !== location.hostname && HOST.test(hostname);

  const showInFrame = (media) => {
    for (const event of ["load", "loadedmetadata"]) {
      media.addEventListener(event, () => hostsWithoutCors.add(origin), { once: true });
    }
    media.onerror = fail;
    media.src = url;
  };

  const inFrame = () => {
    const policy =
      '<!doctype html><meta http-equiv="Content-Security-Policy" content="' +
      `default-src 'none'; img-src ${origin}; media-src ${origin}">`;
    const old = container.firstChild;
    const media = old?.srcdoc === policy ? old.contentDocument.querySelector(name) : null;
    if (media !== null) {
      old.title = label;
      showInFrame(media);
      return;
    }
    const frame = element("iframe", "media");
    frame.title = label;
    frame.srcdoc = policy;
    frame.addEventListener("load", () => {
      const page = frame.contentDocument;
      page.documentElement.style.colorScheme = document.documentElement.classList.contains("dark") ? "dark" : "light";
      Object.assign(page.body.style, { margin: 0, background: "transparent" });
      const created = page.createElement(name);
      Object.assign(created.style, { display: "block", width: "100%", height: "100vh", objectFit: "cover" });
      prepare(created);
      showInFrame(created);
      page.body.append(created);
    });
    container.replaceChildren(frame);
  };

  if (mayBeFramed && hostsWithoutCors.has(origin)) {
    inFrame();
    return;
  }
  let media = container.firstChild;
  if (media?.localName !== name) {
    media = document.createElement(name);
    media.crossOrigin = "anonymous";
    prepare(media);
    container.replaceChildren(media);
  }
  media.onerror = () => {
    // The viewer, or a refresh, has replaced it.
    if (!media.isConnected) return;
    // A song of which something was loaded has failed for another reason.
    if (mayBeFramed && !media.readyState) inFrame();
    else fail();
  };
  media.src = url;
}
