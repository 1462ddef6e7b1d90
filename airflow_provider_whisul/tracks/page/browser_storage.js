// What the page keeps in the viewer's browser. A browser may refuse that, and then nothing is kept.

const PREFIX = "whisul_tracks.";

// The value that was kept under a name, null if there is none.
export function readKept(name) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + name));
  } catch {
    return null;
  }
}

export function keep(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // The page works without it, as after a reload.
  }
}
