import fc from "fast-check";
import { expect, test } from "vitest";
import { decide, type VerdictAction, type VerdictPolicy } from "./decide.ts";
import type { Alarm } from "./verify-verdict.ts";

const german = { country: "DE", confidence: 0.9, alarm: "none" as Alarm };

test.each<[string, Parameters<typeof decide>[0], VerdictPolicy, VerdictAction, string[]]>([
  ["nothing speaks against it", german, {}, "allow", []],
  ["a low alarm", { ...german, alarm: "low" }, {}, "log", ["alarm"]],
  ["a medium alarm", { ...german, alarm: "medium" }, {}, "challenge", ["alarm"]],
  [
    "a medium alarm, and a policy for high ones",
    { ...german, alarm: "medium" },
    { challengeFrom: "high" },
    "log",
    ["alarm"],
  ],
  ["no verdict yet", undefined, {}, "challenge", ["pending"]],
  ["no verdict yet, and a policy that lets it pass", undefined, { pending: "log" }, "log", ["pending"]],
  ["a low confidence, where no country is asked for", { ...german, confidence: 0.1 }, {}, "allow", []],
  [
    "a low confidence, where one is",
    { ...german, confidence: 0.1 },
    { countries: ["DE"] },
    "challenge",
    ["country_unknown"],
  ],
  ["a country that is served", german, { countries: ["DE", "AT"] }, "allow", []],
  ["a country that is not", german, { countries: ["AT"] }, "challenge", ["country_not_served"]],
  [
    "a country that is excluded",
    german,
    { countries: ["DE"], excludedCountries: ["DE"] },
    "challenge",
    ["country_excluded"],
  ],
  [
    "no country",
    { ...german, country: undefined },
    { excludedCountries: ["FR"], unknownCountry: "log" },
    "log",
    ["country_unknown"],
  ],
])("%s", (_name, verdict, policy, action, reasons) => {
  expect(decide(verdict, policy)).toEqual({ action, reasons });
});

test("a higher alarm never makes the decision milder", () => {
  const alarms: Alarm[] = ["none", "low", "medium", "high"];
  const weight = { allow: 0, log: 1, challenge: 2 };
  const codes = fc.array(fc.constantFrom("DE", "AT", "FR"), { maxLength: 3 });
  fc.assert(
    fc.property(
      fc.constantFrom(0, 1, 2),
      fc.double({ min: 0, max: 1, noNaN: true }),
      fc.option(codes, { nil: undefined }),
      fc.constantFrom("low" as const, "medium" as const, "high" as const),
      (index, confidence, countries, challengeFrom) => {
        const [lower, higher] = [alarms[index], alarms[index + 1]].map((alarm) =>
          decide({ country: "DE", confidence, alarm: alarm ?? "none" }, { countries, challengeFrom }),
        );
        expect(weight[higher?.action ?? "allow"]).toBeGreaterThanOrEqual(weight[lower?.action ?? "challenge"]);
      },
    ),
  );
});
