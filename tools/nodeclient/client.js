// A device for the tether, small enough to read: a REST service in memory, reached through
// a relay.
//
//   node client.js --relay wss://relay.example --ca ca.pem --seed <64 hex digits> [--uid text] [--notify text]

import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { Connection, Notifier } from './device.js';

const STABLE = 60_000; // ms that a session must last before the back-off begins anew
const MOST = 120_000; // ms

const { values: args } = parseArgs({
  options: { relay: { type: 'string' }, ca: { type: 'string' }, seed: { type: 'string' }, uid: { type: 'string', default: 'nodeclient' }, notify: { type: 'string' } },
});
if (!args.relay || !/^[0-9a-f]{64}$/i.test(args.seed ?? '')) {
  console.error('usage: node client.js --relay wss://host --ca file --seed <64 hex digits> [--uid text] [--notify text]');
  process.exit(2);
}

const descriptor = JSON.stringify({ name: 'Node client', manufacturer: 'CloudREST', version: '1.0.0', api: '/' });
const log = (text) => console.error(text);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** handler is the REST service. */
async function handler(st) {
  const text = async (status, type, body) => {
    const bytes = Buffer.from(body);
    const header = [['Content-Type', type], ['Content-Length', String(bytes.length)]];
    if (st.method === 'HEAD') return st.respond(status, header, { end: true });
    st.respond(status, header);
    await st.write(bytes);
    st.end();
  };
  const path = st.path.split('?')[0];
  const reads = st.method === 'GET' || st.method === 'HEAD';
  if (path === '/device' && reads) return text(200, 'application/json', descriptor);
  if (path === '/hello' && reads) return text(200, 'text/plain', 'hello');
  if (path === '/echo' && st.method === 'POST') {
    st.respond(200, [['Content-Type', st.field('Content-Type') ?? 'application/octet-stream']]);
    for await (const piece of st.body()) await st.write(piece);
    return st.end();
  }
  return text(404, 'text/plain', 'not found');
}

const config = {
  url: args.relay, ca: args.ca && readFileSync(args.ca), seed: Buffer.from(args.seed, 'hex'), info: descriptor,
  device: createHash('sha256').update(args.uid).digest('hex'), notifier: new Notifier(), handler, log,
};
let stopping = false, current;
for (const signal of ['SIGINT', 'SIGTERM']) {
  process.on(signal, () => {
    if (stopping) process.exit(1);
    stopping = true;
    current?.leave();
    current?.closed.then(() => process.exit(0));
  });
}

log(`device ${config.device}`);
if (args.notify) config.notifier.notify('text', args.notify).then(() => log('notification acknowledged'));

// Connect for ever (§4.8); this client has one relay.
for (let n = 0; !stopping;) {
  const began = Date.now();
  let wait = Math.random() * Math.min(MOST, 1000 * 2 ** n), spread = 0;
  current = new Connection(config);
  try {
    const accept = await current.opened;
    log(`open, session ${accept.session.toString('hex')}`);
    spread = 1000 * accept.spread;
  } catch {
    // the reason follows
  }
  const why = await current.closed;
  log(`lost: ${why.text}`);
  if (Date.now() - began > STABLE) n = 0;
  else n = Math.min(n + 1, 20);
  if (why.code === 0) wait = 0; // drain: the next connection comes before this one ends
  if (why.code === 1) wait = Math.random() * 30_000 + 30_000; // replaced: another one is at work
  else if (why.code !== undefined) wait = Math.max(wait, why.retry_after) + Math.random() * why.spread;
  else if (spread > 0) wait = Math.random() * spread;
  else wait = Math.max(wait, why.retry_after);
  if (!stopping) await sleep(wait);
}
