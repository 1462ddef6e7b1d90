// Which songs the viewer has heard, and which are favourites: their job ids, kept in the browser.

import { keep, readKept } from "./browser_storage.js";

// Job ids of each mark: about 200 KB. The oldest are dropped.
const MAX_MARKS = 5_000;

export const HEARD = "heard";
export const FAVOURITE = "favourites";

let kept = new Map();
// Another tab of the browser has changed a mark.
addEventListener("storage", () => {
  kept = new Map();
});

function jobsWith(name) {
  if (!kept.has(name)) {
    const jobs = readKept(name);
    kept.set(name, new Set(Array.isArray(jobs) ? jobs.filter((job) => typeof job === "string") : []));
  }
  return kept.get(name);
}

export function hasMark(name, job) {
  return job !== null && jobsWith(name).has(job);
}

// Returns a function that says of a job id whether it has the mark now.
export function markedNow(name) {
  const jobs = new Set(jobsWith(name));
  return (job) => job !== null && jobs.has(job);
}

export function setMark(name, job, on) {
  if (job === null) return;
  const jobs = jobsWith(name);
  jobs.delete(job);
  if (on) jobs.add(job);
  for (const oldest of jobs) {
    if (jobs.size <= MAX_MARKS) break;
    jobs.delete(oldest);
  }
  keep(name, [...jobs]);
}
