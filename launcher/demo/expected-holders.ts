import { createHmac } from "node:crypto";

/**
 * The published bucket function, written anew from docs/rollouts.md as any user would: HMAC-SHA-256 with the rollout's salt
 * as key over the device's id, the first 8 bytes big-endian, modulo 100,000.
 */
export function publishedBucket(salt: string, deviceId: string): number {
  const digest = createHmac("sha256", Buffer.from(salt, "utf8")).update(Buffer.from(deviceId, "utf8")).digest();
  let remainder = 0;
  for (const byte of digest.subarray(0, 8)) remainder = (remainder * 256 + byte) % 100_000;
  return remainder;
}

/** The devices that must hold a rollout's version at a share, in thousandths of a percent, without a control group. */
export function expectedHolders(salt: string, thousandths: number, deviceIds: readonly string[]): Set<string> {
  return new Set(deviceIds.filter((id) => publishedBucket(salt, id) < thousandths));
}
