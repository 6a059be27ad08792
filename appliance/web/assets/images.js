// Images: any number of them, and the snapshots of each.
import { get, change, poll, admin, imagePath, snapshotPath, targetPath, seg } from './api.js';
import { h, fill, refill, bytes, bar, when, facts, table, button, ask, dialog, problem } from './ui.js';
import { List, search, matches } from './list.js';

const nameOf = (i) => `${i.volume}/${i.path}`;

export function show(main, signal) {
  let all = null, words = [], volumes = [];
  let volume = new URLSearchParams(location.hash.split('?')[1] || '').get('volume') || '';
  const notes = h('div', {});
  const tally = h('span', { class: 'tally', role: 'status' });
  const pick = h('select', { 'aria-label': 'Volume', onchange: () => { volume = pick.value; draw(); } });
  const again = () => load().catch((e) => fill(notes, problem(e)));
  const list = new List({
    label: 'images', key: nameOf, open: (i) => details(i, signal, again),
    empty: () => (all === null ? 'Reading …' : words.length || volume ? 'No image matches.' : 'There are no images yet.'),
    columns: [
      { name: 'Image', class: 'grow', cell: (i) => [h('span', { class: 'dim' }, `${i.volume}/`), h('strong', {}, i.path)] },
      { name: 'Size', class: 'num', cell: (i) => bytes(i.size) },
      { name: 'Occupies', class: 'used', cell: (i) => [bar(i.allocated, i.size, `${bytes(i.allocated)} occupied`), ` ${bytes(i.allocated)}`] },
      { name: 'Mapped as', class: 'mapped', cell: (i) => (i.mapped?.length ? i.mapped.map((m) => `LUN ${m.lun} of ${m.target.split(':').pop()}`).join(', ') : h('span', { class: 'dim' }, 'not mapped')) },
    ],
  });
  signal.addEventListener('abort', () => list.end());
  const draw = () => {
    const seen = (all || []).filter((i) => (!volume || i.volume === volume) && matches(i.lower, words));
    tally.textContent = all === null ? '' : seen.length === all.length ? `${all.length} images` : `${seen.length} of ${all.length} images`;
    list.show(seen);
  };
  const load = async () => {
    const [images, vs] = await Promise.all([get('/images', { signal }), get('/volumes', { signal })]);
    all = images;
    for (const i of all) i.lower = `${nameOf(i)} ${(i.mapped || []).map((m) => m.target).join(' ')}`.toLowerCase();
    const names = vs.map((v) => v.name);
    if (names.join() !== volumes.join()) {
      volumes = names;
      fill(pick, h('option', { value: '' }, 'all volumes'), names.map((n) => h('option', { value: n, selected: n === volume }, n)));
    }
    draw();
  };
  main.append(notes, h('div', { class: 'tools' }, search('images', (w) => { words = w; draw(); }), pick, tally, h('span', { class: 'space' }),
    admin() ? button('New image …', () => create(volume, again).catch((e) => fill(notes, problem(e))), { kind: 'primary', key: 'new' }) : null), list.el);
  draw();
  poll(5000, signal, async () => { await load(); fill(notes); }, (e) => { if (e) fill(notes, problem(e)); });
}

const create = async (volume, again) => ask({ title: 'New image', verb: 'Create', fields: [
  { name: 'volume', label: 'Volume', type: 'select', value: volume, options: (await get('/volumes')).map((v) => [v.name, v.name]) },
  { name: 'path', label: 'Name', required: true, hint: 'such as web.img, or folder/web.img' },
  { name: 'size', label: 'Size', type: 'size', required: true, value: 2 ** 30 },
  { name: 'thick', label: 'Allocate everything now', type: 'check', hint: 'otherwise blocks are taken when they are written' }],
act: async (v) => {
  await change('POST', '/images', { image: `${v.volume}/${v.path}`, size: v.size, thick: v.thick });
  again();
  return `${v.volume}/${v.path} is created`;
} });

function details(image, signal, again) {
  const name = nameOf(image);
  const end = new AbortController();
  signal.addEventListener('abort', () => end.abort());
  const box = dialog(name, (close, body) => {
    const head = h('div', {}), shots = h('div', {});
    const tell = (i) => refill(head, facts('Size', bytes(i.size), 'Occupies', bytes(i.allocated), 'Changed', when(i.modified), 'Mapped as', i.mapped?.length ? i.mapped.map((m) => h('div', {}, `LUN ${m.lun} of ${m.target}`)) : 'not mapped'));
    tell(image); // what the list knows, so that the buttons stay where they are
    const look = async () => {
      const [i, snapshots] = await Promise.all([get(imagePath(name), { signal: end.signal }), get(`/snapshots?volume=${seg(image.volume)}`, { signal: end.signal })]);
      image = i;
      tell(i);
      refill(shots, h('h3', {}, 'Snapshots'), table('Snapshots', ['Name', 'Taken', 'Alone occupies', 'I/O was held for', ''],
        snapshots.filter((s) => s.path === image.path).sort((a, b) => (a.taken < b.taken ? 1 : -1)).map((s) => snapshotRow(s, name, done)), 'None.'));
    };
    const done = () => { again(); look().catch((e) => fill(shots, problem(e))); };
    const gone = () => { again(); close(); };
    poll(3000, end.signal, look, (e) => { if (e) fill(head, problem(e)); });
    const actions = !admin() ? null : h('div', { class: 'buttons' },
      button('Snapshot …', () => snapshot(name, done), { kind: 'primary', key: 'snapshot' }), button('Resize …', () => resize(image, done), { key: 'resize' }),
      button('Clone …', () => clone(name, done), { key: 'clone' }), button('Map …', () => map(name, done), { key: 'map' }),
      button('Unmap …', () => unmap(image, done), { key: 'unmap' }), button('Rename …', () => rename(name, gone), { key: 'rename' }),
      button('Delete …', () => remove(name, gone), { kind: 'danger', key: 'delete' }));
    return [head, actions, shots];
  }, { wide: true, onclose: () => end.abort() });
  return box;
}

