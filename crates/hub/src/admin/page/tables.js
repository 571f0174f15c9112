// The tables, and the way of a connector.
"use strict";

const SIGNS = { ok: "●", warn: "▲", bad: "■" };
const STATES = {
  ready: "ok", degraded: "warn", starting: "warn", draining: "warn",
  established: "ok", connecting: "warn", backoff: "bad", closed: "bad",
  up: "ok", embedded: "ok", down: "bad",
  open: "ok", opening: "warn", waiting: "warn",
  complete: "ok", broken: "bad", unknown: "warn",
  INFO: "ok", WARN: "warn", ERROR: "bad",
};

/** A state in a word, with a sign besides the colour. */
function state(word, title) {
  const level = STATES[word] ?? "warn";
  return { text: `${SIGNS[level]} ${word}`, class: level, title };
}

const hubs = table("hubs", "Hubs", [
  ["Hub"], ["State"], ["Mode"], ["Registry"], ["Version"], ["Up for", "num"], ["Agents", "num"], ["Flows", "num"], ["Listeners", "num"], ["Answer", "num"],
]);
function showHubs({ status, mesh }) {
  const registry = new Map(mesh.hubs.filter((hub) => hub.answered).map((hub) => [hub.hub, hub.registry]));
  hubs(status.hubs, {
    key: (hub) => hub.hub ?? hub.peer,
    none: "none",
    cells(hub) {
      const name = hub.hub ?? hub.peer;
      if (!hub.answered) return [name, { text: "■ no answer", class: "bad", title: hub.detail }, "", "", "", "", "", "", "", hub.reason];
      const registered = registry.get(hub.hub);
      return [
        name, state(hub.status), hub.mode, registered ? state(registered.state, registered.reason) : "", hub.version,
        span(hub.uptime_sec), count(hub.agents.total), count(hub.flows.total), count(hub.listeners.length), ms(hub.took_ms),
      ];
    },
  });
}

const links = table("links", "Links between hubs", [
  ["From"], ["To"], ["State"], ["Round trip", "num"], ["Flows", "num"], ["Queue", "num"], ["In flight", "num"], ["Since", "num"], ["Reconnects", "num"], ["Last error"],
]);
/** Each link once: as the hub that dials tells it, or else the one that accepts. */
function linksOf(mesh) {
  const known = new Map();
  for (const hub of mesh.hubs.filter((one) => one.answered)) {
    for (const link of hub.links) {
      const other = link.hub ?? link.peer;
      const [from, to] = link.direction === "outbound" ? [hub.hub, other] : [other, hub.hub];
      const key = `${from} ${to}`;
      // One that was never accepted is nothing to show: its dialer tells more, or is not there.
      if (link.direction === "outbound" || !known.has(key)) known.set(key, { ...link, from, to, key });
    }
  }
  return [...known.values()].sort((a, b) => (a.key < b.key ? -1 : 1));
}
function showLinks(mesh) {
  const all = linksOf(mesh);
  const up = all.filter((link) => link.state === "established").length;
  links(all, {
    key: (link) => link.key,
    none: "This hub is linked with no other.",
    about: all.length ? `Links between hubs: ${up} of ${all.length} established` : "Links between hubs",
    cells: (link) => [
      link.from, link.to, state(link.state), ms(link.rtt_ms ?? NaN), count(link.flows), count(link.queue_frames), bytes(link.inflight_bytes),
      span(link.since_sec ?? NaN), count(link.reconnects),
      // What went wrong before is in the events.
      link.state === "established" ? "" : { text: cut(link.last_error ?? "", 48), class: "bad", title: link.last_error },
    ],
  });
}

const connectors = table("connectors", "Connectors", [
  ["Connector"], ["State"], ["Listeners"], ["Tunnels", "num"], ["Flows", "num"], ["Opened", "num"], ["To agents", "num"], ["To clients", "num"], ["Open p50", "num"], ["p95", "num"], ["Turned away"],
]);
function showConnectors({ connectors: told }, choose) {
  connectors(told.connectors, {
    key: (connector) => connector.name,
    none: "No listener and no agent has any.",
    about: "Connectors: press a name to see the way to its agents",
    cells(connector) {
      const counts = connector.hubs.map((hub) => hub.counts).filter(Boolean);
      const sum = (key) => counts.reduce((total, one) => total + one[key], 0);
      const worst = (key) => Math.max(...counts.map((one) => one[key] ?? -1));
      const errors = {};
      for (const one of counts) for (const [kind, number] of Object.entries(one.errors)) errors[kind] = (errors[kind] ?? 0) + number;
      const listeners = connector.hubs.flatMap((hub) => hub.listeners.map((one) => `${hub.hub} ${one.address}`));
      const turned = Object.entries(errors).map(([kind, number]) => `${kind} ${count(number)}`).join(", ");
      const { up = 0, down = 0, unknown = 0 } = connector.probes ?? {};
      const level = down ? (up + unknown ? "warn" : "bad") : connector.tunnels ? "ok" : connector.listeners ? "bad" : "warn";
      const word = down ? `${down} of ${up + down + unknown} targets down` : connector.tunnels ? "served" : "no agent";
      return [
        { text: connector.name, press: choose },
        { text: `${SIGNS[level]} ${word}`, class: level },
        { text: listeners.length > 3 ? `${count(listeners.length)} addresses` : listeners.join(", "), title: listeners.slice(0, 50).join(", ") },
        count(connector.tunnels), count(connector.flows), count(sum("connections_total")), bytes(sum("bytes_c2a_total")), bytes(sum("bytes_a2c_total")),
        ms(worst("open_p50_ms") < 0 ? NaN : worst("open_p50_ms")), ms(worst("open_p95_ms") < 0 ? NaN : worst("open_p95_ms")),
        { text: turned, class: turned ? "warn" : "" },
      ];
    },
  });
}

