// Volumes: what they have left, who coordinates them, and what can be done with them.
import { get, change, poll, admin, volumePath, seg } from './api.js';
import { h, fill, refill, pill, bytes, bar, when, count, facts, table, section, button, ask, dialog, problem } from './ui.js';

export function show(main, signal) {
  const notes = h('div', {});
  const body = h('div', { class: 'panels' });
  main.append(notes, body);
  poll(2000, signal, async () => {
    const [volumes, backups, jobs, nodes] = await Promise.all([get('/volumes', { signal }), get('/backups', { signal }), get('/jobs', { signal }), get('/nodes', { signal })]);
    fill(notes);
    refill(body, h('div', { class: 'cards' }, volumes.map((v) => card(v, nodes, backups, signal))), volumes.length ? null : h('p', { class: 'empty' }, 'There are no volumes yet. On a node: lunarctl volume add DEVICE --format xfs'),
      section('Backups under way', null, table('Backups', ['Volume', 'Node', 'Snapshot', 'Begun', 'Ends at the latest', 'Read', ''], backups.map((b) => backupRow(b)), 'None.')),
      section('Long operations', null, table('Long operations', ['What', 'On', 'Since', 'Done'], jobs.map((j) => [j.kind, j.object, when(j.since), j.total ? h('span', { class: 'progress' }, bar(j.done || 0, j.total), ` ${Math.round(((j.done || 0) / j.total) * 100)} %`) : '–']), 'None.')));
  }, (e) => { if (e) fill(notes, problem(e)); });
}

function card(v, nodes, backups, signal) {
  const own = backups.some((b) => b.volume === v.name);
  return h('article', { class: 'card' }, h('header', {}, h('h2', {}, v.name), pill(v.state, v.reason)),
    v.reason ? h('p', { class: 'about' }, v.reason) : null,
    h('div', { class: 'space-left' }, bar(v.size - v.free, v.size, `${bytes(v.size - v.free)} of ${bytes(v.size)} used`), h('span', {}, v.size ? `${bytes(v.free)} free of ${bytes(v.size)}` : 'size not known')),
    facts('Coordinator', v.coordinator || 'none now', 'Term', String(v.epoch), 'File system', v.fileSystem, 'Fencing', v.fencing, 'LUN', h('code', {}, v.wwid)),
    h('div', { class: 'buttons' }, button('Details', () => details(v.name, signal), { key: `details ${v.name}` }),
      admin() ? [button('Move …', () => move(v, nodes), { key: `move ${v.name}` }), button('Redirect …', () => redirect(v), { key: `redirect ${v.name}` }),
        own ? null : button('Backup …', () => backup(v, nodes), { key: `backup ${v.name}` }), button('Rename …', () => rename(v), { key: `rename ${v.name}` })] : null,
      h('a', { class: 'button', href: `#/images?volume=${seg(v.name)}` }, 'Images')));
}

function details(name, signal) {
  const end = new AbortController();
  signal.addEventListener('abort', () => end.abort());
  dialog(name, (close, body) => {
    poll(2000, end.signal, async () => {
      const v = await get(volumePath(name), { signal: end.signal });
      refill(body, facts('Coordinator', v.coordinator || 'none now', 'Term', String(v.epoch), 'Device here', v.device, 'Created', when(v.created)),
        table('Nodes', ['Node', 'State', 'Reason', 'Direct I/Os read / write', 'Redirected I/Os read / write', 'Metadata'], v.nodes.map((n) => [h('strong', {}, n.node), pill(n.state), n.reason || '–',
          `${count(n.directRead.ios)} / ${count(n.directWrite.ios)}`, `${count(n.redirectedRead.ios)} / ${count(n.redirectedWrite.ios)}`, count(n.metadata.ios)]), 'No node has it.'));
    }, (e) => { if (e) fill(body, problem(e)); });
    return h('p', { class: 'about' }, 'Asking all nodes …');
  }, { wide: true, onclose: () => end.abort() });
}

const move = (v, nodes) => ask({ title: `Move ${v.name}`, about: `Another node coordinates ${v.name}: it mounts the file system and makes all changes to it. Initiators notice a short pause at most.`, verb: 'Move',
  fields: [{ name: 'to', label: 'To', type: 'select', options: [['', 'the best node'], ...nodes.filter((n) => n.role !== 'witness' && n.name !== v.coordinator).map((n) => [n.name, `${n.name} (${n.state})`])] }],
  act: async ({ to }) => { const m = await change('POST', `${volumePath(v.name)}/move`, { to }); return `${m.volume} is coordinated by ${m.node} now, term ${m.epoch}`; } });

const redirect = (v) => ask({ title: `Redirect ${v.name}`, about: 'With it, all I/O of this console\'s node goes through the coordinator instead of straight to the LUN: for work on its path.', verb: 'Set',
  fields: [{ name: 'on', label: 'I/O of this node', type: 'select', value: 'on', options: [['on', 'through the coordinator'], ['off', 'straight to the LUN']] }],
  act: async ({ on }) => { await change('POST', `${volumePath(v.name)}/redirect`, { on: on === 'on' }); return `${v.name}: redirected I/O is ${on}`; } });

const rename = (v) => ask({ title: `Rename ${v.name}`, verb: 'Rename', about: 'Images keep their data and their LUNs; their names begin with the new one.',
  fields: [{ name: 'name', label: 'Name', value: v.name, required: true }], act: async ({ name }) => { await change('POST', `${volumePath(v.name)}/rename`, { name }); return `${v.name} is ${name} now`; } });

const backup = (v, nodes) => ask({ title: `Begin a backup of ${v.name}`, verb: 'Begin', about: 'A node serves all images read-only by NBD as they are at one instant, until the backup is ended. Machines go on; changes of images wait.',
  fields: [{ name: 'node', label: 'Node that serves', type: 'select', options: [['', 'this one'], ...nodes.filter((n) => n.role !== 'witness').map((n) => [n.name, n.name])] },
    { name: 'snapshot', label: 'Keep the snapshot as', hint: 'empty: it goes with the backup' }, { name: 'since', label: 'Tell what has changed since snapshot', hint: 'empty: everything' }],
  act: async (b) => {
    const out = await change('POST', '/backups', { volume: v.name, node: b.node, snapshot: b.snapshot, since: b.since });
    tellBackup(out);
    return `A backup of ${v.name} is under way`;
  } });

function tellBackup(b) {
  dialog(`Backup of ${b.volume} on ${b.node}`, () => [h('p', { class: 'about' }, `Read these on ${b.node}, with nbdcopy or qemu-img, until ${when(b.until)} at the latest:`),
    table('Images', ['Image', 'Size', 'URI'], b.images.map((i) => [i.image, bytes(i.size), h('code', {}, i.uri)]), 'The volume has no images.')], { wide: true });
}

function backupRow(b) {
  const end = () => ask({ title: `End the backup of ${b.volume}`, about: `${b.images.length} images are served on ${b.node}; tools that still read them are cut off.`, verb: 'End', danger: true,
    act: async () => { await change('DELETE', `/backups/${seg(b.id)}`); return `The backup of ${b.volume} has ended`; } });
  return [h('strong', {}, b.volume), b.node, b.snapshot + (b.keep ? ' (kept)' : ''), when(b.begun), when(b.until), bytes(b.images.reduce((n, i) => n + i.read, 0)),
    [button('Where', () => tellBackup(b), { key: `where ${b.id}` }), ' ', admin() ? button('End …', end, { key: `end ${b.id}` }) : null]];
}
