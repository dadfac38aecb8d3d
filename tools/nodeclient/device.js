// The device's side of one connection (SPEC.md §4): handshake, streams, notifications,
// keepalive.

import { randomBytes } from 'node:crypto';
import WebSocket from 'ws';
import { CRITICAL, FrameError, MAX_MESSAGE, TYPE, decode, encode, frames } from './frame.js';
import { BIND_EXPORTER, BIND_NONE, EXPORTER_LABEL, EXPORTER_SIZE, prove } from './proof.js';
import { RESET, Stream } from './stream.js';

const VERSION = 1;
const TLV_PUBLIC_KEY = 1;
const WINDOW = 32 * 1024; // credit for request bodies
const STREAMS = 16;
const HANDSHAKE = 20_000; // ms from the dial to ACCEPT
const PONG_WAIT = 10_000; // ms of silence after a PING, twice
const IN_FLIGHT = 32; // notifications sent and not acknowledged

const names = Object.fromEntries(Object.entries(TYPE).map(([name, type]) => [type, name]));
const CONNECTION = new Set([TYPE.NOTIFY_ACK, TYPE.GOAWAY, TYPE.PING, TYPE.PONG]);
const STREAM = new Set([TYPE.DATA, TYPE.DATA_END, TYPE.TRAILERS, TYPE.RESET, TYPE.WINDOW]);

/** Notifier keeps notifications until a relay has them; it outlives connections (SPEC.md §6). */
export class Notifier {
  epoch = randomBytes(8).readBigUInt64BE() || 1n;
  seq = 0n;
  pending = []; // {epoch, seq, time, topic, payload, acked}
  onChange = () => {};

  /** notify resolves when the notification is safe with the relay. */
  notify(topic, payload) {
    return new Promise((acked) => {
      this.pending.push({ epoch: this.epoch, seq: ++this.seq, time: BigInt(Date.now()), topic, payload: Buffer.from(payload), acked });
      this.onChange();
    });
  }

  ack(epoch, seq) {
    if (epoch !== this.epoch) return;
    while (this.pending.length > 0 && this.pending[0].seq <= seq) this.pending.shift().acked();
    this.onChange();
  }
}

export class Connection {
  /** config: {url, ca, seed, device, info, notifier, handler, log}. */
  constructor(config) {
    Object.assign(this, config);
    this.streams = new Map();
    this.lastStream = 0;
    this.lastNotified = 0n;
    this.token = 0;
    this.pings = 0;
    this.away = null; // the relay's GOAWAY
    this.leaving = false; // we said GOAWAY
    this.opened = new Promise((resolve, reject) => Object.assign(this, { onOpen: resolve, onRefused: reject }));
    this.closed = new Promise((resolve) => { this.onClosed = resolve; });
    this.opened.catch(() => {});

    const ws = this.ws = new WebSocket(new URL('/v1/tether', this.url), 'cloudrest.1', {
      ca: this.ca, perMessageDeflate: false, maxPayload: MAX_MESSAGE, handshakeTimeout: 10_000,
    });
    this.timer = setTimeout(() => this.fail('no ACCEPT in time'), HANDSHAKE);
    ws.on('upgrade', (res) => { this.tls = res.socket; });
    ws.on('unexpected-response', (req, res) => {
      this.retryAfter = 1000 * Number(res.headers['retry-after'] ?? 0);
      this.fail(`the relay answered HTTP ${res.statusCode}`);
      req.destroy();
    });
    ws.on('message', (msg, binary) => {
      if (!binary) return this.close(1003, 'binary messages only');
      this.heard = Date.now();
      try {
        for (const f of frames(msg)) this.onFrame(f);
      } catch (err) {
        if (!(err instanceof FrameError)) throw err;
        this.protocolError(err.message);
      }
    });
    ws.on('error', (err) => this.fail(err.message));
    ws.on('close', (code) => this.fail(`closed with ${code}`));
  }

  send(type, stream, fields) {
    if (this.ws.readyState !== WebSocket.OPEN) return;
    this.sent = Date.now();
    this.ws.send(encode(type, stream, fields));
  }

  // ---- frames

  onFrame({ type, stream, body }) {
    if (type >= CRITICAL) throw new FrameError('critical', `unknown critical type ${type}`);
    if (!names[type]) return; // an extension that we do not know
    if (!this.challenged) return this.expect(TYPE.CHALLENGE, type, stream) && this.onChallenge(decode(type, body));
    if (type === TYPE.GOAWAY && stream === 0) return this.onGoAway(decode(type, body));
    if (!this.accept) return this.expect(TYPE.ACCEPT, type, stream) && this.onAccept(decode(type, body));
    if (type === TYPE.REQUEST) return this.onRequest(stream, body);
    if (CONNECTION.has(type) && stream === 0) return this.onConnection(type, decode(type, body));
    if (!STREAM.has(type) || stream === 0 || stream > this.lastStream) throw new FrameError('malformed', `${names[type]} on stream ${stream}`);
    const st = this.streams.get(stream);
    try {
      const fields = decode(type, body);
      if (st?.inEnded && type !== TYPE.RESET && type !== TYPE.WINDOW) throw new FrameError('malformed', `${names[type]} after the end`);
      st?.onFrame(type, fields); // else the stream is over, and this was on its way
    } catch (err) {
      if (err.kind !== 'head') throw err;
      st?.reset(RESET.BAD_HEAD);
    }
  }

