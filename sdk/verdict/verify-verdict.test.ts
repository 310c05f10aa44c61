import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import fc from "fast-check";
import { createLocalJWKSet, exportJWK, generateKeyPair, SignJWT } from "jose";
import { expect, test } from "vitest";
import { verdictKeys } from "./verdict-keys.ts";
import { VerdictTokenError, type VerifyVerdictOptions, verifyVerdict } from "./verify-verdict.ts";

const now = new Date("2026-03-01T12:00:00Z");
const seconds = now.getTime() / 1000;
const pair = await generateKeyPair("EdDSA", { extractable: true });
const other = await generateKeyPair("EdDSA", { extractable: true });
const jwks = { keys: [{ ...(await exportJWK(pair.publicKey)), kid: "k1", alg: "EdDSA", use: "sig" }] };
const keys = createLocalJWKSet(jwks);
const verdict = { country: "DE", confidence: 0.91, alarm: "low", estimatedLocation: { lat: 52.5, lon: 13.4 } };

interface TokenParts {
  claims?: Record<string, unknown>;
  header?: Record<string, unknown>;
  key?: CryptoKey;
}

async function tokenOf({ claims = {}, header = {}, key = pair.privateKey }: TokenParts = {}): Promise<string> {
  return await new SignJWT({
    iss: "octomesh.test",
    aud: "org_a",
    ref: "session-1",
    iat: seconds,
    exp: seconds + 600,
    verdict,
    ...claims,
  })
    .setProtectedHeader({ alg: "EdDSA", kid: "k1", typ: "verdict+jwt", ...header })
    .sign(key);
}

const options: VerifyVerdictOptions = { keys, audience: "org_a", sessionRef: "session-1", now };

async function problemOf(token: string, changed: Partial<VerifyVerdictOptions> = {}): Promise<string | undefined> {
  try {
    await verifyVerdict(token, { ...options, ...changed });
    return undefined;
  } catch (error) {
    if (!(error instanceof VerdictTokenError)) throw error;
    return error.problem;
  }
}

test("reads what a good token says", async () => {
  const token = await tokenOf({ claims: { nonce: "n-1" } });
  expect(await verifyVerdict(token, { ...options, issuer: "octomesh.test", nonce: "n-1" })).toEqual({
    sessionRef: "session-1",
    orgId: "org_a",
    nonce: "n-1",
    country: "DE",
    confidence: 0.91,
    alarm: "low",
    estimatedLocation: { lat: 52.5, lon: 13.4 },
    confidenceRadiusKm: undefined,
    issueTime: now,
    expireTime: new Date(now.getTime() + 600_000),
  });
});

test.each<[string, TokenParts, Partial<VerifyVerdictOptions>]>([
  ["wrong_audience", { claims: { aud: "org_b" } }, {}],
  ["wrong_session", { claims: { ref: "session-2" } }, {}],
  ["wrong_issuer", { claims: { iss: "elsewhere.test" } }, { issuer: "octomesh.test" }],
  ["wrong_nonce", {}, { nonce: "n-1" }],
  ["expired", { claims: { exp: seconds - 60 } }, {}],
  ["bad_signature", { key: other.privateKey }, {}],
  ["unknown_key", { header: { kid: "k2" } }, {}],
  ["malformed", { header: { typ: "at+jwt" } }, {}],
  ["malformed", { claims: { verdict: null } }, {}],
  ["malformed", { claims: { verdict: { ...verdict, alarm: "calm" } } }, {}],
  ["malformed", { claims: { verdict: { ...verdict, confidence: 2 } } }, {}],
  ["malformed", { claims: { exp: undefined } }, {}],
])("refuses a token as %s", async (problem, parts, changed) => {
  expect(await problemOf(await tokenOf(parts), changed)).toBe(problem);
});

test("an audience or reference that is not set lets no token pass", async () => {
  const missing = undefined as unknown as string;
  const foreign = await tokenOf({ claims: { aud: "org_b" } });
  expect(await problemOf(foreign, { audience: missing })).toBe("wrong_audience");
  expect(await problemOf(await tokenOf({ claims: { aud: "" } }), { audience: "" })).toBe("wrong_audience");
  expect(await problemOf(await tokenOf(), { sessionRef: missing })).toBe("wrong_session");
});

test("takes no other algorithm, whatever the token says of itself", async () => {
  const secret = new TextEncoder().encode(JSON.stringify(jwks.keys[0]).slice(0, 32));
  const forged = await new SignJWT({ aud: "org_a", ref: "session-1", iat: seconds, exp: seconds + 600, verdict })
    .setProtectedHeader({ alg: "HS256", kid: "k1", typ: "verdict+jwt" })
    .sign(secret);
  expect(await problemOf(forged)).toBe("malformed");
  const unsigned = [
    { alg: "none", typ: "verdict+jwt" },
    { aud: "org_a", ref: "session-1", verdict },
  ]
    .map((part) => Buffer.from(JSON.stringify(part)).toString("base64url"))
    .join(".");
  expect(await problemOf(`${unsigned}.`)).toBe("malformed");
});

test("believes no token of which a character was changed, and throws nothing else", async () => {
  const token = await tokenOf();
  await fc.assert(
    fc.asyncProperty(fc.nat(token.length - 1), fc.constantFrom(..."Aaz09-_."), async (index, character) => {
      if (token[index] === character) return;
      const changed = token.slice(0, index) + character + token.slice(index + 1);
      // The last character of a part may hold bits that decode to nothing.
      if (Buffer.from(changed.split(".")[2] ?? "", "base64url").equals(signatureOf(token)) && sameText(changed, token))
        return;
      expect(await problemOf(changed)).toBeDefined();
    }),
  );
  await fc.assert(
    fc.asyncProperty(fc.string({ maxLength: 6000 }), async (text) => {
      expect(await problemOf(text)).toBeDefined();
    }),
  );
});

function signatureOf(token: string): Buffer {
  return Buffer.from(token.split(".")[2] ?? "", "base64url");
}

function sameText(a: string, b: string): boolean {
  return a.split(".").slice(0, 2).join(".") === b.split(".").slice(0, 2).join(".");
}

test("follows the mesh's key set, and says when it cannot", async () => {
  let status = 200;
  const paths: string[] = [];
  const server = createServer((request, response) => {
    paths.push(request.url ?? "");
    response.writeHead(status, { "content-type": "application/json" });
    response.end(JSON.stringify(jwks));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  try {
    const token = await tokenOf();
    expect(await problemOf(token, { keys: verdictKeys(`${url}/`) })).toBeUndefined();
    expect(paths).toEqual(["/.well-known/verdict-jwks.json"]);
    status = 503;
    expect(await problemOf(token, { keys: verdictKeys(url) })).toBe("keys_unavailable");
  } finally {
    server.close();
    server.closeAllConnections();
  }
  expect(await problemOf(await tokenOf(), { keys: verdictKeys(url) })).toBe("keys_unavailable");
});
