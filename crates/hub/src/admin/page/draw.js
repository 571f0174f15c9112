// The map of hubs, agents and connectors, and the plots.
"use strict";

const HUB = { x: 150, width: 190, height: 62, step: 84 };
const AGENT = { x: 430, width: 160, height: 36, step: 44 };
const CONNECTOR = { x: 690, width: 150, height: 36, step: 44 };
const TOP = 24;
/** So many agents are drawn one by one, more as groups: one for each hub. */
const SINGLE = 10;
const MOST_CONNECTORS = 9;

/** Draws again only when something differs. */
function redraw(svg, about, key, draws) {
  if (svg.dataset.key === key) return;
  svg.dataset.key = key;
  svg.setAttribute("aria-label", about);
  svg.replaceChildren(...draws());
}

function drawMap(svg, told) {
  const model = modelOf(told);
  redraw(svg, describe(model), JSON.stringify(model), () => {
    const columns = [[HUB, model.hubs], [AGENT, model.agents], [CONNECTOR, model.connectors]];
    const height = TOP + Math.max(60, ...columns.map(([{ step }, items]) => items.length * step));
    svg.setAttribute("viewBox", `0 0 850 ${height}`);
    const place = new Map();
    for (const [column, items] of columns) {
      const room = (height - TOP) / Math.max(1, items.length);
      items.forEach((item, at) => place.set(item.key, { ...column, item, y: TOP + room * at + (room - column.height) / 2 }));
    }
    const titles = [[HUB, "Hubs"], [AGENT, model.grouped ? "Agents, by hub" : "Agents"], [CONNECTOR, "Connectors"]];
    return [
      ...titles.map(([{ x }, title]) => draw("text", { x, y: 13, class: "col" }, title)),
      // Names over lines.
      ...model.pairs.flatMap((pair) => arc(place.get(pair.a), place.get(pair.b), pair)).sort((a, b) => (a.nodeName < b.nodeName ? -1 : 1)),
      ...model.edges.flatMap((edge) => curve(place.get(edge.from), place.get(edge.to), edge)),
      ...[...place.values()].flatMap(box),
    ];
  });
}

function modelOf({ status, mesh, connectors, agents }) {
  const hubs = status.hubs.map((hub) => {
    const name = hub.hub ?? hub.peer;
    if (!hub.answered) return { key: `hub ${name}`, name, level: "bad", lines: ["■ no answer", hub.reason] };
    const level = STATES[hub.status] ?? "warn";
    const sign = { ok: "●", warn: "▲", bad: "■" }[level];
    return { key: `hub ${name}`, name, level, lines: [`${sign} ${hub.status} · ${hub.mode} · ${hub.version}`, `${counted(hub.flows.total, "flow")}, ${count(hub.flows.forwarded)} passing`] };
  });
  const known = new Set(hubs.map((hub) => hub.key));
  const pairs = new Map();
  for (const link of linksOf(mesh)) {
    const [a, b] = [`hub ${link.from}`, `hub ${link.to}`].sort();
    if (!known.has(a) || !known.has(b)) continue;
    const pair = pairs.get(`${a} ${b}`) ?? { a, b, up: 0, all: 0, rtt: null };
    pair.all += 1;
    if (link.state === "established") {
      pair.up += 1;
      pair.rtt ??= link.rtt_ms;
    }
    pairs.set(`${a} ${b}`, pair);
  }
  for (const pair of pairs.values()) {
    pair.level = pair.up === 0 ? "bad" : pair.up < pair.all ? "warn" : "ok";
    // To the tenth, so that the map stands still.
    pair.label = pair.up ? `${pair.rtt === null ? "up" : `${pair.rtt.toFixed(1)} ms`}${pair.up < pair.all ? `, ${pair.up} of ${pair.all}` : ""}` : "down";
    delete pair.rtt;
  }
  const shown = connectors.connectors.slice(0, connectors.connectors.length > MOST_CONNECTORS ? MOST_CONNECTORS - 1 : MOST_CONNECTORS);
  const ends = shown.map((one) => ({
    key: `connector ${one.name}`, name: one.name, level: one.tunnels ? "" : one.listeners ? "bad" : "",
    lines: [one.tunnels ? `${counted(one.listeners, "listener")}, ${counted(one.flows, "flow")}` : "■ no agent"],
  }));
  const rest = connectors.connectors.length - shown.length;
  if (rest) ends.push({ key: "connector", name: `${count(rest)} more`, level: "", lines: ["see the table"] });
  const listed = agentsOf(agents, status);
  const model = { hubs, pairs: [...pairs.values()], connectors: ends, edges: [] };
  return listed ? single(model, listed, known) : grouped(model, status, shown);
}

