import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { callOf, withOrganization } from "@octomesh/mesh/call-context";
import { fail, Reason } from "@octomesh/mesh/errors";
import { digestToken, parseToken } from "@octomesh/mesh/opaque-token";
import {
  type DeviceCredential,
  DeviceCredentialSchema,
} from "@octomesh/proto/octomesh/identity/v1/device_credential_pb";
import type { DeviceCredentialService } from "@octomesh/proto/octomesh/identity/v1/device_credential_service_pb";
import { admitsIdentifier, type BootstrapTokenState, bootstrapTokenState } from "../bootstrap-token.ts";
import type { Dependencies } from "../dependencies.ts";
import {
  beginFamily,
  type DeviceGrant,
  type DeviceTokens,
  deviceTokens,
  digestClientKey,
  endFamilies,
  isRepeatable,
  renewFamily,
} from "../device-credentials.ts";
import { registrationGraceMs } from "../lifetimes.ts";
import { decideRefresh } from "../refresh.ts";
import type { IdentityTransaction } from "../schema.ts";
import { type BootstrapTokenRow, findBootstrapToken, takeUse } from "../store/bootstrap-tokens.ts";
import { lockDevice, lockDeviceCredential, lockDeviceCredentialsOf } from "../store/device-credentials.ts";
import { readForIssue } from "../store/organizations.ts";
import { findRefreshToken } from "../store/refresh-tokens.ts";

