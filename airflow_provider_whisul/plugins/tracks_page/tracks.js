// Shows the songs of a DAG run, or of one of its tasks, as Airflow's own API hands them to whoever looks.
//
// Titles, prompts, tags and reasons come from outside: they become text nodes and attributes, never markup, and URLs
// are followed only where they are http(s).

const KEY = "whisul_songs_";
// As airflow_provider_whisul.tracks makes them: the songs before it, the songs in it, how many of them failed.
const KEY_PARTS = /^whisul_songs_(\d{1,7})_(\d{1,2})_(\d{1,2})$/;
const PAGE = 100;
const REQUESTS_AT_ONCE = 4;
const POLL_MS = 10_000;
// A list that takes long is asked for less often.
const POLL_SHARE = 20;
// What is over can be cleared, and so begin anew.
const POLL_OVER_MS = 60_000;
const TIMEOUT_MS = 30_000;
// How far from what is seen a card is made ready.
const AHEAD = "800px";
const OVER = new Set(["success", "failed", "skipped", "upstream_failed", "removed"]);
const UNREADABLE =
  "Its data is kept outside Airflow's database, by an XCom backend of your own, where this page cannot read it.";

const songsElement = document.getElementById("songs");
const countElement = document.getElementById("count");
const noticeElement = document.getElementById("notice");

// ---- Where we are

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

// Not URLSearchParams: Airflow 3.1 puts run ids in as they are, and their "+" is no space. So the run comes last.
function readAddress(address) {
  const query = address.search + address.hash;
  const at = query.indexOf("run=");
  const head = at < 0 ? query : query.slice(0, at);
  const value = (name) => decoded(new RegExp(`[?&]${name}=([^&]*)`).exec(head)?.[1] ?? "");
  const map = value("map");
  return {
    dag: value("dag"),
    task: value("task") || null,
    // Airflow leaves its placeholder where a task is not mapped.
    map: /^\d+$/.test(map) ? Number(map) : null,
    run: at < 0 ? "" : decoded(query.slice(at + "run=".length)),
  };
}

const here = readAddress(location);
const runUrl = new URL(
  `../api/v2/dags/${encodeURIComponent(here.dag)}/dagRuns/${encodeURIComponent(here.run)}`,
  location.href.split(/[?#]/)[0],
).href;
const tasksUrl = `${runUrl}/taskInstances`;

// ---- Airflow's API

class Refused extends Error {
  constructor(status) {
    super(`Airflow answered ${status}.`);
    this.status = status;
  }

  get final() {
    return [401, 403, 404].includes(this.status);
  }
}

function ask(url, headers = {}) {
  return fetch(url, {
    credentials: "same-origin",
    headers: { Accept: "application/json", ...headers },
    redirect: "manual",
    signal: AbortSignal.timeout(TIMEOUT_MS),
  });
}

// Airflow 3.1.0 reads no cookie for its API: its UI keeps what to say here.
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
  // Airflow's API sends nobody elsewhere, and answers in JSON: that is the login of a proxy in front of it.
  if (response.type === "opaqueredirect" || (response.ok && !isJson(response))) return 401;
  // What Airflow says of a token that was revoked. Its UI takes it for the end of the session, too.
  if (response.status === 403) {
    const said = await response.json().catch(() => null);
    if (said?.detail === "Invalid JWT token") return 401;
  }
  return response.status;
}

async function get(url) {
  let response = await ask(url);
  let status = await statusOf(response);
  const token = status === 401 ? storedToken() : null;
  if (token) {
    response = await ask(url, { Authorization: `Bearer ${token}` });
    status = await statusOf(response);
  }
  if (!response.ok || status === 401) throw new Refused(status);
  return response.json();
}

async function readState() {
  let url = runUrl;
  if (here.task !== null) {
    url = `${tasksUrl}/${encodeURIComponent(here.task)}`;
    if (here.map !== null) url += `/${here.map}`;
  }
  const { state, start_date, end_date, try_number } = await get(url);
  // Which end it is: what was cleared has another one.
  const end = OVER.has(state) ? JSON.stringify([state, start_date, end_date, try_number]) : null;
  return { state, end };
}

async function listEntries() {
  const task = here.task === null ? "~" : encodeURIComponent(here.task);
  const only = here.map === null ? "" : `&map_index=${here.map}`;
  const entries = new Map();
  for (let offset = 0; ; ) {
    const url = `${tasksUrl}/${task}/xcomEntries?xcom_key_pattern=${KEY}&limit=${PAGE}&offset=${offset}${only}`;
    const page = await get(url);
    for (const entry of page.xcom_entries) {
      const parts = KEY_PARTS.exec(entry.key);
      if (parts === null) continue;
      const [first, songs, failed] = parts.slice(1).map(Number);
      const id = JSON.stringify([entry.task_id, entry.map_index, first]);
      const known = entries.get(id);
      // Airflow 3.1.0 can keep one of an earlier try.
      if (known && known.timestamp > entry.timestamp) continue;
      entries.set(id, {
        id,
        task: entry.task_id,
        map: entry.map_index,
        first,
        songs,
        failed,
        key: entry.key,
        timestamp: entry.timestamp,
      });
    }
    offset += page.xcom_entries.length;
    if (page.xcom_entries.length === 0 || offset >= page.total_entries) break;
  }
  return [...entries.values()].sort(
    (a, b) => (a.task < b.task ? -1 : a.task > b.task ? 1 : 0) || a.map - b.map || a.first - b.first,
  );
}

async function readSongs(entry) {
  const url = `${tasksUrl}/${encodeURIComponent(entry.task)}/xcomEntries/${entry.key}?map_index=${entry.map}`;
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

// ---- Elements

function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children.filter((child) => child !== null));
  return made;
}

