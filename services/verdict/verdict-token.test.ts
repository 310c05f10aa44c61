import { randomBytes } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { createMasterKey } from "@octomesh/mesh/master-key";
import { Verdict_Alarm as Alarm, VerdictSchema } from "@octomesh/proto/octomesh/verdict/v1/verdict_pb";
import { VerdictTokenError, verifyVerdict } from "@octomesh/sdk";
import { createLocalJWKSet, decodeJwt, decodeProtectedHeader } from "jose";
import { expect, test } from "vitest";
import { createVerdictTokens, keyPeriodMs } from "./verdict-token.ts";

const masterKey = createMasterKey([randomBytes(32)]);
const tokens = createVerdictTokens(masterKey, "octomesh.test");
const createMs = 700 * keyPeriodMs + 5_000;
const minute = 60_000;

function verdictAt(ms: number, more: Partial<{ nonce: string; country: string }> = {}) {
  return create(VerdictSchema, {
    sessionRef: "session-1",
    country: "DE",
    confidence: 0.91,
    alarm: Alarm.LOW,
    estimatedLocation: { latitude: 52.5, longitude: 13.4 },
    confidenceRadiusKm: 350,
    feasibleRegion: [{ latitude: 1, longitude: 2 }],
    createTime: timestampFromMs(ms),
    expireTime: timestampFromMs(ms + 10 * minute),
    ...more,
  });
}

function keysAt(ms: number) {
  return createLocalJWKSet({ keys: tokens.publicKeys(ms) });
}

test("a token says the verdict, and the SDK believes it offline", async () => {
  const token = await tokens.sign("org_a", verdictAt(createMs, { nonce: "n-1" }));
  expect(token.length).toBeLessThanOrEqual(4096);
  const options = { audience: "org_a", sessionRef: "session-1", nonce: "n-1", issuer: "octomesh.test" };
  const verified = await verifyVerdict(token, { ...options, keys: keysAt(createMs), now: new Date(createMs + minute) });
  expect(verified).toEqual({
    sessionRef: "session-1",
    orgId: "org_a",
    nonce: "n-1",
    country: "DE",
    confidence: 0.91,
    alarm: "low",
    estimatedLocation: { lat: 52.5, lon: 13.4 },
    confidenceRadiusKm: 350,
    issueTime: new Date(createMs),
    expireTime: new Date(createMs + 10 * minute),
  });
  const [current] = tokens.publicKeys(createMs).slice(1);
  expect(decodeProtectedHeader(token)).toEqual({ alg: "EdDSA", typ: "verdict+jwt", kid: current?.kid });
  const { jti, ...claims } = decodeJwt(token);
  expect(jti).toMatch(/^[\w-]{22}$/);
  expect(Object.keys(claims).sort()).toEqual(["aud", "exp", "iat", "iss", "nonce", "ref", "verdict"]);
  expect(Object.keys(claims.verdict as object).sort()).toEqual([
    "alarm",
    "confidence",
    "confidenceRadiusKm",
    "country",
    "estimatedLocation",
  ]);
});

test("what is not known is absent, and so is a nonce that was not given", async () => {
  const unknown = create(VerdictSchema, { ...verdictAt(createMs), country: "", confidence: 0, confidenceRadiusKm: 0 });
  unknown.estimatedLocation = undefined;
  const { nonce, verdict } = decodeJwt(await tokens.sign("org_a", unknown));
  expect(nonce).toBeUndefined();
  expect(verdict).toEqual({ confidence: 0, alarm: "low" });
});

test("a token is not good for others, later, or changed", async () => {
  const token = await tokens.sign("org_a", verdictAt(createMs));
  const good = { audience: "org_a", sessionRef: "session-1", keys: keysAt(createMs), now: new Date(createMs) };
  const problemOf = async (text: string, changed: object): Promise<string> => {
    const error = await verifyVerdict(text, { ...good, ...changed }).catch((caught: unknown) => caught);
    return error instanceof VerdictTokenError ? error.problem : "none";
  };
  expect(await problemOf(token, {})).toBe("none");
  expect(await problemOf(token, { audience: "org_b" })).toBe("wrong_audience");
  expect(await problemOf(token, { sessionRef: "session-2" })).toBe("wrong_session");
  expect(await problemOf(token, { nonce: "n-1" })).toBe("wrong_nonce");
  expect(await problemOf(token, { now: new Date(createMs + 11 * minute) })).toBe("expired");
  const foreign = createVerdictTokens(createMasterKey([randomBytes(32)]), "octomesh.test");
  expect(await problemOf(await foreign.sign("org_a", verdictAt(createMs)), {})).toBe("unknown_key");
  const [head, body, signature] = token.split(".");
  const forged = Buffer.from(body ?? "", "base64url")
    .toString()
    .replace('"DE"', '"FR"');
  expect(await problemOf([head, Buffer.from(forged).toString("base64url"), signature].join("."), {})).toBe(
    "bad_signature",
  );
});

test("keys follow each other every 30 days; the next is published before it signs, the one before for a while after", async () => {
  const [before, current, next] = tokens.publicKeys(createMs);
  expect(tokens.publicKeys(createMs + keyPeriodMs).slice(0, 2)).toEqual([current, next]);
  expect(tokens.publicKeys(createMs - keyPeriodMs).slice(1)).toEqual([before, current]);
  expect(new Set([before?.kid, current?.kid, next?.kid]).size).toBe(3);
  // Signed at the end of a period, read after it.
  const lateMs = 701 * keyPeriodMs - 1000;
  const late = await tokens.sign("org_a", verdictAt(lateMs));
  const options = { audience: "org_a", sessionRef: "session-1", now: new Date(lateMs + minute) };
  await verifyVerdict(late, { ...options, keys: keysAt(lateMs + minute) });
  // And by somebody who still has the keys of the period before.
  const early = await tokens.sign("org_a", verdictAt(701 * keyPeriodMs + 1000));
  await verifyVerdict(early, { ...options, keys: keysAt(lateMs - 20 * minute) });
  // Another replica with the same master key has the same keys.
  expect(createVerdictTokens(masterKey, "octomesh.test").publicKeys(createMs)).toEqual([before, current, next]);
});