/** DeviceCredentialService. */
export function deviceCredentialRoutes(deps: Dependencies): ServiceImpl<typeof DeviceCredentialService> {
  const { database, clock, revocations } = deps;

  /** Reads the token that a device presents and refuses it where it does not admit the device, before any lock. */
  async function readToken(
    tx: IdentityTransaction,
    orgId: string,
    id: string,
    identifier: string,
  ): Promise<BootstrapTokenRow | undefined> {
    if (id === "") return undefined;
    const token = await findBootstrapToken(tx, orgId, id);
    if (token === undefined) throw fail(Reason.CREDENTIAL_UNKNOWN, "the bootstrap token is unknown", { id });
    if (token.revoke_time !== null) throw refusalOf("revoked", id);
    if (!admitsIdentifier(token, identifier)) {
      throw fail(Reason.IDENTIFIER_NOT_ALLOWED, "the bootstrap token does not admit this device", { id });
    }
    return token;
  }

  return {
    async issueDeviceCredential(request, context) {
      const call = callOf(context);
      const { orgId } = call;
      const registration = {
        deviceId: request.deviceId,
        registrationId: request.registrationId,
        bootstrapTokenId: request.bootstrapTokenId,
        clientKeyDigest: digestClientKey(request.clientKey),
      };
      const device = { orgId, deviceId: request.deviceId };
      call.audit?.resource("device", request.deviceId);
      call.audit?.note("bootstrap_token_id", request.bootstrapTokenId);
      const { grant, token, recorded } = await database.write(call, async (tx) => {
        const org = await readForIssue(tx, orgId);
        const admitted = await readToken(tx, orgId, request.bootstrapTokenId, request.deviceIdentifier);
        await lockDevice(tx, orgId, request.deviceId);
        const families = await lockDeviceCredentialsOf(tx, orgId, request.deviceId);
        const now = clock.now();
        const earlier = families.find((family) => family.registration_id === request.registrationId);
        if (earlier !== undefined) {
          if (!isRepeatable(earlier, registration, now, registrationGraceMs)) throw notRepeatable(admitted);
          call.audit?.note("repeated", "true");
          return { token: admitted, grant: await renewFamily(deps, tx, org, earlier, 1), recorded: undefined };
        }
        if (admitted !== undefined) {
          const state = bootstrapTokenState(admitted, now);
          if (state !== "active") throw refusalOf(state, admitted.id);
          if (!(await takeUse(tx, orgId, admitted.id, new Date(now)))) {
            const fresh = await findBootstrapToken(tx, orgId, admitted.id);
            throw refusalOf(fresh === undefined ? "revoked" : bootstrapTokenState(fresh, now), admitted.id);
          }
        }
        // A new registration of a known device, which was allowed, cuts off the installation before it.
        const live = families.filter((family) => family.revoke_time === null);
        const replaced =
          live.length === 0
            ? undefined
            : await revocations.record(tx, await endFamilies(deps, tx, device, live, "replaced"));
        return { token: admitted, grant: await beginFamily(deps, tx, org, registration), recorded: replaced };
      });
      await revocations.settle(recorded);
      return {
        credential: deviceCredentialMessage(grant, await deviceTokens(deps, grant)),
        approvalRequired: token?.approval_required ?? false,
        groupIds: token?.group_ids ?? [],
      };
    },

    async refreshDeviceCredential(request, context) {
      if (parseToken(request.refreshToken)?.prefix !== "edg_refresh_") {
        throw fail(Reason.CREDENTIAL_MALFORMED, "the refresh token is not well formed");
      }
      const digest = digestToken(request.refreshToken);
      const presented = await database.system((tx) => findRefreshToken(tx, digest));
      if (presented === undefined) throw unknownRefreshToken();
      const orgId = presented.org_id;
      const call = withOrganization(callOf(context), orgId);
      const result = await database.write(call, async (tx) => {
        const org = await readForIssue(tx, orgId);
        const family = await lockDeviceCredential(tx, orgId, presented.family_id);
        if (family === undefined) throw unknownRefreshToken();
        call.audit?.resource("device", family.device_id);
        call.audit?.note("credential_id", family.id);
        const decision = decideRefresh(
          {
            generation: family.generation,
            rotateTime: family.rotate_time.getTime(),
            expireTime: family.expire_time.getTime(),
            revokeTime: family.revoke_time?.getTime(),
            clientKeyDigest: family.client_key_digest ?? undefined,
          },
          { generation: presented.generation, clientKeyDigest: digestClientKey(request.clientKey) },
          clock.now(),
        );
        if (decision.kind === "refuse") {
          throw decision.cause === "expired"
            ? fail(Reason.CREDENTIAL_EXPIRED, "the refresh token has expired")
            : fail(Reason.CREDENTIAL_REVOKED, "the device's credential was revoked");
        }
        if (decision.kind === "revoke") {
          call.audit?.note("credential_revoked", decision.cause);
          const device = { orgId, deviceId: family.device_id };
          const revocation = await endFamilies(deps, tx, device, [family], decision.cause);
          return { recorded: await revocations.record(tx, revocation) };
        }
        return { grant: await renewFamily(deps, tx, org, family, decision.generation) };
      });
      if (result.grant === undefined) {
        await revocations.settle(result.recorded);
        throw fail(
          Reason.CREDENTIAL_REVOKED,
          "the refresh token was used before or elsewhere: the credential is revoked",
        );
      }
      return deviceCredentialMessage(result.grant, await deviceTokens(deps, result.grant));
    },

    async revokeDeviceCredentials(request, context) {
      const call = callOf(context);
      const { orgId } = call;
      const device = { orgId, deviceId: request.deviceId };
      call.audit?.resource("device", request.deviceId);
      const { revoked, recorded } = await database.write(call, async (tx) => {
        await lockDevice(tx, orgId, request.deviceId);
        const families = await lockDeviceCredentialsOf(tx, orgId, request.deviceId);
        const live = families.filter((family) => family.revoke_time === null);
        // Recorded even if nothing is left to revoke: a repetition waits again for services that were slow.
        const revocation = await endFamilies(deps, tx, device, families, "revoked");
        return { revoked: live.length, recorded: await revocations.record(tx, revocation) };
      });
      await revocations.settle(recorded);
      return { revoked };
    },
  };
}

function deviceCredentialMessage(grant: DeviceGrant, tokens: DeviceTokens): DeviceCredential {
  return create(DeviceCredentialSchema, {
    id: grant.id,
    deviceId: grant.deviceId,
    orgId: grant.orgId,
    accessToken: tokens.accessToken,
    expireTime: timestampFromMs(grant.expireTime),
    refreshToken: tokens.refreshToken,
    refreshExpireTime: timestampFromMs(grant.refreshExpireTime),
  });
}

function unknownRefreshToken(): Error {
  return fail(Reason.CREDENTIAL_UNKNOWN, "the refresh token is unknown");
}

function notRepeatable(token: BootstrapTokenRow | undefined): Error {
  return token === undefined
    ? fail(Reason.REENROLMENT_NOT_GRANTED, "this registration has been answered: a member must allow another")
    : fail(Reason.CREDENTIAL_USED, "the bootstrap token was used for this device", { id: token.id });
}

function refusalOf(state: BootstrapTokenState, id: string): Error {
  switch (state) {
    case "expired":
      return fail(Reason.CREDENTIAL_EXPIRED, "the bootstrap token has expired", { id });
    case "revoked":
      return fail(Reason.CREDENTIAL_REVOKED, "the bootstrap token was killed", { id });
    default:
      return fail(Reason.CREDENTIAL_USED, "the bootstrap token is used up", { id });
  }
}
