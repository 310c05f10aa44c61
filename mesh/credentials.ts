import { createHash } from "node:crypto";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { type Client, Code, ConnectError } from "@connectrpc/connect";
import {
  type CredentialService,
  ResolveCredentialResponse_State as ResolvedState,
} from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { Environment } from "@octomesh/proto/octomesh/identity/v1/organization_pb";
import { Role, type Scope } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import {
  createLocalJWKSet,
  type FlattenedJWSInput,
  type JSONWebKeySet,
  type JWSHeaderParameters,
  errors as joseErrors,
  jwtVerify,
} from "jose";
import { LRUCache } from "lru-cache";
import type { Logger } from "pino";
import type { LimitSurface } from "./admit.ts";
import { type Caller, type CallerKind, kindOfWire } from "./caller.ts";
import type { Clock } from "./clock.ts";
import type { Connection, EdgeConnection } from "./connection.ts";
import { delegateHeader, parseDelegation } from "./delegation.ts";
import {
  type ClientCertificateMode,
  isLicense,
  licenseHeader,
  type VerifyLicenseOptions,
  verifyLicense,
} from "./edge-license.ts";
import { fail, Reason, reasonOf } from "./errors.ts";
import { createGuards, type Guard } from "./guards.ts";
import { parseToken } from "./opaque-token.ts";
import type { Policy } from "./policy.ts";
import type { RateLimiter } from "./ratelimit.ts";
import { type Revocations, Subject } from "./revocations.ts";
import { isRevokedCaller } from "./revoked-caller.ts";
import { sourceOf } from "./source-of.ts";

/** Finds out who calls. */
export interface Credentials {
  /**
   * The caller that a request's credential proves. Throws the refusal: CREDENTIAL_MISSING, _MALFORMED, _UNKNOWN,
   * _EXPIRED, _REVOKED, _USED, EDGE_CERTIFICATE_REQUIRED, _MISMATCH, _REVOKED, REVOCATIONS_STALE, or RATE_LIMITED for an
   * address that guesses.
   */
  authenticate(request: { policy: Policy; connection: Connection; header: Headers }): Promise<Caller>;
  /**
   * Aborts when the caller's credential is revoked, expires, or can no longer be checked: for calls that outlive their
   * admission. Call `release` when the call ends.
   */
  guard(caller: Caller): Guard;
  /** Reports what was used since the last time, and stops. */
  stop(): Promise<void>;
}

/** What the resolver needs. */
export interface CredentialsOptions {
  readonly client: Client<typeof CredentialService>;
  readonly revocations: Revocations;
  readonly limiter: RateLimiter;
  readonly issuer: string;
  /** By what licences of edges are believed. Without it, a service knows no edges. */
  readonly edgeTrust?: VerifyLicenseOptions["trust"];
  readonly clock: Clock;
  readonly log: Logger;
}

/** A credential as proved once, kept by its digest. */
interface Known {
  readonly caller: Omit<Caller, "address">;
  /** What a licence demands of the connection that it comes over. */
  readonly clientCertificate?: ClientCertificateMode;
  /** When identity is asked again, the backstop of pushed revocation. */
  readonly recheckMs: number;
}

const maxCredentialLength = 4096;
const recheckAfterMs = 60_000;
const refusedForMs = 5_000;
const keySetMaxAgeMs = 300_000;
const reportEveryMs = 15_000;
const maxUsesReported = 1000;
const maxUsesKept = 100_000;
const noScopes: ReadonlySet<Scope> = new Set();

/** Opaque credentials that identity resolves, by prefix. */
const opaquePrefixes = new Set(["edg_live_", "edg_test_", "edg_bootstrap_", "edg_read_", "edg_partner_"]);

/** Kinds of caller whose last use identity is told. */
const reportedKinds: ReadonlySet<CallerKind> = new Set<CallerKind>(["api_key", "read_token", "partner"]);

/** Kinds of caller that an opaque credential can make: no answer of identity's makes anyone a peer, or the public. */
const opaqueKinds: ReadonlySet<CallerKind> = new Set<CallerKind>(["api_key", "bootstrap", "read_token", "partner"]);

