// The device against a relay made of a bare WebSocket server, which says what no good relay says.

import test from 'node:test';
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { once } from 'node:events';
import { WebSocketServer } from 'ws';
import { TYPE, decode, encode, frames } from './frame.js';
import { Connection, Notifier } from './device.js';

const folder = process.env.CLOUDREST_VECTORS ?? new URL('../../tether/testdata/', import.meta.url).pathname;
const vectors = JSON.parse(readFileSync(`${folder}/frames.json`, 'utf8'));
const WINDOW = 16 * 1024;
const END_ONLY = 0; // no frame has this type: wait for the close

/** pair gives a device and the relay's end of its open connection. */
async function pair(t, handler = () => new Promise(() => {})) {
  const server = new WebSocketServer({ port: 0, host: '127.0.0.1' });
  await once(server, 'listening');
  const accepted = once(server, 'connection');
  const device = new Connection({
    url: `ws://127.0.0.1:${server.address().port}`, seed: Buffer.alloc(32, 1), device: 'd', info: '', notifier: new Notifier(), handler, log() {},
  });
  const [ws] = await accepted;
  const relay = { ws, got: [], code: 0, waiting: [] };
  const wake = () => relay.waiting.splice(0).forEach((resolve) => resolve());
  ws.on('message', (msg) => {
    for (const f of frames(msg)) relay.got.push({ type: f.type, stream: f.stream, ...decode(f.type, f.body) });
    wake();
  });
  ws.on('close', (code) => { relay.code = code; wake(); });
  /** until waits for a frame of a type, or the end. */
  relay.until = async (type) => {
    for (;;) {
      const at = relay.got.findIndex((f) => f.type === type);
      if (at >= 0) return relay.got.splice(at, 1)[0];
      if (relay.code) return null;
      await new Promise((resolve) => relay.waiting.push(resolve));
    }
  };
  relay.send = (type, stream, fields) => ws.send(encode(type, stream, fields));
  relay.request = (stream, flags = 1) => relay.send(TYPE.REQUEST, stream, {
    flags, target: '', method: 'GET', path: '/', authority: 'h', client: 'c', timeout: 0, header: [['X-Cloudrest-Id', `id-${stream}`]],
  });
  relay.alive = async () => {
    relay.send(TYPE.PING, 0, { token: 7 });
    return (await relay.until(TYPE.PONG))?.token === 7;
  };
  relay.send(TYPE.CHALLENGE, 0, { nonce: Buffer.alloc(32), time: 0n, relay: '127.0.0.1', binding: 0, extensions: [] });
  assert.ok(await relay.until(TYPE.HELLO));
  relay.send(TYPE.ACCEPT, 0, {
    version: 1, session: Buffer.alloc(16), window: WINDOW, keepalive: 25, time: 0n, ack_epoch: 0n, ack_seq: 0n, spread: 10, extensions: [],
  });
  await device.opened;
  t.after(() => { device.fail('the test is over'); server.close(); });
  return relay;
}

for (const v of vectors.invalid) {
  test(`answer: ${v.name}`, async (t) => {
    const relay = await pair(t), msg = Buffer.from(v.hex, 'hex');
    relay.ws.send(msg);
    if (v.class === 'head' && msg[0] === TYPE.REQUEST) {
      assert.equal((await relay.until(TYPE.RESET)).code, 3);
      assert.ok(await relay.alive());
    } else {
      assert.equal((await relay.until(TYPE.GOAWAY)).code, 4);
      assert.equal(await relay.until(END_ONLY), null);
      assert.equal(relay.code, 1002);
    }
  });
}

test('a text message ends the connection', async (t) => {
  const relay = await pair(t);
  relay.ws.send('hello');
  assert.equal(await relay.until(END_ONLY), null);
  assert.equal(relay.code, 1003);
});

test('an unknown type is skipped', async (t) => {
  const relay = await pair(t);
  for (const v of vectors.valid) if (v.class === 'skip') relay.ws.send(Buffer.from(v.hex, 'hex'));
  assert.ok(await relay.alive());
});

test('the device sends no more than its credit', async (t) => {
  const relay = await pair(t, async (st) => {
    st.respond(200);
    await st.write(Buffer.alloc(100_000, 'x'));
    st.end();
  });
  relay.request(1);
  let sent = 0, credit = WINDOW;
  const take = async () => {
    while (sent < Math.min(credit, 100_000)) sent += (await relay.until(TYPE.DATA)).data.length;
    assert.ok(await relay.alive()); // whatever was to come has come
    assert.equal(relay.got.filter((f) => f.type === TYPE.DATA).length, 0);
    assert.equal(sent, Math.min(credit, 100_000));
  };
  await take();
  for (const more of [1, 30_000, 60_000]) {
    credit += more;
    relay.send(TYPE.WINDOW, 1, { credit: more });
    await take();
  }
  assert.ok(await relay.until(TYPE.DATA_END));
  assert.deepEqual((await relay.until(TYPE.RESPONSE)).header, [['X-Cloudrest-Id', 'id-1']]);
});

test('the relay may not send more than its credit', async (t) => {
  const relay = await pair(t);
  relay.request(1, 0);
  for (let i = 0; i < 3; i++) relay.send(TYPE.DATA, 1, { data: Buffer.alloc(16 * 1024) });
  assert.equal((await relay.until(TYPE.RESET)).code, 7);
  assert.ok(await relay.alive());
});

test('a request too many is refused, a cancelled one makes room', async (t) => {
  const relay = await pair(t);
  for (let id = 1; id <= 17; id++) relay.request(id);
  const refused = await relay.until(TYPE.RESET);
  assert.deepEqual([refused.stream, refused.code], [17, 5]);
  relay.send(TYPE.RESET, 3, { code: 1 });
  relay.request(18);
  assert.ok(await relay.alive());
  assert.equal(relay.got.length, 0);
});

test('an early answer says that the rest is not needed', async (t) => {
  const relay = await pair(t, async (st) => st.respond(204, [], { end: true }));
  relay.request(1, 0);
  assert.equal((await relay.until(TYPE.RESPONSE)).status, 204);
  assert.equal((await relay.until(TYPE.RESET)).code, 0);
  relay.send(TYPE.DATA_END, 1, { data: Buffer.from('late') });
  assert.ok(await relay.alive());
});

test('stream ids rise', async (t) => {
  const relay = await pair(t);
  relay.request(5);
  relay.request(5);
  assert.equal((await relay.until(TYPE.GOAWAY)).code, 4);
});
