// Which songs are shown, and in which order. Knows nothing of the page.

export const NO_FILTER = { text: "", tag: "", show: "all", sort: "made" };

function words(text) {
  return text.toLowerCase().split(/\s+/).filter(Boolean);
}

export function tagsOf(song) {
  return Array.isArray(song?.tags) ? song.tags.filter((tag) => typeof tag === "string" && tag.trim()) : [];
}

// Whether songs have to be read before it is known which ones are shown, and in which order.
export function needsAllSongs({ text, tag, show, sort }) {
  return words(text).length > 0 || tag !== "" || show !== "all" || sort !== "made";
}

// Whether a song is shown. `song` is null where the page cannot read it, `isHeard` and `isFavourite` get its job id.
export function matches({ text, tag, show }, song, isHeard, isFavourite) {
  const job = song?.job_id ?? null;
  const shows = {
    all: true,
    done: song?.status === "completed",
    failed: song?.status === "failed",
    unheard: song?.status === "completed" && !isHeard(job),
    favourites: isFavourite(job),
  };
  if (!shows[show]) return false;
  if (tag !== "" && !tagsOf(song).includes(tag)) return false;
  const content = [song?.title, song?.prompt, song?.error, ...tagsOf(song)].join("\n").toLowerCase();
  return words(text).every((word) => content.includes(word));
}

const VALUES = {
  title: (song) => (typeof song?.title === "string" ? song.title.toLowerCase() : null),
  longest: (song) => negative(song?.duration_seconds),
  shortest: (song) => numberOrNull(song?.duration_seconds),
  fastest: (song) => negative(song?.bpm),
  slowest: (song) => numberOrNull(song?.bpm),
};

function numberOrNull(value) {
  return Number.isFinite(value) ? value : null;
}

function negative(value) {
  return Number.isFinite(value) ? -value : null;
}

// The items in the order that the viewer chose. Those without the value come last, in the order in which they were.
export function inOrder(items, sort, songOf) {
  const valueOf = VALUES[sort];
  if (valueOf === undefined) return items;
  const values = new Map(items.map((item) => [item, valueOf(songOf(item))]));
  return [...items].sort((left, right) => compare(values.get(left), values.get(right)));
}

function compare(left, right) {
  if (left === null || right === null) return (left === null) - (right === null);
  return typeof left === "string" ? left.localeCompare(right) : left - right;
}