function textOf(value) {
  return typeof value === "string" && value.trim() ? value : null;
}

// A text from outside, whose direction of writing must not reach beyond it.
function outsideText(name, className, value) {
  const made = element(name, className, value);
  made.dir = "auto";
  return made;
}

function webAddress(value) {
  try {
    const url = new URL(value);
    // It would be asked for with the viewer's session: the address that logs out, for one. By http and https alike.
    if (url.host === location.host) return null;
    return url.protocol === "https:" || url.protocol === "http:" ? url.href : null;
  } catch {
    return null;
  }
}

function length(seconds) {
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

function anchor(page, href) {
  const link = page.createElement("a");
  link.href = href;
  link.target = "_blank";
  link.rel = "noopener noreferrer";
  link.referrerPolicy = "no-referrer";
  return link;
}

// Airflow's frame lets nothing inside it open a window nor, before 3.3, save a file. The page around it may do both.
function followOutside(href, fileName = null) {
  const link = anchor(window.parent.document, href);
  if (fileName !== null) {
    link.download = fileName;
    link.removeAttribute("target");
  }
  link.click();
}

function opens(link) {
  const follow = (event) => {
    if (window.parent === window || event.button > 1) return;
    event.preventDefault();
    followOutside(link.href);
  };
  link.addEventListener("click", follow);
  link.addEventListener("auxclick", follow);
  return link;
}

function fileNameFor(title, url) {
  const ending = /\.(mp3|wav|flac|ogg|opus|m4a|aac|webm)$/i.exec(new URL(url).pathname)?.[0] ?? "";
  // Without one of these the title has no dot either, which would make an ending of its own.
  const name = title.replace(ending ? /[^\p{L}\p{N} ._-]+/gu : /[^\p{L}\p{N} _-]+/gu, " ");
  return (name.replace(/\s+/g, " ").trim().replace(/^[. ]+/, "").slice(0, 80) || "song") + ending;
}

function downloadLink(title, url, says) {
  const link = anchor(document, url);
  link.append("Download");
  link.addEventListener("click", async (event) => {
    event.preventDefault();
    says.textContent = "Downloading…";
    try {
      // Not what the player has stored, which was not asked for as a page must to read it.
      const response = await fetch(url, { cache: "no-store", credentials: "omit", referrerPolicy: "no-referrer" });
      if (!response.ok) throw new Refused(response.status);
      // To be saved as a file, whatever its host says that it is: never to be opened as a page of Airflow's.
      const file = new Blob([await response.blob()], { type: "application/octet-stream" });
      const held = URL.createObjectURL(file);
      followOutside(held, fileNameFor(title, url));
      setTimeout(() => URL.revokeObjectURL(held), 60_000);
      says.textContent = "";
    } catch {
      // Its host lets pages play a song, not read it.
      says.textContent = "Opened in a tab of its own: save it from there.";
      followOutside(url);
    }
  });
  return link;
}

// ---- Cards

function coverOf(song, title) {
  const cover = element("div", "cover");
  const url = webAddress(song.image_url);
  const none = (words) => cover.replaceChildren(element("p", "", words));
  if (url === null) {
    none("No cover");
    return cover;
  }
  const image = document.createElement("img");
  image.alt = `Cover of ${title}`;
  image.loading = "lazy";
  image.decoding = "async";
  image.referrerPolicy = "no-referrer";
  image.addEventListener("error", () => none("The cover cannot be shown."));
  image.src = url;
  cover.append(image);
  return cover;
}

// The player is there only while the card is near: a thousand of them would make the page heavy.
function playerOf(song, title) {
  const place = element("div", "player");
  const url = webAddress(song.song_url);
  let audio = null;
  let broken = false;
  const told = (words) => {
    broken = true;
    audio = null;
    keepFocus(place, ".broken", () => place.replaceChildren(element("p", "broken", words)));
  };
  if (url === null) told("There is no address to play it from.");
  return {
    place,
    mount() {
      if (audio !== null || broken) return;
      audio = document.createElement("audio");
      audio.controls = true;
      audio.preload = "none";
      audio.setAttribute("aria-label", `Play ${title}`);
      audio.addEventListener("error", () => told("The song cannot be played."));
      audio.src = url;
      place.replaceChildren(audio);
    },
    unmount() {
      if (audio === null || !audio.paused || audio.currentTime > 0 || document.activeElement === audio) return;
      audio = null;
      place.replaceChildren();
    },
  };
}

function tagsOf(song) {
  const tags = Array.isArray(song.tags) ? song.tags.map(textOf).filter((tag) => tag !== null) : [];
  if (tags.length === 0) return null;
  const list = element("ul", "tags", ...tags.map((tag) => outsideText("li", "", tag)));
  list.setAttribute("aria-label", "Tags");
  list.title = tags.join(", ");
  return list;
}

function promptOf(song) {
  const prompt = textOf(song.prompt);
  if (prompt === null) return null;
  const made = outsideText("p", "prompt", prompt);
  made.title = prompt;
  return made;
}

function fillDelivered(card, song) {
  const title = textOf(song.title) ?? "Untitled";
  const facts = [];
  if (Number.isFinite(song.bpm)) facts.push(`${song.bpm} bpm`);
  if (Number.isFinite(song.duration_seconds)) facts.push(length(song.duration_seconds));
  const player = playerOf(song, title);
  const says = element("span", "facts");
  says.setAttribute("role", "status");
  const url = webAddress(song.song_url);
  let actions = null;
  if (url !== null) {
    const open = opens(anchor(document, url));
    open.append("Open");
    const download = downloadLink(title, url, says);
    open.setAttribute("aria-label", `Open ${title}`);
    download.setAttribute("aria-label", `Download ${title}`);
    actions = element("p", "actions", open, download, says);
  }
  card.item.replaceChildren(
    coverOf(song, title),
    element(
      "div",
      "body",
      outsideText("h3", "title", title),
      promptOf(song),
      facts.length ? element("p", "facts", facts.join(" · ")) : null,
      tagsOf(song),
      player.place,
      actions,
    ),
  );
  card.player = player;
}

function fillFailed(card, song) {
  card.item.classList.add("failed");
  const job = textOf(song.job_id);
  const prompt = textOf(song.prompt);
  const reason = textOf(song.error) ?? "No reason was given.";
  card.item.replaceChildren(
    element("div", "cover", element("p", "", "Failed")),
    element(
      "div",
      "body",
      outsideText("h3", "title", prompt ?? "No song"),
      outsideText("p", "reason", reason),
      job === null || reason.includes(job) ? null : element("p", "job", `Job ${job}`),
    ),
  );
}

function fillTold(card, words, again = null) {
  const message = element("p", "broken", words);
  const body = element("div", "body", message);
  if (again !== null) {
    const button = element("button", "", "Try again");
    button.type = "button";
    button.addEventListener("click", () => {
      // Only where somebody waits for it: a screen reader need not hear all the others.
      message.setAttribute("role", "status");
      say(message, "Loading it again…");
      again();
    });
    body.append(button);
  }
  card.item.replaceChildren(element("div", "cover"), body);
  card.told = again === null ? null : message;
}

// Who has the focus on what goes would begin at the top of the page again.
function keepFocus(place, selector, change) {
  const held = place.contains(document.activeElement);
  change();
  const next = held ? place.querySelector(selector) : null;
  if (next === null) return;
  next.tabIndex = -1;
  next.focus({ preventScroll: true });
}

function fill(card, change) {
  card.told = null;
  keepFocus(card.item, "h3, .broken", change);
  card.item.removeAttribute("aria-busy");
  if (card.near) card.player?.mount();
}

function fillWith(card, song) {
  fill(card, () => {
    if (song === null || typeof song !== "object") fillTold(card, UNREADABLE);
    else if (song.status === "failed") fillFailed(card, song);
    else fillDelivered(card, song);
  });
}

// ---- Entries: some cards each, filled when one of them comes near

const cards = new WeakMap();
const shown = new Map();
const waiting = [];
let asking = 0;

const nearness = new IntersectionObserver(
  (changes) => {
    // Backwards, since of what is waiting the latest is asked for first: so cards fill from the top.
    for (const { target, isIntersecting } of changes.reverse()) {
      const card = cards.get(target);
      card.near = isIntersecting;
      if (isIntersecting) {
        card.player?.mount();
        want(card.entry);
      } else {
        card.player?.unmount();
      }
    }
    askNext();
  },
  // In a frame the margin counts only around the frame's own document.
  { root: document, rootMargin: `${AHEAD} 0px` },
);

function makeEntry(entry) {
  entry.state = "new";
  entry.cards = Array.from({ length: entry.songs }, () => {
    const item = element("li", "card", element("div", "cover"), element("div", "body", element("p", "hidden", "Loading")));
    item.setAttribute("aria-busy", "true");
    const card = { entry, item, near: false, player: null, told: null };
    cards.set(item, card);
    nearness.observe(item);
    return card;
  });
  return entry;
}

function dropEntry(entry) {
  entry.state = "gone";
  for (const { item } of entry.cards) {
    nearness.unobserve(item);
    item.remove();
  }
}

function want(entry) {
  if (entry.state !== "new") return;
  entry.state = "waiting";
  waiting.push(entry);
}

function wantAgain(entry) {
  want(entry);
  askNext();
}

// What failed to load while Airflow was away. All else that is near has been asked for.
function wantFailed() {
  for (const entry of shown.values()) if (entry.cards.some((card) => card.near)) want(entry);
  askNext();
}

function askNext() {
  while (asking < REQUESTS_AT_ONCE && waiting.length) {
    // The latest first: it is what is being looked at, however fast one scrolls.
    const entry = waiting.pop();
    if (entry.state !== "waiting") continue;
    if (!entry.cards.some((card) => card.near)) {
      entry.state = "new";
      continue;
    }
    entry.state = "asked";
    asking += 1;
    fillEntry(entry).finally(() => {
      asking -= 1;
      askNext();
    });
  }
}

async function fillEntry(entry) {
  let songs;
  try {
    songs = await readSongs(entry);
  } catch (error) {
    if (entry.state === "gone") return;
    entry.state = "new";
    const reason = error.status === 404 ? "Airflow has it no longer." : wordsFor(error);
    const words = `This song could not be loaded. ${reason}`;
    for (const card of entry.cards) {
      // Told before: what has the focus stays where it is.
      if (card.told) say(card.told, words);
      else fill(card, () => fillTold(card, words, () => wantAgain(entry)));
    }
    return;
  }
  if (entry.state === "gone") return;
  entry.state = "filled";
  entry.cards.forEach((card, index) => fillWith(card, songs?.[index] ?? null));
}

// ---- The whole

const sections = new Map();

function sectionFor(task) {
  let section = sections.get(task);
  if (section === undefined) {
    const heading = outsideText("h2", "", task);
    const list = element("ol", "songs");
    // What is styled as no list is none to some screen readers.
    list.setAttribute("role", "list");
    list.setAttribute("aria-label", `Songs of ${task}`);
    section = { element: element("section", "", heading, list), heading, list };
    sections.set(task, section);
  }
  return section;
}

function inOrder(parent, children) {
  let next = parent.firstChild;
  for (const child of children) {
    if (child === next) next = next.nextSibling;
    else parent.insertBefore(child, next);
  }
}

function draw(entries) {
  const now = new Map(entries.map((entry) => [entry.id, entry]));
  for (const [id, entry] of shown) {
    const same = now.get(id);
    if (same === undefined || same.key !== entry.key || same.timestamp !== entry.timestamp) {
      dropEntry(entry);
      shown.delete(id);
    }
  }
  const byTask = new Map();
  for (const entry of entries) {
    if (!shown.has(entry.id)) shown.set(entry.id, makeEntry(entry));
    const items = byTask.get(entry.task) ?? [];
    items.push(...shown.get(entry.id).cards.map((card) => card.item));
    byTask.set(entry.task, items);
  }
  for (const [task, section] of sections) {
    if (!byTask.has(task)) {
      section.element.remove();
      sections.delete(task);
    }
  }
  for (const [task, items] of byTask) {
    const section = sectionFor(task);
    section.heading.hidden = byTask.size === 1;
    inOrder(section.list, items);
  }
  inOrder(
    songsElement,
    [...byTask.keys()].map((task) => sections.get(task).element),
  );
}

function countWords(entries, over, state) {
  const total = entries.reduce((sum, entry) => sum + entry.songs, 0);
  const failed = entries.reduce((sum, entry) => sum + entry.failed, 0);
  if (total === 0) {
    if (!over) return "No songs yet. They appear here as they come.";
    if (here.task === null) return "This run has made no songs.";
    if (state !== "success") {
      // The others never ran, and have no log.
      const why = state === "failed" || state === "skipped" ? "; its log says why" : "";
      return `This task ended (${state}) without a song${why}.`;
    }
    return "This task has no songs. Where it only submits, they are with the task that waits for them.";
  }
  const made = total - failed;
  let words = `${made.toLocaleString("en")} ${made === 1 ? "song" : "songs"}`;
  if (failed) words += `, ${failed.toLocaleString("en")} failed`;
  return over ? words : `${words} so far`;
}

function say(where, words) {
  // A screen reader repeats what is written anew.
  if (where.textContent !== words) where.textContent = words;
  if (where === noticeElement) where.hidden = !words;
}

function wordsFor(error) {
  if (error.name === "TimeoutError") return `Airflow did not answer within ${TIMEOUT_MS / 1_000} s.`;
  switch (error.status) {
    case undefined:
      return error instanceof TypeError ? "Airflow cannot be reached." : String(error);
    case 401:
      return "Your session is over. Log in to Airflow again, then reload this page.";
    case 403:
      return "You may not read the XComs of this DAG, where its songs are. Whoever manages Airflow's users can change that.";
    case 404:
      return "Airflow knows no such run or task, or does not show it to you.";
    default:
      return `Airflow answered ${error.status}.`;
  }
}

// ---- Looking again while there is something to come

let timer = null;
let looking = false;
// The end after which all was listed.
let listed = null;

async function look() {
  if (looking) return;
  clearTimeout(timer);
  looking = true;
  const began = performance.now();
  let again = true;
  let pause = POLL_MS;
  try {
    // In this order: what is listed after the end is all there is.
    const { state, end } = await readState();
    if (end === null || end !== listed) {
      const entries = await listEntries();
      draw(entries);
      say(countElement, countWords(entries, end !== null, state));
      listed = end;
    }
    say(noticeElement, "");
    wantFailed();
    if (end !== null) pause = POLL_OVER_MS;
  } catch (error) {
    again = !error.final;
    if (error.final) {
      listed = null;
      draw([]);
      say(countElement, "");
    }
    say(noticeElement, again ? `${wordsFor(error)} Trying again.` : wordsFor(error));
  } finally {
    looking = false;
  }
  if (again && !document.hidden) {
    timer = setTimeout(look, Math.max(pause, POLL_SHARE * (performance.now() - began)));
  }
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    clearTimeout(timer);
  } else {
    // What one may see can have changed too.
    listed = null;
    look();
  }
});

// One song at a time. Media events do not bubble.
document.addEventListener(
  "play",
  (event) => {
    for (const audio of document.querySelectorAll("audio")) if (audio !== event.target) audio.pause();
  },
  true,
);

// ---- Light and dark, as the page around us is

const prefersDark = matchMedia("(prefers-color-scheme: dark)");

function surrounding() {
  try {
    return window.parent === window ? null : window.parent.document.documentElement;
  } catch {
    return null;
  }
}

function dress() {
  const root = surrounding();
  let dark = prefersDark.matches;
  if (root?.classList.contains("dark") || root?.dataset.theme === "dark") dark = true;
  else if (root?.classList.contains("light") || root?.dataset.theme === "light") dark = false;
  document.documentElement.classList.toggle("dark", dark);
  if (root !== null) document.body.style.fontFamily = getComputedStyle(root.ownerDocument.body).fontFamily;
}

dress();
prefersDark.addEventListener("change", dress);
const around = surrounding();
if (around !== null) {
  const themes = new MutationObserver(dress);
  themes.observe(around, { attributes: true, attributeFilter: ["class", "data-theme"] });
  // It outlives us, and would go on telling.
  addEventListener("pagehide", () => themes.disconnect());
}

look();
