import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { decideRefresh, type RefreshFamily, refreshGraceMs } from "./refresh.ts";

const key = Buffer.alloc(32, 1);
const otherKey = Buffer.alloc(32, 2);
const lifeMs = 90 * 86_400_000;

function familyAt(now: number, clientKeyDigest?: Buffer): RefreshFamily {
  return { generation: 1, rotateTime: now, expireTime: now + lifeMs, clientKeyDigest };
}

/** What the store does with a decision. */
function apply(family: RefreshFamily, generation: number, digest: Buffer | undefined, now: number) {
  const decision = decideRefresh(family, { generation, clientKeyDigest: digest }, now);
  switch (decision.kind) {
    case "rotate":
      return {
        family: { ...family, generation: decision.generation, rotateTime: now, expireTime: now + lifeMs },
        got: decision.generation,
      };
    case "repeat":
      return { family, got: decision.generation };
    case "revoke":
      return { family: { ...family, revokeTime: now }, got: undefined };
    case "refuse":
      return { family, got: undefined };
  }
}

describe("decideRefresh", () => {
  it("replaces the newest token by the next generation", () => {
    expect(decideRefresh(familyAt(0, key), { generation: 1, clientKeyDigest: key }, 5)).toEqual({
      kind: "rotate",
      generation: 2,
    });
  });

  it("gives the same successor again up to the end of the grace, and revokes after it", () => {
    const family = { ...familyAt(1_000, key), generation: 7 };
    const before = { generation: 6, clientKeyDigest: key };
    expect(decideRefresh(family, before, 1_000 + refreshGraceMs)).toEqual({ kind: "repeat", generation: 7 });
    expect(decideRefresh(family, before, 1_001 + refreshGraceMs)).toEqual({ kind: "revoke", cause: "reused" });
  });

  it("ends the family for another client key, a missing one and one too many", () => {
    const revoke = { kind: "revoke", cause: "client_key" };
    expect(decideRefresh(familyAt(0, key), { generation: 1, clientKeyDigest: otherKey }, 1)).toEqual(revoke);
    expect(decideRefresh(familyAt(0, key), { generation: 1 }, 1)).toEqual(revoke);
    expect(decideRefresh(familyAt(0), { generation: 1, clientKeyDigest: key }, 1)).toEqual(revoke);
  });

  it("changes nothing for a family that has ended", () => {
    const revoked = { ...familyAt(0), revokeTime: 1 };
    expect(decideRefresh(revoked, { generation: 1 }, 2)).toEqual({ kind: "refuse", cause: "revoked" });
    expect(decideRefresh(familyAt(0), { generation: 1 }, lifeMs)).toEqual({ kind: "refuse", cause: "expired" });
  });

  it("keeps an owner going whose answers are lost, however many, as long as retries fall into the grace", () => {
    const attempts = fc.array(fc.record({ lost: fc.boolean(), waitMs: fc.nat(refreshGraceMs) }), { maxLength: 200 });
    fc.assert(
      fc.property(attempts, (steps) => {
        let family = familyAt(0, key);
        let held = 1;
        let now = 0;
        let lostSince: number | undefined;
        for (const { lost, waitMs } of steps) {
          // The grace counts from the rotation, so an owner retries within what is left of it.
          now = lostSince === undefined ? now + waitMs : Math.min(now + waitMs, lostSince + refreshGraceMs);
          const result = apply(family, held, key, now);
          expect(result.got).toBeDefined();
          family = result.family;
          if (lost) {
            lostSince ??= now;
          } else {
            held = result.got ?? 0;
            lostSince = undefined;
          }
        }
        expect(family.revokeTime).toBeUndefined();
      }),
    );
  });

  it("gives all of many refreshes at once the same successor, and rotates once", () => {
    fc.assert(
      fc.property(fc.integer({ min: 2, max: 50 }), (count) => {
        let family = familyAt(0, key);
        const got = new Set<number | undefined>();
        for (let i = 0; i < count; i += 1) {
          const result = apply(family, 1, key, i);
          family = result.family;
          got.add(result.got);
        }
        expect([...got]).toEqual([2]);
        expect(family.generation).toBe(2);
      }),
    );
  });

  it("never lets a thief without the client key get anything, and ends the family when one tries", () => {
    const steps = fc.array(
      fc.record({ who: fc.constantFrom("owner", "thief"), token: fc.nat(), waitMs: fc.nat(86_400_000) }),
      { maxLength: 60 },
    );
    fc.assert(
      fc.property(steps, (moves) => {
        let family = familyAt(0, key);
        let held = 1;
        let now = 0;
        for (const { who, token, waitMs } of moves) {
          now += waitMs;
          const generation = who === "owner" ? held : 1 + (token % family.generation);
          const result = apply(family, generation, who === "owner" ? key : otherKey, now);
          if (who === "thief") {
            expect(result.got).toBeUndefined();
            expect(result.family.revokeTime).toBeDefined();
          } else if (result.got !== undefined) {
            held = result.got;
          }
          family = result.family;
        }
      }),
    );
  });

  it("never leaves a thief of everything and the owner both alive once each has called after the grace", () => {
    const steps = fc.array(fc.record({ thief: fc.boolean(), waitMs: fc.nat(10 * refreshGraceMs) }), { maxLength: 100 });
    fc.assert(
      fc.property(steps, (moves) => {
        let family = familyAt(0, key);
        const held = { owner: 1, thief: 1 };
        let now = 0;
        for (const { thief, waitMs } of moves) {
          now += waitMs;
          const who = thief ? "thief" : "owner";
          const wasBehind = held[who] < family.generation && now - family.rotateTime > refreshGraceMs;
          const wasAlive = family.revokeTime === undefined && now < family.expireTime;
          const result = apply(family, held[who], key, now);
          family = result.family;
          // Two copies of one token have parted: the one that shows itself late ends both.
          if (wasBehind && wasAlive) expect(family.revokeTime).toBeDefined();
          if (result.got !== undefined) held[who] = result.got;
          // What anyone holds is the newest token or the one before: nobody gets two generations from one token.
          if (family.revokeTime === undefined && result.got !== undefined) expect(result.got).toBe(family.generation);
        }
      }),
    );
  });

  it("does not bring a revoked family back", () => {
    fc.assert(
      fc.property(fc.nat(100), fc.nat(), (generation, now) => {
        const family = { ...familyAt(0), generation: 5, revokeTime: 0 };
        expect(apply(family, generation, undefined, now).got).toBeUndefined();
      }),
    );
  });
});
