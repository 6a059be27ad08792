// Targets, their LUNs, and who is logged in.
import { get, change, poll, admin, targetPath, seg } from './api.js';
import { h, fill, refill, pill, bytes, when, count, facts, table, button, ask, dialog, problem } from './ui.js';
import { List, search, matches } from './list.js';

export function show(main, signal) {
  let targets = null, sessions = [], words = [], view = 'luns';
  const notes = h('div', {});
  const tally = h('span', { class: 'tally', role: 'status' });
  const again = () => load().catch((e) => fill(notes, problem(e)));
  const open = (name) => details(name, () => targets.find((t) => t.name === name), signal, again);
  const views = {
    luns: { name: 'LUNs', rows: () => targets.flatMap((t) => t.luns.map((l) => ({ t, l, lower: `${t.name} ${l.image} ${l.naa} ${l.state}`.toLowerCase() }))),
      list: new List({ label: 'LUNs', key: (r) => `${r.t.name} ${r.l.number}`, open: (r) => open(r.t.name), empty: () => 'No LUN.', columns: [
        { name: 'Image', class: 'grow', cell: (r) => h('strong', {}, r.l.image) }, { name: 'Target', class: 'mapped', cell: (r) => r.t.name }, { name: 'LUN', class: 'num', cell: (r) => `LUN ${r.l.number}` },
        { name: 'Size', class: 'num', cell: (r) => bytes(r.l.size) }, { name: 'State', class: 'state', cell: (r) => pill(r.l.state, r.l.reason) }] }) },
    targets: { name: 'Targets', rows: () => targets.map((t) => ({ ...t, lower: `${t.name} ${(t.allow || []).join(' ')}`.toLowerCase() })),
      list: new List({ label: 'targets', key: (t) => t.name, open: (t) => open(t.name), empty: () => 'No target.', columns: [
        { name: 'Target', class: 'grow', cell: (t) => h('strong', {}, t.name) }, { name: 'LUNs', class: 'num', cell: (t) => `${t.luns.length} LUNs` }, { name: 'Sessions', class: 'num', cell: (t) => `${t.sessions} sessions` },
        { name: 'Who may log in', class: 'mapped', cell: (t) => (t.restricted ? `${(t.allow || []).length} initiators` : 'everyone') + (t.chap ? ', CHAP' : '') }] }) },
    sessions: { name: 'Sessions', rows: () => sessions.map((s) => ({ ...s, lower: `${s.initiator} ${s.target} ${s.remote} ${s.node}`.toLowerCase() })),
      list: new List({ label: 'sessions', key: (s) => `${s.node} ${s.tsih} ${s.isid}`, empty: () => 'Nobody is logged in.', columns: [
        { name: 'Initiator', class: 'grow', cell: (s) => h('strong', {}, s.initiator) }, { name: 'Target', class: 'mapped', cell: (s) => s.target || 'discovery' }, { name: 'Node', class: 'num', cell: (s) => s.node },
        { name: 'Since', class: 'num', cell: (s) => when(s.since) }, { name: 'Read / written', class: 'used', cell: (s) => `${bytes(s.read)} / ${bytes(s.written)}` }, { name: 'Commands', class: 'num', cell: (s) => count(s.commands) }] }) },
  };
  signal.addEventListener('abort', () => Object.values(views).forEach((v) => v.list.end()));
  const tabs = h('div', { class: 'tabs', role: 'group', 'aria-label': 'What to list' }, Object.entries(views).map(([k, v]) => h('button', { type: 'button', 'data-view': k, onclick: () => { view = k; draw(); } }, v.name)));
  const place = h('div', { class: 'place' });
  const draw = () => {
    for (const b of tabs.children) b.setAttribute('aria-pressed', String(b.dataset.view === view));
    const v = views[view];
    if (place.firstChild !== v.list.el) place.replaceChildren(v.list.el);
    if (targets === null) return;
    const rows = v.rows();
    const seen = rows.filter((r) => matches(r.lower, words));
    tally.textContent = seen.length === rows.length ? `${rows.length}` : `${seen.length} of ${rows.length}`;
    v.list.show(seen);
  };
  const load = async () => {
    const [ts, ss] = await Promise.all([get('/targets', { signal }), get('/sessions', { signal })]);
    targets = ts;
    sessions = ss.sessions || [];
    fill(notes, ss.silent?.length ? h('p', { class: 'notice' }, `The sessions of ${ss.silent.join(', ')} are missing: no answer.`) : null);
    draw();
  };
  main.append(notes, h('div', { class: 'tools' }, tabs, search('targets, images, initiators', (w) => { words = w; draw(); }), tally, h('span', { class: 'space' }),
    admin() ? button('New target …', () => create(again), { kind: 'primary', key: 'new' }) : null), place);
  draw();
  poll(3000, signal, load, (e) => { if (e) fill(notes, problem(e)); });
}