/** Opens the resolver: signed tokens are verified here against identity's keys, opaque ones by asking identity once. */
export function createCredentials(options: CredentialsOptions): Credentials {
  const { client, revocations, limiter, clock, log } = options;
  const known = new LRUCache<string, Known>({ max: 100_000 });
  const refused = new LRUCache<string, { reason: Reason; untilMs: number }>({ max: 10_000 });
  const resolving = new Map<string, Promise<Known>>();
  const used = new Map<string, { orgId: string; timeMs: number }>();
  const lookedUp = createLookedUp();
  const keys = createKeySet(client, clock);
  const guards = createGuards({ revocations, clock });

  const flushUses = async (): Promise<void> => {
    while (used.size > 0) {
      const batch = [...used].slice(0, maxUsesReported);
      for (const [id] of batch) used.delete(id);
      const uses = batch.map(([id, use]) => ({
        id,
        orgId: use.orgId,
        lastUseTime: { seconds: BigInt(Math.floor(use.timeMs / 1000)), nanos: 0 },
      }));
      try {
        await client.reportCredentialUse({ uses }, { timeoutMs: 5000 });
      } catch (error) {
        // They go with the next report, unless they were used again since.
        for (const [id, use] of batch) if (!used.has(id)) used.set(id, use);
        throw error;
      }
    }
  };
  const noteUse = ({ kind, id, orgId }: Known["caller"]): void => {
    if (!reportedKinds.has(kind)) return;
    if (used.size < maxUsesKept || used.has(id)) used.set(id, { orgId, timeMs: clock.now() });
  };
  const useTimer = setInterval(() => {
    flushUses().catch((error: unknown) => log.debug({ err: error }, "credential uses not reported"));
  }, reportEveryMs);
  useTimer.unref();

  const resolveOpaque = async (digest: Buffer): Promise<Known> => {
    let answer: Awaited<ReturnType<typeof client.resolveCredential>>;
    try {
      answer = await client.resolveCredential({ digest: new Uint8Array(digest) }, { timeoutMs: 5000 });
    } catch (error) {
      if (error instanceof ConnectError && error.code === Code.NotFound) {
        throw fail(Reason.CREDENTIAL_UNKNOWN, "the credential is unknown");
      }
      throw error;
    }
    if (answer.state === ResolvedState.REVOKED) throw fail(Reason.CREDENTIAL_REVOKED, "the credential was revoked");
    if (answer.state === ResolvedState.EXPIRED) throw fail(Reason.CREDENTIAL_EXPIRED, "the credential has expired");
    const kind = kindOfWire(answer.kind);
    // A used bootstrap token may still repeat the registration that used it, which identity decides at redemption.
    if (answer.state === ResolvedState.USED && kind !== "bootstrap") {
      throw fail(Reason.CREDENTIAL_USED, "the credential was used");
    }
    if (kind === undefined || !opaqueKinds.has(kind) || answer.state === ResolvedState.UNSPECIFIED) {
      throw fail(Reason.CREDENTIAL_UNKNOWN, "the credential is unknown");
    }
    return {
      caller: {
        kind,
        orgId: answer.orgId,
        id: answer.id,
        credentialId: answer.id,
        scopes: new Set(answer.scopes),
        role: Role.UNSPECIFIED,
        plan: answer.plan,
        issuedMs: 0,
        sandbox: answer.environment === Environment.TEST,
        ...(answer.expireTime === undefined ? {} : { expiresMs: timestampMs(answer.expireTime) }),
      },
      recheckMs: clock.now() + recheckAfterMs,
    };
  };

  const verifySigned = async (token: string): Promise<Known> => {
    try {
      const { payload } = await jwtVerify(token, (header, input) => keys(header, input), {
        issuer: options.issuer,
        audience: "octomesh",
        algorithms: ["ES256"],
        typ: "at+jwt",
        currentDate: new Date(clock.now()),
        requiredClaims: ["sub", "org", "kind", "cid", "iat_ms", "exp"],
      });
      const { sub, org, kind, cid, role, plan, iat_ms: issuedMs, exp } = payload;
      if (
        typeof sub !== "string" ||
        typeof org !== "string" ||
        typeof cid !== "string" ||
        typeof issuedMs !== "number"
      ) {
        throw fail(Reason.CREDENTIAL_MALFORMED, "the token lacks what a token says");
      }
      if (kind !== "device" && kind !== "session")
        throw fail(Reason.CREDENTIAL_MALFORMED, "the token is of no known kind");
      return {
        caller: {
          kind,
          orgId: org,
          id: sub,
          credentialId: cid,
          scopes: noScopes,
          role: typeof role === "number" ? (role as Role) : Role.UNSPECIFIED,
          plan: typeof plan === "number" ? plan : 0,
          issuedMs,
          sandbox: false,
          expiresMs: (exp ?? 0) * 1000,
        },
        // Its key may have been withdrawn.
        recheckMs: clock.now() + recheckAfterMs,
      };
    } catch (error) {
      if (error instanceof joseErrors.JWTExpired) throw fail(Reason.CREDENTIAL_EXPIRED, "the token has expired");
      if (error instanceof joseErrors.JWKSNoMatchingKey || error instanceof joseErrors.JWSSignatureVerificationFailed) {
        throw fail(Reason.CREDENTIAL_UNKNOWN, "the token was not issued here");
      }
      if (error instanceof joseErrors.JOSEError)
        throw fail(Reason.CREDENTIAL_MALFORMED, "the token is not well formed");
      throw error;
    }
  };

  const verifyEdge = async (license: string, trust: VerifyLicenseOptions["trust"]): Promise<Known> => {
    const proved = await verifyLicense(license, { trust, issuer: options.issuer, clock });
    return {
      caller: {
        kind: "edge",
        orgId: proved.orgId,
        id: proved.id,
        credentialId: "",
        scopes: noScopes,
        role: Role.UNSPECIFIED,
        plan: 0,
        // A licence is never issued again under its id: whatever revokes it does so for good.
        issuedMs: 0,
        sandbox: proved.environment === "test",
        expiresMs: proved.expiresMs,
      },
      clientCertificate: proved.clientCertificate,
      recheckMs: clock.now() + recheckAfterMs,
    };
  };

  const refuseRevoked = (entry: Known): void => {
    if (isRevokedCaller(entry.caller, revocations)) {
      throw fail(Reason.CREDENTIAL_REVOKED, "the credential was revoked");
    }
  };

  /** Counts a refused attempt against its source. */
  const countAttempt = async (source: string): Promise<void> => {
    await limiter.take("unauthenticated" satisfies LimitSurface, `attempt:${source}`);
  };

  /**
   * Runs what may turn out to be a guess, unless its source has guessed too often. Opaque credentials that identity is
   * being asked about (`key`) count as if they had failed, so that asking about many at once is no way around the limit.
   */
  const attempt = async <T>(source: string, key: string | undefined, work: () => Promise<T>): Promise<T> => {
    const leave = key === undefined ? undefined : lookedUp.enter(source, key);
    try {
      const result = await limiter.take("unauthenticated" satisfies LimitSurface, `attempt:${source}`, 0);
      if (!result.allowed || (key !== undefined && lookedUp.count(source) > result.remaining)) {
        const retryAfterMs = Math.max(1000, result.retryAfterMs);
        throw fail(Reason.RATE_LIMITED, "too many refused credentials from this address", {}, { retryAfterMs });
      }
      return await work();
    } catch (error) {
      if (refusalOf(error) !== undefined) await countAttempt(source);
      throw error;
    } finally {
      leave?.();
    }
  };

  /** Resolves or verifies a credential; whoever presents the same at the same time waits for the same answer. */
  const lookUp = (credential: string, digest: Buffer, key: string): Promise<Known> => {
    const underWay = resolving.get(key);
    if (underWay !== undefined) return underWay;
    const work = proofOf(credential, digest).finally(() => resolving.delete(key));
    resolving.set(key, work);
    return work;
  };

  const proofOf = (credential: string, digest: Buffer): Promise<Known> => {
    if (options.edgeTrust !== undefined && isLicense(credential)) return verifyEdge(credential, options.edgeTrust);
    return isSigned(credential) ? verifySigned(credential) : resolveOpaque(digest);
  };

  const prove = async (credential: string, address: string): Promise<Known> => {
    const digest = createHash("sha256").update(credential).digest();
    const key = digest.toString("base64");
    const now = clock.now();
    const remembered = known.get(key);
    if (remembered !== undefined) {
      if ((remembered.caller.expiresMs ?? Number.POSITIVE_INFINITY) <= now) {
        known.delete(key);
        throw fail(Reason.CREDENTIAL_EXPIRED, "the credential has expired");
      }
      if (remembered.recheckMs > now) return remembered;
    }
    const work = async (): Promise<Known> => {
      const refusal = refused.get(key);
      if (refusal !== undefined && refusal.untilMs > now) {
        throw fail(refusal.reason, "the credential was refused a moment ago");
      }
      try {
        const entry = await lookUp(credential, digest, key);
        if (entry.caller.kind !== "bootstrap") known.set(key, entry);
        return entry;
      } catch (error) {
        const reason = refusalOf(error);
        if (reason !== undefined) {
          known.delete(key);
          // What is signed is verified here, and the key that it names may be about to become known.
          if (!isVerifiedHere(credential)) refused.set(key, { reason, untilMs: clock.now() + refusedForMs });
        }
        throw error;
      }
    };
    // A credential that was good a minute ago is no guess, whatever its neighbours behind the same address do.
    if (remembered !== undefined) return work();
    return attempt(sourceOf(address), isVerifiedHere(credential) ? undefined : key, work);
  };

  return {
    async authenticate({ policy, connection, header }) {
      const { address } = connection;
      if (connection.listener === "mesh") return peerOf(connection, header, policy);
      if (policy.callers.has("public")) {
        return {
          kind: "public",
          orgId: "",
          id: "",
          credentialId: "",
          scopes: noScopes,
          role: Role.UNSPECIFIED,
          plan: 0,
          issuedMs: 0,
          sandbox: false,
          address,
        };
      }
      const license = options.edgeTrust && connection.edge ? (header.get(licenseHeader) ?? undefined) : undefined;
      const credential = license ?? credentialOf(header);
      if (credential === undefined) {
        const name = policy.callers.has("edge") ? `${licenseHeader}: …` : "Authorization: Bearer …";
        throw fail(Reason.CREDENTIAL_MISSING, `the call needs a credential: send \`${name}\``);
      }
      if (license === undefined ? !isWellFormed(credential) : !isLicense(license)) {
        return attempt(sourceOf(address), undefined, async () => {
          throw fail(Reason.CREDENTIAL_MALFORMED, "the credential is not well formed");
        });
      }
      if (!revocations.isFresh()) {
        throw fail(Reason.REVOCATIONS_STALE, "revocations cannot be checked now", {}, { retryAfterMs: 1000 });
      }
      const entry = await prove(credential, address);
      refuseRevoked(entry);
      noteUse(entry.caller);
      const certificate = checkEdgeCertificate(entry, connection.edge, revocations);
      return { ...entry.caller, ...(certificate && { credentialId: certificate }), address };
    },
    guard: (caller) => guards.guard(caller),
    async stop() {
      clearInterval(useTimer);
      guards.close();
      await flushUses().catch(() => undefined);
    },
  };
}

