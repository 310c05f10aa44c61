import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { expectedHolders, publishedBucket } from "./expected-holders.ts";

const vectors = JSON.parse(readFileSync(new URL("../../mesh/bucket-vectors.json", import.meta.url), "utf8")) as {
  buckets: { salt: string; device_id: string; bucket: number }[];
};

describe("the published bucket function, written anew", () => {
  test.each(vectors.buckets)("puts $device_id under $salt into bucket $bucket", ({ salt, device_id, bucket }) => {
    expect(publishedBucket(salt, device_id)).toBe(bucket);
  });

  test("takes nobody out as the share grows", () => {
    const devices = Array.from({ length: 200 }, (_, index) => `dev_${index}`);
    fc.assert(
      fc.property(fc.string(), fc.nat(100_000), fc.nat(100_000), (salt, one, other) => {
        const small = expectedHolders(salt, Math.min(one, other), devices);
        const large = expectedHolders(salt, Math.max(one, other), devices);
        for (const device of small) expect(large.has(device)).toBe(true);
      }),
    );
    expect(expectedHolders("salt", 100_000, devices).size).toBe(200);
    expect(expectedHolders("salt", 0, devices).size).toBe(0);
  });
});
