import { Role } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import type { Caller, CallerKind } from "./caller.ts";
import { Reason, reasonOf } from "./errors.ts";
import { createGuards, type Guards } from "./guards.ts";
import { newId } from "./ids.ts";
import { type Revocations, Subject } from "./revocations.ts";
import { subjectsOf } from "./revoked-caller.ts";

const orgId = newId("org");
let now = 1_000_000;
let isFresh = true;
let revoked = new Map<string, number>();
let tell: Parameters<Revocations["onRevocation"]>[0] = () => undefined;
let subscriptions = 0;
let guards: Guards;

const revocations: Revocations = {
  isRevoked: (subject, id, issuedMs) => issuedMs <= (revoked.get(`${subject}:${id}`) ?? -1),
  isFresh: () => isFresh,
  onRevocation(callback) {
    tell = callback;
    subscriptions += 1;
    return () => {
      subscriptions -= 1;
    };
  },
  start: async () => undefined,
  stop: async () => undefined,
};

beforeEach(() => {
  vi.useFakeTimers();
  now = 1_000_000;
  isFresh = true;
  revoked = new Map();
  guards = createGuards({ revocations, clock: { now: () => now } });
});

afterEach(() => {
  guards.close();
  vi.useRealTimers();
});

function callerOf(kind: CallerKind, change: Partial<Caller> = {}): Caller {
  const common = {
    scopes: new Set<never>(),
    role: Role.UNSPECIFIED,
    plan: 1,
    issuedMs: 0,
    sandbox: false,
    address: "",
  };
  return { kind, orgId, id: `${kind}-1`, credentialId: `${kind}-credential`, ...common, ...change };
}

function revoke(subject: Subject, id: string, atMs = now): void {
  revoked.set(`${subject}:${id}`, atMs);
  tell({ $typeName: "octomesh.identity.v1.WatchRevocationsResponse.Revocation", subject, id } as never);
}

describe("a guard", () => {
  test.each<CallerKind>(["session", "api_key", "device", "bootstrap", "read_token", "partner", "edge"])(
    "ends the calls of a %s at each revocation that concerns it, and no other's",
    (kind) => {
      for (const [subject, id] of subjectsOf(callerOf(kind))) {
        revoked.clear();
        const guard = guards.guard(callerOf(kind));
        const neighbour = guards.guard(callerOf(kind, { orgId: newId("org"), id: "other", credentialId: "other" }));
        revoke(subject, "somebody");
        expect(guard.signal.aborted).toBe(false);
        revoke(subject, id);
        expect(reasonOf(guard.signal.reason)).toBe(Reason.CREDENTIAL_REVOKED);
        expect(neighbour.signal.aborted).toBe(false);
        neighbour.release();
      }
    },
  );

  test("leaves a credential alone that was issued after the revocation", () => {
    const guard = guards.guard(callerOf("device", { issuedMs: now + 1 }));
    revoke(Subject.DEVICE, "device-1", now);
    expect(guard.signal.aborted).toBe(false);
  });

  test("sees a revocation that came between the admission and the call", () => {
    revoke(Subject.DEVICE, "device-1");
    const guard = guards.guard(callerOf("device"));
    expect(reasonOf(guard.signal.reason)).toBe(Reason.CREDENTIAL_REVOKED);
    expect(guards.size).toBe(0);
  });

  test("ends a call when its credential lapses", () => {
    const guard = guards.guard(callerOf("device", { expiresMs: now + 5000 }));
    const lasting = guards.guard(callerOf("api_key"));
    now += 4999;
    vi.advanceTimersByTime(1000);
    expect(guard.signal.aborted).toBe(false);
    now += 1;
    vi.advanceTimersByTime(1000);
    expect(reasonOf(guard.signal.reason)).toBe(Reason.CREDENTIAL_EXPIRED);
    expect(lasting.signal.aborted).toBe(false);
  });

  test("ends every call when revocations can no longer be seen", () => {
    const all = [guards.guard(callerOf("device")), guards.guard(callerOf("api_key"))];
    isFresh = false;
    vi.advanceTimersByTime(1000);
    expect(all.map((guard) => reasonOf(guard.signal.reason))).toEqual([
      Reason.REVOCATIONS_STALE,
      Reason.REVOCATIONS_STALE,
    ]);
    expect(guards.size).toBe(0);
  });
});

test("ten thousand guards take one timer and one subscription, and none when they are released", () => {
  const all = Array.from({ length: 10_000 }, (_, i) => guards.guard(callerOf("device", { id: `dev-${i}` })));
  expect([guards.size, vi.getTimerCount(), subscriptions]).toEqual([10_000, 1, 1]);
  for (const guard of all) {
    guard.release();
    guard.release();
  }
  expect([guards.size, vi.getTimerCount()]).toEqual([0, 0]);
  guards.close();
  expect(subscriptions).toBe(0);
});
