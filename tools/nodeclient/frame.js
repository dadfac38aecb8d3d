// Frames of cloudrest.1 (tether/SPEC.md §3): the tables of fields as data, one reader and
// one writer for all of them, and the rules for heads (§5.7).

export const TYPE = {
  HELLO: 1, ACCEPT: 2, REQUEST: 3, RESPONSE: 4, NOTIFY: 5, DATA: 6, DATA_END: 7, TRAILERS: 8,
  RESET: 9, WINDOW: 10, PING: 11, PONG: 12, NOTIFY_ACK: 13, GOAWAY: 14, CHALLENGE: 15, DESCRIBE: 16,
  LOCATE: 17, INVALIDATE: 18, INVALIDATED: 19,
};
export const CRITICAL = 128; // the first type that must not be skipped
export const END = 1; // flag of REQUEST and RESPONSE
export const MAX_MESSAGE = 192 * 1024;
export const MAX_DATA = 16 * 1024;
const HEADER = 9; // type, length, stream
const MAX_STREAM = 2 ** 31 - 1;
const MAX_FIELDS = 200;
const MAX_NOTIFY = 32 * 1024;
const MAX_DESCRIBE = 16 * 1024;
const MAX_CHAIN = 4096;
const MAX_TARGETS = 4096;
const MAX_SMALL = 512;

/** kind is "malformed" (close), "head" (RESET 3) or "critical" (close), as in SPEC.md §3.4. */
export class FrameError extends Error {
  constructor(kind, text) {
    super(text);
    this.kind = kind;
  }
}
const malformed = (text) => new FrameError('malformed', text);
const badHead = (text) => new FrameError('head', text);

const LAYOUT = {
  [TYPE.CHALLENGE]: { nonce: 32, time: 'u64', relay: 'str8', binding: 'u8', extensions: 'tlvs' },
  [TYPE.HELLO]: {
    version: 'u8', device: 'str8', auth: 'u8', key_id: 'str8', signature: 'bin16', window: 'u32', streams: 'u16',
    epoch: 'u64', next_epoch: 'u64', next_seq: 'u64', info: 'str16', extensions: 'tlvs',
  },
  [TYPE.ACCEPT]: {
    version: 'u8', session: 16, window: 'u32', keepalive: 'u16', time: 'u64', ack_epoch: 'u64', ack_seq: 'u64',
    spread: 'u16', extensions: 'tlvs',
  },
  [TYPE.REQUEST]: {
    flags: 'u8', target: 'str8', method: 'str8', path: 'str16', authority: 'str16', client: 'str16', timeout: 'u32',
    header: 'fields',
  },
  [TYPE.RESPONSE]: { flags: 'u8', status: 'u16', header: 'fields' },
  [TYPE.NOTIFY]: { epoch: 'u64', seq: 'u64', time: 'u64', topic: 'str8', payload: 'rest' },
  [TYPE.DATA]: { data: 'rest' },
  [TYPE.DATA_END]: { data: 'rest' },
  [TYPE.TRAILERS]: { header: 'fields' },
  [TYPE.RESET]: { code: 'u32' },
  [TYPE.WINDOW]: { credit: 'u32' },
  [TYPE.PING]: { token: 'u32' },
  [TYPE.PONG]: { token: 'u32' },
  [TYPE.NOTIFY_ACK]: { epoch: 'u64', seq: 'u64' },
  [TYPE.GOAWAY]: { code: 'u16', last_stream: 'u32', retry_after: 'u32', spread: 'u32', alternate: 'str8', text: 'str8' },
  [TYPE.DESCRIBE]: { info: 'rest' },
  [TYPE.LOCATE]: { url: 'rest' },
  [TYPE.INVALIDATE]: { epoch: 'u64', seq: 'u64', flags: 'u8', targets: 'targets' },
  [TYPE.INVALIDATED]: { epoch: 'u64', seq: 'u64' },
};

