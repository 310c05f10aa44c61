import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { presenceBounds, presenceOf, staleMs } from "./presence.ts";

const now = 1_800_000_000_000;
const interval = 60_000;

describe("presence", () => {
  it.each([
    ["never heard from", undefined, "offline"],
    ["just now", now, "online"],
    ["three intervals ago", now - 3 * interval, "online"],
    ["a little longer", now - 3 * interval - 1, "stale"],
    ["a day ago", now - staleMs, "stale"],
    ["longer than a day ago", now - staleMs - 1, "offline"],
    ["by a clock that stepped back", now + 5000, "online"],
  ] as const)("of a device heard from %s", (_, heard, presence) => {
    expect(presenceOf(heard, now, interval)).toBe(presence);
  });

  it("only gets worse with time, and agrees with the bounds that filters use", () => {
    const order = ["online", "stale", "offline"];
    fc.assert(
      fc.property(
        fc.nat(200_000_000),
        fc.nat(200_000_000),
        fc.integer({ min: 2000, max: 3_600_000 }),
        (age, more, every) => {
          const sooner = presenceOf(now - age, now, every);
          const later = presenceOf(now - age - more, now, every);
          expect(order.indexOf(later)).toBeGreaterThanOrEqual(order.indexOf(sooner));
          const { onlineSinceMs, staleSinceMs } = presenceBounds(now, every);
          expect(sooner === "online").toBe(now - age >= onlineSinceMs);
          expect(sooner === "offline").toBe(now - age < staleSinceMs);
        },
      ),
    );
  });
});
