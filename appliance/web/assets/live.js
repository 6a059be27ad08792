// What goes on now: IOPS, bandwidth and latency of the cluster, and who makes them.
import { get, poll } from './api.js';
import { h, fill, refill, count, bytes, nanos, table, section, problem } from './ui.js';
import { Chart } from './chart.js';

const windowMS = 2000; // of one look, which the node takes
const span = 180000;
let samples = []; // kept while the console is open, so that a page that was left shows them again

export function show(main, signal) {
  const notes = h('div', {});
  const body = h('div', { class: 'panels' });
  const common = { span, gap: 3 * windowMS };
  const charts = [
    new Chart({ ...common, title: 'I/O per second', format: count, floor: 10, series: [{ name: 'read', class: 's1', of: (s) => s.readIOPS }, { name: 'write', class: 's2', of: (s) => s.writeIOPS }] }),
    new Chart({ ...common, title: 'Bandwidth per second', format: bytes, floor: 1024, series: [{ name: 'read', class: 's1', of: (s) => s.readBytes }, { name: 'write', class: 's2', of: (s) => s.writeBytes }] }),
    new Chart({ ...common, title: 'Latency', format: nanos, floor: 1e5, series: [{ name: 'p50', class: 's1', of: (s) => s.p50 }, { name: 'p99', class: 's3', of: (s) => s.p99 }] }),
    new Chart({ ...common, title: 'Way to the disk, I/O', format: count, floor: 10, series: [{ name: 'direct', class: 's1', of: (s) => s.direct }, { name: 'redirected', class: 's3', of: (s) => s.redirected }] }),
  ];
  main.append(notes, h('div', { class: 'charts' }, charts.map((c) => c.el)), body);
  const draw = () => charts.forEach((c) => c.draw(samples, Date.now()));
  const timer = setInterval(draw, 1000);
  signal.addEventListener('abort', () => clearInterval(timer));
  draw();
  poll(100, signal, async () => {
    const t = await get(`/top?window=${windowMS}ms&limit=20`, { signal });
    samples = [...samples.filter((s) => s.at > Date.now() - span - windowMS), sample(t)];
    draw();
    fill(notes, [...(t.notes || []), ...(t.silent?.length ? [`No answer from ${t.silent.join(', ')}: their I/O is missing.`] : [])].map((n) => h('p', { class: 'notice' }, n)));
    refill(body, section('Nodes', null, rates('Nodes', t.nodes, [['Node', (n) => h('strong', {}, n.node)], ['Sessions', (n) => String(n.sessions)]], true)),
      section('Volumes', null, rates('Volumes', t.volumes, [['Volume', (v) => h('strong', {}, v.volume)], ['Coordinator', (v) => v.coordinator || '–']], true)),
      section(`Busiest LUNs · ${t.lunsActive} active`, null, rates('LUNs', t.luns, [['LUN', (l) => h('strong', {}, l.image || `${l.target} LUN ${l.lun}`)], ['Through', (l) => (l.nodes || []).join(', ')]])),
      section(`Busiest initiators · ${t.initiatorsActive} active`, null, rates('Initiators', t.initiators, [['Initiator', (i) => h('strong', {}, i.initiator)], ['Network round trip', (i) => nanos(i.rttNs)]])));
  }, (e) => { if (e) fill(notes, problem(e)); });
}

const sum = (all, of) => all.reduce((n, x) => n + of(x), 0);
const most = (all, of) => Math.max(0, ...all.map(of));

function sample(t) {
  const n = t.nodes;
  return { at: Date.now(), readIOPS: sum(n, (x) => x.read.iops), writeIOPS: sum(n, (x) => x.write.iops), readBytes: sum(n, (x) => x.read.bytesPerSecond), writeBytes: sum(n, (x) => x.write.bytesPerSecond),
    p50: most(n, (x) => x.all.p50Ns), p99: most(n, (x) => x.all.p99Ns), direct: sum(n, (x) => x.split.directRead + x.split.directWrite), redirected: sum(n, (x) => x.split.redirectedRead + x.split.redirectedWrite) };
}

function rates(caption, rows, own, split) {
  const cols = [...own, ['Read IOPS', (r) => count(r.read.iops)], ['Write IOPS', (r) => count(r.write.iops)], ['Read /s', (r) => bytes(r.read.bytesPerSecond)], ['Write /s', (r) => bytes(r.write.bytesPerSecond)],
    ['p50', (r) => nanos(r.all.p50Ns)], ['p99', (r) => nanos(r.all.p99Ns)], ['Slowest', (r) => nanos(r.all.maxNs)]];
  if (split) cols.push(['Redirected', (r) => share(r.split)]);
  return table(caption, cols.map(([n]) => n), (rows || []).map((r) => cols.map(([, f]) => f(r))), 'No I/O in this moment.');
}

function share(s) {
  const redirected = s.redirectedRead + s.redirectedWrite;
  const all = redirected + s.directRead + s.directWrite;
  return all ? `${Math.round((redirected / all) * 100)} %` : '–';
}