/** maxBody is the most bytes that may follow the stream id (SPEC.md §3.3). */
function maxBody(type) {
  switch (type) {
    case TYPE.DATA: case TYPE.DATA_END: return MAX_DATA;
    case TYPE.REQUEST: case TYPE.RESPONSE: case TYPE.TRAILERS: return 64 * 1024;
    case TYPE.NOTIFY: return MAX_NOTIFY + MAX_SMALL;
    case TYPE.HELLO: return 20 * 1024;
    case TYPE.DESCRIBE: return MAX_DESCRIBE;
    case TYPE.INVALIDATE: return MAX_TARGETS;
  }
  return LAYOUT[type] ? MAX_SMALL : MAX_MESSAGE - HEADER;
}

/** frames yields {type, stream, body} for each frame of a message. */
export function* frames(msg) {
  while (msg.length > 0) {
    if (msg.length < HEADER) throw malformed('a header cut short');
    const type = msg.readUInt8(0), length = msg.readUInt32BE(1), stream = msg.readUInt32BE(5);
    if (length < 4 || length - 4 > maxBody(type)) throw malformed(`type ${type} of length ${length}`);
    const end = 5 + length;
    if (end > msg.length) throw malformed('a frame longer than its message');
    if (stream > MAX_STREAM) throw malformed(`stream ${stream}`);
    yield { type, stream, body: msg.subarray(HEADER, end) };
    msg = msg.subarray(end);
  }
}

/** decode reads the body of a known type into an object with the names of SPEC.md. */
export function decode(type, body) {
  let at = 0;
  const take = (n) => {
    if (n > body.length - at) throw malformed('the body ends too soon');
    return body.subarray(at, (at += n));
  };
  const num = (n) => take(n).readUIntBE(0, n);
  const readers = {
    u8: () => num(1), u16: () => num(2), u32: () => num(4), u64: () => take(8).readBigUInt64BE(0),
    str8: () => take(num(1)).toString(), str16: () => take(num(2)).toString(),
    bin16: () => Buffer.from(take(num(2))), rest: () => Buffer.from(take(body.length - at)),
    fields() {
      const n = num(2), list = [];
      if (n > MAX_FIELDS) throw badHead(`${n} fields`);
      for (let i = 0; i < n; i++) {
        const name = readers.str8(), value = readers.str16();
        checkField(name, value);
        list.push([name, value]);
      }
      return list;
    },
    targets() {
      const list = [];
      for (let n = num(2); n > 0; n--) list.push(readers.str16());
      return list;
    },
    tlvs() {
      const list = [];
      while (at < body.length) list.push([num(1), readers.bin16()]);
      return list;
    },
  };
  const out = {};
  for (const [name, kind] of Object.entries(LAYOUT[type])) {
    out[name] = typeof kind === 'number' ? Buffer.from(take(kind)) : readers[kind]();
  }
  if (at < body.length) throw malformed('bytes after the last part');
  check(type, out);
  return out;
}

/** encode gives one whole frame. */
export function encode(type, stream, fields) {
  const parts = [];
  const num = (v, n) => {
    const b = Buffer.alloc(n);
    b.writeUIntBE(v, 0, n);
    parts.push(b);
  };
  const sized = (v, n) => {
    const b = Buffer.from(v);
    num(b.length, n); // throws when v does not fit
    parts.push(b);
  };
  const writers = {
    u8: (v) => num(v, 1), u16: (v) => num(v, 2), u32: (v) => num(v, 4),
    u64(v) { const b = Buffer.alloc(8); b.writeBigUInt64BE(v); parts.push(b); },
    str8: (v) => sized(v, 1), str16: (v) => sized(v, 2), bin16: (v) => sized(v, 2), rest: (v) => parts.push(Buffer.from(v)),
    fields(list) {
      num(list.length, 2);
      for (const [name, value] of list) { checkField(name, value); sized(name, 1); sized(value, 2); }
    },
    targets(list) {
      num(list.length, 2);
      for (const t of list) sized(t, 2);
    },
    tlvs(list) { for (const [t, v] of list) { num(t, 1); sized(v, 2); } },
  };
  check(type, fields);
  for (const [name, kind] of Object.entries(LAYOUT[type])) {
    if (typeof kind === 'number') parts.push(fields[name]);
    else writers[kind](fields[name]);
  }
  const body = Buffer.concat(parts), header = Buffer.alloc(HEADER);
  if (body.length > maxBody(type)) throw malformed(`type ${type} of ${body.length} bytes`);
  header.writeUInt8(type, 0);
  header.writeUInt32BE(body.length + 4, 1);
  header.writeUInt32BE(stream, 5);
  return Buffer.concat([header, body]);
}

