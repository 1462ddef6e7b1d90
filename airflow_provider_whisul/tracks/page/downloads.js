// Downloads all songs that are shown, a few at a time.

import { textOrNull, urlOrNull } from "./elements.js";
import { saveSong } from "./song_links.js";

const MAX_CONCURRENT = 3;
// Titles that the report names.
const MAX_NAMES = 3;

// `report` gets how far it is, and at the end what could not be downloaded. `signal` is aborted to end early.
export async function downloadAll(songs, report, signal) {
  const left = [...songs];
  const failed = [];
  let done = 0;
  const downloadNext = async () => {
    while (left.length > 0 && !signal.aborted) {
      const song = left.shift();
      const title = textOrNull(song.title) ?? "Untitled";
      const url = urlOrNull(song.song_url);
      try {
        if (url === null) throw new Error("There is no address to download it from.");
        await saveSong(title, url, signal);
        done += 1;
      } catch {
        if (!signal.aborted) failed.push(title);
      }
      report(`Downloaded ${done} of ${songs.length}…`);
    }
  };
  report(`Downloaded 0 of ${songs.length}…`);
  await Promise.all(Array.from({ length: MAX_CONCURRENT }, downloadNext));
  report(describeEnd(songs.length, done, failed));
}

export function describeEnd(total, done, failed) {
  if (total === 0) return "There is no song to download.";
  const text = `Downloaded ${done} of ${total} ${total === 1 ? "song" : "songs"}.`;
  if (failed.length === 0) return text;
  const more = failed.length - MAX_NAMES;
  const names = `${failed.slice(0, MAX_NAMES).join(", ")}${more > 0 ? ` and ${more} more` : ""}`;
  return `${text} Not ${names}: the media host does not let this page read them, or no longer has them. Try Open.`;
}
