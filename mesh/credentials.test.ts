import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { createClient, createRouterTransport } from "@connectrpc/connect";
import {
  CredentialService,
  ResolveCredentialResponseSchema,
  ResolveCredentialResponse_State as State,
} from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { Environment } from "@octomesh/proto/octomesh/identity/v1/organization_pb";
import { Role, Scope, CallerKind as WireKind } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { exportJWK, generateKeyPair, SignJWT } from "jose";
import { pino } from "pino";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { defaultLimits } from "./admit.ts";
import type { CallerKind } from "./caller.ts";
import type { Connection, EdgeCertificateIdentity } from "./connection.ts";
import { type Credentials, createCredentials } from "./credentials.ts";
import { delegateHeader, formatDelegation } from "./delegation.ts";
import { fail, Reason, reasonOf } from "./errors.ts";
import { newId } from "./ids.ts";
import { digestToken, mintToken, type TokenPrefix } from "./opaque-token.ts";
import type { Policy } from "./policy.ts";
import { createRateLimiter } from "./ratelimit.ts";
import type { Revocations } from "./revocations.ts";
import { createSystemCall } from "./system-call.ts";
import { createLicenseSigner } from "./test/license-fixture.ts";

const log = pino({ level: "silent" });
const orgId = newId("org");
const issuer = "octomesh.test";
const signer = await createLicenseSigner();
const guesses = 5;

const policy: Policy = {
  callers: new Set<CallerKind>(["api_key", "device", "session", "peer", "delegated"]),
  peers: new Set(["rollout"]),
  scope: 0,
  role: Role.UNSPECIFIED,
  surface: 2,
  audit: "",
  auditExempt: false,
  feature: 0,
  selfField: "",
  orgField: "",
  httpOnly: false,
  isPublic: true,
};

interface Issued {
  environment?: Environment;
  kind: WireKind;
  id: string;
  state: State;
  expiresMs?: number;
}

let now = 0;
let isFresh = true;
let revoked = new Set<string>();
let issued = new Map<string, Issued>();
let asked = { resolve: 0, keys: 0 };
let reports: string[][] = [];
let published: { kid: string; x?: string; y?: string }[] = [];
let isAway = false;
let isHeld: Promise<void> | undefined;
let credentials: Credentials;

const revocations: Revocations = {
  isRevoked: (_subject, id) => revoked.has(id),
  isFresh: () => isFresh,
  onRevocation: () => () => undefined,
  start: async () => undefined,
  stop: async () => undefined,
};

const transport = createRouterTransport((router) => {
  router.service(CredentialService, {
    async resolveCredential(request) {
      asked.resolve += 1;
      await isHeld;
      if (isAway) throw fail(Reason.SERVICE_UNAVAILABLE, "away");
      const found = issued.get(Buffer.from(request.digest).toString("hex"));
      if (found === undefined) throw fail(Reason.RESOURCE_NOT_FOUND, "no such credential");
      const { expiresMs, ...rest } = found;
      return create(ResolveCredentialResponseSchema, {
        ...rest,
        orgId,
        scopes: [Scope.MODELS_READ],
        expireTime: expiresMs === undefined ? undefined : timestampFromMs(expiresMs),
      });
    },
    getJsonWebKeySet() {
      asked.keys += 1;
      const form = { kty: "EC", crv: "P-256", alg: "ES256", use: "sig" };
      return { keys: published.map((key) => ({ ...form, ...key })) };
    },
    reportCredentialUse(request) {
      if (isAway) throw fail(Reason.SERVICE_UNAVAILABLE, "away");
      reports.push(request.uses.map((use) => use.id));
      return {};
    },
  });
});

beforeEach(() => {
  now = Date.now();
  isFresh = true;
  isAway = false;
  isHeld = undefined;
  revoked = new Set();
  issued = new Map();
  asked = { resolve: 0, keys: 0 };
  reports = [];
  published = [];
  const clock = { now: () => now };
  credentials = createCredentials({
    client: createClient(CredentialService, transport),
    revocations,
    edgeTrust: { licenseKey: async (keyId) => (keyId === signer.keyId ? signer.publicKey : undefined) },
    limiter: createRateLimiter({
      limits: { ...defaultLimits, unauthenticated: { points: guesses, windowMs: 60_000 } },
      clock,
      log,
    }),
    issuer,
    clock,
    log,
  });
});

afterEach(() => credentials.stop());

