// Reads the songs of all runs of a DAG, or of all DAGs that the viewer may see, from Airflow's REST API.

import { address, dagsUrl } from "./address.js";
import { arrangeEntries, get, getAll, listXComs } from "./airflow_api.js";

const RUNNING = ["queued", "running"];

// "~" is Airflow's word for all of them.
const dagUrl = `${dagsUrl}/${address.dag ? encodeURIComponent(address.dag) : "~"}`;

// When the first run was, null if there is none. In milliseconds since 1970, as all times here.
export async function readOldest() {
  const { dag_runs: runs } = await get(`${dagUrl}/dagRuns?order_by=run_after&limit=1`);
  return runs.length ? Date.parse(runs[0].run_after) : null;
}

// The runs of a period that have songs, newest first. Each with the entries of its cards, how many songs are pending,
// whether some of those are of a batch, what was submitted, and whether it has ended.
export async function readRuns({ from, to }) {
  const end = to === null ? "" : `&run_after_lt=${toText(to)}`;
  const range = `run_after_gte=${toText(from)}${end}`;
  // In this order: a list that is read after the end of a run is complete.
  const states = RUNNING.map((state) => `&state=${state}`).join("");
  const unfinished = await getAll(`${dagUrl}/dagRuns?${range}${states}`, "dag_runs");
  const running = new Set(unfinished.map((run) => idOf(run.dag_id, run.dag_run_id)));
  const found = new Map();
  for (const xcom of await listXComs(`${dagUrl}/dagRuns/~/taskInstances/~/xcomEntries?${range}`)) {
    const id = idOf(xcom.dag_id, xcom.run_id);
    found.set(id, [...(found.get(id) ?? []), xcom]);
  }
  const runs = [...found].map(([id, xcoms]) => createRun(id, xcoms, !running.has(id)));
  return runs.filter((run) => run.entries.length > 0).sort((left, right) => right.at - left.at);
}

function createRun(id, xcoms, hasEnded) {
  const { dag_id: dag, run_id: run, dag_display_name: dagName, run_after, logical_date, timestamp } = xcoms[0];
  const tasksUrl = `${dagsUrl}/${encodeURIComponent(dag)}/dagRuns/${encodeURIComponent(run)}/taskInstances`;
  const list = arrangeEntries(xcoms, hasEnded);
  for (const entry of [...list.entries, ...list.stored]) Object.assign(entry, { id: `${id} ${entry.id}`, group: id, tasksUrl });
  // Airflow 3.1.0 tells only the logical date, which a run that was started by hand may lack.
  return { id, dag, dagName, run, at: Date.parse(run_after ?? logical_date ?? timestamp), hasEnded, ...list };
}

function idOf(dag, run) {
  return JSON.stringify([dag, run]);
}

function toText(time) {
  return new Date(time).toISOString();
}
