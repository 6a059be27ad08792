// A list of any length of which only what is seen is in the document.
import { h, fill } from './ui.js';

const wide = matchMedia('(min-width: 720px)');
const spare = 6; // rows beyond each edge

// List shows items as rows of one height. columns: [{name, class, cell(item)}]; key(item) is unique; open(item) is called
// by a click or Enter. The container has the focus and names the row by aria-activedescendant, so that a row that leaves
// the document takes no focus along.
export class List {
  constructor({ label, columns, key, open, empty }) {
    Object.assign(this, { columns, key, open, empty, items: [], active: null });
    this.rows = h('div', { class: 'rows', role: 'rowgroup' });
    this.head = h('div', { class: 'head', role: 'row' }, columns.map((c) => h('span', { role: 'columnheader', class: c.class || '' }, c.name)));
    this.scroll = h('div', { class: 'scroll' }, this.rows);
    this.el = h('div', { class: 'list', role: 'grid', tabindex: 0, 'aria-label': label, 'aria-colcount': columns.length, 'data-key': `list ${label}` }, this.head, this.scroll);
    this.scroll.addEventListener('scroll', () => this.draw());
    this.scroll.tabIndex = -1;
    this.el.addEventListener('keydown', (e) => this.press(e));
    this.rows.addEventListener('click', (e) => this.click(e));
    this.sized = new ResizeObserver(() => this.draw());
    this.sized.observe(this.scroll);
  }
  get height() { return wide.matches ? 38 : 84; }
  show(items) {
    this.items = items;
    this.el.setAttribute('aria-rowcount', items.length + 1);
    this.draw();
  }
  draw() {
    const n = this.items.length;
    if (!n) {
      this.rows.style.height = '';
      fill(this.rows, h('p', { class: 'empty', role: 'row' }, h('span', { role: 'gridcell' }, this.empty())));
      return;
    }
    const height = this.height;
    this.rows.style.height = `${n * height}px`;
    const from = Math.max(0, Math.floor(this.scroll.scrollTop / height) - spare);
    const to = Math.min(n, Math.ceil((this.scroll.scrollTop + this.scroll.clientHeight) / height) + spare);
    const all = [];
    for (let i = from; i < to; i++) all.push(this.row(i, height));
    fill(this.rows, all);
    this.mark();
  }
  row(i, height) {
    const item = this.items[i];
    const el = h('div', { class: 'row', role: 'row', id: `r${this.hash(item)}`, 'data-i': i, 'aria-rowindex': i + 2 },
      this.columns.map((c) => h('span', { role: 'gridcell', class: c.class || '' }, c.cell(item))));
    el.style.transform = `translateY(${i * height}px)`;
    el.style.height = `${height}px`;
    return el;
  }
  hash(item) { return this.key(item).replace(/[^A-Za-z0-9]/g, (c) => `_${c.charCodeAt(0)}`); }
  mark() {
    const i = this.at();
    for (const r of this.rows.children) r.classList.toggle('active', Number(r.dataset.i) === i);
    if (i >= 0) this.el.setAttribute('aria-activedescendant', `r${this.hash(this.items[i])}`);
    else this.el.removeAttribute('aria-activedescendant');
  }
  at() { return this.active === null ? -1 : this.items.findIndex((x) => this.key(x) === this.active); }
  go(i) {
    if (!this.items.length) return;
    i = Math.max(0, Math.min(this.items.length - 1, i));
    this.active = this.key(this.items[i]);
    const top = i * this.height;
    if (top < this.scroll.scrollTop) this.scroll.scrollTop = top;
    if (top + this.height > this.scroll.scrollTop + this.scroll.clientHeight) this.scroll.scrollTop = top + this.height - this.scroll.clientHeight;
    this.draw();
  }
  press(e) {
    const page = Math.max(1, Math.floor(this.scroll.clientHeight / this.height) - 1);
    const i = this.at();
    const to = { ArrowDown: i + 1, ArrowUp: i - 1, PageDown: i + page, PageUp: i - page, Home: 0, End: this.items.length - 1 }[e.key];
    if (to !== undefined) this.go(to);
    else if (e.key === 'Enter' && i >= 0 && this.open) this.open(this.items[i]);
    else return;
    e.preventDefault();
  }
  click(e) {
    const r = e.target.closest('.row');
    if (!r || e.target.closest('button, a')) return;
    this.active = this.key(this.items[Number(r.dataset.i)]);
    this.mark();
    this.open?.(this.items[Number(r.dataset.i)]);
  }
  end() { this.sized.disconnect(); }
}

// search makes a field that filters: fn gets the words in lower case.
export function search(label, fn) {
  return h('input', { type: 'search', class: 'search', placeholder: `Search ${label}`, 'aria-label': `Search ${label}`, 'data-key': 'search', spellcheck: 'false',
    oninput: (e) => fn(e.target.value.toLowerCase().split(/\s+/).filter(Boolean)) });
}

export const matches = (text, words) => words.every((w) => text.includes(w));