function issue(prefix: TokenPrefix, kind: WireKind, change: Partial<Issued> = {}): string {
  const token = mintToken(prefix);
  issued.set(digestToken(token).toString("hex"), { kind, id: newId("key"), state: State.ACTIVE, ...change });
  return token;
}

const outside: Connection = { listener: "public", address: "192.0.2.1" };

async function who(
  header: Record<string, string>,
  connection: Connection = outside,
  of: Policy = policy,
): Promise<string> {
  try {
    const caller = await credentials.authenticate({ policy: of, connection, header: new Headers(header) });
    return caller.kind;
  } catch (error) {
    return Reason[reasonOf(error) ?? Reason.UNSPECIFIED];
  }
}

function bearer(token: string): Record<string, string> {
  return { authorization: `Bearer ${token}` };
}

async function createSigner(kid: string) {
  const keys = await generateKeyPair("ES256");
  const { x, y } = await exportJWK(keys.publicKey);
  const sign = (claims: Record<string, unknown> = {}, expiresInS = 600) =>
    new SignJWT({ org: orgId, kind: "device", cid: "crd_1", iat_ms: now, ...claims })
      .setProtectedHeader({ alg: "ES256", kid, typ: "at+jwt" })
      .setIssuer(issuer)
      .setAudience("octomesh")
      .setSubject("dev_1")
      .setExpirationTime(Math.floor(now / 1000) + expiresInS)
      .sign(keys.privateKey);
  return { key: { kid, ...(x === undefined ? {} : { x }), ...(y === undefined ? {} : { y }) }, sign };
}

describe("an opaque credential", () => {
  test("is asked about once, however many present it at a time, and then remembered", async () => {
    const token = issue("edg_live_", WireKind.API_KEY);
    let release = (): void => undefined;
    isHeld = new Promise((resolve) => {
      release = resolve;
    });
    const all = Array.from({ length: 10 * guesses }, () => who(bearer(token)));
    await expect.poll(() => asked.resolve).toBe(1);
    release();
    expect(new Set(await Promise.all(all))).toEqual(new Set(["api_key"]));
    expect(await who(bearer(token))).toBe("api_key");
    expect(asked.resolve).toBe(1);
  });

  test("is asked about again after a minute, in case its revocation was not heard", async () => {
    const token = issue("edg_live_", WireKind.API_KEY);
    expect(await who(bearer(token))).toBe("api_key");
    const entry = issued.get(digestToken(token).toString("hex"));
    if (entry !== undefined) entry.state = State.REVOKED;
    now += 59_999;
    expect(await who(bearer(token))).toBe("api_key");
    now += 1;
    expect(await who(bearer(token))).toBe("CREDENTIAL_REVOKED");
    expect(asked.resolve).toBe(2);
  });

  test("is not forgotten because identity is away at that moment", async () => {
    const token = issue("edg_live_", WireKind.API_KEY);
    expect(await who(bearer(token))).toBe("api_key");
    now += 60_000;
    isAway = true;
    expect(await who(bearer(token))).toBe("SERVICE_UNAVAILABLE");
    isAway = false;
    expect(await who(bearer(token))).toBe("api_key");
  });

  test("ends when it lapses, without being asked about", async () => {
    const token = issue("edg_live_", WireKind.API_KEY, { expiresMs: now + 5000 });
    expect(await who(bearer(token))).toBe("api_key");
    now += 5000;
    expect(await who(bearer(token))).toBe("CREDENTIAL_EXPIRED");
    expect(asked.resolve).toBe(1);
  });

  test("is refused at the moment of its revocation, and when revocations cannot be seen", async () => {
    const id = newId("key");
    const token = issue("edg_live_", WireKind.API_KEY, { id });
    expect(await who(bearer(token))).toBe("api_key");
    isFresh = false;
    expect(await who(bearer(token))).toBe("REVOCATIONS_STALE");
    isFresh = true;
    revoked.add(id);
    expect(await who(bearer(token))).toBe("CREDENTIAL_REVOKED");
  });

  test("that registers a device is asked about each time", async () => {
    const token = issue("edg_bootstrap_", WireKind.BOOTSTRAP);
    expect([await who(bearer(token)), await who(bearer(token))]).toEqual(["bootstrap", "bootstrap"]);
    expect(asked.resolve).toBe(2);
    const entry = issued.get(digestToken(token).toString("hex"));
    if (entry !== undefined) entry.state = State.USED;
    expect(await who(bearer(token))).toBe("bootstrap");
  });

  test.each([
    WireKind.PEER,
    WireKind.DELEGATED,
    WireKind.SYSTEM,
    WireKind.PUBLIC,
    WireKind.SESSION,
    WireKind.DEVICE,
    WireKind.UNSPECIFIED,
  ])("makes nobody a caller of kind %i, whatever identity says", async (kind) => {
    expect(await who(bearer(issue("edg_live_", kind)))).toBe("CREDENTIAL_UNKNOWN");
  });

  test("of another purpose is none", async () => {
    for (const prefix of ["edg_refresh_", "edg_setup_", "edg_session_", "edg_invite_"] as const) {
      expect(await who(bearer(issue(prefix, WireKind.API_KEY)))).toBe("CREDENTIAL_MALFORMED");
    }
    expect(asked.resolve).toBe(0);
  });

  test("that nobody knows is remembered for a moment", async () => {
    const token = mintToken("edg_live_");
    expect([await who(bearer(token)), await who(bearer(token))]).toEqual(["CREDENTIAL_UNKNOWN", "CREDENTIAL_UNKNOWN"]);
    expect(asked.resolve).toBe(1);
    now += 5001;
    expect(await who(bearer(token))).toBe("CREDENTIAL_UNKNOWN");
    expect(asked.resolve).toBe(2);
  });
});

