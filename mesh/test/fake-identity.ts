import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import {
  CredentialService,
  ResolveCredentialResponse_State as State,
  type WatchRevocationsResponse_Revocation_Subject as Subject,
} from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { Plan } from "@octomesh/proto/octomesh/identity/v1/organization_pb";
import { type CallerKind, Role, type Scope } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { exportJWK, generateKeyPair, SignJWT } from "jose";
import { fail, Reason } from "../errors.ts";
import { newId } from "../ids.ts";
import { digestToken, mintToken, type TokenPrefix } from "../opaque-token.ts";
import type { CreateService } from "../service.ts";
import { defaultTrustDomain } from "../tls.ts";

/** An identity service without a database: it issues, resolves and revokes as the contract says. */
export interface FakeIdentity {
  readonly create: CreateService;
  /** An opaque credential of an organisation. */
  issue(credential: {
    prefix: TokenPrefix;
    kind: CallerKind;
    orgId: string;
    scopes?: Scope[];
    plan?: Plan;
    expiresMs?: number;
  }): {
    token: string;
    id: string;
  };
  /** A signed access token of a member or device. */
  sign(token: {
    kind: "session" | "device";
    orgId: string;
    id: string;
    credentialId?: string;
    role?: Role;
    expiresInS?: number;
    issuer?: string;
    audience?: string;
  }): Promise<string>;
  /** Revokes, and pushes it to every subscriber. */
  revoke(subject: Subject, id: string, orgId: string): void;
  /** Cursor that each subscriber reported last. */
  readonly acknowledged: ReadonlyMap<string, string>;
  /** Cursor of the last revocation. */
  head(): string;
  /** Ends every stream of revocations and refuses new ones until `resume`, as a partition would. */
  interrupt(): void;
  resume(): void;
  /** How often credentials were resolved. */
  readonly resolutions: { count: number };
  /** What edges are believed by. A test changes it in place. */
  readonly edgeTrust: {
    licenseKeys: { keyId: string; publicKey: Uint8Array<ArrayBuffer> }[];
    certificateAuthoritiesPem: string[];
  };
}

/** Makes the fake. */
export async function createFakeIdentity(): Promise<FakeIdentity> {
  const keys = await generateKeyPair("ES256");
  const jwk = await exportJWK(keys.publicKey);
  const credentials = new Map<
    string,
    {
      kind: CallerKind;
      orgId: string;
      id: string;
      scopes: Scope[];
      plan: Plan;
      expiresMs: number | undefined;
      state: State;
    }
  >();
  const log: { subject: Subject; id: string; orgId: string; revokeMs: number }[] = [];
  const wakers = new Set<() => void>();
  const acknowledged = new Map<string, string>();
  const resolutions = { count: 0 };
  const edgeTrust: FakeIdentity["edgeTrust"] = { licenseKeys: [], certificateAuthoritiesPem: [] };
  let interrupted = false;
  const wake = (): void => {
    for (const waker of wakers) waker();
  };

  const create: CreateService = async () => ({
    http: [],
    start: async () => undefined,
    stop: async () => undefined,
    routes(router) {
      router.service(CredentialService, {
        resolveCredential(request) {
          resolutions.count += 1;
          const found = credentials.get(Buffer.from(request.digest).toString("hex"));
          if (found === undefined) throw fail(Reason.RESOURCE_NOT_FOUND, "no such credential", {});
          return {
            ...found,
            expireTime: found.expiresMs === undefined ? undefined : timestampFromMs(found.expiresMs),
            state: found.expiresMs !== undefined && found.expiresMs <= Date.now() ? State.EXPIRED : found.state,
          };
        },
        getJsonWebKeySet: () => ({
          keys: [{ kty: "EC", crv: "P-256", x: jwk.x ?? "", y: jwk.y ?? "", kid: "one", alg: "ES256", use: "sig" }],
        }),
        async *watchRevocations(request, context) {
          if (interrupted) throw fail(Reason.SERVICE_UNAVAILABLE, "cut off", {});
          let at = Number(request.cursor || "0");
          let caughtUp = false;
          while (!context.signal.aborted && !interrupted) {
            const revocations = log.slice(at).map((each) => ({ ...each, revokeTime: timestampFromMs(each.revokeMs) }));
            at = log.length;
            caughtUp = true;
            yield { cursor: String(at), revocations, caughtUp };
            await new Promise<void>((resolve) => {
              const timer = setTimeout(done, 1000);
              wakers.add(done);
              context.signal.addEventListener("abort", done, { once: true });
              function done(): void {
                clearTimeout(timer);
                wakers.delete(done);
                context.signal.removeEventListener("abort", done);
                resolve();
              }
            });
          }
        },
        acknowledgeRevocations(request) {
          if (request.leaving) acknowledged.delete(request.subscriberId);
          else acknowledged.set(request.subscriberId, request.cursor);
          return { lease: { seconds: 5n, nanos: 0 } };
        },
        reportCredentialUse: () => ({}),
        getEdgeTrust: () => edgeTrust,
      });
    },
  });

  return {
    create,
    acknowledged,
    resolutions,
    edgeTrust,
    head: () => String(log.length),
    issue({ prefix, kind, orgId, scopes = [], plan = Plan.ENTERPRISE, expiresMs }) {
      const token = mintToken(prefix);
      const id = newId("key");
      credentials.set(digestToken(token).toString("hex"), {
        kind,
        orgId,
        id,
        scopes,
        plan,
        expiresMs,
        state: State.ACTIVE,
      });
      return { token, id };
    },
    sign({ kind, orgId, id, credentialId = newId("ses"), role, expiresInS = 900, issuer, audience }) {
      const now = Date.now();
      return new SignJWT({
        org: orgId,
        kind,
        cid: credentialId,
        role: role ?? Role.UNSPECIFIED,
        plan: Plan.ENTERPRISE,
        iat_ms: now,
      })
        .setProtectedHeader({ alg: "ES256", kid: "one", typ: "at+jwt" })
        .setIssuer(issuer ?? defaultTrustDomain)
        .setAudience(audience ?? "octomesh")
        .setSubject(id)
        .setIssuedAt(Math.floor(now / 1000))
        .setExpirationTime(Math.floor(now / 1000) + expiresInS)
        .sign(keys.privateKey);
    },
    revoke(subject, id, orgId) {
      log.push({ subject, id, orgId, revokeMs: Date.now() });
      for (const credential of credentials.values()) if (credential.id === id) credential.state = State.REVOKED;
      wake();
    },
    interrupt() {
      interrupted = true;
      wake();
    },
    resume() {
      interrupted = false;
    },
  };
}