function peerOf(connection: Connection, header: Headers, policy: Policy): Caller {
  const { peer, address } = connection;
  if (peer === undefined) throw fail(Reason.CREDENTIAL_MISSING, "the mesh listener needs a service's certificate");
  const base = {
    credentialId: peer.spiffeId,
    scopes: noScopes,
    role: Role.UNSPECIFIED,
    issuedMs: 0,
    sandbox: false,
    peer: peer.service,
  };
  const value = header.get(delegateHeader);
  if (value === null || !policy.callers.has("delegated")) {
    return { ...base, kind: "peer", orgId: "", id: peer.service, plan: 0, address };
  }
  const delegation = parseDelegation(value);
  if (delegation === undefined)
    throw fail(Reason.CREDENTIAL_MALFORMED, `the header ${delegateHeader} is not well formed`);
  return {
    ...base,
    kind: "delegated",
    orgId: delegation.orgId,
    id: peer.service,
    plan: delegation.plan,
    delegate: { kind: delegation.kind, id: delegation.id },
    address: delegation.address,
  };
}

/** The credential that a request presents: Bearer, or the key headers of the public interfaces. */
function credentialOf(header: Headers): string | undefined {
  const authorization = header.get("authorization");
  if (authorization !== null) {
    const match = /^Bearer +(\S+)$/i.exec(authorization.slice(0, maxCredentialLength + 16));
    return match?.[1] ?? "";
  }
  return header.get("x-api-key") ?? header.get("x-octet-partner-key") ?? undefined;
}

