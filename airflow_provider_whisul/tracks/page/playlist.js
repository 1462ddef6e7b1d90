// Which song comes next. Knows nothing of the page.

// The first song of `songs` after `index`, or before it where `step` is -1, that `isPlayable` does not deny, null if
// there is none. `isPlayable` returns null of a song that was not read yet.
export function findNext(songs, index, step, isPlayable) {
  for (let at = index + step; at >= 0 && at < songs.length; at += step) {
    if (isPlayable(songs[at]) !== false) return songs[at];
  }
  return null;
}

// Where the song is that plays. If it is no longer in the list: right before the one that has taken its place.
export function indexOfCurrent(songs, current, lastIndex) {
  const index = songs.indexOf(current);
  return index >= 0 ? index : Math.min(lastIndex, songs.length) - 1;
}
