import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { currentKey, keyLifeMs, keyNoticeMs, keyRetentionMs, type PlannedKey, planKeys } from "./key-plan.ts";
import { maxAccessMs } from "./lifetimes.ts";

const day = 86_400_000;

describe("currentKey", () => {
  it("is the one that came into force last, and the first where the clock was set back", () => {
    const keys = [
      { kid: "b", activateTime: 20 },
      { kid: "a", activateTime: 10 },
    ];
    expect([5, 10, 19, 20, 21].map((now) => currentKey(keys, now)?.kid)).toEqual(["a", "a", "a", "b", "b"]);
    expect(currentKey([], 5)).toBeUndefined();
  });
});

describe("planKeys", () => {
  it("makes the first key at once", () => {
    expect(planKeys([], 5)).toEqual({ create: { activateTime: 5 }, retire: [] });
  });

  it("makes the next key a day before it signs, and once", () => {
    const first = { kid: "a", activateTime: 0 };
    expect(planKeys([first], keyLifeMs - keyNoticeMs - 1)).toEqual({ retire: [] });
    const plan = planKeys([first], keyLifeMs - keyNoticeMs);
    expect(plan).toEqual({ create: { activateTime: keyLifeMs }, retire: [] });
    expect(planKeys([first, { kid: "b", activateTime: keyLifeMs }], keyLifeMs - 1)).toEqual({ retire: [] });
  });

  it("never retires a key while a token that it signed is good, and always has a key that signs", () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 1, max: 40 }), { maxLength: 60 }), (waits) => {
        let keys: PlannedKey[] = [];
        const lastSigned = new Map<string, number>();
        let now = 0;
        let made = 0;
        for (const wait of [0, ...waits]) {
          now += wait * day;
          const plan = planKeys(keys, now);
          for (const kid of plan.retire) expect((lastSigned.get(kid) ?? 0) + maxAccessMs).toBeLessThanOrEqual(now);
          keys = keys.filter((key) => !plan.retire.includes(key.kid));
          if (plan.create !== undefined) {
            made += 1;
            keys.push({ kid: String(made), ...plan.create });
            if (keys.length > 1) expect(plan.create.activateTime - now).toBeGreaterThanOrEqual(keyNoticeMs);
          }
          const current = currentKey(keys, now);
          expect(current).toBeDefined();
          lastSigned.set(current?.kid ?? "", now);
          // A contract's bound: the published set holds at most 16 keys.
          expect(keys.length).toBeLessThanOrEqual(16);
        }
      }),
    );
    expect(keyRetentionMs).toBeGreaterThan(maxAccessMs);
  });
});