/** The ways of one connector, hop by hop. */
function showPath(place, connector, told) {
  place.hidden = !connector || !told || told.connector !== connector;
  if (place.hidden) return;
  const ways = told.paths.map((path) => {
    const hops = path.hops.map((hop) => {
      const level = hop.ok === null ? "" : hop.ok ? "ok" : "bad";
      const sign = hop.ok === null ? "?" : hop.ok ? "●" : "■";
      const name = hop.kind === "agent" || hop.kind === "tunnel" ? hop.agent_id ?? hop.hub : hop.kind === "mesh_link" ? `to ${hop.to}` : hop.hub;
      return [level, `${sign} ${hop.kind.replace("_", " ")} ${name}${hop.ok === false ? `: ${hop.detail}` : ""}`];
    });
    return { head: `${connector} from ${path.from}: ${path.state}${path.preferred ? ", taken first" : ""}`, hops };
  });
  const text = JSON.stringify(ways);
  if (place.dataset.shown === text) return;
  place.dataset.shown = text;
  place.replaceChildren(...ways.flatMap(({ head, hops }) => [
    make("strong", {}, head),
    make("ol", {}, ...hops.map(([level, words]) => make("li", { class: level }, words))),
  ]));
}

const agents = table("agents", "Agents", [
  ["Agent"], ["Version"], ["Hubs"], ["Connectors"], ["Address"], ["Protocol", "num"], ["Tunnels", "num"], ["Flows", "num"], ["Round trip", "num"], ["Connected", "num"], ["Token ends in", "num"], ["Epoch", "num"],
]);
function showAgents(told, status) {
  agents(told.agents, {
    key: (agent) => agent.agent_id,
    none: "No agent fits.",
    about: `Agents: ${count(status.agents.total)} connected`,
    cells(agent) {
      const of = (key) => agent.tunnels.map((tunnel) => tunnel[key]).filter(Number.isFinite);
      const leaves = agent.tunnels.some((tunnel) => !tunnel.takes_flows);
      const left = Math.min(...of("token_expires_at")) - told.at_ms / 1000;
      const names = agent.connectors.join(", ");
      return [
        agent.agent_id, agent.version, agent.hubs.join(", "), { text: cut(names, 60), title: names },
        [...new Set(agent.tunnels.map((tunnel) => tunnel.remote))].join(", "),
        [...new Set(of("protocol"))].join(", "),
        leaves ? { text: `▲ ${agent.tunnels.length}, leaving`, class: "warn" } : count(agent.tunnels.length),
        count(agent.flows), ms(of("rtt_ms").length ? Math.min(...of("rtt_ms")) : NaN), span(Math.max(...of("connected_sec"))),
        left < 300 ? { text: `▲ ${span(Math.max(0, left))}`, class: "warn" } : span(left), agent.epoch,
      ];
    },
  });
  return `, ${counted(told.agents.length, "agent")}`;
}

const flows = table("flows", "Flows", [
  ["Cid"], ["State"], ["Connector"], ["Client"], ["Hub"], ["Over"], ["Agent"], ["To agent", "num"], ["To client", "num"], ["Open for", "num"], ["Idle", "num"], ["Held", "num"],
]);
function showFlows(told, filter) {
  const filtered = Object.values(filter).some(Boolean);
  flows(told.flows, {
    key: (flow) => flow.cid,
    none: filtered ? "No flow on this page fits." : "No client is connected.",
    about: `Flows: ${count(told.total)} in all, the oldest first${filtered ? ", filtered" : ""}`,
    cells: (flow) => [
      flow.cid, state(flow.state), flow.connector, flow.client, flow.hub, flow.owner === flow.hub ? "" : flow.owner, flow.agent_id,
      bytes(flow.bytes_c2a), bytes(flow.bytes_a2c), span(flow.duration_ms / 1000), span(flow.idle_ms / 1000), bytes(flow.held_bytes),
    ],
  });
  return `, ${counted(told.flows.length, "flow")}`;
}

const events = table("events", "Events", [["Time"], ["Hub"], ["Level"], ["Event"], ["Fields", "wide"]]);
function showEvents(told) {
  const level = (event) => (event.level === "INFO" ? { text: "info", class: "quiet" } : state(event.level));
  events([...told.events].reverse(), {
    key: (event) => `${event.hub} ${event.number} ${event.at_ms}`,
    none: "Nothing has happened yet.",
    about: "Events, the latest first",
    cells: (event) => [
      clock(event.at_ms), event.hub, level(event), event.event,
      Object.entries(event.fields).map(([key, value]) => `${key}=${typeof value === "string" ? value : JSON.stringify(value)}`).join("  "),
    ],
  });
}
