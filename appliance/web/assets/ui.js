// Elements, words for numbers, dialogs and messages. Nothing here makes markup from text.

const svgTags = new Set(['svg', 'g', 'path', 'line', 'rect', 'circle', 'text', 'title', 'polyline', 'polygon']);

// h makes an element: h('p', {class: 'x', onclick: f}, 'text', child…). null and false children are left out.
export function h(tag, props, ...children) {
  const el = svgTags.has(tag) ? document.createElementNS('http://www.w3.org/2000/svg', tag) : document.createElement(tag);
  for (const [k, v] of Object.entries(props || {})) {
    if (v === undefined || v === null || v === false) continue;
    if (k.startsWith('on')) el.addEventListener(k.slice(2), v);
    else if (k === 'value' || k === 'checked' || k === 'disabled' || k === 'required' || k === 'selected') el[k] = v;
    else el.setAttribute(k, v === true ? '' : v);
  }
  add(el, children);
  return el;
}

function add(el, children) {
  for (const c of children.flat(Infinity)) {
    if (c === null || c === undefined || c === false) continue;
    el.append(c instanceof Node ? c : document.createTextNode(String(c)));
  }
}

export function fill(el, ...children) {
  const all = document.createDocumentFragment();
  add(all, children);
  el.replaceChildren(all);
}

// refill is fill for what is drawn again while somebody may work in it: the focus stays where it was, by data-key.
export function refill(el, ...children) {
  const key = el.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  fill(el, ...children);
  if (key) el.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
}

const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
export function bytes(n) {
  if (!n) return '0 B';
  let i = 0;
  while (n >= 1024 && i < units.length - 1) { n /= 1024; i++; }
  return `${n < 10 && i > 0 && n % 1 ? n.toFixed(1) : Math.round(n)} ${units[i]}`;
}

export function count(n) {
  if (n < 10 && n % 1) return n.toFixed(1);
  if (n < 10000) return String(Math.round(n));
  if (n < 1e6) return `${(n / 1e3).toFixed(n < 1e5 ? 1 : 0)} k`;
  return `${(n / 1e6).toFixed(1)} M`;
}

export function nanos(n) {
  if (!n) return '–';
  if (n < 1e6) return `${Math.round(n / 1e3)} µs`;
  if (n < 1e9) return `${(n / 1e6).toFixed(n < 1e7 ? 1 : 0)} ms`;
  return `${(n / 1e9).toFixed(1)} s`;
}

export function clock(t) {
  return new Date(t).toLocaleTimeString([], { hour12: false });
}

export function when(t) {
  const d = new Date(t);
  if (Number.isNaN(d.getTime()) || d.getFullYear() < 1971) return '–';
  const day = d.toDateString() === new Date().toDateString() ? '' : `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())} `;
  return day + clock(d);
}
const two = (n) => String(n).padStart(2, '0');

// How good a state is; the words stay beside the colour.
const good = new Set(['Up', 'Direct', 'Online', 'up', 'healthy', 'PASS']);
const soft = new Set(['Redirected', 'Paused', 'Draining', 'Drained', 'Leaving', 'Partitioned', 'suspect', 'new', 'Silent', 'daemon stalled', 'WARNING']);
export const tone = (s) => (good.has(s) ? 'good' : soft.has(s) ? 'warn' : s ? 'bad' : 'none');
export function pill(state, title) {
  return h('span', { class: `pill ${tone(state)}`, title }, state || '–');
}

export function bar(part, whole, label) {
  const share = whole > 0 ? Math.min(1, part / whole) : 0;
  const inner = h('span', { class: share > 0.9 ? 'bad' : share > 0.75 ? 'warn' : '' });
  inner.style.width = `${(share * 100).toFixed(1)}%`;
  return h('span', { class: 'bar', role: 'img', 'aria-label': label || `${Math.round(share * 100)} %` }, inner);
}

export function facts(...pairs) {
  const out = [];
  for (let i = 0; i < pairs.length; i += 2) {
    if (pairs[i + 1] === '' || pairs[i + 1] === null || pairs[i + 1] === undefined) continue;
    out.push(h('div', {}, h('dt', {}, pairs[i]), h('dd', {}, pairs[i + 1])));
  }
  return h('dl', { class: 'facts' }, out);
}

// table makes one that becomes cards on a phone: each cell knows its column's name.
export function table(caption, heads, rows, empty) {
  if (!rows.length) return h('p', { class: 'empty' }, empty);
  return h('table', { class: 'table' }, h('caption', { class: 'hidden' }, caption),
    h('thead', {}, h('tr', {}, heads.map((t) => h('th', { scope: 'col' }, t)))),
    h('tbody', {}, rows.map((cells) => h('tr', {}, cells.map((c, i) => h('td', { 'data-head': heads[i] }, h('span', {}, c)))))));
}

export function button(text, onclick, { kind = '', key, title, disabled } = {}) {
  return h('button', { type: 'button', class: `button ${kind}`, onclick, 'data-key': key, title, disabled }, text);
}

export function section(title, actions, ...body) {
  return h('section', { class: 'panel' }, h('header', {}, h('h2', {}, title), h('div', { class: 'actions' }, actions)), body);
}

