// Reads the state and the XComs of a run or of a task from Airflow's REST API, with the viewer's session.

import { address, runUrl, tasksUrl } from "./address.js";
import { readSubmitted } from "./submissions.js";

// As airflow_provider_whisul.tracks.cards makes the keys: the songs before the entry's, its songs, how many failed. And
// how many songs the task makes in all, with the cards of some that are pending.
const KEY = "whisul_";
const KEY_PARTS = /^whisul_(songs|stored)_(\d{1,7})_(\d{1,2})_(\d{1,2})$/;
const EXPECTED_KEY = /^whisul_expected_(\d{1,7})$/;
// Cards in one entry.
const MAX_CARDS = 20;
const PAGE_SIZE = 100;
const TIMEOUT_MS = 30_000;
const NOT_READABLE = address.dag ? "the XComs of this DAG, where its songs are" : "XComs, where the songs are";
const ENDED = new Set(["success", "failed", "skipped", "upstream_failed", "removed"]);

class HttpError extends Error {
  constructor(status) {
    super(`Airflow responded with status ${status}.`);
    this.status = status;
  }
}

// Whether the same request would fail again until the viewer logs in or gets another role.
export function isFinal(error) {
  return [401, 403, 404].includes(error.status);
}

// What the page tells the viewer about an error of one of the functions below.
export function describeError(error) {
  if (error.name === "TimeoutError") return `Airflow did not respond within ${TIMEOUT_MS / 1_000} s.`;
  switch (error.status) {
    case undefined:
      return error instanceof TypeError ? "Airflow cannot be reached." : String(error);
    case 401:
      return "Your session is over. Log in to Airflow again, then reload this page.";
    case 403:
      return `You may not read ${NOT_READABLE}. Ask an administrator of Airflow.`;
    case 404:
      return `Airflow has no such ${address.run ? "run or task" : "DAG"}, or you may not see it.`;
    default:
      return error.message;
  }
}

function request(url, headers = {}) {
  return fetch(url, {
    credentials: "same-origin",
    headers: { Accept: "application/json", ...headers },
    redirect: "manual",
    signal: AbortSignal.timeout(TIMEOUT_MS),
  });
}

// Airflow 3.1.0 does not read the session's cookie in its API. Its UI keeps the session's token here.
function storedToken() {
  try {
    return localStorage.getItem("token");
  } catch {
    return null;
  }
}

function isJson(response) {
  return /\bjson\b/i.test(response.headers.get("Content-Type") ?? "");
}

async function statusOf(response) {
  // Airflow's API never redirects, and responds in JSON. Anything else is the login page of a proxy in front of it.
  if (response.type === "opaqueredirect" || (response.ok && !isJson(response))) return 401;
  // Airflow's response to a revoked token. Its UI treats that as the end of the session, too.
  if (response.status === 403) {
    const body = await response.json().catch(() => null);
    if (body?.detail === "Invalid JWT token") return 401;
  }
  return response.status;
}

export async function get(url) {
  let response = await request(url);
  let status = await statusOf(response);
  const token = status === 401 ? storedToken() : null;
  if (token) {
    response = await request(url, { Authorization: `Bearer ${token}` });
    status = await statusOf(response);
  }
  if (!response.ok || status === 401) throw new HttpError(status);
  return response.json();
}

// The state of the run or the task. `end` is null until it ends, and another value each time it has been cleared.
export async function readState() {
  let url = runUrl;
  if (address.task !== null) {
    url = `${tasksUrl}/${encodeURIComponent(address.task)}`;
    if (address.map !== null) url += `/${address.map}`;
  }
  const { state, start_date, end_date, try_number } = await get(url);
  const end = ENDED.has(state) ? JSON.stringify([state, start_date, end_date, try_number]) : null;
  return { state, end };
}