const create = (again) => ask({ title: 'New target', verb: 'Create', about: 'A target offers images as LUNs. Until initiators are named or CHAP is set, everyone who reaches the portals may log in.',
  fields: [{ name: 'name', label: 'iSCSI name', required: true, hint: 'such as iqn.2026-01.example:vms' }], act: async ({ name }) => { await change('POST', '/targets', { name }); again(); return `${name} is offered`; } });

function details(name, find, signal, again) {
  const end = new AbortController();
  signal.addEventListener('abort', () => end.abort());
  dialog(name, (close, body) => {
    const done = () => { again(); };
    const look = () => {
      const t = find();
      if (!t) { close(); return; }
      refill(body, facts('Who may log in', t.restricted ? (t.allow || []).join(', ') || 'nobody' : 'everyone', 'CHAP', t.chap ? `user ${t.chap.user}` : 'no', 'Sessions', String(t.sessions), 'Why not now', t.reason, 'Created', when(t.created)),
        admin() ? h('div', { class: 'buttons' }, button('Map image …', () => map(t, done), { kind: 'primary', key: 'map' }), button('Let initiator in …', () => allow(t, done), { key: 'allow' }),
          t.allow?.length ? button('Take initiator off …', () => disallow(t, done), { key: 'disallow' }) : null, button('Delete …', () => remove(t, () => { again(); close(); }), { kind: 'danger', key: 'delete' })) : null,
        table('LUNs', ['LUN', 'Image', 'Size', 'State', 'Identity', ''], t.luns.map((l) => [String(l.number), l.image + (l.readOnly ? ' (read-only)' : ''), bytes(l.size), pill(l.state, l.reason), h('code', {}, `naa.${l.naa}`),
          admin() ? button('Unmap …', () => unmap(t, l, done), { key: `unmap ${l.number}` }) : '']), 'No LUN is mapped.'));
    };
    poll(2000, end.signal, async () => look());
    return null;
  }, { wide: true, onclose: () => end.abort() });
}

async function map(t, done) {
  let images = [];
  try { images = (await get('/images')).map((i) => `${i.volume}/${i.path}`); } catch { /* then the name is typed */ }
  return ask({ title: `Map an image in ${t.name}`, verb: 'Map', fields: [{ name: 'image', label: 'Image', options: images, required: true, hint: 'VOLUME/PATH, or VOLUME/PATH@SNAPSHOT' }, { name: 'lun', label: 'LUN', pattern: '[0-9]*', hint: 'empty: the lowest free one' }],
    act: async (v) => { const l = await change('POST', `${targetPath(t.name)}/luns`, { image: v.image, lun: v.lun === '' ? null : Number(v.lun) }); done(); return `${v.image} is LUN ${l.number}`; } });
}

const unmap = (t, l, done) => ask({ title: `Unmap LUN ${l.number}`, verb: 'Unmap', danger: true, about: `${l.image} stays; initiators of ${t.name} lose the disk at once.`,
  act: async () => { await change('DELETE', `${targetPath(t.name)}/luns/${l.number}`); done(); return `LUN ${l.number} is unmapped`; } });
const allow = (t, done) => ask({ title: 'Let an initiator in', verb: 'Allow', about: t.restricted ? null : 'With the first one, all others are shut out.', fields: [{ name: 'initiator', label: 'Initiator\'s name', required: true }],
  act: async ({ initiator }) => { await change('PUT', `${targetPath(t.name)}/allow/${seg(initiator)}`); done(); return `${initiator} may log in`; } });
const disallow = (t, done) => ask({ title: 'Take an initiator off the list', verb: 'Take off', danger: true, fields: [{ name: 'initiator', label: 'Initiator', type: 'select', options: t.allow.map((a) => [a, a]) }],
  act: async ({ initiator }) => { await change('DELETE', `${targetPath(t.name)}/allow/${seg(initiator)}`); done(); return `${initiator} is off the list`; } });
const remove = (t, gone) => ask({ title: `Delete ${t.name}`, verb: 'Delete', danger: true, about: 'Its images stay.', fields: [{ name: 'force', type: 'check', label: 'Also with LUNs mapped or initiators logged in' }],
  act: async ({ force }) => { await change('DELETE', `${targetPath(t.name)}?force=${force}`); gone(); return `${t.name} is deleted`; } });
