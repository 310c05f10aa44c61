import { createHash } from "node:crypto";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { type Client, Code, ConnectError } from "@connectrpc/connect";
import {
  type CredentialService,
  ResolveCredentialResponse_State as ResolvedState,
} from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
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
import { type Caller, type CallerKind, kindOfWire } from "./caller.ts";
import type { Clock } from "./clock.ts";
import type { Connection } from "./connection.ts";
import { delegateHeader, parseDelegation } from "./delegation.ts";
import { fail, Reason, reasonOf } from "./errors.ts";
import { parseToken } from "./opaque-token.ts";
import type { Policy } from "./policy.ts";
import type { RateLimiter } from "./ratelimit.ts";
import { type Revocations, Subject } from "./revocations.ts";

/** Finds out who calls. */
export interface Credentials {
  /**
   * The caller that a request's credential proves. Throws the refusal: CREDENTIAL_MISSING, _MALFORMED, _UNKNOWN,
   * _EXPIRED, _REVOKED, _USED, REVOCATIONS_STALE, or RATE_LIMITED for an address that guesses.
   */
  authenticate(request: { policy: Policy; connection: Connection; header: Headers }): Promise<Caller>;
  /**
   * Aborts when the caller's credential is revoked, expires, or can no longer be checked: for calls that outlive their
   * admission. Call `release` when the call ends.
   */
  guard(caller: Caller): { signal: AbortSignal; release(): void };
  /** Reports what was used since the last time, and stops. */
  stop(): Promise<void>;
}

/** What the resolver needs. */
export interface CredentialsOptions {
  readonly client: Client<typeof CredentialService>;
  readonly revocations: Revocations;
  readonly limiter: RateLimiter;
  readonly issuer: string;
  readonly clock: Clock;
  readonly log: Logger;
}

/** A credential as proved once, kept by its digest. */
interface Known {
  readonly caller: Omit<Caller, "address">;
  /** When it lapses; Infinity if never. */
  readonly expiresMs: number;
  /** When identity is asked again, the backstop of pushed revocation. */
  readonly recheckMs: number;
}

const maxCredentialLength = 4096;
const recheckAfterMs = 60_000;
const noScopes: ReadonlySet<Scope> = new Set();

/** Opaque credentials that identity resolves, by prefix. */
const opaquePrefixes = new Set(["edg_live_", "edg_test_", "edg_bootstrap_", "edg_read_"]);

/** Opens the resolver: signed tokens are verified here against identity's keys, opaque ones by asking identity once. */
export function createCredentials(options: CredentialsOptions): Credentials {
  const { client, revocations, limiter, clock, log } = options;
  const known = new LRUCache<string, Known>({ max: 100_000 });
  const unknown = new LRUCache<string, Reason>({ max: 10_000, ttl: 5_000 });
  const resolving = new Map<string, Promise<Known>>();
  const used = new Map<string, { orgId: string; timeMs: number }>();
  const keys = createKeySet(client, clock);

  const flushUses = async (): Promise<void> => {
    if (used.size === 0) return;
    const batch = [...used].slice(0, 1000);
    for (const [id] of batch) used.delete(id);
    const uses = batch.map(([id, use]) => ({
      id,
      orgId: use.orgId,
      lastUseTime: { seconds: BigInt(Math.floor(use.timeMs / 1000)), nanos: 0 },
    }));
    await client.reportCredentialUse({ uses }, { timeoutMs: 5000 });
  };
  const useTimer = setInterval(() => {
    flushUses().catch((error: unknown) => log.debug({ err: error }, "credential uses not reported"));
  }, 15_000);
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
    if (kind === undefined) throw fail(Reason.CREDENTIAL_UNKNOWN, "the credential is unknown");
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
      },
      expiresMs: answer.expireTime === undefined ? Number.POSITIVE_INFINITY : timestampMs(answer.expireTime),
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
        },
        expiresMs: (exp ?? 0) * 1000,
        recheckMs: Number.POSITIVE_INFINITY,
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

  const refuseRevoked = (entry: Known): void => {
    if (isRevoked(entry.caller, revocations)) {
      throw fail(Reason.CREDENTIAL_REVOKED, "the credential was revoked");
    }
  };

  /** Counts a failed attempt, and refuses addresses that have failed too often, before anything is looked up. */
  const refuseGuessing = async (address: string): Promise<void> => {
    const result = await limiter.take("unauthenticated", `attempt:${address}`, 0);
    if (!result.allowed) {
      throw fail(
        Reason.RATE_LIMITED,
        "too many refused credentials from this address",
        {},
        {
          retryAfterMs: result.retryAfterMs,
        },
      );
    }
  };

  const prove = async (credential: string, address: string): Promise<Known> => {
    const digest = createHash("sha256").update(credential).digest();
    const key = digest.toString("base64");
    const now = clock.now();
    const remembered = known.get(key);
    if (remembered !== undefined && remembered.expiresMs <= now) {
      known.delete(key);
      throw fail(Reason.CREDENTIAL_EXPIRED, "the credential has expired");
    }
    if (remembered !== undefined && remembered.recheckMs > now) return remembered;
    await refuseGuessing(address);
    const refused = unknown.get(key);
    try {
      if (refused !== undefined) throw fail(refused, "the credential was refused a moment ago");
      let work = resolving.get(key);
      if (work === undefined) {
        work = (isSigned(credential) ? verifySigned(credential) : resolveOpaque(digest)).finally(() =>
          resolving.delete(key),
        );
        resolving.set(key, work);
      }
      const entry = await work;
      if (entry.caller.kind !== "bootstrap") known.set(key, entry);
      return entry;
    } catch (error) {
      known.delete(key);
      const reason = refusalOf(error);
      if (reason !== undefined) {
        unknown.set(key, reason);
        await limiter.take("unauthenticated", `attempt:${address}`);
      }
      throw error;
    }
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
          address,
        };
      }
      const credential = credentialOf(header);
      if (credential === undefined) {
        throw fail(Reason.CREDENTIAL_MISSING, "the call needs a credential: send `Authorization: Bearer …`");
      }
      if (!isWellFormed(credential)) {
        await refuseGuessing(address);
        await limiter.take("unauthenticated", `attempt:${address}`);
        throw fail(Reason.CREDENTIAL_MALFORMED, "the credential is not well formed");
      }
      if (!revocations.isFresh()) {
        throw fail(Reason.REVOCATIONS_STALE, "revocations cannot be checked now", {}, { retryAfterMs: 1000 });
      }
      const entry = await prove(credential, address);
      refuseRevoked(entry);
      if (entry.caller.kind === "api_key" || entry.caller.kind === "read_token") {
        used.set(entry.caller.id, { orgId: entry.caller.orgId, timeMs: clock.now() });
      }
      return { ...entry.caller, address };
    },
    guard(caller) {
      const controller = new AbortController();
      const stop = revocations.onRevocation(() => {
        if (isRevoked(caller, revocations)) {
          controller.abort(fail(Reason.CREDENTIAL_REVOKED, "the credential was revoked"));
        }
      });
      const timer = setInterval(() => {
        if (caller.kind !== "peer" && caller.kind !== "public" && !revocations.isFresh()) {
          controller.abort(
            fail(Reason.REVOCATIONS_STALE, "revocations cannot be checked now", {}, { retryAfterMs: 1000 }),
          );
        }
      }, 1000);
      timer.unref();
      return {
        signal: controller.signal,
        release() {
          clearInterval(timer);
          stop();
        },
      };
    },
    async stop() {
      clearInterval(useTimer);
      await flushUses().catch(() => undefined);
    },
  };
}

