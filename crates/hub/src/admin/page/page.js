// Asks the hub every two seconds and shows what it answers.
"use strict";

const EVERY_MS = 2000;
const HIDDEN_MS = 20_000;
const MOST_MS = 30_000;
const STALE_MS = 8000;
const HISTORY_MS = 900_000;

// The token lives here and nowhere else: browsers write session storage to disk, and any tab that is restored has it.
let token = null;
let timer = null;
let asking = null;
let failures = 0;
let failure = "";
let reached = 0;
let samples = new Map();
let pathOf = null;
const lists = {
  agents: { filter: {}, cursors: [""], next: null },
  flows: { filter: {}, cursors: [""], next: null },
};

class Refused extends Error {
  constructor(status, told) {
    super(told.detail ?? told.error ?? `the hub answers ${status}`);
    this.status = status;
  }
}

async function ask(path, query = {}) {
  const wanted = Object.entries(query).filter(([, value]) => value !== "" && value !== null);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(`/api/v1/${path}?${new URLSearchParams(wanted)}`, {
    headers, cache: "no-store", credentials: "omit", redirect: "error", signal: AbortSignal.timeout(10_000),
  });
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(answer.status, told);
  return told;
}

/** A page of a list. What is wrong with its filter is told beside the filter. */
async function askList(name) {
  const list = lists[name];
  const filter = list.filter;
  const problem = document.querySelector(`form[data-list=${name}] [role=alert]`);
  try {
    const told = await ask(name, { ...filter, limit: 100, cursor: list.cursors.at(-1) });
    say(problem, "");
    return filter === list.filter ? told : null;
  } catch (error) {
    if (error.status !== 400) throw error;
    say(problem, error.message);
    return null;
  }
}

async function look() {
  const newest = Math.max(0, ...samples.keys()) * 1000;
  const [status, mesh, connectors, agents, flows, events, history, path] = await Promise.all([
    ask("status"),
    ask("mesh"),
    ask("connectors"),
    askList("agents"),
    askList("flows"),
    ask("events", { limit: 100 }),
    // Hubs may be late with a sample: the last few are asked for again.
    ask("history", { since: Math.max(0, newest - 20_000) }),
    pathOf && ask(`connectors/${encodeURIComponent(pathOf)}/path`, { limit: 4 }),
  ]);
  for (const sample of history.samples) samples.set(sample.at, sample);
  for (const at of samples.keys()) if (at * 1000 < status.at_ms - HISTORY_MS) samples.delete(at);
  return { status, mesh, connectors, agents, flows, events, path, samples: [...samples.values()].sort((a, b) => a.at - b.at) };
}

function wait(delay) {
  clearTimeout(timer);
  timer = setTimeout(round, delay);
}

async function round() {
  if (asking) return;
  asking = look();
  let delay = EVERY_MS;
  try {
    const told = await asking;
    failures = 0;
    reached = Date.now();
    show(told);
  } catch (error) {
    if (error.status === 401) return logOut(token ? "The hub does not take this token." : "");
    failures += 1;
    failure = error instanceof Refused ? error.message : "the hub does not answer";
    delay = Math.min(MOST_MS, EVERY_MS * 2 ** failures);
  } finally {
    asking = null;
  }
  showAge();
  wait(document.hidden ? Math.max(delay, HIDDEN_MS) : delay);
}

/** Asks at once; after a round that runs, once more. */
async function soon() {
  await asking?.catch(() => {});
  wait(0);
}

