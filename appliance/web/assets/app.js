// The frame around the pages: sign-in, navigation, the state of the connection, shortcuts.
import { session, link, signIn, signOut, resume, whenSignedOut, get, poll, sleep, Refusal } from './api.js';
import { h, fill, problem, dialog, clock, toast } from './ui.js';
import * as map from './map.js';
import * as volumes from './volumes.js';
import * as images from './images.js';
import * as targets from './targets.js';
import * as live from './live.js';
import * as events from './events.js';

const pages = [
  { path: 'map', name: 'Cluster', key: 'c', icon: 'M12 3v6M12 15v6M5 12h14M3 12a2 2 0 1 0 4 0 2 2 0 1 0-4 0M17 12a2 2 0 1 0 4 0 2 2 0 1 0-4 0M10 3h4v4h-4zM10 17h4v4h-4z', show: map.show },
  { path: 'volumes', name: 'Volumes', key: 'v', icon: 'M4 6c0-4 16-4 16 0s-16 4-16 0v6c0 4 16 4 16 0V6M4 12v6c0 4 16 4 16 0v-6', show: volumes.show },
  { path: 'images', name: 'Images', key: 'i', icon: 'M4 4h16v6H4zM4 14h16v6H4zM8 7h.1M8 17h.1', show: images.show },
  { path: 'targets', name: 'Targets', key: 't', icon: 'M12 3a9 9 0 1 0 0 18 9 9 0 1 0 0-18M12 8a4 4 0 1 0 0 8 4 4 0 1 0 0-8M12 12h.1', show: targets.show },
  { path: 'live', name: 'Live', key: 'l', icon: 'M3 12h4l3-8 4 16 3-8h4', show: live.show },
  { path: 'events', name: 'Events', key: 'e', icon: 'M8 6h12M8 12h12M8 18h12M4 6h.1M4 12h.1M4 18h.1', show: events.show },
];

let leave = null; // ends the page that is shown
let frame = null;

function icon(path) {
  return h('svg', { viewBox: '0 0 24 24', class: 'icon', 'aria-hidden': 'true' }, h('path', { d: path }));
}

