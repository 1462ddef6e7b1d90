// The DAG run or the task instance whose songs the page shows, and its URL in Airflow's REST API.

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

// Not URLSearchParams: Airflow 3.1 inserts run ids unencoded, and their "+" is not a space. So the run comes last.
function readAddress({ search, hash }) {
  const query = search + hash;
  const at = query.indexOf("run=");
  const head = at < 0 ? query : query.slice(0, at);
  const value = (name) => decode(new RegExp(`[?&]${name}=([^&]*)`).exec(head)?.[1] ?? "");
  const map = value("map");
  return {
    dag: value("dag"),
    // Null in the tab of a DAG run.
    task: value("task") || null,
    // Airflow leaves its placeholder where a task is not mapped.
    map: /^\d+$/.test(map) ? Number(map) : null,
    run: at < 0 ? "" : decode(query.slice(at + "run=".length)),
  };
}

export const address = readAddress(location);

export const runUrl = new URL(
  `../api/v2/dags/${encodeURIComponent(address.dag)}/dagRuns/${encodeURIComponent(address.run)}`,
  location.href.split(/[?#]/)[0],
).href;

export const tasksUrl = `${runUrl}/taskInstances`;