/** What is wrong, worst first: [level, hub, words]. */
function troubles({ status, mesh, connectors }) {
  const found = [];
  const active = status.hubs.filter((hub) => hub.mode === "active");
  for (const hub of status.hubs) {
    const name = hub.hub ?? hub.peer;
    if (!hub.answered) found.push(["bad", name, `does not answer (${hub.reason}): ${hub.detail}`]);
    else if (hub.status === "degraded") for (const reason of hub.reasons) found.push(["warn", name, `degraded: ${reason}`]);
    else if (hub.status !== "ready") found.push(["warn", name, hub.status]);
    if (hub.needs_restart?.length) found.push(["warn", name, `waits for a restart: ${hub.needs_restart.join(", ")}`]);
  }
  for (const hub of mesh.hubs) {
    // An active hub tells these as its reasons.
    if (!hub.answered || hub.mode === "active") continue;
    if (hub.registry.state === "down") found.push(["warn", hub.hub, `registry: ${hub.registry.reason ?? "down"}`]);
    for (const link of hub.links) {
      if (hub.mode !== "off" && link.direction === "outbound" && link.state !== "established") {
        found.push(["warn", hub.hub, `link to ${link.hub ?? link.peer} is ${link.state}: ${link.last_error ?? "not connected yet"}`]);
      }
    }
  }
  for (const connector of connectors.connectors) {
    const { up = 0, down = 0, unknown = 0 } = connector.probes ?? {};
    if (down) found.push([up + unknown ? "warn" : "bad", "targets", `${down} of ${up + down + unknown} of connector ${connector.name} do not answer: see nowconnect agents list`]);
    const anywhere = connector.hubs.some((hub) => hub.tunnels > 0);
    for (const hub of connector.hubs) {
      const reaches = active.some((one) => one.hub === hub.hub) ? anywhere : hub.tunnels > 0;
      if (hub.listeners.length && !reaches) found.push(["bad", hub.hub, `no agent for connector ${connector.name}: its clients are turned away`]);
    }
  }
  for (const [what, word] of [["mode", "modes"], ["version", "versions"]]) {
    const different = [...new Set(status.hubs.filter((hub) => hub.answered).map((hub) => hub[what]))];
    if (different.length > 1) found.push(["warn", "hubs", `are of different ${word}: ${different.join(", ")}`]);
  }
  // What several hubs tell alike is told once.
  const alike = new Map();
  for (const [level, hub, words] of found) {
    const key = `${level} ${words}`;
    alike.set(key, { level, words, hubs: [...(alike.get(key)?.hubs ?? []), hub] });
  }
  return [...alike.values()].map(({ level, words, hubs }) => [level, hubs.join(", "), words])
    .sort(([a], [b]) => (a === b ? 0 : a === "bad" ? -1 : 1));
}

function show(told) {
  const { status } = told;
  const found = troubles(told);
  const silent = status.hubs.filter((hub) => !hub.answered).length;
  document.documentElement.dataset.asked = status.asked;
  say(byId("asked"), `as ${status.asked} sees it`);
  showTroubles(found);
  showState(found, status);
  showTiles(told, silent);
  drawMap(byId("map"), told);
  drawPlots(byId("plots"), told.samples, status.at_ms);
  showHubs(told);
  showLinks(told.mesh);
  showConnectors(told, choosePath);
  showPath(byId("path"), pathOf, told.path);
  if (told.agents) paged("agents", told.agents, showAgents(told.agents, status));
  if (told.flows) paged("flows", told.flows, showFlows(told.flows, lists.flows.filter));
  showEvents(told.events);
}

function showState(found, status) {
  const bad = found.filter(([level]) => level === "bad").length;
  const ready = status.hubs.filter((hub) => hub.status === "ready").length;
  const [sign, level] = bad ? ["■", "bad"] : found.length ? ["▲", "warn"] : ["●", "ok"];
  const words = found.length ? `${found.length} ${found.length === 1 ? "problem" : "problems"}` : "all well";
  const pill = byId("state");
  say(pill, `${sign} ${words}, ${ready} of ${status.hubs.length} hubs ready`);
  pill.className = `pill ${level}`;
  document.title = found.length ? `${sign} ${words} · NowConnect` : "NowConnect";
}

function showTroubles(found) {
  byId("troubles").hidden = !found.length;
  byId("troubles").className = found.some(([level]) => level === "bad") ? "bad" : "warn";
  const list = byId("trouble-list");
  const wanted = found.map(([level, hub, words]) => `${level === "bad" ? "■" : "▲"} ${hub}\u0000${level}\u0000${words}`);
  for (const item of [...list.children]) if (!wanted.includes(item.dataset.key)) item.remove();
  wanted.forEach((key, at) => {
    if (list.children[at]?.dataset.key === key) return;
    const [hub, level, words] = key.split("\u0000");
    const item = make("li", {}, make("b", { class: level }, hub), make("span", {}, words));
    item.dataset.key = key;
    list.insertBefore(item, list.children[at] ?? null);
  });
}

