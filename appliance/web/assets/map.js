// The cluster at a glance: networks above, nodes in the middle, volumes below, and what joins them.
import { get, change, poll, admin, volumePath, nodePath, networkPath } from './api.js';
import { h, fill, refill, pill, tone, bytes, nanos, table, section, button, ask, dialog, problem } from './ui.js';

export function show(main, signal) {
  const picture = h('div', { class: 'map', 'data-key': 'map' });
  const notes = h('div', {});
  const rest = h('div', { class: 'panels' });
  main.append(h('div', { class: 'actions head' }, admin() ? button('Validate cluster', validate, { key: 'validate' }) : null), notes, picture, rest);
  poll(2000, signal, async () => {
    const [cluster, networks, volumes, beats] = await Promise.all([get('/cluster', { signal }), get('/networks', { signal }), get('/volumes', { signal }), get('/heartbeats', { signal })]);
    const details = await Promise.all(volumes.map((v) => get(volumePath(v.name), { signal }).catch(() => ({ ...v, nodes: [] }))));
    refill(notes, [cluster.reason, ...(cluster.advice || []), ...(networks.warnings || [])].filter(Boolean).map((t) => h('p', { class: 'notice' }, t)));
    fill(picture, draw(cluster, networks.networks, details));
    refill(rest, nodeTable(cluster), networkTable(networks), pathTable(details), beatTable(beats));
  }, (e) => { if (e) fill(notes, problem(e)); });
}

const small = matchMedia('(max-width: 719px)');
const short = (s, n) => (s.length > n ? `${s.slice(0, n - 1)}…` : s);

// draw lays the map out on a grid of columns, one per node.
function draw(cluster, networks, volumes) {
  const nodes = cluster.nodes;
  const compact = small.matches;
  const w = compact ? 104 : 168, gap = compact ? 9 : 24, x0 = compact ? 4 : 12;
  const width = Math.max(nodes.length * (w + gap) - gap, volumes.length * (w + gap) - gap, 340) + 2 * x0;
  const nx = (i, n) => x0 + (width - 2 * x0) * ((i + 0.5) / n);
  const busY = (i) => 26 + i * 44;
  const nodeY = busY(networks.length) + 22, nodeH = 72;
  const volumeY = nodeY + nodeH + 78, volumeH = 90;
  const height = volumes.length ? volumeY + volumeH + 8 : nodeY + nodeH + 12;
  const wires = [], boxes = [];
  networks.forEach((net, i) => {
    const y = busY(i);
    wires.push(h('line', { x1: x0, x2: width - x0, y1: y, y2: y, class: `bus ${net.role === 'none' ? 'none' : tone(net.state)}` }));
    boxes.push(h('text', { x: x0, y: y - 8, class: 'label' }, `${short(net.name, compact ? 14 : 26)} · ${compact ? '' : 'metric '}${net.metric} · ${net.role}`),
      h('text', { x: width - x0, y: y - 8, class: `label end ${tone(net.state)}` }, net.state));
    for (const m of net.members) {
      const at = nodes.findIndex((n) => n.name === m.node);
      if (at < 0) continue;
      const x = nx(at, nodes.length) + (i - (networks.length - 1) / 2) * 18;
      const ok = m.up && nodes[at].state !== 'Down' ? 'good' : 'bad';
      wires.push(h('line', { x1: x, x2: x, y1: y, y2: nodeY, class: `drop ${ok}` }), h('circle', { cx: x, cy: y, r: 3.5, class: `tap ${ok}` }));
    }
  });
  nodes.forEach((n, i) => boxes.push(box(nx(i, nodes.length), nodeY, w, nodeH, tone(n.state), n.name, compact, [n.state + (n.role === 'witness' ? ' · witness' : ''),
    n.coordinates ? `coordinates ${n.coordinates}` : n.leader ? 'database leader' : n.vote], n.leader)));
  volumes.forEach((v, j) => {
    for (const p of v.nodes) {
      const i = nodes.findIndex((n) => n.name === p.node);
      if (i < 0) continue;
      const chief = v.coordinator === p.node;
      const [a, b] = [nx(i, nodes.length), nx(j, volumes.length)];
      const y1 = nodeY + nodeH, mid = (y1 + volumeY) / 2;
      wires.push(h('path', { d: `M${a} ${y1}C${a} ${mid} ${b} ${mid} ${b} ${volumeY}`, class: `way ${tone(p.state)} ${chief ? 'chief' : ''}` },
        h('title', {}, `${p.node} → ${v.name}: ${p.state}${p.reason ? ` (${p.reason})` : ''}${chief ? ', coordinator' : ''}`)));
      if (chief) boxes.push(h('rect', { x: a - 44, y: y1 + 8, width: 88, height: 18, rx: 9, class: 'tag' }), h('text', { x: a, y: y1 + 21, class: 'tagtext' }, 'coordinator'));
    }
    boxes.push(box(nx(j, volumes.length), volumeY, w, volumeH, tone(v.state), v.name, compact,
      [v.coordinator ? `${compact ? '' : 'coordinator '}${v.coordinator}${compact ? ' coordinates' : ''}` : 'no coordinator', `${v.state} here`, v.size ? compact ? `${bytes(v.free)} free` : `${bytes(v.free)} of ${bytes(v.size)} free` : 'size not known']));
  });
  const text = `${nodes.map((n) => `${n.name} ${n.state}`).join(', ')}; ${volumes.map((v) => `${v.name} coordinated by ${v.coordinator || 'nobody'}`).join(', ')}`;
  const svg = h('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': text }, wires, boxes);
  svg.style.minWidth = `${Math.min(width, 320)}px`;
  svg.style.maxWidth = `${width * 1.35}px`;
  return [svg, h('ul', { class: 'key' }, [['good', 'direct, up'], ['warn', 'redirected, in part'], ['bad', 'down']].map(([c, t]) => h('li', { class: c }, h('i', {}), t)))];
}

