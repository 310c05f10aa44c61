import { create } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { AcceptInvitationRequestSchema, SessionService } from "@octomesh/proto/octomesh/identity/v1/session_service_pb";
import { pino } from "pino";
import { Registry } from "prom-client";
import { beforeEach, describe, expect, test } from "vitest";
import { markDownstream } from "./downstream.ts";
import { fail, Reason, reasonOf } from "./errors.ts";
import { createRpcMetrics, presentable, recordCall, requestIdHeader, requestIdOf } from "./observe.ts";
import { noTelemetry } from "./telemetry.ts";

let logged: string[] = [];
const log = pino({ level: "trace" }, { write: (line: string) => void logged.push(line) });

beforeEach(() => {
  logged = [];
});

function present(error: unknown): [Code, Reason | undefined, string] {
  const shown = presentable(error, log, "Service/Method", "request-1");
  return [shown.code, reasonOf(shown), shown.rawMessage];
}

function fromSibling(error: ConnectError, delegated: boolean): ConnectError {
  markDownstream(error, { service: "identity", delegated });
  return error;
}

const internal = [Code.Internal, Reason.INTERNAL, "internal error"];
const away = [Code.Unavailable, Reason.DEPENDENCY_UNAVAILABLE, "identity cannot be reached"];

describe("what was thrown", () => {
  test("on purpose goes out as it is", () => {
    expect(present(fail(Reason.SCOPE_MISSING, "the scope x is missing"))).toEqual([
      Code.PermissionDenied,
      Reason.SCOPE_MISSING,
      "the scope x is missing",
    ]);
    expect(logged).toEqual([]);
  });

  test.each([
    ["an exception", new TypeError("secret of a bug")],
    ["no error at all", "secret of a bug"],
    ["an error of unknown code", new ConnectError("secret of a bug", Code.Unknown)],
    ["an error that was made of an exception", ConnectError.from(new Error("secret of a bug"))],
    ["lost data", new ConnectError("secret of a bug", Code.DataLoss)],
    ["an internal error without a reason", new ConnectError("secret of a bug", Code.Internal)],
    ["an internal error with a reason and a text", fail(Reason.INTERNAL, "secret of a bug")],
  ])("as %s is a fault, whose text is logged and not sent", (_, error) => {
    expect(present(error)).toEqual(internal);
    expect(logged.join()).toContain("secret of a bug");
  });

  test("by the libraries below is given the reason of its code", () => {
    expect(present(new ConnectError("bad field", Code.InvalidArgument))).toEqual([
      Code.InvalidArgument,
      Reason.VALIDATION_FAILED,
      "bad field",
    ]);
  });

  test("by an abort is a cancellation", () => {
    expect(present(new DOMException("aborted", "AbortError"))[1]).toBe(Reason.CANCELLED);
  });
});

describe("a sibling's refusal", () => {
  test("for want of room or time passes, since it is the mesh's condition and the caller may try again", () => {
    const full = fail(Reason.STORAGE_FULL, "the database's disk is full: nothing was stored");
    expect(present(fromSibling(full, false))).toEqual([
      Code.ResourceExhausted,
      Reason.STORAGE_FULL,
      "the database's disk is full: nothing was stored",
    ]);
    expect(logged).toEqual([]);
  });

  test("of this service is a fault of ours", () => {
    expect(present(fromSibling(fail(Reason.SCOPE_MISSING, "not for you"), false))).toEqual(internal);
    for (const reason of [Reason.PEER_NOT_ALLOWED, Reason.CALLER_KIND_NOT_ALLOWED]) {
      expect(present(fromSibling(fail(reason, "not for you"), true))).toEqual(internal);
    }
  });

  test("of the caller, for whom the call was made, is passed on", () => {
    const used = fromSibling(fail(Reason.CREDENTIAL_USED, "the token was used"), true);
    expect(present(used)).toEqual([Code.Unauthenticated, Reason.CREDENTIAL_USED, "the token was used"]);
  });

  test("that is none, but a failed connection, does not tell where the sibling is", () => {
    for (const delegated of [true, false]) {
      const error = new ConnectError("connect ECONNREFUSED 10.0.0.7:7101", Code.Unavailable);
      expect(present(fromSibling(error, delegated))).toEqual(away);
    }
    const handshake = new ConnectError("certificate of 10.0.0.7 is not trusted", Code.Internal);
    expect(present(fromSibling(handshake, true))).toEqual(internal);
  });
});

test("a request keeps a name that is well formed, and is given one otherwise", () => {
  const named = new Headers({ [requestIdHeader]: "request-0001" });
  expect(requestIdOf(named)).toBe("request-0001");
  for (const name of ["short", "x".repeat(65), "has spaces in it", 'quote"quote']) {
    const header = new Headers({ [requestIdHeader]: name });
    const id = requestIdOf(header);
    expect(id).toMatch(/^[\w-]{22}$/);
    expect(header.get(requestIdHeader)).toBe(id);
  }
});

const method = SessionService.method.acceptInvitation;
const request = create(AcceptInvitationRequestSchema, {
  invitationCode: "edg_invite_not_to_be_seen",
  email: "somebody@example.com",
});

/** What one call leaves in a log of the given level. */
function lineAt(level: string, error?: unknown): { line: Record<string, unknown>; text: string } {
  const lines: string[] = [];
  const log = pino({ level }, { write: (text: string) => void lines.push(text) });
  const span = noTelemetry.serverSpan({ method, header: new Headers(), connection: undefined });
  recordCall(log, createRpcMetrics(new Registry()), method, "request-0001", span, request)(undefined, error);
  return { line: JSON.parse(lines.at(-1) ?? "{}"), text: lines.join("") };
}

describe("the line that is logged of a call", () => {
  test("holds the request at the level trace, without what is secret or personal", () => {
    const { line, text } = lineAt("trace");
    expect(line).toMatchObject({
      method: "octomesh.identity.v1.SessionService/AcceptInvitation",
      request_id: "request-0001",
      code: "ok",
      request: { invitation_code: "[secret]", email: "[personal]" },
    });
    expect(text).not.toMatch(/not_to_be_seen|somebody/);
  });

  test("holds the refused request as well, and nothing of what was thrown", () => {
    const { line } = lineAt("trace", fail(Reason.CREDENTIAL_UNKNOWN, "there is no such invitation"));
    expect(line).toMatchObject({ reason: "CREDENTIAL_UNKNOWN", request: { email: "[personal]" } });
    expect(line.code).toBe(Code[Code.Unauthenticated].toLowerCase());
  });

  test("holds no request at any other level, an error's line among them", () => {
    expect(lineAt("debug").line).not.toHaveProperty("request");
    const { line } = lineAt("info", new Error("a bug"));
    expect(line).toMatchObject({ code: "internal", msg: "call failed" });
    expect(line).not.toHaveProperty("request");
  });
});