function showTiles({ status, mesh, samples: all }, silent) {
  const last = all.at(-1) ?? {};
  const modes = [...new Set(status.hubs.filter((hub) => hub.answered).map((hub) => hub.mode))].join(", ");
  const registries = [...new Set(mesh.hubs.filter((hub) => hub.answered).map((hub) => hub.registry.state))].join(", ");
  const { flows, agents } = status;
  const tiles = [
    ["Flows", count(flows.total), flows.opening || flows.waiting ? `${count(flows.opening)} opening, ${count(flows.waiting)} waiting` : "all open"],
    ["Across hubs", count(flows.forwarded), "flows that pass through"],
    ["Opens", `${decimal(last.opens_per_sec)} /s`, `p95 ${ms(last.open_p95_ms ?? NaN)}`],
    ["To agents", `${bytes(last.bytes_c2a_per_sec)}/s`, "from clients"],
    ["To clients", `${bytes(last.bytes_a2c_per_sec)}/s`, "from agents"],
    ["Agents", count(agents.total), counted(agents.tunnels, "tunnel")],
    ["Hubs", `${status.hubs.length - silent} of ${status.hubs.length}`, silent ? `${silent} without an answer` : "all answer"],
    ["Mode", modes || "–", `registry ${registries || "unknown"}`],
  ];
  const place = byId("tiles");
  tiles.forEach(([name, value, more], at) => {
    const tile = place.children[at] ?? place.appendChild(make("div", {}, make("dt"), make("dd"), make("dd")));
    [name, value, more].forEach((text, part) => say(tile.children[part], text));
  });
}

function paged(name, told, words) {
  const list = lists[name];
  list.next = told.next;
  const bar = document.querySelector(`nav[data-list=${name}]`);
  const [back, , on] = bar.children;
  back.disabled = list.cursors.length === 1;
  on.disabled = told.next === null;
  say(bar.children[1], `page ${list.cursors.length}${words}`);
  bar.hidden = back.disabled && on.disabled;
}

function showAge() {
  const age = Date.now() - reached;
  const old = reached > 0 && age > (document.hidden ? HIDDEN_MS : 0) + STALE_MS;
  document.documentElement.classList.toggle("stale", old || (failures > 1 && reached > 0));
  const why = failures > 0 ? `${failure}; ` : "";
  say(byId("age"), reached === 0 ? failure : old ? `${why}this is ${Math.round(age / 1000)} s old` : `${why}as of ${clock(reached)}`);
  if (failures > 1 || old) {
    const pill = byId("state");
    say(pill, reached ? "■ the data is old" : "■ no answer");
    pill.className = "pill bad";
    document.title = "■ no answer · NowConnect";
  }
}

function choosePath(connector) {
  pathOf = pathOf === connector ? null : connector;
  soon();
}

function logOut(words) {
  token = null;
  [reached, failures, failure] = [0, 0, ""];
  clearTimeout(timer);
  byId("login").hidden = false;
  byId("shown").hidden = true;
  say(byId("refused"), words);
  const pill = byId("state");
  say(pill, "▲ asks for the token");
  pill.className = "pill warn";
  byId("token").focus();
}

function logIn(event) {
  event.preventDefault();
  const field = byId("token");
  const shown = field.value.trim();
  field.value = "";
  if (!/^[\x21-\x7e]+$/.test(shown)) return say(byId("refused"), "A token is one word of plain letters, digits and signs.");
  token = shown;
  say(byId("refused"), "");
  byId("login").hidden = true;
  byId("shown").hidden = false;
  soon();
}

function filterBy(form) {
  const list = lists[form.dataset.list];
  let pending = null;
  const change = () => {
    clearTimeout(pending);
    pending = setTimeout(() => {
      list.filter = Object.fromEntries([...new FormData(form)].map(([key, value]) => [key, value.trim()]));
      list.cursors = [""];
      soon();
    }, 250);
  };
  form.addEventListener("input", change);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    change();
  });
}

function turn(event) {
  const list = lists[event.currentTarget.dataset.list];
  const go = event.target.dataset.go;
  if (go === "on" && list.next !== null) list.cursors.push(list.next);
  else if (go === "back" && list.cursors.length > 1) list.cursors.pop();
  else return;
  soon();
}

function chooseTheme() {
  const select = byId("theme");
  const put = () => {
    if (select.value) document.documentElement.dataset.theme = select.value;
    else delete document.documentElement.dataset.theme;
  };
  try {
    select.value = localStorage.getItem("theme") ?? "";
  } catch { /* Storage may be switched off. */ }
  put();
  select.addEventListener("change", () => {
    put();
    try {
      localStorage.setItem("theme", select.value);
    } catch { /* Then it is forgotten. */ }
  });
}

chooseTheme();
byId("login").addEventListener("submit", logIn);
document.querySelectorAll("form.filter").forEach(filterBy);
document.querySelectorAll("nav[data-list]").forEach((bar) => bar.addEventListener("click", turn));
document.addEventListener("visibilitychange", () => document.hidden || byId("shown").hidden || soon());
setInterval(showAge, 1000);
if (document.documentElement.dataset.token === "needed") logOut("");
else round();
