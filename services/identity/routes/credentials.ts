import { durationFromMs, timestampFromDate, timestampMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { callOf } from "@octomesh/mesh/call-context";
import { fail, Reason } from "@octomesh/mesh/errors";
import { isId } from "@octomesh/mesh/ids";
import {
  type CredentialService,
  ResolveCredentialResponse_State as State,
} from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { CallerKind } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import type { Dependencies } from "../dependencies.ts";
import { signingKeyMessage } from "../edge-credentials.ts";
import { subscriberLeaseMs } from "../revocation-log.ts";
import { updateLastUse } from "../store/api-keys.ts";
import { findCredential, type ResolvedCredential } from "../store/credentials.ts";
import { findGoodSigningKey } from "../store/edge-credentials.ts";

const kinds: Record<ResolvedCredential["kind"], CallerKind> = {
  api_key: CallerKind.API_KEY,
  bootstrap: CallerKind.BOOTSTRAP,
  read_token: CallerKind.READ_TOKEN,
  partner: CallerKind.PARTNER,
};

/** CredentialService. */
export function credentialRoutes(deps: Dependencies): ServiceImpl<typeof CredentialService> {
  const { database, clock, edgeIssuer, keyRing, revocations } = deps;
  return {
    async resolveCredential(request) {
      const found = await database.system((tx) => findCredential(tx, Buffer.from(request.digest)));
      if (found === undefined) throw fail(Reason.RESOURCE_NOT_FOUND, "there is no such credential");
      return {
        kind: kinds[found.kind],
        orgId: found.org_id,
        id: found.id,
        scopes: [...found.scopes],
        state: stateOf(found, clock.now()),
        expireTime: found.expire_time === null ? undefined : timestampFromDate(found.expire_time),
        plan: found.plan,
        environment: found.environment,
      };
    },

    getJsonWebKeySet() {
      return { keys: keyRing.publicKeys().map((key) => ({ ...key, alg: "ES256", use: "sig" })) };
    },

    async *watchRevocations(request, context) {
      const subscriber = { id: request.subscriberId, peer: callOf(context).caller.id };
      yield* revocations.watch(subscriber, request.cursor, context.signal);
    },

    async acknowledgeRevocations(request, context) {
      const subscriber = { id: request.subscriberId, peer: callOf(context).caller.id };
      if (request.leaving) await revocations.leave(subscriber);
      else await revocations.acknowledge(subscriber, request.cursor);
      return { lease: durationFromMs(subscriberLeaseMs) };
    },

    async reportCredentialUse(request) {
      const now = clock.now();
      const uses = request.uses
        .filter((use) => isId("key", use.id) || isId("pky", use.id))
        .map((use) => ({
          orgId: use.orgId,
          id: use.id,
          // A service whose clock runs ahead must not put a use into the future.
          time: new Date(Math.min(now, use.lastUseTime === undefined ? now : timestampMs(use.lastUseTime))),
        }));
      if (uses.length === 0) return {};
      await database.ingest([...new Set(uses.map((use) => use.orgId))], async (tx) => {
        await updateLastUse(tx, "api_keys", uses);
        await updateLastUse(tx, "partner_keys", uses);
      });
      return {};
    },

    getEdgeTrust() {
      return {
        licenseKeys: edgeIssuer.licenseKeys().map(({ kid, publicKey }) => ({ keyId: kid, publicKey })),
        certificateAuthoritiesPem: [...edgeIssuer.authorities()],
      };
    },

    async getEdgeSigningKey({ id }) {
      const row = await database.system((tx) => findGoodSigningKey(tx, id, new Date(clock.now())));
      if (row === undefined) throw fail(Reason.RESOURCE_NOT_FOUND, "there is no such signing key", { id });
      return signingKeyMessage(row);
    },
  };
}

function stateOf(credential: ResolvedCredential, now: number): State {
  if (credential.revoked) return State.REVOKED;
  if (credential.used_up) return State.USED;
  return credential.expire_time !== null && credential.expire_time.getTime() <= now ? State.EXPIRED : State.ACTIVE;
}
