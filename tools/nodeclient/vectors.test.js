// The vectors of tether/testdata, read by code that was written from SPEC.md alone.

import test from 'node:test';
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createPublicKey, verify } from 'node:crypto';
import { CRITICAL, FrameError, TYPE, decode, encode, frames } from './frame.js';
import { keyID, message, prove } from './proof.js';

const folder = process.env.CLOUDREST_VECTORS ?? new URL('../../tether/testdata/', import.meta.url).pathname;
const load = (name) => JSON.parse(readFileSync(`${folder}/${name}`, 'utf8'));
const hex = (s) => Buffer.from(s, 'hex');
const known = new Set(Object.values(TYPE));

/** plain writes decoded fields the way the vectors do (SPEC.md §10). */
function plain(fields) {
  const one = (v) => (Buffer.isBuffer(v) ? v.toString('hex') : typeof v === 'bigint' ? v.toString(16).padStart(16, '0')
    : Array.isArray(v) ? v.map(one) : v);
  return Object.fromEntries(Object.entries(fields).map(([name, v]) => [name, one(v)]));
}

/** read takes a message to its end, as a peer would; it gives the class of the refusal. */
function read(msg) {
  try {
    for (const f of frames(msg)) {
      if (f.type >= CRITICAL) return 'critical';
      if (known.has(f.type)) decode(f.type, f.body);
    }
  } catch (err) {
    if (err instanceof FrameError) return err.kind;
    throw err;
  }
  return 'ok';
}

const vectors = load('frames.json');

for (const v of vectors.valid) {
  test(`valid: ${v.name}`, () => {
    const list = [...frames(hex(v.hex))];
    assert.equal(list.length, 1);
    const [f] = list;
    assert.deepEqual([f.type, f.stream], [v.type, v.stream]);
    if (v.class === 'skip') {
      assert.ok(!known.has(f.type) && f.type < CRITICAL);
      return;
    }
    const fields = decode(f.type, f.body);
    assert.deepEqual(plain(fields), v.fields);
    assert.equal(encode(f.type, f.stream, fields).toString('hex'), v.hex);
  });
}

for (const v of vectors.invalid) {
  test(`invalid: ${v.name}`, () => assert.equal(read(hex(v.hex)), v.class));
}

test('every valid message cut short is refused', () => {
  for (const v of vectors.valid) {
    const msg = hex(v.hex);
    for (let n = 1; n < msg.length; n++) assert.equal(read(msg.subarray(0, n)), 'malformed', `${v.name} cut at ${n}`);
  }
});

for (const v of load('proof.json').vectors) {
  test(`proof: ${v.name}`, () => {
    const challenge = { nonce: hex(v.nonce), time: BigInt(`0x${v.time}`), relay: v.relay, binding: v.binding };
    const exporter = hex(v.exporter), spki = hex(v.public_key), signed = message(challenge, v.device, exporter);
    assert.equal(signed.toString('hex'), v.message);
    const key = createPublicKey({ key: spki, format: 'der', type: 'spki' });
    const good = verify(v.auth === 1 ? null : 'sha256', signed, key, hex(v.signature)) && keyID(spki) === v.key_id;
    assert.equal(good, v.valid);
    if (v.seed && v.valid) {
      const p = prove(hex(v.seed), challenge, v.device, exporter);
      assert.deepEqual([p.signature.toString('hex'), p.key_id, p.publicKey.toString('hex')], [v.signature, v.key_id, v.public_key]);
    }
  });
}

test('session', () => {
  const session = load('session.json');
  let challenge;
  for (const m of session.messages) {
    const parts = [];
    const list = [...frames(hex(m.hex))];
    assert.equal(list.length, m.frames.length);
    list.forEach((f, i) => {
      const fields = decode(f.type, f.body);
      assert.deepEqual({ type: f.type, stream: f.stream, fields: plain(fields) }, m.frames[i]);
      parts.push(encode(f.type, f.stream, fields));
      if (f.type === TYPE.CHALLENGE) challenge = fields;
      if (f.type === TYPE.HELLO) {
        const p = prove(hex(session.seed), challenge, session.device, hex(session.exporter));
        assert.deepEqual([fields.signature, fields.key_id, fields.extensions[0]], [p.signature, p.key_id, [1, p.publicKey]]);
      }
    });
    assert.equal(Buffer.concat(parts).toString('hex'), m.hex);
  }
});
