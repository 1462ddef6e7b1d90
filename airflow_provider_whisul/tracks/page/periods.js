// Which period of time is read next, so that the songs of all runs are read newest first, some at a time.
//
// Airflow lists the XComs of many runs at once, but by the ids of DAG and task. So the page reads all of a period, and
// then all of the one before. Times are milliseconds since 1970.

const HOUR = 3_600_000;
const DAY = 24 * HOUR;
const FIRST_LENGTH = 2 * DAY;
const MIN_LENGTH = HOUR;
const MAX_LENGTH = 64 * DAY;
// With fewer songs than that in a period, the next one is longer. With more it is shorter.
const FEW = 20;
const MANY = 200;

// The first period has no end: runs may come while the page is open.
export function firstPeriod(now) {
  return { from: now - FIRST_LENGTH, to: null, length: FIRST_LENGTH };
}

// The period before one in which `songs` songs were found.
export function periodBefore({ from, length }, songs) {
  let next = length;
  if (songs < FEW) next = Math.min(length * 2, MAX_LENGTH);
  else if (songs > MANY) next = Math.max(length / 2, MIN_LENGTH);
  return { from: from - next, to: from, length: next };
}
