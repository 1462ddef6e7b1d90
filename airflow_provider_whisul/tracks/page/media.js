// Images and players for covers and songs, whose requests never carry the viewer's session.
//
// The browser sends Airflow's cookie with every request to Airflow's host name, whatever the port, also where a media
// host redirects there: to the URL that logs out, say. So a file is requested with CORS and without credentials. Most
// hosts that do not support CORS still work in a frame whose policy allows no other host, redirects included.

import { element } from "./elements.js";

const hostsWithoutCors = new Set();
// Hosts that may stand in a policy as they are. Others, such as IPv6 addresses, have no place in its grammar.
const HOST = /^[a-z0-9.-]+$/;

// Fills a container with an `img` or `audio` element, once more if the host does not support CORS. `prepare` gets each
// element before its URL is set. `fail` is called when the file cannot be loaded, or can no longer be.
export function loadMedia(container, name, url, label, prepare, fail) {
  const { origin, hostname } = new URL(url);
  // Cookies do not distinguish ports.
  const mayBeFramed = hostname !== location.hostname && HOST.test(hostname);

  const inFrame = (play) => {
    const frame = element("iframe", "media");
    frame.title = label;
    frame.srcdoc =
      '<!doctype html><meta http-equiv="Content-Security-Policy" content="' +
      `default-src 'none'; img-src ${origin}; media-src ${origin}">`;
    frame.addEventListener("load", () => {
      const page = frame.contentDocument;
      page.documentElement.style.colorScheme = document.documentElement.classList.contains("dark") ? "dark" : "light";
      Object.assign(page.body.style, { margin: 0, background: "transparent" });
      const media = page.createElement(name);
      Object.assign(media.style, { display: "block", width: "100%", height: "100vh", objectFit: "cover" });
      prepare(media);
      for (const event of ["load", "loadedmetadata"]) {
        media.addEventListener(event, () => hostsWithoutCors.add(origin), { once: true });
      }
      media.addEventListener("error", fail);
      media.src = url;
      page.body.append(media);
      if (play) media.play().catch(() => {});
    });
    container.replaceChildren(frame);
  };

  if (mayBeFramed && hostsWithoutCors.has(origin)) {
    inFrame(false);
    return;
  }
  const media = document.createElement(name);
  media.crossOrigin = "anonymous";
  prepare(media);
  media.addEventListener("error", () => {
    // The viewer, or a refresh, has replaced it.
    if (!media.isConnected) return;
    // A song of which something was loaded has failed for another reason.
    if (mayBeFramed && !media.readyState) inFrame(media.paused === false);
    else fail();
  });
  media.src = url;
  container.replaceChildren(media);
}
