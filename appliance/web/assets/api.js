// The calls of this node's control API, the session, and whether the node can be reached.

export const session = { user: '', role: '', csrf: '', node: '' };
export const admin = () => session.role === 'admin';

// Refusal is an answer of the node that says no: message tells why, hint what to do.
export class Refusal extends Error {
  constructor(e, status) {
    super(e.message || `the node answered ${status}`);
    this.hint = e.hint || '';
    this.code = e.code || '';
    this.status = status;
  }
}

// Lost: the node cannot be reached. Slow: it did not answer in time.
export class Lost extends Error {}
export class Slow extends Error {}

const answerLimit = 15000; // of what a page asks by itself, ms
const retries = [1000, 2000, 3000, 5000];

// link is the connection to the node. It tells of changes by events "change".
class Link extends EventTarget {
  up = true;
  since = Date.now(); // of the present state
  last = Date.now(); // answer
  tries = 0;
  wake = new EventTarget();
  answered() {
    this.last = Date.now();
    this.tries = 0;
    if (!this.up) this.turn(true);
  }
  lost() {
    if (this.up) this.turn(false);
  }
  turn(up) {
    this.up = up;
    this.since = up ? Date.now() : this.last;
    this.dispatchEvent(new Event('change'));
  }
  delay() {
    return retries[Math.min(this.tries++, retries.length - 1)];
  }
  now() {
    this.wake.dispatchEvent(new Event('now'));
  }
}
export const link = new Link();

// onSignedOut is called when the node knows no session any more.
let onSignedOut = () => {};
export const whenSignedOut = (fn) => { onSignedOut = fn; };

async function ask(method, path, body, { signal, unattended } = {}) {
  const headers = {};
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  if (method !== 'GET' && session.csrf) headers['Lunar-CSRF'] = session.csrf;
  if (unattended) headers['Lunar-Unattended'] = '1';
  try {
    const r = await fetch(path, { method, headers, signal, cache: 'no-store', body: body === undefined ? undefined : JSON.stringify(body) });
    link.answered();
    return r;
  } catch (e) {
    if (e.name === 'AbortError') throw e;
    if (e.name === 'TimeoutError') {
      if (Date.now() - link.last > answerLimit) link.lost();
      throw new Slow('the node did not answer in time');
    }
    link.lost();
    throw new Lost('the node cannot be reached');
  }
}

async function read(r) {
  const text = await r.text();
  let out = null;
  try { out = text ? JSON.parse(text) : null; } catch { out = { message: text }; }
  if (r.ok) return out;
  if (r.status === 401 && session.user) {
    forget();
    onSignedOut();
  }
  throw new Refusal(out || {}, r.status);
}

function forget() {
  session.user = session.role = session.csrf = '';
}

// get asks for what a page shows.
export async function get(path, { signal } = {}) {
  const limit = AbortSignal.timeout(answerLimit);
  return read(await ask('GET', '/api/v1' + path, undefined, { signal: signal ? AbortSignal.any([signal, limit]) : limit, unattended: true }));
}

// change does what a person asked for; it may take long.
export async function change(method, path, body) {
  return read(await ask(method, '/api/v1' + path, body));
}

export async function signIn(user, password) {
  Object.assign(session, await read(await ask('POST', '/session', { user, password })));
}

export async function signOut() {
  try { await ask('DELETE', '/session'); } finally { forget(); }
}

// resume takes up the session of a page that was loaded anew; false: there is none.
export async function resume() {
  try {
    Object.assign(session, await read(await ask('GET', '/session')));
    return true;
  } catch (e) {
    if (e instanceof Refusal && e.status === 401) return false;
    throw e;
  }
}

// lines calls each with every JSON line of an answer that lasts, until it ends or signal does.
export async function lines(path, signal, opened, each) {
  const r = await ask('GET', '/api/v1' + path, undefined, { signal, unattended: true });
  if (!r.ok) return read(r);
  opened();
  const reader = r.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return undefined;
      link.answered();
      const parts = (rest + value).split('\n');
      rest = parts.pop();
      const all = [];
      for (const p of parts) if (p) all.push(JSON.parse(p));
      each(all);
    }
  } catch (e) {
    if (signal.aborted) throw e;
    throw new Lost('the connection ended');
  }
}

export function sleep(ms, signal) {
  return new Promise((done) => {
    const end = () => {
      clearTimeout(timer);
      link.wake.removeEventListener('now', end);
      signal?.removeEventListener('abort', end);
      done();
    };
    const timer = setTimeout(end, ms);
    link.wake.addEventListener('now', end);
    signal?.addEventListener('abort', end);
  });
}

const visible = () => new Promise((done) => {
  if (!document.hidden) { done(); return; }
  document.addEventListener('visibilitychange', done, { once: true });
});

// poll runs fn again and again while the page is seen, until signal aborts. fail is told what went wrong, null when it is
// right again.
export async function poll(every, signal, fn, fail = () => {}) {
  while (!signal.aborted) {
    await visible();
    let wait = every;
    try {
      await fn();
      if (signal.aborted) return;
      fail(null);
    } catch (e) {
      if (signal.aborted) return;
      if (e instanceof Lost) wait = link.delay();
      else fail(e);
    }
    await sleep(wait, signal);
  }
}

// Paths of things, whose names may have any character.
const seg = encodeURIComponent;
export const volumePath = (v) => `/volumes/${seg(v)}`;
export const imagePath = (name) => {
  const i = name.indexOf('/');
  return `/images/${seg(name.slice(0, i))}/${seg(name.slice(i + 1))}`;
};
export const snapshotPath = (v, s) => `/snapshots/${seg(v)}/${seg(s)}`;
export const targetPath = (t) => `/targets/${seg(t)}`;
export const nodePath = (n) => `/nodes/${seg(n)}`;
export const networkPath = (n) => `/networks/${seg(n)}`;
export { seg };
