// The DAG run, the task instance or the DAG whose songs the page shows, and its URL in Airflow's REST API.

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
    // Blank on the page over all DAGs.
    dag: value("dag"),
    // Null in the tab of a DAG run.
    task: value("task") || null,
    // Airflow leaves its placeholder where a task is not mapped.
    map: /^\d+$/.test(map) ? Number(map) : null,
    run: at < 0 ? "" : decode(query.slice(at + "run=".length)),
  };
}

export const address = readAddress(location);

const base = new URL("..", location.href.split(/[?#]/)[0]).href;

export const dagsUrl = `${base}api/v2/dags`;

export const runUrl = `${dagsUrl}/${encodeURIComponent(address.dag)}/dagRuns/${encodeURIComponent(address.run)}`;

// The Tracks tab of a run in Airflow's UI.
export function tracksTabUrl(dag, run) {
  return `${base}dags/${encodeURIComponent(dag)}/runs/${encodeURIComponent(run)}/plugin/whisul-tracks`;
}

export const tasksUrl = `${runUrl}/taskInstances`;