function box(x, y, w, height, kind, name, compact, linesOf, star) {
  const left = x - w / 2 + (compact ? 12 : 18);
  return h('g', { class: `box ${kind}` }, h('rect', { x: x - w / 2, y, width: w, height, rx: 9 }), h('rect', { x: x - w / 2, y, width: 5, height, rx: 2.5, class: 'edge' }),
    h('text', { x: left, y: y + 24, class: 'name' }, short(name, compact ? 10 : 16)), star ? h('text', { x: x + w / 2 - 12, y: y + 24, class: 'star' }, '★') : null,
    linesOf.map((t, i) => h('text', { x: left, y: y + 43 + i * 17, class: 'sub' }, short(t, compact ? 15 : 23))));
}

function nodeTable(cluster) {
  const rows = cluster.nodes.map((n) => [h('strong', {}, n.name), pill(n.state), n.role + (n.leader ? ', leads the database' : ''), n.vote, String(n.coordinates), n.address || '–',
    admin() && cluster.id && n.role !== 'witness' ? (n.draining ? button('Resume', () => resume(n), { key: `resume ${n.name}` }) : button('Drain …', () => drain(n), { key: `drain ${n.name}` })) : '']);
  return section(`Nodes${cluster.voters ? ` · ${cluster.living} of ${cluster.voters} voters answer` : ''}`, null,
    table('Nodes', ['Node', 'State', 'Role', 'Vote', 'Coordinates', 'Address', ''], rows, 'This node is in no cluster.'));
}

const drain = (n) => ask({ title: `Drain ${n.name}`, about: `The volumes that ${n.name} coordinates move to other nodes, and it takes none until it is resumed. Initiators stay connected.`, verb: 'Drain',
  act: async () => { const d = await change('POST', `${nodePath(n.name)}/drain`); return `${n.name} is drained: ${d.moved.length} moved${d.stay?.length ? `, ${d.stay.join(', ')} stay` : ''}`; } });
const resume = (n) => ask({ title: `Resume ${n.name}`, about: `${n.name} may coordinate volumes again.`, verb: 'Resume', act: async () => { await change('POST', `${nodePath(n.name)}/resume`); return `${n.name} is resumed`; } });

