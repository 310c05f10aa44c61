import { Code } from "@connectrpc/connect";
import { codeOfReason, Reason } from "@octomesh/mesh/errors";
import { ReasonSchema } from "@octomesh/proto/octomesh/errors/v1/reason_pb";
import { describe, expect, it } from "vitest";
import { isRefusalOfTheEdge, refusalOf } from "./browser-error.ts";

/** What browsers may be told, as the documentation lists it. */
const codes: ReadonlyMap<string, number> = new Map([
  ["missing_fields", 400],
  ["too_large", 413],
  ["session_reported", 409],
  ["nonce_mismatch", 403],
  ["client_too_old", 400],
  ["client_cert_required", 401],
  ["client_cert_revoked", 403],
  ["client_cert_mismatch", 403],
  ["edge_signature_required", 401],
  ["edge_key_unknown", 401],
  ["edge_signature_invalid", 401],
  ["license_invalid", 401],
  ["license_revoked", 403],
  ["license_expired", 403],
  ["rate_limited", 429],
  ["edge_unprovisioned", 503],
]);

describe("a refusal", () => {
  it("of every reason of the contract but those of another time is for good, with a code that is documented", () => {
    const again: string[] = [];
    for (const { number, name } of ReasonSchema.values) {
      if (number === Reason.UNSPECIFIED) continue;
      const refusal = refusalOf(number, codeOfReason(number));
      if (refusal.kind === "refused") expect(refusal.error.status).toBe(codes.get(refusal.error.code));
      else again.push(`${name.replace("REASON_", "")} ${refusal.kind}`);
    }
    expect(again.sort()).toEqual([
      "CANCELLED away",
      "DEADLINE_EXCEEDED away",
      "DEPENDENCY_UNAVAILABLE away",
      "EDGE_UNPROVISIONED away",
      "INTERNAL failed",
      "OVERLOADED away",
      "QUOTA_EXCEEDED limited",
      "RATE_LIMITED limited",
      "REVOCATIONS_STALE away",
      "SERVICE_UNAVAILABLE away",
      "STORAGE_FULL away",
      "TRANSACTION_CONFLICT away",
    ]);
  });

  it("without a reason is the network's, or of something that is no verdict service", () => {
    const kinds = (code: Code) => refusalOf(undefined, code).kind;
    for (const code of [
      Code.Unavailable,
      Code.DeadlineExceeded,
      Code.Aborted,
      Code.Canceled,
      Code.Unknown,
      Code.Internal,
    ])
      expect(kinds(code)).toBe("away");
    expect(refusalOf(undefined, Code.Unimplemented)).toEqual({
      kind: "refused",
      error: { status: 503, code: "edge_unprovisioned" },
    });
    expect(kinds(Code.Unauthenticated)).toBe("refused");
  });

  it("of the edge itself is told from one of a report", () => {
    const isOfTheEdge = [...codes]
      .filter(([code, status]) => isRefusalOfTheEdge({ code, status }))
      .map(([code]) => code);
    expect(isOfTheEdge).toEqual([...codes.keys()].slice(5, 14).concat("edge_unprovisioned"));
  });
});