  expect(want, type, stream) {
    if (type === want && stream === 0) return true;
    throw new FrameError('malformed', `${names[type]} instead of ${names[want]}`);
  }

  onChallenge(challenge) {
    this.challenged = true;
    const dialled = new URL(this.url).hostname.replace(/^\[|\]$|\.$/g, '');
    if (challenge.relay !== dialled) return this.fail(`the challenge is that of ${challenge.relay}, we dialled ${dialled}`);
    let exporter = Buffer.alloc(0);
    if (challenge.binding === BIND_EXPORTER) exporter = this.tls.exportKeyingMaterial(EXPORTER_SIZE, EXPORTER_LABEL, Buffer.alloc(0));
    else if (challenge.binding !== BIND_NONE) return this.fail(`unknown binding ${challenge.binding}`);
    const { publicKey, ...proof } = prove(this.seed, challenge, this.device, exporter);
    const next = this.notifier.pending[0];
    this.send(TYPE.HELLO, 0, {
      version: VERSION, device: this.device, ...proof, window: WINDOW, streams: STREAMS, epoch: this.notifier.epoch,
      next_epoch: next?.epoch ?? 0n, next_seq: next?.seq ?? 0n, info: this.info, extensions: [[TLV_PUBLIC_KEY, publicKey]],
    });
  }

  onAccept(accept) {
    if (accept.version !== VERSION) return this.fail(`the relay speaks version ${accept.version}`);
    this.accept = accept;
    clearTimeout(this.timer);
    this.keepalive = 1000 * Math.min(240, Math.max(15, accept.keepalive));
    this.keep();
    this.notifier.onChange = () => this.notify();
    this.notifier.ack(accept.ack_epoch, accept.ack_seq);
    this.notify();
    this.onOpen(accept);
  }

  onGoAway(goaway) {
    this.away = goaway;
    if (!this.accept || goaway.code > 1) this.fail(`the relay said: ${goaway.code} ${goaway.text}`);
    else this.onClosed(this.away); // dial again now; this connection ends by itself
  }

  onConnection(type, f) {
    if (type === TYPE.PING) this.send(TYPE.PONG, 0, f);
    if (type === TYPE.NOTIFY_ACK) this.notifier.ack(f.epoch, f.seq);
  }

  onRequest(id, body) {
    if (id <= this.lastStream) throw new FrameError('malformed', `REQUEST on stream ${id} after ${this.lastStream}`);
    this.lastStream = id;
    let head;
    try {
      head = decode(TYPE.REQUEST, body);
    } catch (err) {
      if (err.kind !== 'head') throw err;
      return this.send(TYPE.RESET, id, { code: RESET.BAD_HEAD });
    }
    if (this.leaving || this.streams.size >= STREAMS) return this.send(TYPE.RESET, id, { code: RESET.REFUSED });
    const st = new Stream(head, {
      send: (type, fields) => this.send(type, id, fields), grant: WINDOW, credit: this.accept.window,
      onClosed: () => this.streams.delete(id),
    });
    this.streams.set(id, st);
    this.handler(st)
      .catch((err) => { if (!st.error) { this.log(`handler: ${err.message}`); st.reset(RESET.INTERNAL); } })
      .finally(() => st.finish());
  }

  // ---- notifications

  notify() {
    for (const n of this.notifier.pending.slice(0, IN_FLIGHT)) {
      if (n.seq <= this.lastNotified) continue;
      this.lastNotified = n.seq;
      this.send(TYPE.NOTIFY, 0, n);
    }
  }

  // ---- keepalive (§4.6)

  keep() {
    const now = Date.now(), quiet = now - this.sent, wait = this.keepalive * (0.9 + 0.1 * Math.random());
    if (this.pings > 0 && this.heard >= this.asked) this.pings = 0;
    let next = wait - quiet;
    if (this.pings === 0 ? next <= 0 : now - this.asked >= PONG_WAIT * this.pings) {
      if (this.pings === 2) return this.fail('the relay is silent');
      if (this.pings++ === 0) this.asked = now;
      this.send(TYPE.PING, 0, { token: ++this.token });
    }
    if (this.pings > 0) next = this.asked + PONG_WAIT * this.pings - now;
    this.timer = setTimeout(() => this.keep(), Math.max(next, 1));
  }

  // ---- the end

  /** leave says goodbye and closes. */
  leave() {
    this.leaving = true;
    this.goAway(0, 'bye');
    this.close(1000, 'bye');
  }

  protocolError(text) {
    this.goAway(4, text);
    this.close(1002, 'protocol error');
    this.fail(text);
  }

  goAway(code, text) {
    this.send(TYPE.GOAWAY, 0, { code, last_stream: this.lastStream, retry_after: 0, spread: 0, alternate: '', text: text.slice(0, 200) });
  }

  close(code, reason) {
    this.ws.close(code, reason);
  }

  /** fail ends everything at once. */
  fail(text) {
    if (this.over) return;
    this.over = true;
    clearTimeout(this.timer);
    for (const st of [...this.streams.values()]) st.fail(new Error(text));
    if (this.ws.readyState <= WebSocket.OPEN) this.ws.terminate();
    this.onRefused(new Error(text));
    this.onClosed(this.away ?? { text, retry_after: this.retryAfter ?? 0, spread: 0 });
  }
}
