// Where the stored copies of songs are, for those whose own address no longer works.

import { readSongs } from "./airflow_api.js";

let entries = [];
// Of each entry that was read, the addresses by job id.
let urls = new Map();

// `stored` are the XCom entries with the cards of stored songs.
export function setStoredEntries(stored) {
  entries = stored;
  if (stored.length === 0) urls = new Map();
}

// Resolves to the address of a job's stored song in the run with this URL, null if none is known. Reads the entries of
// that run when it is asked first.
export async function findStoredUrl(job, tasksUrl) {
  for (const entry of entries.filter((each) => each.tasksUrl === tasksUrl)) {
    const url = (await urlsOf(entry)).get(job);
    if (url !== undefined) return url;
  }
  return null;
}

async function urlsOf(entry) {
  const id = JSON.stringify([entry.tasksUrl, entry.id, entry.timestamp]);
  if (!urls.has(id)) {
    try {
      const songs = (await readSongs(entry)) ?? [];
      urls.set(id, new Map(songs.filter((song) => song?.stored_url).map((song) => [song.job_id, song.stored_url])));
    } catch {
      // Asked again for the next song. This one is said to be one that cannot be played.
      return new Map();
    }
  }
  return urls.get(id);
}
