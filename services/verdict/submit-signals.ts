import { timestampMs } from "@bufbuild/protobuf/wkt";
import type { Call } from "@octomesh/mesh/call";
import type { Clock } from "@octomesh/mesh/clock";
import { fail, Reason, reasonOf } from "@octomesh/mesh/errors";
import type { Verdict } from "@octomesh/proto/octomesh/verdict/v1/verdict_pb";
import type { SubmitSignalsRequest } from "@octomesh/proto/octomesh/verdict/v1/verdict_service_pb";
import { readCollectorReport } from "./collector-report.ts";
import { decideSession, encodeDecision, storedVerdict } from "./decision.ts";
import type { EdgeKeys } from "./edge-keys.ts";
import { isSignedBy } from "./edge-signature.ts";
import type { InferenceEngine } from "./inference/infer.ts";
import type { VerifyMeasurements } from "./landmark-measurements.ts";
import type { VerdictMetrics } from "./metrics.ts";
import type { ReportOutcome, SessionKey, SessionStore } from "./session-store.ts";
import { readSignalBundle } from "./signal-bundle.ts";
import { testSessionOf } from "./test-sessions.ts";
import type { VerdictTokens } from "./verdict-token.ts";

/** What taking signals needs. */
export interface SubmissionDeps {
  readonly store: SessionStore;
  readonly edgeKeys: EdgeKeys;
  readonly verifyMeasurements: VerifyMeasurements;
  readonly engine: InferenceEngine;
  readonly tokens: VerdictTokens;
  readonly metrics: VerdictMetrics;
  readonly clock: Clock;
  /** How long a verdict is kept, milliseconds. */
  readonly ttlMs: number;
}

/** What came of signals that were taken. */
export interface Submission {
  /** The same bundle had been taken before. */
  readonly duplicate: boolean;
  /** Without its token; absent where it was not asked for, or where there is none any more. */
  readonly verdict?: Verdict;
}

/**
 * Takes the signals of one session from an edge: believes them by the edge's signature, judges them, keeps the verdict
 * and lets the signals go. Whose session it is comes from the edge's licence. Throws the refusals that the contract names.
 */
export async function submitSignals(
  deps: SubmissionDeps,
  call: Call,
  request: SubmitSignalsRequest,
): Promise<Submission> {
  const begin = performance.now();
  try {
    return await takeSignals(deps, call, request);
  } catch (error) {
    deps.metrics.refused(reasonOf(error));
    throw error;
  } finally {
    deps.metrics.took((performance.now() - begin) / 1000);
  }
}

async function takeSignals(deps: SubmissionDeps, call: Call, request: SubmitSignalsRequest): Promise<Submission> {
  const { store, metrics } = deps;
  await believe(deps.edgeKeys, call, request);
  const bundle = readSignalBundle(request.signedBundle, deps.clock.now());
  const report = readCollectorReport(bundle.collectorReport);
  if (report.sessionRef !== bundle.sessionRef) {
    throw fail(Reason.SIGNALS_INCOMPLETE, "the report is of another session than the bundle", { field: "ref" });
  }
  const key: SessionKey = { orgId: call.orgId, sandbox: call.caller.sandbox, ref: bundle.sessionRef };
  const proof = { bundleId: bundle.bundleId, nonce: report.nonce };
  const repeated = async (): Promise<Submission> => {
    metrics.duplicate();
    const reading = request.returnVerdict ? await store.read(key) : undefined;
    return { duplicate: true, ...(reading?.state === "ready" ? { verdict: bare(storedVerdict(reading)) } : {}) };
  };
  // Test sessions have their verdicts already, and take any number of reports.
  const test = testSessionOf(key);
  const { outcome, isNonced } =
    test === undefined ? await store.check(key, proof) : ({ outcome: "open", isNonced: false } as const);
  if (outcome === "duplicate") return await repeated();
  refuse(outcome);

  const receiveMs = bundle.receiveTime === undefined ? 0 : timestampMs(bundle.receiveTime);
  const session = { orgId: call.orgId, ref: bundle.sessionRef, receiveMs };
  const edge = { keyId: request.keyId, name: bundle.edgeId };
  const measurements = await deps.verifyMeasurements(report.measurements, { ...session, edge });
  metrics.measured(measurements.length, report.measurements.length - measurements.length);
  const inference = test?.state === "ready" ? test.inference : deps.engine.infer({ bundle, report, measurements });
  const createMs = deps.clock.now();
  const expireMs = createMs + deps.ttlMs;
  const nonce = isNonced ? report.nonce : "";
  const decision = await decideSession(inference, { ...session, nonce, createMs, expireMs }, deps.tokens);
  if (test === undefined) {
    const taken = await store.decide(key, proof, { ...encodeDecision(decision), expireMs, isNonced });
    if (taken === "duplicate") return await repeated();
    refuse(taken);
  }
  metrics.decided(decision.verdict.alarm);
  return { duplicate: false, ...(request.returnVerdict ? { verdict: bare(decision.verdict) } : {}) };
}

/** The signature is by a key that is registered for the very licence that the edge has shown, or the call is refused. */
async function believe(edgeKeys: EdgeKeys, call: Call, request: SubmitSignalsRequest): Promise<void> {
  const { keyId, signature, signedBundle } = request;
  if (keyId === "" || signature.length === 0) {
    throw fail(
      Reason.EDGE_SIGNATURE_REQUIRED,
      "the bundle must be signed with a key that is registered for the licence",
    );
  }
  const key = await edgeKeys.find(keyId);
  if (key === undefined || key.orgId !== call.orgId || key.licenseId !== call.caller.id) {
    throw fail(Reason.EDGE_KEY_UNKNOWN, "the signing key is not registered for the licence, or was revoked");
  }
  if (!isSignedBy(key.publicKey, "octomesh edge signals v1", signedBundle, signature)) {
    throw fail(Reason.EDGE_SIGNATURE_INVALID, "the signature does not fit the bundle");
  }
}

function refuse(outcome: Exclude<ReportOutcome, "duplicate"> | "changed"): void {
  switch (outcome) {
    case "open":
      return;
    case "changed":
      throw fail(Reason.TRANSACTION_CONFLICT, "the session was registered meanwhile: forward the signals again");
    case "reported":
      throw fail(Reason.SESSION_REPORTED, "the session has had its report: a reference is good for one");
    case "expired":
      throw fail(Reason.SESSION_REPORTED, "the session's time is over: its reference is not good any more", {
        state: "expired",
      });
    case "nonce_mismatch":
      throw fail(Reason.NONCE_MISMATCH, "the report does not carry the nonce that the session was registered with");
    default:
      throw refusalOfFull(outcome);
  }
}

/** The refusal of a session for which there is no room. */
export function refusalOfFull(outcome: "full" | "organization_full"): Error {
  const retryAfterMs = 10_000;
  return outcome === "full"
    ? fail(Reason.OVERLOADED, "the service holds as many sessions as it may", {}, { retryAfterMs })
    : fail(Reason.QUOTA_EXCEEDED, "the organisation has as many sessions under way as it may", {}, { retryAfterMs });
}

/** A verdict for the edge: the token is for the backend. */
function bare(verdict: Verdict): Verdict {
  return { ...verdict, token: "" };
}
