import { fail, Reason } from "@octomesh/mesh/errors";

/**
 * Encodings of the points of small order on edwards25519, without the sign bit, hexadecimal: order 4, 1, 8, 8, 2, and
 * order 4 and 1 again in encodings that are not reduced (RFC 8032; "Taming the many EdDSAs", table 1).
 */
const smallOrder: ReadonlySet<string> = new Set([
  "0000000000000000000000000000000000000000000000000000000000000000",
  "0100000000000000000000000000000000000000000000000000000000000000",
  "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
  "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
  "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
  "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
  "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]);

/**
 * Reads an Ed25519 public key, 32 bytes. Throws VALIDATION_FAILED for one of small order: anybody makes signatures that
 * verify under it.
 */
export function readEdgePublicKey(bytes: Uint8Array): Buffer {
  const unsigned = Buffer.from(bytes);
  unsigned[31] = (unsigned[31] ?? 0) & 0x7f;
  if (bytes.length !== 32 || smallOrder.has(unsigned.toString("hex"))) {
    throw fail(Reason.VALIDATION_FAILED, "this is no public key that proves anything", { field: "public_key" });
  }
  return Buffer.from(bytes);
}