/**
 * Holds the connection to what a licence demands of it. Returns the id of the client certificate; undefined where there
 * is none, none is looked at, or the caller is no edge. Throws EDGE_CERTIFICATE_REQUIRED, _MISMATCH or _REVOKED.
 */
function checkEdgeCertificate(
  { caller, clientCertificate: mode }: Known,
  edge: EdgeConnection | undefined,
  revocations: Revocations,
): string | undefined {
  if (mode === undefined || mode === "off") return undefined;
  const certificate = edge?.certificate;
  if (certificate === undefined) {
    if (mode === "request") return undefined;
    throw fail(Reason.EDGE_CERTIFICATE_REQUIRED, "the licence demands a client certificate of the edge");
  }
  if (certificate.orgId !== caller.orgId || certificate.licenseId !== caller.id) {
    throw fail(Reason.EDGE_CERTIFICATE_MISMATCH, "the client certificate belongs to another licence");
  }
  if (revocations.isRevoked(Subject.EDGE_CERTIFICATE, certificate.certificateId, 0)) {
    throw fail(Reason.EDGE_CERTIFICATE_REVOKED, "the client certificate was revoked");
  }
  return certificate.certificateId;
}

function isSigned(credential: string): boolean {
  return credential.startsWith("eyJ");
}

/** Whether a credential is verified by its signature, without asking identity about it. */
function isVerifiedHere(credential: string): boolean {
  return isSigned(credential) || isLicense(credential);
}