let lastAgents = null;
/** The agents, if they are few; the page of the table may be a filtered one. */
function agentsOf(told, status) {
  if (status.agents.total > SINGLE) return null;
  if (told && told.agents.length >= status.agents.total) lastAgents = told.agents;
  return lastAgents?.length >= status.agents.total ? lastAgents : told?.agents ?? null;
}

function single(model, listed, known) {
  model.grouped = false;
  model.agents = listed.map((agent) => ({ key: `agent ${agent.agent_id}`, name: agent.agent_id, level: "", lines: [`${counted(agent.flows, "flow")}, ${counted(agent.tunnels.length, "tunnel")}`] }));
  const ends = new Set(model.connectors.map((one) => one.key));
  for (const agent of listed) {
    const key = `agent ${agent.agent_id}`;
    for (const hub of agent.hubs) {
      const own = agent.tunnels.filter((tunnel) => tunnel.hub === hub);
      if (known.has(`hub ${hub}`)) model.edges.push({ from: `hub ${hub}`, to: key, level: own.some((tunnel) => tunnel.takes_flows) ? "ok" : "warn" });
    }
    for (const name of agent.connectors) if (ends.has(`connector ${name}`)) model.edges.push({ from: key, to: `connector ${name}`, level: "" });
  }
  return model;
}

function grouped(model, status, shown) {
  model.grouped = true;
  model.agents = [];
  for (const hub of status.hubs.filter((one) => one.answered && one.agents.tunnels > 0)) {
    const key = `group ${hub.hub}`;
    model.agents.push({ key, name: counted(hub.agents.total, "agent"), level: "", lines: [counted(hub.agents.tunnels, "tunnel")] });
    model.edges.push({ from: `hub ${hub.hub}`, to: key, level: "ok" });
    for (const one of shown) {
      const own = one.hubs.find((part) => part.hub === hub.hub);
      if (own?.tunnels) model.edges.push({ from: key, to: `connector ${one.name}`, level: "" });
    }
  }
  return model;
}

function describe({ hubs, pairs, agents, connectors }) {
  const words = [
    ...hubs.map((hub) => `${hub.name}: ${hub.lines.join(", ")}`),
    ...pairs.map((pair) => `link ${pair.a.slice(4)} with ${pair.b.slice(4)}: ${pair.label}`),
    ...agents.map((agent) => `${agent.name}: ${agent.lines.join(", ")}`),
    ...connectors.map((one) => `connector ${one.name}: ${one.lines.join(", ")}`),
  ];
  return `Topology. ${words.join(". ")}. The tables below tell the same.`;
}

function box({ x, y, width, height, item }) {
  const letters = Math.floor(width / 7);
  return [
    draw("rect", { x, y, width, height, rx: 4, class: item.level }, draw("title", {}, `${item.name}: ${item.lines.join(", ")}`)),
    draw("text", { x: x + 9, y: y + (height > 50 ? 19 : 15) }, cut(item.name, letters)),
    ...item.lines.map((line, at) => draw("text", {
      x: x + 9, y: y + (height > 50 ? 36 : 29) + 16 * at, class: `sub ${at === 0 && item.level !== "ok" ? item.level : ""}`,
    }, cut(line, letters + 3))),
  ];
}

function curve(from, to, { level }) {
  if (!from || !to) return [];
  const [x1, y1, x2, y2] = [from.x + from.width, from.y + from.height / 2, to.x, to.y + to.height / 2];
  const middle = (x1 + x2) / 2;
  return [draw("path", { d: `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}`, class: level })];
}

