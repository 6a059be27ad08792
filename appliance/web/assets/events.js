// The cluster's log, as it is written.
import { lines, sleep, link, Lost, Refusal } from './api.js';
import { h, fill, when, facts, dialog, problem } from './ui.js';
import { List, search, matches } from './list.js';

const kept = 10000;
const grave = /lost|fenced|failed|suspect|evict|unavailable|shrank|refuse|gone|silent|stalled/i;
const soft = /redirect|drain|paused|offline|partition|warn|maintenance/i;

export function show(main, signal) {
  let all = [], words = [], opened = false, begun = false;
  const notes = h('div', {});
  const state = h('span', { class: 'tally', role: 'status' }, 'Reading …');
  const list = new List({
    label: 'events', key: (e) => e.id, open: details, empty: () => (!begun ? 'Reading …' : words.length ? 'No event matches.' : 'No events.'),
    columns: [
      { name: 'Time', class: 'time', cell: (e) => when(e.time) },
      { name: 'Node', class: 'num', cell: (e) => e.node },
      { name: 'Kind', class: 'kind', cell: (e) => h('span', { class: `kind ${mood(e)}` }, e.kind) },
      { name: 'What happened', class: 'grow', cell: (e) => e.text },
    ],
  });
  signal.addEventListener('abort', () => list.end());
  const draw = () => {
    const seen = all.filter((e) => matches(e.lower, words));
    state.textContent = !begun ? 'Reading …' : `${seen.length === all.length ? all.length : `${seen.length} of ${all.length}`} events${opened ? ', following' : ', not following'}`;
    list.show(seen);
  };
  main.append(notes, h('div', { class: 'tools' }, search('events', (w) => { words = w; draw(); }), state), list.el);
  draw();
  follow(signal, () => { all = []; opened = begun = true; draw(); }, (more) => {
    const n = all.length;
    more.forEach((e, i) => { e.id = `${e.time} ${e.kind} ${n + i}`; e.lower = `${e.node} ${e.kind} ${e.volume || ''} ${e.target || ''} ${e.text}`.toLowerCase(); });
    all = [...more.reverse(), ...all].slice(0, kept);
    fill(notes);
    draw();
  }, (e) => { opened = false; draw(); if (e) fill(notes, problem(e)); });
}

// follow reads the log until signal ends it. The node ends each stream after a while; then it is read anew.
async function follow(signal, opened, more, broken) {
  while (!signal.aborted) {
    try {
      await lines('/log?follow=true', signal, opened, more);
    } catch (e) {
      if (signal.aborted) return;
      broken(e instanceof Refusal ? e : null);
      if (e instanceof Lost) link.lost();
      await sleep(link.delay(), signal);
    }
  }
}

const mended = /-up$|-alive$|restarted$/;
const mood = (e) => (mended.test(e.kind) ? 'calm' : grave.test(`${e.kind} ${e.text}`) ? 'bad' : soft.test(`${e.kind} ${e.text}`) ? 'warn' : 'calm');

function details(e) {
  dialog(e.kind, () => [h('p', {}, e.text), facts('Time', e.time, 'Node', e.node, 'Volume', e.volume, 'Target', e.target, 'Term', e.epoch ? String(e.epoch) : '', 'Reason', e.reason)]);
}
