import { create } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { ViolationsSchema } from "@octomesh/proto/buf/validate/validate_pb";
import { ReasonSchema } from "@octomesh/proto/octomesh/errors/v1/reason_pb";
import { describe, expect, test } from "vitest";
import { codeOfReason, fail, nameOfReason, Reason } from "./errors.ts";
import { problemOf } from "./problem.ts";

describe("an error as problem+json", () => {
  test("says what the error says", () => {
    const error = fail(Reason.RATE_LIMITED, "too many calls", { limit: "10" }, { retryAfterMs: 1500 });
    expect(problemOf(error, "request-1")).toEqual({
      status: 429,
      headers: { "content-type": "application/problem+json", "cache-control": "no-store", "retry-after": "2" },
      body: {
        type: "about:blank",
        title: "Rate limited",
        status: 429,
        detail: "too many calls",
        code: "RATE_LIMITED",
        request_id: "request-1",
        metadata: { limit: "10" },
        retry_after_seconds: 2,
      },
    });
  });

  test("asks for a credential where one is missing", () => {
    const { status, headers } = problemOf(fail(Reason.CREDENTIAL_MISSING, "who are you?"), "");
    expect([status, headers["www-authenticate"]]).toEqual([401, 'Bearer realm="octomesh"']);
  });

  test("names the fields that validation refused", () => {
    const error = new ConnectError("invalid", Code.InvalidArgument);
    const violation = { field: { elements: [{ fieldName: "rollout" }, { fieldName: "name" }] }, message: "too long" };
    error.details.push({ desc: ViolationsSchema, value: create(ViolationsSchema, { violations: [violation] }) });
    expect(problemOf(error, "").body.violations).toEqual([{ field: "rollout.name", message: "too long" }]);
  });

  test.each(
    ReasonSchema.values.filter((value) => value.number !== 0).map((value) => [value.name, value.number] as const),
  )("has a status of a refusal or a fault for %s", (_, reason) => {
    const { status, body } = problemOf(fail(reason, "…"), "");
    expect(status).toBeGreaterThanOrEqual(400);
    expect(status).toBeLessThan(600);
    expect(body.code).toBe(nameOfReason(reason));
    const isFault = [Code.Internal, Code.Unavailable, Code.DeadlineExceeded, Code.Unimplemented].includes(
      codeOfReason(reason),
    );
    expect(status >= 500).toBe(isFault || reason === Reason.STORAGE_FULL);
  });

  test("of a library, which carries no reason, is INTERNAL", () => {
    expect(problemOf(new ConnectError("?", Code.Unknown), "").body).toMatchObject({ status: 500, code: "INTERNAL" });
  });
});