describe("guessing", () => {
  test("is limited by source, before anything is looked up", async () => {
    const results: string[] = [];
    for (let i = 0; i < guesses + 2; i += 1) results.push(await who(bearer(mintToken("edg_live_"))));
    expect(results).toEqual([...Array(guesses).fill("CREDENTIAL_UNKNOWN"), "RATE_LIMITED", "RATE_LIMITED"]);
    expect(asked.resolve).toBe(guesses);
    const elsewhere: Connection = { listener: "public", address: "192.0.2.2" };
    expect(await who(bearer(issue("edg_live_", WireKind.API_KEY)), elsewhere)).toBe("api_key");
  });

  test("is limited where it is done all at once", async () => {
    const all = await Promise.all(Array.from({ length: 100 }, () => who(bearer(mintToken("edg_live_")))));
    expect(all.filter((each) => each !== "RATE_LIMITED").length).toBeLessThanOrEqual(guesses);
    expect(asked.resolve).toBeLessThanOrEqual(guesses);
  });

  test("is limited for credentials that are not even well formed", async () => {
    const results: string[] = [];
    for (let i = 0; i < guesses + 1; i += 1) results.push(await who(bearer(`edg_live_${i}`)));
    expect(results).toEqual([...Array(guesses).fill("CREDENTIAL_MALFORMED"), "RATE_LIMITED"]);
  });

  test("from all over one IPv6 network is from one source", async () => {
    const results: string[] = [];
    for (let i = 0; i < guesses + 1; i += 1) {
      results.push(await who(bearer(mintToken("edg_live_")), { listener: "public", address: `2001:db8::${i + 1}` }));
    }
    expect(results.at(-1)).toBe("RATE_LIMITED");
  });

  test("does not harm a neighbour behind the same address whose credential is known, not even at its recheck", async () => {
    const token = issue("edg_live_", WireKind.API_KEY);
    expect(await who(bearer(token))).toBe("api_key");
    now += 60_000;
    for (let i = 0; i < guesses + 1; i += 1) await who(bearer(mintToken("edg_live_")));
    expect(await who(bearer(token))).toBe("api_key");
  });

  test("is not what presenting a good credential is, however many there are", async () => {
    for (let i = 0; i < 3 * guesses; i += 1) {
      expect(await who(bearer(issue("edg_live_", WireKind.API_KEY)))).toBe("api_key");
    }
  });
});

