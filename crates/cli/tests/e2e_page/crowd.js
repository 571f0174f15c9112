// Answers for the API of three hubs with 1,000 agents and 10,000 flows.
(() => {
  const hubs = ["hub-a", "hub-b", "hub-c"];
  const names = ["ldap", "pg", "web"];
  const evil = "<img src=x onerror=window.harm=1>";
  const now = Date.now();
  const head = (hub) => ({ hub, peer: null, answered: true, reason: null, detail: null, took_ms: 1 });
  const flowTotals = { total: 10_000, open: 10_000, opening: 0, waiting: 0, forwarded: 4000 };
  const all = { scope: "cluster", asked: "hub-a", at_ms: now, hubs: hubs.map(head) };
  const agent = (at) => ({
    agent_id: `agent-${String(at).padStart(4, "0")}`, instance: "i", version: "1.0", connectors: names, epoch: now, flows: 10, hubs: [hubs[at % 3]],
    tunnels: [{ hub: hubs[at % 3], remote: "192.0.2.7", protocol: 2, connected_sec: 99, epoch: now, flows: 10, takes_flows: true, rtt_ms: 1.5, first_window: 1, token_expires_at: now / 1000 + 9999 }],
  });
  const flow = (at) => ({
    cid: `01a205cc-0582-76d4-b0ee-${String(at).padStart(12, "0")}`, connector: names[at % 3], listener: "l", client: `198.51.100.${at % 250}:${at}`,
    agent_id: `agent-${at % 1000}`, hub: hubs[at % 3], owner: hubs[(at + 1) % 3], state: "open", bytes_c2a: at * 1000, bytes_a2c: at * 9000, duration_ms: at * 10, idle_ms: 5, held_bytes: 0,
  });
  const many = (total, one, query) => {
    const from = Number(query.get("cursor") || 0);
    const page = Array.from({ length: 100 }, (_, at) => one(from + at));
    return { ...all, total, next: String(from + 100), [one === flow ? "flows" : "agents"]: page };
  };
  const link = (from, peer, direction) => ({ peer, url: null, hub: peer, direction, state: "established", since_sec: 9, rtt_ms: 0.4, flows: 1, queue_frames: 0, inflight_bytes: 0, reconnects: 0, last_error: null });
  const answers = {
    status: () => ({ ...all, agents: { total: 1000, tunnels: 1000 }, flows: flowTotals,
      hubs: hubs.map((hub) => ({ ...head(hub), version: "1.0", status: "ready", mode: "active", reasons: [], uptime_sec: 5, needs_restart: [], listeners: [], agents: { total: 333, tunnels: 334 }, flows: { ...flowTotals, total: 3333 } })) }),
    mesh: () => ({ ...all, hubs: hubs.map((hub) => ({ ...head(hub), mode: "active", registry: { state: "up", reason: null }, routes_total: 666,
      links: hubs.filter((one) => one !== hub).flatMap((one) => [link(hub, one, "outbound"), link(hub, one, "inbound")]),
      routes: Array.from({ length: 666 }, (_, at) => ({ hub: "hub-b", agent_id: `agent-${at}`, instance: "i", epoch: now, connectors: names, flows: 1 })) })) }),
    connectors: () => ({ ...all, connectors: names.map((name) => ({ name, listeners: 0, tunnels: 1000, flows: 3333, hubs: hubs.map((hub) => ({ hub, listeners: [], agents: 333, tunnels: 333, counts: null })) })) }),
    agents: (query) => many(1000, agent, query),
    flows: (query) => many(10_000, flow, query),
    events: () => ({ ...all, events: Array.from({ length: 100 }, (_, at) => ({ at_ms: now - at, hub: "hub-a", number: at, level: "WARN", event: "mesh_link_down", fields: { reason: evil } })) }),
    history: () => ({ ...all, period_sec: 5, samples: Array.from({ length: 180 }, (_, at) => ({ at: Math.floor(now / 1000) - 900 + at * 5, hubs: 3, flows: 9000 + at, tunnels: 1000, opens_per_sec: at, bytes_c2a_per_sec: at * 1e5, bytes_a2c_per_sec: at * 9e5, open_p50_ms: 2, open_p95_ms: 8 })) }),
  };
  window.fetch = async (url) => {
    const [path, query] = url.replace("/api/v1/", "").split("?");
    // Through text, as over the network.
    return new Response(JSON.stringify(answers[path](new URLSearchParams(query))));
  };
})();