/** The links of two hubs, left of them; the further apart, the wider. */
function arc(a, b, { level, label }) {
  if (!a || !b) return [];
  const [y1, y2] = [a, b].map((end) => end.y + end.height / 2).sort((one, two) => one - two);
  const far = Math.max(1, Math.round((y2 - y1) / (HUB.step)));
  const bow = Math.min(130, 40 + 40 * (far - 1));
  const [from, to] = [y1 + 8, y2 - 8];
  const middle = (from + to) / 2;
  const x = HUB.x - bow * 0.75;
  return [
    draw("path", { d: `M${HUB.x} ${from}C${HUB.x - bow} ${from} ${HUB.x - bow} ${to} ${HUB.x} ${to}`, class: level }),
    draw("text", { x, y: middle + 4, "text-anchor": "middle", class: `rtt ${level}` }, label),
  ];
}

// The plots.

const WIDTH = 300;
const HEIGHT = 100;
const SPAN_MS = 900_000;
const PLOTS = [
  { title: "Flows", show: count, lines: [["flows", "open"]] },
  { title: "Opens per second", show: decimal, lines: [["opens_per_sec", "opens"]] },
  { title: "Throughput per second", show: bytes, base: 1024, lines: [["bytes_c2a_per_sec", "to agents"], ["bytes_a2c_per_sec", "to clients"]] },
  { title: "Time to open", show: (value) => ms(value), lines: [["open_p50_ms", "p50"], ["open_p95_ms", "p95"]] },
];

function drawPlots(place, samples, now) {
  PLOTS.forEach((plot, at) => {
    const figure = place.children[at] ?? place.appendChild(frame(plot));
    drawPlot(figure, plot, samples, now);
  });
}

function frame({ title, lines }) {
  const keys = lines.map(([, name], at) => make("span", { class: `key${at + 1}` }, lines.length > 1 ? `${at ? "╌" : "─"} ${name}` : ""));
  const paths = lines.map((_, at) => draw("path", { class: at ? "two-line" : "one" }));
  const grid = draw("path", { class: "grid", d: `M0 ${HEIGHT / 2}H${WIDTH}M0 1H${WIDTH}` });
  const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" }, grid, ...paths);
  const labels = [make("span", { class: "top" }), make("p", {}, make("span", {}, "15 min ago"), make("span", {}, "now"))];
  return make("figure", {}, make("figcaption", {}, make("strong", {}, title), ...keys), make("div", { class: "plot" }, svg, ...labels));
}

function drawPlot(figure, { title, show, lines, base = 1000 }, samples, now) {
  const top = nice(Math.max(0, ...samples.flatMap((sample) => lines.map(([key]) => sample[key] ?? 0))), base);
  const svg = figure.querySelector("svg");
  const told = lines.map(([key, name], at) => {
    svg.children[at + 1].setAttribute("d", line(samples, key, top, now));
    const value = show(samples.at(-1)?.[key] ?? NaN);
    say(figure.querySelector(`.key${at + 1}`), lines.length > 1 ? `${at ? "╌" : "─"} ${name} ${value}` : value);
    return `${name} ${value}`;
  });
  say(figure.querySelector(".top"), show(top));
  const words = `${title}, last 15 minutes: now ${told.join(", ")}, scale up to ${show(top)}`;
  if (svg.getAttribute("aria-label") !== words) svg.setAttribute("aria-label", words);
}

/** A line with gaps where there is no sample or no value. */
function line(samples, key, top, now) {
  let path = "";
  let before = 0;
  for (const sample of samples) {
    const value = sample[key];
    if (!Number.isFinite(value)) continue;
    const x = WIDTH * (1 - (now - sample.at * 1000) / SPAN_MS);
    const y = HEIGHT - 2 - (HEIGHT - 6) * (value / top);
    const joins = sample.at - before <= 10;
    path += `${joins ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}${joins ? "" : "h.6"}`;
    before = sample.at;
  }
  return path;
}

/** The end of the scale: 1, 2 or 5 and zeros, of units that are powers of `base`. */
function nice(most, base) {
  if (most <= 0) return 1;
  const unit = base === 1000 ? 1 : base ** Math.max(0, Math.floor(Math.log(most) / Math.log(base)));
  const ten = 10 ** Math.floor(Math.log10(most / unit));
  return unit * ten * [1, 2, 5, 10].find((step) => step * ten * unit >= most);
}
