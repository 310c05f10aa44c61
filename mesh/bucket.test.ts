import { spawnSync } from "node:child_process";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { bucketCount, bucketOf, isControl, isExposed, sliceCount, sliceOf } from "./bucket.ts";
import vectors from "./bucket-vectors.json" with { type: "json" };
import { newId } from "./ids.ts";

const bucket = fc.integer({ min: 0, max: bucketCount - 1 });
const percentage = fc.integer({ min: 0, max: bucketCount });

describe("a device's bucket", () => {
  it.each(vectors.buckets)("is the published one for $salt and $device_id", (vector) => {
    expect(bucketOf(vector.salt, vector.device_id)).toBe(vector.bucket);
    expect(sliceOf(vector.salt, vector.device_id)).toBe(vector.slice);
  });

  it.skipIf(spawnSync("openssl", ["version"]).status !== 0)("is what openssl's HMAC-SHA-256 gives", () => {
    for (const { salt, device_id, hmac_sha256, bucket: expected, slice } of vectors.buckets.filter(
      ({ salt }) => salt !== "",
    )) {
      const key = `hexkey:${Buffer.from(salt).toString("hex")}`;
      const args = ["dgst", "-sha256", "-mac", "HMAC", "-macopt", key, "-hex"];
      const { stdout } = spawnSync("openssl", args, { input: device_id, encoding: "utf8" });
      const mac = stdout.trim().split("= ")[1] ?? "";
      expect(mac).toBe(hmac_sha256);
      expect(Number(BigInt(`0x${mac.slice(0, 16)}`) % 100_000n)).toBe(expected);
      expect(Number(BigInt(`0x${mac.slice(16, 32)}`) % 32n)).toBe(slice);
    }
  });

  it("is within its range and always the same", () => {
    fc.assert(
      fc.property(fc.string(), fc.string(), (salt, device) => {
        const value = bucketOf(salt, device);
        expect(Number.isInteger(value) && value >= 0 && value < bucketCount).toBe(true);
        expect(bucketOf(salt, device)).toBe(value);
        const slice = sliceOf(salt, device);
        expect(Number.isInteger(slice) && slice >= 0 && slice < sliceCount).toBe(true);
      }),
    );
  });

  it("is spread evenly, in slices too, and says nothing under one salt of that under another", () => {
    const devices = Array.from({ length: 20_000 }, () => newId("dev"));
    const tenths = devices.map((device) => Math.floor(bucketOf("one", device) / 10_000));
    expect(chiSquare(tenths, 10)).toBeLessThan(45); // 9 degrees of freedom: once in a million
    const exposed = devices.filter((device) => bucketOf("one", device) < 10_000);
    // The same devices under another salt, and in slices: as even as any others.
    expect(
      chiSquare(
        exposed.map((device) => Math.floor(bucketOf("two", device) / 10_000)),
        10,
      ),
    ).toBeLessThan(45);
    expect(
      chiSquare(
        exposed.map((device) => sliceOf("one", device)),
        sliceCount,
      ),
    ).toBeLessThan(85); // 31 degrees
  });
});

describe("exposure", () => {
  it.each(vectors.exposures)(
    "of bucket $bucket at $percentage_thousandths with control $control_thousandths is $exposed",
    (vector) => {
      const { percentage_thousandths, control_thousandths } = vector;
      expect(isExposed(vector.bucket, percentage_thousandths, control_thousandths)).toBe(vector.exposed);
      expect(isControl(vector.bucket, control_thousandths)).toBe(vector.control);
    },
  );

  it("never ends as the percentage grows", () => {
    fc.assert(
      fc.property(bucket, percentage, percentage, percentage, (device, one, other, control) => {
        const [less, more] = one < other ? [one, other] : [other, one];
        if (isExposed(device, less, control)) expect(isExposed(device, more, control)).toBe(true);
      }),
    );
  });

  it("holds exactly the percentage, and none of the control group", () => {
    fc.assert(
      fc.property(percentage, percentage, (share, control) => {
        let exposed = 0;
        let both = 0;
        for (let each = 0; each < bucketCount; each += 1) {
          const isIn = isExposed(each, share, control);
          if (isIn) exposed += 1;
          if (isIn && isControl(each, control)) both += 1;
        }
        expect(exposed).toBe(Math.min(share, bucketCount - control));
        expect(both).toBe(0);
      }),
      { numRuns: 20 },
    );
  });

  it("is everybody's at 100 % without a control group, and nobody's at 0", () => {
    fc.assert(
      fc.property(bucket, (device) => {
        expect(isExposed(device, bucketCount)).toBe(true);
        expect(isExposed(device, 0)).toBe(false);
        expect(isControl(device, 0)).toBe(false);
      }),
    );
  });
});

function chiSquare(values: readonly number[], cells: number): number {
  const counts = new Array<number>(cells).fill(0);
  for (const value of values) counts[value] = (counts[value] ?? 0) + 1;
  const expected = values.length / cells;
  return counts.reduce((sum, count) => sum + (count - expected) ** 2 / expected, 0);
}