/** Whether a revocation concerns a caller: of its credential, of itself, or of its organisation. */
function isRevoked(caller: Omit<Caller, "address">, revocations: Revocations): boolean {
  const { issuedMs } = caller;
  if (caller.orgId !== "" && revocations.isRevoked(Subject.ORGANIZATION, caller.orgId, issuedMs)) return true;
  switch (caller.kind) {
    case "device":
      return revocations.isRevoked(Subject.DEVICE, caller.id, issuedMs);
    case "session":
      return (
        revocations.isRevoked(Subject.SESSION, caller.credentialId, issuedMs) ||
        revocations.isRevoked(Subject.MEMBER, caller.id, issuedMs)
      );
    case "api_key":
      return revocations.isRevoked(Subject.API_KEY, caller.id, 0);
    case "bootstrap":
      return revocations.isRevoked(Subject.BOOTSTRAP_TOKEN, caller.id, 0);
    case "read_token":
      return revocations.isRevoked(Subject.READ_TOKEN, caller.id, 0);
    case "partner":
      return revocations.isRevoked(Subject.PARTNER_KEY, caller.id, 0);
    default:
      return false;
  }
}

function peerOf(connection: Connection, header: Headers, policy: Policy): Caller {
  const { peer, address } = connection;
  if (peer === undefined) throw fail(Reason.CREDENTIAL_MISSING, "the mesh listener needs a service's certificate");
  const base = {
    credentialId: peer.spiffeId,
    scopes: noScopes,
    role: Role.UNSPECIFIED,
    issuedMs: 0,
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

function isSigned(credential: string): boolean {
  return credential.startsWith("eyJ");
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

/** The reason of a refusal that says something of the credential and not of the moment. */
function refusalOf(error: unknown): Reason | undefined {
  const reason = reasonOf(error);
  return rememberedRefusals.includes(reason) ? reason : undefined;
}

type KeyFunction = (header?: JWSHeaderParameters, token?: FlattenedJWSInput) => Promise<CryptoKey>;

/** Identity's public keys, fetched when a token names one that is not known, and then at most once a second. */
function createKeySet(client: Client<typeof CredentialService>, clock: Clock): KeyFunction {
  let current: KeyFunction | undefined;
  let fetchedMs = Number.NEGATIVE_INFINITY;
  let fetching: Promise<KeyFunction> | undefined;
  const fetchKeys = (): Promise<KeyFunction> => {
    fetching ??= client
      .getJsonWebKeySet({}, { timeoutMs: 5000 })
      .then((answer) => {
        const set: JSONWebKeySet = {
          keys: answer.keys.map(({ kty, crv, x, y, kid, alg, use }) => ({ kty, crv, x, y, kid, alg, use })),
        };
        current = createLocalJWKSet(set);
        fetchedMs = clock.now();
        return current;
      })
      .finally(() => {
        fetching = undefined;
      });
    return fetching;
  };
  return async (header, token) => {
    const keySet = current ?? (await fetchKeys());
    try {
      return await keySet(header, token);
    } catch (error) {
      if (!(error instanceof joseErrors.JWKSNoMatchingKey) || clock.now() - fetchedMs < 1000) throw error;
      return (await fetchKeys())(header, token);
    }
  };
}

/** The kinds of caller whose credential can be revoked while a call is under way. */
export function isGuarded(kind: CallerKind): boolean {
  return kind !== "peer" && kind !== "delegated" && kind !== "public" && kind !== "system";
}
