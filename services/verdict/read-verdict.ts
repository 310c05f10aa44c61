import type { Call } from "@octomesh/mesh/call";
import type { Clock } from "@octomesh/mesh/clock";
import { fail, Reason } from "@octomesh/mesh/errors";
import type { VerdictEvidence } from "@octomesh/proto/octomesh/verdict/v1/verdict_evidence_pb";
import type { Verdict } from "@octomesh/proto/octomesh/verdict/v1/verdict_pb";
import { type Decision, decideSession, storedEvidence, storedVerdict } from "./decision.ts";
import { type SessionKey, type SessionReading, type SessionStore, waitForVerdict } from "./session-store.ts";
import { testSessionOf } from "./test-sessions.ts";
import type { VerdictTokens } from "./verdict-token.ts";

/** What reading verdicts needs. */
export interface ReadingDeps {
  readonly store: SessionStore;
  readonly tokens: VerdictTokens;
  readonly clock: Clock;
  /** How long a verdict is kept, milliseconds. */
  readonly ttlMs: number;
}

/** Why there is no verdict: registered and not reported, never heard of, or forgotten. */
export type Pending = "collecting" | "unknown" | "expired";

/** A verdict, or why there is none. */
export type VerdictReading = { readonly state: "ready"; readonly verdict: Verdict } | { readonly state: Pending };

/** Reads the verdict of a session of the caller's, and waits up to `waitMs` for it. */
export async function readVerdict(deps: ReadingDeps, call: Call, ref: string, waitMs: number): Promise<VerdictReading> {
  const key = keyOf(call, ref);
  const test = testSessionOf(key);
  if (test?.state === "ready") return { state: "ready", verdict: (await decideTest(deps, key)).verdict };
  if (test !== undefined) return { state: test.state };
  const signal = waitMs > 0 ? call.waitSignal() : call.signal;
  const reading = await waitForVerdict(deps.store, key, waitMs, signal);
  // The credential may have been revoked meanwhile: then its holder learns nothing any more.
  signal.throwIfAborted();
  return reading.state === "ready" ? { state: "ready", verdict: storedVerdict(reading) } : { state: reading.state };
}

/** Reads what speaks for the verdict of a session of the caller's. Throws VERDICT_PENDING where there is none. */
export async function readEvidence(deps: ReadingDeps, call: Call, ref: string): Promise<VerdictEvidence> {
  const key = keyOf(call, ref);
  const test = testSessionOf(key);
  if (test?.state === "ready") return (await decideTest(deps, key)).evidence;
  const reading: SessionReading = test ?? (await deps.store.read(key));
  if (reading.state !== "ready") throw pendingError(reading.state);
  return storedEvidence(reading);
}

/** The refusal of a read where there is no verdict. */
export function pendingError(pending: Pending): Error {
  const retryAfterMs = retryAfterMsOf(pending);
  return fail(Reason.VERDICT_PENDING, `there is no verdict of the session: ${pending}`, { pending }, { retryAfterMs });
}

/** When asking again makes sense. What is over stays over for minutes. */
export function retryAfterMsOf(pending: Pending): number {
  return pending === "expired" ? 60_000 : 1_000;
}

function keyOf(call: Call, ref: string): SessionKey {
  return { orgId: call.orgId, sandbox: call.caller.sandbox, ref };
}

async function decideTest({ tokens, clock, ttlMs }: ReadingDeps, key: SessionKey): Promise<Decision> {
  const test = testSessionOf(key);
  if (test?.state !== "ready") throw new TypeError("the test session has no verdict");
  const createMs = clock.now();
  const session = { orgId: key.orgId, ref: key.ref, nonce: "", createMs, expireMs: createMs + ttlMs };
  return await decideSession(test.inference, session, tokens);
}
