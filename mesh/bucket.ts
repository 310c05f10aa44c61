import { createHmac } from "node:crypto";

/** How many buckets there are: one for each thousandth of a percent. */
export const bucketCount = 100_000;

/** Into how many slices a cohort is divided, by device. */
export const sliceCount = 32;

/**
 * The bucket of a device under a salt, 0 to 99,999: the first 8 bytes, big-endian, of HMAC-SHA-256 with the salt as key
 * (UTF-8) over the device's id (UTF-8), modulo 100,000. Published, so that anyone can recompute who is exposed: vectors
 * in bucket-vectors.json. The same salt always gives the same bucket, so exposure survives pause, restart and growth.
 */
export function bucketOf(salt: string, deviceId: string): number {
  return Number(hashOf(salt, deviceId) % BigInt(bucketCount));
}

/** One of 32 slices, 0 to 31, independent of the bucket: bytes 8 to 15 of the same HMAC, modulo 32. */
export function sliceOf(salt: string, deviceId: string): number {
  return Number(digestOf(salt, deviceId).readBigUInt64BE(8) % BigInt(sliceCount));
}

/**
 * Whether a bucket is exposed at a percentage: bucket < min(percentage, 100 % - control). All in thousandths of a
 * percent. Monotone in the percentage: who is in stays in.
 */
export function isExposed(bucket: number, percentageThousandths: number, controlThousandths = 0): boolean {
  return bucket < Math.min(percentageThousandths, bucketCount - controlThousandths);
}

/** Whether a bucket belongs to the control group, the top of the range. */
export function isControl(bucket: number, controlThousandths: number): boolean {
  return bucket >= bucketCount - controlThousandths;
}

function hashOf(salt: string, deviceId: string): bigint {
  return digestOf(salt, deviceId).readBigUInt64BE(0);
}

function digestOf(salt: string, deviceId: string): Buffer {
  return createHmac("sha256", salt).update(deviceId, "utf8").digest();
}
