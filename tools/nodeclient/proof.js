// The proof of SPEC.md §4.4: what a device signs, and with what.

import { createHash, createPrivateKey, createPublicKey, sign } from 'node:crypto';

export const EXPORTER_LABEL = 'EXPORTER-Channel-Binding';
export const EXPORTER_SIZE = 32;
export const AUTH_ED25519 = 1;
export const BIND_NONE = 0;
export const BIND_EXPORTER = 1;

const PKCS8_ED25519 = Buffer.from('302e020100300506032b657004220420', 'hex'); // then the seed
const u8 = (v) => Buffer.from([v]);

/** message is what is signed; challenge as decoded, exporter empty without binding. */
export function message(challenge, device, exporter) {
  const relay = Buffer.from(challenge.relay), id = Buffer.from(device), time = Buffer.alloc(8);
  time.writeBigUInt64BE(challenge.time);
  return Buffer.concat([
    Buffer.from('cloudrest-auth-1\0'), challenge.nonce, u8(relay.length), relay, u8(id.length), id, time,
    u8(challenge.binding), u8(exporter.length), exporter,
  ]);
}

/** keyID names a key by its DER SubjectPublicKeyInfo. */
export const keyID = (spki) => createHash('sha256').update(spki).digest().subarray(0, 16).toString('hex');

/** prove gives the parts of HELLO that a seed of 32 bytes answers a challenge with. */
export function prove(seed, challenge, device, exporter) {
  const key = createPrivateKey({ key: Buffer.concat([PKCS8_ED25519, seed]), format: 'der', type: 'pkcs8' });
  const publicKey = createPublicKey(key).export({ format: 'der', type: 'spki' });
  return { auth: AUTH_ED25519, key_id: keyID(publicKey), signature: sign(null, message(challenge, device, exporter), key), publicKey };
}