describe("a signed token", () => {
  test("is verified here, and its key fetched once", async () => {
    const { key, sign } = await createSigner("one");
    published = [key];
    expect([await who(bearer(await sign())), await who(bearer(await sign({ kind: "session", role: 3 })))]).toEqual([
      "device",
      "session",
    ]);
    expect(asked).toEqual({ resolve: 0, keys: 1 });
  });

  test("of a new key is verified once the keys were fetched again, at most once a second", async () => {
    const first = await createSigner("one");
    const second = await createSigner("two");
    published = [first.key];
    expect(await who(bearer(await first.sign()))).toBe("device");
    published = [first.key, second.key];
    const token = await second.sign();
    expect(await who(bearer(token))).toBe("CREDENTIAL_UNKNOWN");
    expect(asked.keys).toBe(1);
    now += 1000;
    // The refusal of a moment ago is not held against it.
    expect(await who(bearer(token))).toBe("device");
    expect(asked.keys).toBe(2);
  });

  test("of a key that identity has withdrawn is refused within minutes", async () => {
    const { key, sign } = await createSigner("one");
    published = [key];
    const token = await sign();
    expect(await who(bearer(token))).toBe("device");
    published = [];
    now += 300_000;
    expect(await who(bearer(token))).toBe("CREDENTIAL_UNKNOWN");
  });

  test("ends when it lapses, also where it is remembered", async () => {
    const { key, sign } = await createSigner("one");
    published = [key];
    const token = await sign({}, 30);
    expect(await who(bearer(token))).toBe("device");
    now += 31_000;
    expect(await who(bearer(token))).toBe("CREDENTIAL_EXPIRED");
    const caller = { policy, connection: outside, header: new Headers(bearer(await sign({}, 30))) };
    expect((await credentials.authenticate(caller)).expiresMs).toBeGreaterThan(now);
  });

  test.each<[string, Record<string, unknown>]>([
    ["without an organisation", { org: undefined }],
    ["without a credential", { cid: undefined }],
    ["without a time of issue", { iat_ms: undefined }],
    ["with a time of issue in words", { iat_ms: "now" }],
    ["of a kind that none are of", { kind: "peer" }],
    ["for a caller of an opaque kind", { kind: "api_key" }],
    ["of another audience", { aud: "elsewhere" }],
    ["of another issuer", { iss: "elsewhere" }],
  ])("%s is malformed", async (_, claims) => {
    const keys = await generateKeyPair("ES256");
    const { x, y } = await exportJWK(keys.publicKey);
    published = [{ kid: "one", ...(x === undefined ? {} : { x }), ...(y === undefined ? {} : { y }) }];
    const base = { iss: issuer, aud: "octomesh", sub: "dev_1", org: orgId, kind: "device", cid: "crd_1", iat_ms: now };
    const token = await new SignJWT({ ...base, exp: Math.floor(now / 1000) + 60, ...claims })
      .setProtectedHeader({ alg: "ES256", kid: "one", typ: "at+jwt" })
      .sign(keys.privateKey);
    expect(await who(bearer(token))).toBe("CREDENTIAL_MALFORMED");
  });

  test("of another type or algorithm is none", async () => {
    const keys = await generateKeyPair("ES256");
    const { x, y } = await exportJWK(keys.publicKey);
    published = [{ kid: "one", ...(x === undefined ? {} : { x }), ...(y === undefined ? {} : { y }) }];
    const claims = {
      iss: issuer,
      aud: "octomesh",
      sub: "dev_1",
      org: orgId,
      kind: "device",
      cid: "crd_1",
      iat_ms: now,
    };
    const idToken = await new SignJWT({ ...claims, exp: Math.floor(now / 1000) + 60 })
      .setProtectedHeader({ alg: "ES256", kid: "one", typ: "JWT" })
      .sign(keys.privateKey);
    expect(await who(bearer(idToken))).toBe("CREDENTIAL_MALFORMED");
    // The public key taken for a shared secret.
    const confused = await new SignJWT({ ...claims, exp: Math.floor(now / 1000) + 60 })
      .setProtectedHeader({ alg: "HS256", kid: "one", typ: "at+jwt" })
      .sign(Buffer.from(`${x}${y}`));
    expect(await who(bearer(confused))).toBe("CREDENTIAL_MALFORMED");
  });
});

describe("what a request presents", () => {
  test("is the first header that holds a credential, and no other", async () => {
    const good = issue("edg_live_", WireKind.API_KEY);
    const bad = mintToken("edg_live_");
    expect(await who({ "x-api-key": good })).toBe("api_key");
    expect(await who({ authorization: `bearer ${good}` })).toBe("api_key");
    expect(await who({ ...bearer(bad), "x-api-key": good })).toBe("CREDENTIAL_UNKNOWN");
    expect(await who({ authorization: "Basic dXNlcjpwYXNz", "x-api-key": good })).toBe("CREDENTIAL_MALFORMED");
    expect(await who({ "x-api-key": `${good}, ${good}` })).toBe("CREDENTIAL_MALFORMED");
    expect(await who({ authorization: `Bearer ${good} ${good}` })).toBe("CREDENTIAL_MALFORMED");
    expect(await who({})).toBe("CREDENTIAL_MISSING");
    now += 60_000;
    expect(await who({ authorization: `Bearer ${good}${" ".repeat(10_000)}x` })).toBe("CREDENTIAL_MALFORMED");
  });

  test("is not looked at where everybody is admitted", async () => {
    const open: Policy = { ...policy, callers: new Set<CallerKind>(["public"]) };
    for (const header of [{}, bearer("nonsense"), bearer(issue("edg_live_", WireKind.API_KEY))]) {
      expect(await who(header, outside, open)).toBe("public");
    }
    expect(asked.resolve).toBe(0);
  });
});

