import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  decideRegistration,
  isSameKey,
  type KnownIdentifier,
  type Registration,
  type RegistrationAttempt,
  registrationGraceMs,
  type StoredState,
  stateAfterRegistration,
} from "./registration.ts";

const key = Buffer.alloc(32, 1);
const otherKey = Buffer.alloc(32, 2);
const now = 1_800_000_000_000;

function registration(change: Partial<Registration> = {}): Registration {
  return { id: "reg_1", tokenId: "btk_1", keyDigest: key, time: now - 1000, ...change };
}

function known(change: Partial<KnownIdentifier> = {}): KnownIdentifier {
  return { state: "active", reenrolmentGranted: false, current: registration(), pending: undefined, ...change };
}

function attempt(change: Partial<RegistrationAttempt> = {}): RegistrationAttempt {
  return { tokenId: "btk_1", keyDigest: key, time: now, ...change };
}

const lapsed = now - registrationGraceMs;

describe("the decision on a registration", () => {
  const reserved = { state: "reserved", current: undefined, pending: registration() } as const;
  const cases: [string, KnownIdentifier | undefined, RegistrationAttempt, object][] = [
    ["an unknown identifier is new", undefined, attempt(), { kind: "create" }],
    ["a retry is a repetition", known(), attempt(), { kind: "repeat", registrationId: "reg_1" }],
    [
      "a retry after the grace registers anew",
      known({ current: registration({ time: lapsed }) }),
      attempt(),
      { kind: "replace" },
    ],
    [
      "the same installation with another token registers anew",
      known(),
      attempt({ tokenId: "btk_2" }),
      { kind: "replace" },
    ],
    ["another installation is refused", known(), attempt({ keyDigest: otherKey }), { kind: "refuse", cause: "taken" }],
    ["no client key proves nothing", known(), attempt({ keyDigest: undefined }), { kind: "refuse", cause: "taken" }],
    [
      "two without client keys are not the same",
      known({ current: registration({ keyDigest: undefined }) }),
      attempt({ keyDigest: undefined }),
      { kind: "refuse", cause: "taken" },
    ],
    [
      "a grant admits another installation",
      known({ reenrolmentGranted: true }),
      attempt({ keyDigest: otherKey }),
      { kind: "replace" },
    ],
    [
      "a device that awaits approval is taken too",
      known({ state: "awaiting_approval" }),
      attempt({ keyDigest: otherKey }),
      { kind: "refuse", cause: "taken" },
    ],
    [
      "a revoked identifier is refused even to its own installation",
      known({ state: "revoked" }),
      attempt(),
      { kind: "refuse", cause: "revoked" },
    ],
    [
      "a grant admits a revoked one",
      known({ state: "revoked", reenrolmentGranted: true }),
      attempt(),
      { kind: "replace" },
    ],
    ["a registration under way is carried on", known(reserved), attempt(), { kind: "repeat", registrationId: "reg_1" }],
    [
      "a registration under way keeps others out",
      known(reserved),
      attempt({ keyDigest: otherKey }),
      { kind: "refuse", cause: "under_way" },
    ],
    [
      "another token does not carry it on",
      known(reserved),
      attempt({ tokenId: "btk_2" }),
      { kind: "refuse", cause: "under_way" },
    ],
    [
      "a lapsed reservation is anyone's",
      known({ ...reserved, pending: registration({ time: lapsed }) }),
      attempt({ keyDigest: otherKey }),
      { kind: "replace" },
    ],
    [
      "a lapsed replacement leaves the device to its installation",
      known({ pending: registration({ id: "reg_2", keyDigest: otherKey, time: lapsed }) }),
      attempt(),
      { kind: "repeat", registrationId: "reg_1" },
    ],
  ];
  it.each(cases)("%s", (_, identifier, tried, decision) => {
    expect(decideRegistration(identifier, tried)).toEqual(decision);
  });

  const digests = fc.constantFrom(undefined, key, otherKey);
  const registrations = (id: string) =>
    fc.record({
      id: fc.constant(id),
      tokenId: fc.constantFrom("btk_1", "btk_2"),
      keyDigest: digests,
      time: fc.integer({ min: now - 3 * registrationGraceMs, max: now }),
    });
  const identifiers = fc.record({
    state: fc.constantFrom<StoredState>("awaiting_approval", "active", "revoked"),
    reenrolmentGranted: fc.boolean(),
    current: registrations("reg_1"),
    pending: fc.option(registrations("reg_2"), { nil: undefined }),
  });
  const attempts = fc.record({
    tokenId: fc.constantFrom("btk_1", "btk_2"),
    keyDigest: digests,
    time: fc.constant(now),
  });

  it("never lets a stranger have an identifier without a grant", () => {
    fc.assert(
      fc.property(identifiers, attempts, (identifier, tried) => {
        fc.pre(!identifier.reenrolmentGranted);
        const proofs = [identifier.current, identifier.pending].filter((each) =>
          isSameKey(each?.keyDigest, tried.keyDigest),
        );
        if (proofs.length === 0 || (identifier.state === "revoked" && identifier.pending === undefined)) {
          expect(decideRegistration(identifier, tried).kind).toBe("refuse");
        }
      }),
    );
  });

  it("repeats only what the same token and client key began within the grace", () => {
    fc.assert(
      fc.property(identifiers, attempts, (identifier, tried) => {
        const decision = decideRegistration(identifier, tried);
        if (decision.kind !== "repeat") return;
        const repeated = [identifier.pending, identifier.current].find(
          (each) =>
            each?.id === decision.registrationId &&
            isSameKey(each.keyDigest, tried.keyDigest) &&
            each.tokenId === tried.tokenId,
        );
        expect(repeated).toBeDefined();
        expect(now - (repeated?.time ?? 0)).toBeLessThan(registrationGraceMs);
      }),
    );
  });
});

describe("the state after a registration", () => {
  it("is what the token demands, for a new device or another installation", () => {
    for (const state of ["reserved", "active", "revoked"] as const) {
      expect(stateAfterRegistration({ state, sameInstallation: false }, true)).toBe("awaiting_approval");
      expect(stateAfterRegistration({ state, sameInstallation: false }, false)).toBe("active");
    }
  });

  it("stays what a member decided, for the same installation", () => {
    expect(stateAfterRegistration({ state: "active", sameInstallation: true }, true)).toBe("active");
    expect(stateAfterRegistration({ state: "awaiting_approval", sameInstallation: true }, false)).toBe(
      "awaiting_approval",
    );
    expect(stateAfterRegistration({ state: "revoked", sameInstallation: true }, true)).toBe("awaiting_approval");
  });
});