function networkTable(ns) {
  const rows = ns.networks.map((n) => [h('strong', {}, n.name), pill(n.state), `${n.metric}${n.autoMetric ? '' : ' (by hand)'}`, n.role, n.subnets.join(', '), n.members.map((m) => h('span', { class: `member ${m.up ? '' : 'bad'}` }, `${m.node} ${m.interface}`)),
    admin() ? button('Change …', () => setNetwork(n), { key: `network ${n.name}` }) : '']);
  return section(`Networks · as ${ns.node} sees them${ns.method ? ` · heartbeats by the ${ns.method}` : ''}`, null,
    table('Networks', ['Network', 'State', 'Metric', 'Role', 'Subnets', 'Interfaces', ''], rows, 'No network is known.'));
}

const setNetwork = (n) => ask({ title: `Network ${n.name}`, about: 'The network with the lowest metric that is up carries the traffic between nodes.', verb: 'Change', fields: [
  { name: 'role', label: 'Role', type: 'select', value: n.role, options: [['none', 'none: the cluster does not use it'], ['cluster', 'cluster: between nodes only'], ['cluster-and-client', 'cluster-and-client: initiators too']] },
  { name: 'metric', label: 'Metric', value: n.autoMetric ? 'auto' : String(n.metric), pattern: 'auto|[0-9]+', title: 'a number from 1, or auto', hint: 'auto: by speed and role' }],
act: async (v) => {
  await change('PATCH', networkPath(n.name), { role: v.role, metric: v.metric === 'auto' ? 0 : Number(v.metric) });
  return `${n.name} is changed`;
} });

function pathTable(volumes) {
  const rows = volumes.flatMap((v) => v.nodes.map((p) => [h('strong', {}, v.name), p.node, pill(p.state, p.reason), (v.coordinator === p.node ? 'coordinator' : '') || '–', p.reason || '–',
    `${bytes(p.directRead.bytes)} / ${bytes(p.directWrite.bytes)}`, `${bytes(p.redirectedRead.bytes)} / ${bytes(p.redirectedWrite.bytes)}`]));
  return section('Paths to volumes', null, table('Paths to volumes', ['Volume', 'Node', 'State', 'Part', 'Reason', 'Direct read / write', 'Redirected read / write'], rows, 'There are no volumes yet: lunarctl volume add DEVICE makes one.'));
}

function quantile(rtt, share) {
  const total = rtt.reduce((a, b) => a + b, 0);
  let sum = 0;
  for (let i = 0; total && i < rtt.length; i++) {
    sum += rtt[i];
    if (sum >= share * total) return 2 ** (i + 1);
  }
  return 0;
}

function beatTable(b) {
  const rows = (b.paths || []).map((p) => [h('strong', {}, p.peer), p.network, p.family, pill(p.state, p.down), p.route ? 'traffic' : 'stand-by', p.lastNs < 0 ? 'never' : nanos(p.lastNs),
    h('span', { title: 'half of the round trips, and 99 of 100, take at most so long' }, `${nanos(quantile(p.rtt, 0.5))} / ${nanos(quantile(p.rtt, 0.99))}`), String(p.gaps)]);
  return section(`Paths between nodes · from ${b.node}`, null, table('Paths between nodes', ['Peer', 'Network', 'Family', 'State', 'Use', 'Last sign', 'Round trip p50 / p99', 'Gaps'], rows, 'No heartbeats: the node is in no cluster.'));
}

function validate() {
  dialog('Validate cluster', (close, body) => {
    change('POST', '/cluster/validate').then((v) => fill(body, v.checks.map((c) => h('div', { class: 'check' }, pill(c.outcome), h('div', {}, h('strong', {}, c.check), h('p', {}, c.found), c.advice ? h('p', { class: 'about' }, c.advice) : null)))),
      (e) => fill(body, problem(e)));
    return h('p', { class: 'about', role: 'status' }, 'Looking for what would fail when it is needed; it takes some seconds …');
  }, { wide: true });
}