describe("on the mesh", () => {
  const peer = { service: "telemetry" as const, spiffeId: "spiffe://octomesh.test/telemetry" };
  const inside: Connection = { listener: "mesh", address: "10.0.0.2", peer };
  const call = createSystemCall("telemetry", orgId, undefined, log);
  const value = formatDelegation({ ...call, caller: { ...call.caller, kind: "device", id: "dev_1", orgId } });

  test("a peer is its certificate, and acts for others only where the method says so", async () => {
    expect(await who({}, inside)).toBe("peer");
    expect(await who({ [delegateHeader]: value }, inside)).toBe("delegated");
    const peersOnly: Policy = { ...policy, callers: new Set<CallerKind>(["peer"]) };
    expect(await who({ [delegateHeader]: value }, inside, peersOnly)).toBe("peer");
    expect(await who({ [delegateHeader]: "nonsense" }, inside)).toBe("CREDENTIAL_MALFORMED");
    const good = issue("edg_live_", WireKind.API_KEY);
    expect(await who(bearer(good), { listener: "mesh", address: "10.0.0.2" })).toBe("CREDENTIAL_MISSING");
  });

  test("the header that makes a delegate is nothing on the public listener", async () => {
    expect(await who({ [delegateHeader]: value })).toBe("CREDENTIAL_MISSING");
    const token = issue("edg_live_", WireKind.API_KEY);
    expect(await who({ [delegateHeader]: value, ...bearer(token) })).toBe("api_key");
  });
});

describe("a partner's key", () => {
  const forPartners: Policy = { ...policy, callers: new Set<CallerKind>(["partner"]) };

  test("is admitted by the header of its own, says whether it is the sandbox's, and its use is reported", async () => {
    const environments = [Environment.LIVE, Environment.TEST, Environment.UNSPECIFIED];
    const found = [];
    for (const environment of environments) {
      const token = issue("edg_partner_", WireKind.PARTNER, { environment });
      const header = new Headers({ "x-octet-partner-key": token });
      const caller = await credentials.authenticate({ policy: forPartners, connection: outside, header });
      found.push([caller.kind, caller.id === caller.credentialId, caller.sandbox]);
    }
    expect(found).toEqual([
      ["partner", true, false],
      ["partner", true, true],
      ["partner", true, false],
    ]);
    await credentials.stop();
    expect(reports.map((ids) => ids.length)).toEqual([3]);
  });
});

