import { type KeyObject, verify } from "node:crypto";

/** What a signature is for; the text goes in front of the signed bytes, so that neither passes for the other. */
export type SignaturePurpose = "octomesh edge signals v1" | "octomesh landmark measurement v1";

/** Whether an edge signed the bytes for the purpose: Ed25519 (RFC 8032) over the purpose, a zero byte, and the bytes. */
export function isSignedBy(
  key: KeyObject,
  purpose: SignaturePurpose,
  bytes: Uint8Array,
  signature: Uint8Array,
): boolean {
  return signature.length === 64 && verify(null, Buffer.concat([Buffer.from(`${purpose}\0`), bytes]), key, signature);
}
