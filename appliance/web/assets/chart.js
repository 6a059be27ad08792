// Lines over time, as SVG.
import { h, fill, clock } from './ui.js';

const W = 600, H = 150, left = 58, bottom = 20, top = 10;

// nice is the next of 1, 2, 5 × 10ⁿ that is not below x.
function nice(x) {
  if (!(x > 0)) return 1;
  const k = 10 ** Math.floor(Math.log10(x));
  for (const m of [1, 2, 5, 10]) if (m * k >= x * 0.9999) return m * k;
  return 10 * k;
}

// Chart shows series [{name, class, of(sample)}] of samples {at, …}, at in ms; null samples and holes in time are gaps.
export class Chart {
  constructor({ title, series, format, span, gap, floor }) {
    Object.assign(this, { title, series, format, span, gap, floor });
    this.svg = h('svg', { viewBox: `0 0 ${W} ${H}`, class: 'chart', role: 'img', preserveAspectRatio: 'none' });
    this.marks = h('div', { class: 'marks', 'aria-hidden': 'true' });
    this.legend = h('div', { class: 'legend' });
    this.plot = h('div', { class: 'plot' }, this.svg, this.marks);
    this.el = h('figure', { class: 'figure' }, h('figcaption', {}, h('span', {}, title), this.legend), this.plot);
    this.samples = [];
    this.plot.addEventListener('pointermove', (e) => this.point(e));
    this.plot.addEventListener('pointerleave', () => { this.at = null; this.draw(this.samples, this.now); });
  }
  point(e) {
    const r = this.plot.getBoundingClientRect();
    const x = ((e.clientX - r.left) / r.width) * W;
    const t = this.now - this.span * (1 - (x - left) / (W - left));
    this.at = this.samples.reduce((best, s) => (best === null || Math.abs(s.at - t) < Math.abs(best.at - t) ? s : best), null);
    this.draw(this.samples, this.now);
  }
  draw(samples, now) {
    Object.assign(this, { samples, now });
    const seen = samples.filter((s) => s.at >= now - this.span);
    const max = nice(Math.max(this.floor, ...seen.flatMap((s) => this.series.map((l) => l.of(s)))));
    const x = (t) => left + (W - left) * (1 - (now - t) / this.span);
    const y = (v) => top + (H - top - bottom) * (1 - v / max);
    const shapes = [];
    const marks = [];
    for (const k of [0, 0.5, 1]) {
      shapes.push(h('line', { x1: left, x2: W, y1: y(max * k), y2: y(max * k), class: 'grid' }));
      marks.push(mark('y', k ? this.format(max * k) : '0', 0, y(max * k)));
    }
    for (const k of [1, 0.5, 0]) marks.push(mark('x', k ? `−${Math.round((this.span * k) / 1000)} s` : 'now', x(now - this.span * k), H - bottom / 2, k === 1 ? 'first' : k === 0 ? 'last' : ''));
    for (const l of this.series) for (const run of this.runs(seen)) shapes.push(...line(run, l, x, y));
    const shown = this.at && seen.includes(this.at) ? this.at : seen[seen.length - 1];
    if (this.at && shown) shapes.push(h('line', { x1: x(shown.at), x2: x(shown.at), y1: top, y2: H - bottom, class: 'cross' }));
    fill(this.svg, shapes);
    fill(this.marks, marks);
    const values = this.series.map((l) => [l, shown ? this.format(l.of(shown)) : '–']);
    fill(this.legend, values.map(([l, v]) => h('span', { class: l.class }, h('i', {}), `${l.name} `, h('b', {}, v))), this.at && shown ? h('span', {}, clock(shown.at)) : null);
    this.svg.setAttribute('aria-label', `${this.title}: ${values.map(([l, v]) => `${l.name} ${v}`).join(', ')}`);
  }
  runs(samples) {
    const out = [];
    let last = null;
    for (const s of samples) {
      if (!last || s.at - last.at > this.gap) out.push([]);
      out[out.length - 1].push(s);
      last = s;
    }
    return out;
  }
}

function mark(axis, text, x, y, more = '') {
  const el = h('span', { class: `${axis} ${more}` }, text);
  el.style.left = `${(x / W) * 100}%`;
  el.style.top = `${(y / H) * 100}%`;
  return el;
}

function line(run, l, x, y) {
  const points = run.map((s) => `${x(s.at).toFixed(1)} ${y(l.of(s)).toFixed(1)}`);
  const d = `M${points.join('L')}`;
  const area = `${d}L${x(run[run.length - 1].at).toFixed(1)} ${y(0)}L${x(run[0].at).toFixed(1)} ${y(0)}Z`;
  return [h('path', { d: area, class: `area ${l.class}` }), h('path', { d: run.length > 1 ? d : `${d}h1`, class: `line ${l.class}` })];
}