describe("an edge", () => {
  const forEdges: Policy = { ...policy, callers: new Set<CallerKind>(["edge"]) };
  const certificate: EdgeCertificateIdentity = {
    spiffeId: `spiffe://${issuer}/edge/${orgId}/ecr_1`,
    orgId,
    licenseId: newId("lic"),
    certificateId: newId("ecr"),
  };
  const bare: Connection = { listener: "public", address: "192.0.2.7", edge: {} };
  const proved: Connection = { ...bare, edge: { certificate } };

  function license(claims: Record<string, unknown> = {}): Promise<string> {
    return signer.sign({ claims: { iss: issuer, sub: certificate.licenseId, org: orgId, ...claims }, now });
  }

  /** Who the credentials say that calls, or the reason of their refusal. */
  async function edge(
    text: string | undefined,
    connection: Connection,
    more: Record<string, string> = {},
  ): Promise<unknown> {
    const header = new Headers({ ...more, ...(text === undefined ? {} : { "x-octet-license": text }) });
    try {
      const caller = await credentials.authenticate({ policy: forEdges, connection, header });
      return [caller.kind, caller.id, caller.credentialId, caller.sandbox];
    } catch (error) {
      return Reason[reasonOf(error) ?? Reason.UNSPECIFIED];
    }
  }

  test("is its licence, over the edges' listener alone", async () => {
    const text = await license();
    expect(await edge(text, proved)).toEqual(["edge", certificate.licenseId, certificate.certificateId, false]);
    expect(await edge(text, outside)).toBe("CREDENTIAL_MISSING");
    expect(await edge(undefined, proved)).toBe("CREDENTIAL_MISSING");
    expect(await edge(undefined, proved, bearer(text))).toBe("CREDENTIAL_MALFORMED");
    expect(await edge(text, { ...outside, listener: "mesh" })).toBe("CREDENTIAL_MISSING");
  });

  test("is none in a service that knows no edges", async () => {
    const others = createCredentials({
      client: createClient(CredentialService, transport),
      revocations,
      limiter: createRateLimiter({ limits: defaultLimits, clock: { now: () => now }, log }),
      issuer,
      clock: { now: () => now },
      log,
    });
    const header = new Headers({ "x-octet-license": await license() });
    const work = others.authenticate({ policy: forEdges, connection: proved, header });
    expect(reasonOf(await work.catch((error: unknown) => error))).toBe(Reason.CREDENTIAL_MISSING);
    await others.stop();
  });

  test("shows a certificate where its licence demands one, and its own where it shows one", async () => {
    const foreignOrg: Connection = { ...bare, edge: { certificate: { ...certificate, orgId: newId("org") } } };
    const foreignLicense: Connection = { ...bare, edge: { certificate: { ...certificate, licenseId: newId("lic") } } };
    const found: Record<string, unknown[]> = {};
    for (const mtls of ["off", "request", "require"]) {
      const text = await license({ mtls, env: "test" });
      found[mtls] = [];
      for (const each of [proved, bare, foreignOrg, foreignLicense]) found[mtls]?.push(await edge(text, each));
    }
    const without = ["edge", certificate.licenseId, "", true];
    const withIt = ["edge", certificate.licenseId, certificate.certificateId, true];
    const mismatch = "EDGE_CERTIFICATE_MISMATCH";
    expect(found).toEqual({
      off: [without, without, without, without],
      request: [withIt, without, mismatch, mismatch],
      require: [withIt, "EDGE_CERTIFICATE_REQUIRED", mismatch, mismatch],
    });
  });

  test("is refused at the moment of a revocation, of its certificate by a reason of its own", async () => {
    const required = await license();
    const requested = await license({ mtls: "request" });
    const found: unknown[] = [];
    for (const id of [certificate.certificateId, certificate.licenseId, orgId, ""]) {
      revoked = new Set([id]);
      found.push(
        [await edge(required, proved), await edge(requested, bare)].map((each) =>
          Array.isArray(each) ? each[0] : each,
        ),
      );
    }
    expect(found).toEqual([
      ["EDGE_CERTIFICATE_REVOKED", "edge"],
      ["CREDENTIAL_REVOKED", "CREDENTIAL_REVOKED"],
      ["CREDENTIAL_REVOKED", "CREDENTIAL_REVOKED"],
      ["edge", "edge"],
    ]);
    revoked = new Set();
    isFresh = false;
    expect(await edge(required, proved)).toBe("REVOCATIONS_STALE");
  });

  test("ends when its licence lapses, also where it is remembered", async () => {
    const text = await license();
    expect(await edge(text, proved)).toHaveLength(4);
    now += 3_599_999;
    expect(await edge(text, proved)).toHaveLength(4);
    now += 1;
    expect(await edge(text, proved)).toBe("CREDENTIAL_EXPIRED");
  });

  test("that guesses licences is limited by its source, and others are not", async () => {
    const found: unknown[] = [];
    for (let i = 0; i < guesses + 2; i += 1) {
      found.push(
        await edge(i % 2 === 0 ? "octet_live_nonsense" : await signer.sign({ footer: '{"kid":"other"}' }), bare),
      );
    }
    expect(found.slice(0, guesses).every((each) => /MALFORMED|UNKNOWN/.test(String(each)))).toBe(true);
    expect(found.slice(guesses)).toEqual(["RATE_LIMITED", "RATE_LIMITED"]);
    const elsewhere: Connection = { ...proved, address: "192.0.2.8" };
    expect(await edge(await license(), elsewhere)).toHaveLength(4);
  });

  test("that is good is no guess, however many licences there are", async () => {
    for (let i = 0; i < 3 * guesses; i += 1) {
      expect(await edge(await license({ sub: newId("lic"), mtls: "off" }), bare)).toHaveLength(4);
    }
  });
});

test("uses are reported in batches, and again where identity was away", async () => {
  for (let i = 0; i < 1500; i += 1) await who(bearer(issue("edg_live_", WireKind.API_KEY)));
  isAway = true;
  await credentials.stop();
  expect(reports).toEqual([]);
  isAway = false;
  await credentials.stop();
  expect(reports.map((ids) => ids.length)).toEqual([1000, 500]);
  expect(new Set(reports.flat()).size).toBe(1500);
});