const TOKEN = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/; // RFC 9110 §5.6.2
const CANONICAL = /^(?:[^a-z-][^A-Z-]*|)(?:-(?:[^a-z-][^A-Z-]*|))*$/; // of a token
const NOT_VISIBLE = /[\x00-\x20\x7f]/;
const BAD_VALUE = /[\x00-\x08\x0a-\x1f\x7f]|^[ \t]|[ \t]$/;
const NEVER_TRAVELS = new Set(['Connection', 'Keep-Alive', 'Proxy-Connection', 'Transfer-Encoding', 'Proxy-Authenticate', 'Proxy-Authorization', 'Host']);

function checkField(name, value) {
  if (!TOKEN.test(name) || !CANONICAL.test(name) || NEVER_TRAVELS.has(name)) throw badHead(`field name ${JSON.stringify(name)}`);
  if (BAD_VALUE.test(value)) throw badHead(`value of field ${name}`);
}

// A device's URL on its LAN (SPEC.md §4.10): a host, no user, no space, no control character.
const LAN_URL = /^https?:\/\/(?=[^/?#:])(?![^/?#]*@)[^\x00-\x20\x7f-\x9f]*$/;

/** isChain: one or more certificates, each with its length, none of them empty (SPEC.md section 4.2). */
function isChain(v) {
  let at = 0;
  while (at + 2 <= v.length) {
    const n = v.readUInt16BE(at);
    if (n === 0) return false;
    at += 2 + n;
  }
  return at > 0 && at === v.length && v.length <= MAX_CHAIN;
}

function isLanURL(bytes) {
  if (bytes.length === 0) return true; // no address on a LAN now
  try {
    return LAN_URL.test(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes));
  } catch {
    return false; // not UTF-8
  }
}

/** check holds what SPEC.md says of single values. */
function check(type, f) {
  switch (type) {
    case TYPE.REQUEST:
      if (!TOKEN.test(f.method)) throw badHead('method');
      if (f.path !== '*' && !f.path.startsWith('/')) throw badHead('path');
      for (const name of ['path', 'authority', 'client']) if (NOT_VISIBLE.test(f[name])) throw badHead(name);
      break;
    case TYPE.RESPONSE:
      if (f.status < 100 || f.status > 999 || (f.flags & END && f.status < 200)) throw badHead(`status ${f.status}`);
      break;
    case TYPE.NOTIFY:
      if (f.payload.length > MAX_NOTIFY) throw malformed('payload');
      break;
    case TYPE.LOCATE:
      if (!isLanURL(f.url)) throw malformed('url');
      break;
    case TYPE.INVALIDATE:
      for (const t of f.targets) if (!t.startsWith('/') || NOT_VISIBLE.test(t)) throw malformed('target');
      break;
    case TYPE.HELLO:
      if (f.signature.length > MAX_SMALL || Buffer.byteLength(f.info) > MAX_DESCRIBE) throw malformed('HELLO part over its limit');
      for (const [t, v] of f.extensions) {
        if ((t === 1 && (v.length < 1 || v.length > MAX_SMALL)) || (t === 2 && v.length !== 8) ||
            (t === 3 && !isChain(v)) || (t === 4 && v.length !== 4)) throw malformed(`TLV ${t}`);
      }
      break;
  }
}
