'use strict';
const $ = id => document.getElementById(id);
const set = (id, text) => { $(id).textContent = text; };
const make = (tag, text, cls) => {
  const e = document.createElement(tag);
  if (text !== undefined) e.textContent = text;
  if (cls) e.className = cls;
  return e;
};
const short = id => id.slice(0, 8);
const clock = t => new Date(t).toLocaleTimeString([], {hour: '2-digit', minute: '2-digit'});
const date = t => new Date(t).toLocaleString([], {dateStyle: 'short', timeStyle: 'short'});
const list = (id, items, none, item) => {
  $(id).replaceChildren(...items.map(item));
  if (!items.length) $(id).append(make('li', none, 'empty'));
};
const rest = (id, shown, all) => { if (all > shown) $(id).append(make('li', 'and ' + (all - shown) + ' more', 'empty')); };

function duration(minutes) {
  if (minutes < 60) return Math.max(1, Math.round(minutes)) + ' min';
  const h = Math.floor(minutes / 60);
  return h + ' h ' + Math.round(minutes - 60 * h) + ' min';
}

const names = {
  token: 'batch token', conflict: 'conflict', service: 'REST service', network: 'factory network',
  station: 'wrong answer', clone: 'cloned flash', locked: 'two at once', state: 'storage', malformed: 'not understood',
};

function show(s) {
  document.title = s.station + ': ' + s.today + ' today';
  set('station', s.station);
  const l = s.last;
  $('last').className = l ? (l.ok ? 'ok' : 'bad') : 'none';
  set('verdict', l ? (l.ok ? 'OK' : 'FAILED') : 'Ready');
  set('unit', l ? short(l.id) + '  ' + clock(l.at) : 'no unit yet');
  set('text', l ? (l.ok ? l.text : (names[l.reason] || l.reason) + ': ' + l.text) : '');
  set('today', s.today); set('hour', s.last_hour); set('pace', s.per_hour); set('waiting', s.waiting); set('failing', s.failing);
  $('failingbox').className = s.failing ? 'some' : '';

  $('conflictbox').hidden = !s.conflicts.length;
  list('conflicts', s.conflicts, '', c => {
    const e = make('li');
    e.append(make('code', short(c.id)), ' ' + c.why + ' ', make('small', c.count + '×, last ' + clock(c.last)));
    return e;
  });
  const running = s.batches.filter(b => b.open && b.confirmed < b.count);
  list('batches', s.batches, 'no batch yet: factory token new makes one', b => {
    const e = make('li'), bar = make('progress');
    bar.max = b.count; bar.value = b.confirmed;
    bar.setAttribute('aria-label', b.name);
    let say = b.confirmed + ' of ' + b.count;
    if (b.claimed > b.confirmed) say += ', ' + (b.claimed - b.confirmed) + ' in progress';
    if (b.confirmed >= b.count) say += ', complete';
    else if (!b.open) say += ', closed';
    else if (running.length === 1 && s.per_hour) say += ', ' + duration(60 * (b.count - b.confirmed) / s.per_hour) + ' left at this pace';
    e.append(make('b', b.name), bar, say + ' ', make('small', b.open ? 'until ' + date(b.expires) : ''));
    return e;
  });
  const most = Math.max(1, ...s.hours.map(h => h.units)), ns = 'http://www.w3.org/2000/svg';
  $('hours').replaceChildren(...s.hours.map(h => {
    const e = make('li'), svg = document.createElementNS(ns, 'svg'), r = document.createElementNS(ns, 'rect');
    svg.setAttribute('viewBox', '0 0 10 100'); svg.setAttribute('preserveAspectRatio', 'none');
    const tall = 100 * h.units / most;
    for (const [k, v] of Object.entries({x: 0, width: 10, y: 100 - tall, height: tall})) r.setAttribute(k, v);
    svg.append(r);
    e.append(make('b', h.units || ''), svg, String(h.hour).padStart(2, '0'));
    return e;
  }));
  list('troubles', s.troubles, 'none', t => {
    const e = make('li');
    e.append(make('code', short(t.id)), ' ', make('b', names[t.reason] || t.reason), ' ' + t.message + ' ',
      make('small', t.count + '×, last ' + clock(t.last)));
    return e;
  });
  rest('troubles', s.troubles.length, s.failing);
  list('progress', s.progress, 'none', p => {
    const e = make('li');
    e.append(make('code', short(p.id)), ' ', make('small', 'since ' + clock(p.at)));
    return e;
  });
  rest('progress', s.progress.length, s.waiting);
  $('strangerbox').hidden = !s.strangers.length;
  list('strangers', s.strangers, '', x => {
    const e = make('li');
    e.append(make('code', x.from), ' ' + x.why + ' ', make('small', x.count + '×, last ' + clock(x.last)));
    return e;
  });
}

function link(on, text) { $('link').className = on ? 'on' : 'off'; set('link', text); }

let failures = 0;
function connect() {
  const events = new EventSource('events');
  // The present state is read once the stream is open, so that no change falls in between.
  events.onopen = () => fetch('state').then(r => r.json()).then(s => { show(s); link(true, 'live'); failures = 0; }).catch(() => {});
  events.addEventListener('state', e => { show(JSON.parse(e.data)); link(true, 'live'); });
  events.onerror = () => {
    link(false, 'no connection');
    if (events.readyState === EventSource.CLOSED) {
      setTimeout(connect, Math.min(30000, 1000 * 2 ** failures++));
    }
  };
}
connect();