function present() {
  const path = location.hash.replace(/^#\/?/, '').split('?')[0];
  return pages.find((p) => p.path === path) || pages[0];
}

function navigate() {
  if (!session.user) return;
  leave?.abort();
  leave = new AbortController();
  for (const d of document.querySelectorAll('dialog')) d.close();
  const page = present();
  document.title = `${page.name} – Lunar`;
  for (const a of frame.nav.querySelectorAll('a')) {
    if (a.dataset.path === page.path) a.setAttribute('aria-current', 'page');
    else a.removeAttribute('aria-current');
  }
  fill(frame.main, h('h1', { tabindex: -1 }, page.name));
  page.show(frame.main, leave.signal);
  window.scrollTo(0, 0);
}

function build() {
  const nav = h('nav', { 'aria-label': 'Pages' }, pages.map((p) => h('a', { href: `#/${p.path}`, 'data-path': p.path, title: `g ${p.key}` }, icon(p.icon), h('span', {}, p.name))));
  const main = h('main', { id: 'main' });
  const state = h('span', { class: 'link' });
  const cluster = h('span', { class: 'cluster' });
  const who = h('span', { class: 'who' }, session.user, h('small', {}, session.role));
  const banner = h('div', { class: 'banner', role: 'alert', hidden: true });
  frame = { nav, main, state, cluster, banner };
  fill(document.body,
    h('a', { class: 'skip', href: '#main', onclick: (e) => { e.preventDefault(); main.querySelector('h1')?.focus(); } }, 'Skip to content'),
    h('div', { class: 'top' }, h('span', { class: 'brand' }, icon('M20 14.5A8.5 8.5 0 1 1 9.5 4a7 7 0 0 0 10.5 10.5z'), 'Lunar'), cluster, h('span', { class: 'space' }), state, who,
      h('button', { type: 'button', class: 'button quiet', onclick: help, 'aria-label': 'Keyboard shortcuts', title: 'Keyboard shortcuts (?)' }, '?'),
      h('button', { type: 'button', class: 'button quiet', onclick: leaveConsole }, 'Sign out')),
    banner, nav, main);
  tellLink();
}

async function leaveConsole() {
  leave?.abort();
  try { await signOut(); } catch { /* the node is away: the session ends there by its age */ }
  showSignIn();
}

// tellLink says whether what is shown is of now.
function tellLink() {
  if (!frame) return;
  document.body.classList.toggle('stale', !link.up);
  fill(frame.state, h('i', { class: link.up ? 'dot good' : 'dot bad' }), link.up ? session.node : 'no connection');
  frame.banner.hidden = link.up;
  if (!link.up) {
    fill(frame.banner, h('span', {}, h('strong', {}, `No connection to ${session.node} since ${clock(link.since)}.`), ' What is shown is from then; the page tries again by itself. Other nodes may have a console too.'),
      h('button', { type: 'button', class: 'button', onclick: () => link.now() }, 'Try now'));
  }
}
link.addEventListener('change', () => {
  tellLink();
  if (link.up) toast(`${session.node} answers again`, 'good');
});

function showSignIn(why) {
  leave?.abort();
  frame = null;
  for (const d of document.querySelectorAll('dialog')) d.close();
  document.title = 'Sign in – Lunar';
  document.body.classList.remove('stale');
  const problems = h('div', { 'aria-live': 'assertive' }, why ? h('p', { class: 'notice' }, why) : null);
  const user = h('input', { id: 'user', name: 'user', autocomplete: 'username', required: true, autocapitalize: 'none', spellcheck: 'false' });
  const password = h('input', { id: 'password', name: 'password', type: 'password', autocomplete: 'current-password', required: true });
  const go = h('button', { class: 'button primary', type: 'submit' }, 'Sign in');
  const form = h('form', { class: 'signin', onsubmit: async (e) => {
    e.preventDefault();
    go.disabled = true;
    go.textContent = 'Signing in …';
    try {
      await signIn(user.value.trim(), password.value);
      begin();
    } catch (err) {
      fill(problems, problem(err));
      password.select();
    } finally {
      go.disabled = false;
      go.textContent = 'Sign in';
    }
  } }, h('div', { class: 'mark' }, icon('M20 14.5A8.5 8.5 0 1 1 9.5 4a7 7 0 0 0 10.5 10.5z')), h('h1', {}, 'Lunar'), h('p', { class: 'about' }, 'Storage console'),
  h('label', { for: 'user' }, 'Name'), user, h('label', { for: 'password' }, 'Password'), password, problems, go,
  h('small', {}, 'An administrator adds users on a node: lunarctl web user add NAME'));
  fill(document.body, h('main', { class: 'door' }, form));
  user.focus();
}

function begin() {
  build();
  navigate();
  follow();
}

// follow shows the cluster's health in the top bar, on every page, as long as somebody is signed in.
function follow() {
  const here = frame;
  const end = new AbortController();
  poll(5000, end.signal, async () => {
    if (frame !== here) { end.abort(); return; }
    const c = await get('/cluster', { signal: end.signal });
    const down = c.nodes.filter((n) => n.state !== 'Up');
    fill(here.cluster, c.id ? [h('i', { class: `dot ${down.length || c.reason ? 'warn' : 'good'}` }),
      down.length ? `${c.nodes.length - down.length} of ${c.nodes.length} nodes up` : `${c.nodes.length} nodes up`] : 'one node, no cluster');
  });
}

function help() {
  const rows = [...pages.map((p) => [`g ${p.key}`, p.name]), ['/', 'Search'], ['n', 'New: image, target, …'], ['↑ ↓ Enter', 'In lists: move, open'], ['Esc', 'Close a dialog'], ['?', 'This']];
  dialog('Keyboard shortcuts', () => h('dl', { class: 'keys' }, rows.map(([k, t]) => h('div', {}, h('dt', {}, k.split(' ').map((x) => h('kbd', {}, x))), h('dd', {}, t)))));
}

let prefix = 0; // when g was pressed
addEventListener('keydown', (e) => {
  if (!session.user || e.ctrlKey || e.metaKey || e.altKey || e.target.closest?.('input, select, textarea, dialog')) return;
  const page = Date.now() - prefix < 1500 && pages.find((p) => p.key === e.key);
  prefix = 0;
  if (page) location.hash = `#/${page.path}`;
  else if (e.key === 'g') prefix = Date.now();
  else if (e.key === '/') document.querySelector('input[type=search]')?.focus();
  else if (e.key === 'n') document.querySelector('[data-key=new]')?.click();
  else if (e.key === '?') help();
  else return;
  e.preventDefault();
});

addEventListener('hashchange', navigate);
addEventListener('online', () => link.now());
whenSignedOut(() => showSignIn('The session has ended. Sign in again.'));

async function start() {
  for (;;) {
    try {
      if (await resume()) begin();
      else showSignIn();
      return;
    } catch (e) {
      fill(document.body, h('main', { class: 'door' }, h('div', { class: 'signin' }, e instanceof Refusal ? problem(e) : h('p', { class: 'problem', role: 'alert' }, 'This node does not answer. The page tries again.'))));
      await sleep(link.delay());
    }
  }
}
start();
