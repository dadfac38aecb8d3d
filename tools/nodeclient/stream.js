// One HTTP exchange (SPEC.md §5): a request whose body is read piece by piece, and a
// response that waits for credit.

import { END, MAX_DATA, TYPE } from './frame.js';

export const RESET = { NONE: 0, CANCEL: 1, BAD_HEAD: 3, REFUSED: 5, FLOW: 7, INTERNAL: 8 };

export class Stream {
  /** send(type, fields) writes one frame of this stream; grant and credit are the windows of HELLO and ACCEPT. */
  constructor(head, { send, grant, credit, onClosed }) {
    this.method = head.method;
    this.path = head.path;
    this.header = head.header;
    this.send = send;
    this.window = grant;
    this.grant = grant; // what the relay may still send
    this.credit = credit; // what we may still send
    this.onClosed = onClosed;
    this.received = []; // body pieces that nobody has read
    this.inEnded = Boolean(head.flags & END);
    this.outEnded = false;
    this.error = null;
    this.waiting = []; // wake-ups of whoever waits for bytes or credit
  }

  field(name) {
    return this.header.find(([n]) => n === name)?.[1];
  }

  // ---- what the handler calls

  /** body yields the request body; a piece counts as consumed once the next one is asked for. */
  async *body() {
    let consumed = 0;
    for (;;) {
      if (this.error) throw this.error;
      const piece = this.received.shift();
      if (piece) {
        yield piece;
        consumed += piece.length;
        if (consumed * 2 >= this.window && !this.inEnded && !this.error) {
          this.grant += consumed;
          this.send(TYPE.WINDOW, { credit: consumed });
          consumed = 0;
        }
      } else if (this.inEnded) {
        return;
      } else {
        await this.change();
      }
    }
  }

  /** respond sends the head. The request's id goes back even if the handler forgot it (§5.7). */
  respond(status, header = [], { end = false } = {}) {
    if (this.error) throw this.error;
    for (const name of ['X-Cloudrest-Id', 'X-Cloudrest-Sequence-Id']) {
      const id = this.field(name);
      if (id !== undefined && !header.some(([n]) => n === name)) header = [...header, [name, id]];
    }
    this.send(TYPE.RESPONSE, { flags: end ? END : 0, status, header });
    if (end) this.endOut();
  }

  /** write sends body bytes, waiting for credit. */
  async write(bytes) {
    while (bytes.length > 0) {
      if (this.error) throw this.error;
      const n = Math.min(bytes.length, MAX_DATA, this.credit);
      if (n > 0) {
        this.credit -= n;
        this.send(TYPE.DATA, { data: bytes.subarray(0, n) });
        bytes = bytes.subarray(n);
      } else {
        await this.change();
      }
    }
  }

  end() {
    if (this.error) throw this.error;
    this.send(TYPE.DATA_END, { data: Buffer.alloc(0) });
    this.endOut();
  }

  /** finish is called when the handler has returned; whatever it left open is closed. */
  finish() {
    if (this.error) return;
    if (!this.outEnded) this.reset(RESET.INTERNAL);
    else if (!this.inEnded) this.reset(RESET.NONE); // the answer is complete, stop sending
  }

  reset(code) {
    if (this.error || (this.inEnded && this.outEnded)) return;
    this.send(TYPE.RESET, { code });
    this.fail(new Error(`we reset the stream with ${code}`));
  }

  // ---- what the connection calls

  onFrame(type, f) {
    switch (type) {
      case TYPE.WINDOW:
        this.credit += f.credit;
        if (this.credit > 2 ** 31 - 1) this.reset(RESET.FLOW);
        break;
      case TYPE.RESET:
        this.fail(new Error(`the relay reset the stream with ${f.code}`));
        break;
      case TYPE.TRAILERS:
        this.inEnded = true;
        break;
      case TYPE.DATA: case TYPE.DATA_END:
        this.grant -= f.data.length;
        if (this.grant < 0) return this.reset(RESET.FLOW);
        if (f.data.length > 0) this.received.push(f.data);
        if (type === TYPE.DATA_END) this.inEnded = true;
    }
    this.wake();
  }

  fail(err) {
    this.error ??= err;
    this.received = [];
    this.wake();
    this.onClosed();
  }

  // ---- inside

  endOut() {
    this.outEnded = true;
    if (this.inEnded) this.onClosed();
  }

  change() {
    return new Promise((resolve) => this.waiting.push(resolve));
  }

  wake() {
    for (const resolve of this.waiting.splice(0)) resolve();
    if (this.inEnded && this.outEnded) this.onClosed();
  }
}