// problem shows what a node refused.
export function problem(e) {
  return h('p', { class: 'problem', role: 'alert' }, h('strong', {}, sentence(e.message)), ' ', e.hint ? sentence(e.hint) : '');
}

// sentence begins with a capital, unless a name or a command stands there, and shows commands between backquotes as such.
function sentence(text) {
  if (/^[a-z]+[ ,]/.test(text)) text = text[0].toUpperCase() + text.slice(1);
  return [text.split('`').map((part, i) => (i % 2 ? h('code', {}, part) : part)), /[.!?]$/.test(text) ? '' : '.'];
}

let toasts;
export function toast(text, kind = '') {
  toasts ??= document.body.appendChild(h('div', { class: 'toasts', role: 'status', 'aria-live': 'polite', popover: 'manual' }));
  const one = h('div', { class: `toast ${kind}` }, text);
  toasts.append(one);
  if (toasts.matches(':popover-open')) toasts.hidePopover();
  toasts.showPopover(); // above a dialog that was opened since
  setTimeout(() => one.remove(), 6000);
}

// dialog shows content with a title; Escape and the button close it. The browser keeps the focus inside, and it goes back
// to where it was. close is also called by content through the function that it gets.
export function dialog(title, content, { wide, onclose } = {}) {
  const before = document.activeElement;
  const close = () => box.close();
  const name = `d${Math.random().toString(36).slice(2)}`;
  const box = h('dialog', { class: wide ? 'wide' : '', 'aria-labelledby': name },
    h('header', {}, h('h2', { id: name }, title), h('button', { type: 'button', class: 'close', 'aria-label': 'Close', onclick: close }, '×')));
  const body = h('div', { class: 'body' });
  box.append(body);
  fill(body, content(close, body));
  box.addEventListener('close', () => {
    box.remove();
    onclose?.();
    if (before?.isConnected) before.focus();
  });
  box.addEventListener('click', (e) => { if (e.target === box) close(); });
  document.body.append(box);
  box.showModal();
  return { close, body };
}

const sizeUnits = { MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40 };

function control(f, id) {
  const common = { id, name: f.name, required: f.required, 'data-key': f.name, autocomplete: f.autocomplete || 'off', 'aria-describedby': f.hint ? `${id}h` : undefined };
  switch (f.type) {
    case 'select':
      return h('select', common, f.options.map(([v, text]) => h('option', { value: v, selected: v === f.value }, text)));
    case 'check':
      return h('input', { ...common, type: 'checkbox', checked: f.value });
    case 'size': {
      let [n, unit] = [f.value || 0, 'GiB'];
      for (const [u, k] of Object.entries(sizeUnits)) if (n && n % k === 0) unit = u;
      n = n ? n / sizeUnits[unit] : '';
      return h('span', { class: 'pair' }, h('input', { ...common, type: 'number', min: 0, step: 'any', value: n, inputmode: 'decimal' }),
        h('select', { name: `${f.name}.unit`, 'aria-label': 'Unit' }, Object.keys(sizeUnits).map((u) => h('option', { value: u, selected: u === unit }, u))));
    }
    default: {
      const list = f.options ? h('datalist', { id: `${id}l` }, f.options.slice(0, 500).map((o) => h('option', { value: o }))) : null;
      return [h('input', { ...common, type: f.type || 'text', value: f.value ?? '', pattern: f.pattern, title: f.title, spellcheck: 'false', autocapitalize: 'none', list: list ? `${id}l` : undefined }), list];
    }
  }
}

function valueOf(form, f) {
  const el = form.elements[f.name];
  if (f.type === 'check') return el.checked;
  if (f.type === 'size') return Math.round(Number(el.value) * sizeUnits[form.elements[`${f.name}.unit`].value]);
  return el.value.trim();
}

// ask is a dialog with a form. act gets the values; while it runs the form is disabled, and what it refuses is shown.
export function ask({ title, about, fields = [], verb, danger, act }) {
  return dialog(title, (close) => {
    const problems = h('div', { 'aria-live': 'assertive' });
    const go = h('button', { type: 'submit', class: `button ${danger ? 'danger' : 'primary'}` }, verb);
    const rows = fields.map((f, i) => {
      const id = `f${i}${f.name}`;
      return h('div', { class: `field ${f.type || ''}` }, h('label', { for: id }, f.label), control(f, id), f.hint ? h('small', { id: `${id}h` }, f.hint) : null);
    });
    const set = h('fieldset', {}, rows);
    const form = h('form', { novalidate: false }, about ? h('p', { class: 'about' }, about) : null, set, problems,
      h('div', { class: 'buttons' }, h('button', { type: 'button', class: 'button', onclick: close }, 'Cancel'), go));
    form.addEventListener('submit', async (e) => {
      e.preventDefault();
      const values = Object.fromEntries(fields.map((f) => [f.name, valueOf(form, f)]));
      set.disabled = go.disabled = true;
      const begun = Date.now();
      const ticker = setInterval(() => { go.textContent = `${verb} … ${Math.round((Date.now() - begun) / 1000)} s`; }, 1000);
      try {
        const done = await act(values);
        if (done) toast(done);
        close();
      } catch (err) {
        fill(problems, problem(err));
      } finally {
        clearInterval(ticker);
        go.textContent = verb;
        set.disabled = go.disabled = false;
      }
    });
    return form;
  });
}
