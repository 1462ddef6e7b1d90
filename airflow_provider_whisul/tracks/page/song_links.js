// The links that open and download a song.

function anchor(page, href) {
  const link = page.createElement("a");
  link.href = href;
  link.target = "_blank";
  link.rel = "noopener noreferrer";
  link.referrerPolicy = "no-referrer";
  return link;
}

// Airflow's frame does not let its content open a window nor, before 3.3, save a file. The page around it may do both.
function followOutsideFrame(href, fileName = null) {
  const link = anchor(window.parent.document, href);
  if (fileName !== null) {
    link.download = fileName;
    link.removeAttribute("target");
  }
  link.click();
}

function fileNameFor(title, url) {
  const ending = /\.(mp3|wav|flac|ogg|opus|m4a|aac|webm)$/i.exec(new URL(url).pathname)?.[0] ?? "";
  // Without one of these endings the title may not have a dot either, since what follows it would be an ending.
  const name = title.replace(ending ? /[^\p{L}\p{N} ._-]+/gu : /[^\p{L}\p{N} _-]+/gu, " ");
  return (name.replace(/\s+/g, " ").trim().replace(/^[. ]+/, "").slice(0, 80) || "song") + ending;
}

export function openLink(title, url, text = "Open") {
  const link = anchor(document, url);
  link.append(text);
  link.setAttribute("aria-label", `Open ${title}`);
  const follow = (event) => {
    if (window.parent === window || event.button > 1) return;
    event.preventDefault();
    followOutsideFrame(link.href);
  };
  link.addEventListener("click", follow);
  link.addEventListener("auxclick", follow);
  return link;
}

// Saves a song as a file. Rejects where the media host does not let pages read it, or does not have it, and when
// `signal` is aborted.
export async function saveSong(title, url, signal = null) {
  // Not the player's cached response: it may have been requested without CORS, so that the page may not read it.
  const response = await fetch(url, { cache: "no-store", credentials: "omit", referrerPolicy: "no-referrer", signal });
  if (!response.ok) throw new Error(`The media host responded with status ${response.status}.`);
  // A type that browsers save, whatever type the media host names: they must not open it as a page of Airflow's.
  const file = new Blob([await response.blob()], { type: "application/octet-stream" });
  const fileUrl = URL.createObjectURL(file);
  followOutsideFrame(fileUrl, fileNameFor(title, url));
  setTimeout(() => URL.revokeObjectURL(fileUrl), 60_000);
}

// `status` is the element that says how far the download is.
export function downloadLink(title, url, status) {
  const link = anchor(document, url);
  link.append("Download");
  link.setAttribute("aria-label", `Download ${title}`);
  link.addEventListener("click", async (event) => {
    event.preventDefault();
    status.textContent = "Downloading…";
    try {
      await saveSong(title, url);
      status.textContent = "";
    } catch {
      // The media host lets pages play a song, but not read it.
      status.textContent = "Opened in a new tab: save it from there.";
      followOutsideFrame(url);
    }
  });
  return link;
}