function isWellFormed(credential: string): boolean {
  if (credential.length > maxCredentialLength) return false;
  if (isSigned(credential)) return /^[\w-]+\.[\w-]+\.[\w-]+$/.test(credential);
  const token = parseToken(credential);
  return token !== undefined && opaquePrefixes.has(token.prefix);
}

const rememberedRefusals: readonly (Reason | undefined)[] = [
  Reason.CREDENTIAL_UNKNOWN,
  Reason.CREDENTIAL_MALFORMED,
  Reason.CREDENTIAL_REVOKED,
];

/** How many different credentials each source is having looked up at the moment. */
function createLookedUp() {
  const bySource = new Map<string, Map<string, number>>();
  return {
    count: (source: string): number => bySource.get(source)?.size ?? 0,
    enter(source: string, key: string): () => void {
      const requests = bySource.get(source) ?? new Map<string, number>();
      bySource.set(source, requests);
      requests.set(key, (requests.get(key) ?? 0) + 1);
      return () => {
        const left = (requests.get(key) ?? 1) - 1;
        if (left > 0) requests.set(key, left);
        else requests.delete(key);
        if (requests.size === 0) bySource.delete(source);
      };
    },
  };
}

/** The reason of a refusal that says something of the credential and not of the moment. */
function refusalOf(error: unknown): Reason | undefined {
  const reason = reasonOf(error);
  return rememberedRefusals.includes(reason) ? reason : undefined;
}

type KeyFunction = (header?: JWSHeaderParameters, token?: FlattenedJWSInput) => Promise<CryptoKey>;

/**
 * Identity's public keys: fetched when a token names one that is not known, and then at most once a second, and again
 * every five minutes, so that a key that identity withdraws is believed no longer.
 */
function createKeySet(client: Client<typeof CredentialService>, clock: Clock): KeyFunction {
  let current: { readonly find: KeyFunction; readonly fetchedMs: number } | undefined;
  let fetching: Promise<KeyFunction> | undefined;
  const fetchKeys = (): Promise<KeyFunction> => {
    fetching ??= client
      .getJsonWebKeySet({}, { timeoutMs: 5000 })
      .then((answer) => {
        const set: JSONWebKeySet = {
          keys: answer.keys.map(({ kty, crv, x, y, kid, alg, use }) => ({ kty, crv, x, y, kid, alg, use })),
        };
        current = { find: createLocalJWKSet(set), fetchedMs: clock.now() };
        return current.find;
      })
      .finally(() => {
        fetching = undefined;
      });
    return fetching;
  };
  return async (header, token) => {
    const ageMs = current === undefined ? Number.POSITIVE_INFINITY : clock.now() - current.fetchedMs;
    if (current === undefined || ageMs >= keySetMaxAgeMs) return (await fetchKeys())(header, token);
    try {
      return await current.find(header, token);
    } catch (error) {
      if (!(error instanceof joseErrors.JWKSNoMatchingKey) || ageMs < 1000) throw error;
      return (await fetchKeys())(header, token);
    }
  };
}

/** The kinds of caller whose credential can be revoked while a call is under way. */
export function isGuarded(kind: CallerKind): boolean {
  return kind !== "peer" && kind !== "delegated" && kind !== "public" && kind !== "system";
}