function snapshotRow(s, image, done) {
  const full = `${image}@${s.name}`;
  const revert = () => ask({ title: `Revert ${image}`, danger: true, verb: 'Revert', about: `${image} becomes what it was when ${s.name} was taken. What was written since is lost, unless another snapshot has it.`,
    fields: [{ name: 'force', type: 'check', label: 'Lose what was written since' }], act: async ({ force }) => { await change('POST', `${snapshotPath(s.volume, s.name)}/revert`, { path: s.path, force }); done(); return `${image} is what it was in ${s.name}`; } });
  const remove = () => ask({ title: `Delete snapshot ${s.name}`, danger: true, verb: 'Delete', about: `${full} goes; ${bytes(s.exclusive)} that it alone occupies become free.`,
    fields: [{ name: 'force', type: 'check', label: 'Also if it has data that nothing else has' }], act: async ({ force }) => { await change('DELETE', `${snapshotPath(s.volume, s.name)}?path=${seg(s.path)}${force ? '&force=true' : ''}`); done(); return `${full} is deleted`; } });
  return [h('strong', {}, s.name), when(s.taken), bytes(s.exclusive), `${(s.hold_ns / 1e6).toFixed(1)} ms`,
    admin() ? h('span', { class: 'buttons small' }, button('Clone …', () => clone(full, done), { key: `clone ${s.name}` }), button('Map …', () => map(full, done), { key: `map ${s.name}` }), button('Revert …', revert, { key: `revert ${s.name}` }), button('Delete …', remove, { kind: 'danger', key: `delete ${s.name}` })) : ''];
}

const snapshot = (name, done) => ask({ title: `Snapshot of ${name}`, verb: 'Take', about: 'The image is kept as it is at one instant, while all nodes go on writing.',
  fields: [{ name: 'name', label: 'Name', hint: 'empty: the time' }, { name: 'no_hooks', type: 'check', label: 'Do not run the image\'s hook' }],
  act: async (v) => { const s = await change('POST', '/snapshots', { images: [name], name: v.name, no_hooks: v.no_hooks }); done(); return `Snapshot ${s.name}: I/O was held for ${(s.hold_ns / 1e6).toFixed(1)} ms${(s.warnings || []).map((w) => `; ${w}`).join('')}`; } });

const resize = (image, done) => ask({ title: `Resize ${nameOf(image)}`, verb: 'Resize', about: `It has ${bytes(image.size)} now. Initiators are told; a guest's file system is grown in the guest.`,
  fields: [{ name: 'size', label: 'New size', type: 'size', value: image.size, required: true }, { name: 'force', type: 'check', label: 'Shrink, and lose what lies beyond' }],
  act: async (v) => { await change('PATCH', imagePath(nameOf(image)), { size: v.size, force: v.force }); done(); return `${nameOf(image)} has ${bytes(v.size)} now`; } });

const clone = (from, done) => ask({ title: `Clone ${from}`, verb: 'Clone', about: 'The clone shares blocks with its source until one of them is written.',
  fields: [{ name: 'image', label: 'New image', value: `${from.split('@')[0].replace(/(\.[^./]*)?$/, '-copy$1')}`, required: true }],
  act: async ({ image }) => { await change('POST', '/images', { image, from }); done(); return `${image} is a clone of ${from}`; } });

async function map(image, done) {
  let targets = [];
  try { targets = await get('/targets'); } catch { /* then the name is typed */ }
  return ask({ title: `Map ${image}`, verb: 'Map', about: image.includes('@') ? 'A snapshot is mapped read-only.' : null,
    fields: [{ name: 'target', label: 'Target', options: targets.map((t) => t.name), value: targets.length === 1 ? targets[0].name : '', required: true }, { name: 'lun', label: 'LUN', pattern: '[0-9]*', hint: 'empty: the lowest free one' }],
    act: async (v) => { const l = await change('POST', `${targetPath(v.target)}/luns`, { image, lun: v.lun === '' ? null : Number(v.lun) }); done(); return `${image} is LUN ${l.number} of ${v.target}`; } });
}

const unmap = (image, done) => ask({ title: `Unmap ${nameOf(image)}`, verb: 'Unmap', danger: true, about: image.mapped?.length ? 'Initiators lose the disk at once.' : 'It is not mapped.',
  fields: [{ name: 'where', label: 'From', type: 'select', options: (image.mapped || []).map((m) => [`${m.lun} ${m.target}`, `LUN ${m.lun} of ${m.target}`]) }],
  act: async ({ where }) => { const i = where.indexOf(' '); await change('DELETE', `${targetPath(where.slice(i + 1))}/luns/${where.slice(0, i)}`); done(); return `${nameOf(image)} is unmapped`; } });

const rename = (name, gone) => ask({ title: `Rename ${name}`, verb: 'Rename', fields: [{ name: 'name', label: 'New name', value: name, required: true, hint: 'on the same volume' }],
  act: async (v) => { await change('PATCH', imagePath(name), { name: v.name }); gone(); return `${name} is ${v.name} now`; } });

const remove = (name, gone) => ask({ title: `Delete ${name}`, verb: 'Delete', danger: true, about: 'The image and its data are gone after this. Its snapshots stay.',
  fields: [{ name: 'force', type: 'check', label: 'Also if it holds data' }], act: async ({ force }) => { await change('DELETE', `${imagePath(name)}?force=${force}`); gone(); return `${name} is deleted`; } });