// The XCom entries that hold cards, in the order in which they are shown, without their values; how many songs are
// pending, none where the run or the task has ended; whether some of those are of a batch; what the tasks have submitted;
// and the entries of stored songs that are not shown, since the run's tab shows each song once: that of the task that
// made it.
export async function listEntries(hasEnded) {
  const task = address.task === null ? "~" : encodeURIComponent(address.task);
  const mapped = address.map === null ? "" : `map_index=${address.map}`;
  return arrangeEntries(await listXComs(`${tasksUrl}/${task}/xcomEntries?${mapped}`), hasEnded);
}

// The XComs of this package, as Airflow lists them. `url` says of what, and has a query already.
export function listXComs(url) {
  return getAll(`${url}&xcom_key_pattern=${KEY}`, "xcom_entries");
}

// All items of a list of Airflow's, page by page. `name` is what Airflow's response calls them.
export async function getAll(url, name) {
  const all = [];
  for (;;) {
    const page = await get(`${url}&limit=${PAGE_SIZE}&offset=${all.length}`);
    all.push(...page[name]);
    if (page[name].length === 0 || all.length >= page.total_entries) return all;
  }
}

// As `listEntries` returns them, from the listed XComs of one run or task.
export function arrangeEntries(xcoms, hasEnded) {
  const entries = new Map();
  const expected = new Map();
  const submitted = new Map();
  const stored = new Map();
  for (const found of xcoms) {
    const entry = readKey(found);
    const target = { expected, submitted, ...(address.task === null && { stored }) }[entry?.kind] ?? entries;
    // A task that submits more leaves the entry from before. And Airflow 3.1.0 can keep one of an earlier try.
    if (entry !== null && !(target.get(entry.id)?.timestamp > entry.timestamp)) target.set(entry.id, entry);
  }
  const { pending, hasBatch } = hasEnded ? { pending: 0, hasBatch: false } : addPending(entries, expected);
  const inOrder = [...entries.values()].sort(
    (a, b) => (a.task < b.task ? -1 : a.task > b.task ? 1 : 0) || a.map - b.map || a.first - b.first,
  );
  return { entries: inOrder, pending, hasBatch, submitted: [...submitted.values()], stored: [...stored.values()] };
}

function readKey({ key, task_id, map_index, timestamp }) {
  const common = { task: task_id, group: task_id, map: map_index, key, timestamp, tasksUrl };
  const id = JSON.stringify([task_id, map_index]);
  const submitted = readSubmitted(key);
  if (submitted !== null) return { id, kind: "submitted", timestamp, ...submitted };
  const total = EXPECTED_KEY.exec(key)?.[1];
  if (total !== undefined) {
    return { ...common, id, kind: "expected", first: Number.MAX_SAFE_INTEGER, songs: Number(total), failed: 0 };
  }
  const parts = KEY_PARTS.exec(key);
  if (parts === null) return null;
  const [first, songs, failed] = parts.slice(2).map(Number);
  return { ...common, id: JSON.stringify([task_id, map_index, first]), kind: parts[1], first, songs, failed };
}

// Adds the entries of the songs that are pending. Returns how many songs those are, and whether some are of a batch.
function addPending(entries, expected) {
  const missing = new Map([...expected].map(([id, entry]) => [id, entry.songs]));
  for (const { task, map, songs } of entries.values()) {
    const id = JSON.stringify([task, map]);
    if (missing.has(id)) missing.set(id, missing.get(id) - songs);
  }
  let pending = 0;
  let hasBatch = false;
  for (const [id, songs] of missing) {
    if (songs <= 0) continue;
    pending += songs;
    hasBatch ||= expected.get(id).songs > 1;
    entries.set(id, { ...expected.get(id), songs: Math.min(songs, MAX_CARDS) });
  }
  return { pending, hasBatch };
}

// The songs of an entry, null where a custom XCom backend keeps them elsewhere.
export async function readSongs(entry) {
  const url = `${entry.tasksUrl}/${encodeURIComponent(entry.task)}/xcomEntries/${entry.key}?map_index=${entry.map}`;
  let { value } = await get(url);
  if (typeof value === "string") {
    try {
      value = JSON.parse(value);
    } catch {
      return null;
    }
  }
  return Array.isArray(value) ? value : null;
}
