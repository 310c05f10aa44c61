import { newId } from "@octomesh/mesh/ids";
import { deriveToken, digestToken } from "@octomesh/mesh/opaque-token";
import { WatchRevocationsResponse_Revocation_Subject as Subject } from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { signAccessToken } from "./access-token.ts";
import type { Dependencies } from "./dependencies.ts";
import { issueTimeAfter, revokeTimeFor } from "./issue-time.ts";
import { deviceRefreshMs, revocationSlackMs } from "./lifetimes.ts";
import { isSameDigest, rememberedGenerations } from "./refresh.ts";
import type { NewRevocation } from "./revocation-log.ts";
import type { IdentityTransaction } from "./schema.ts";
import {
  type DeviceCredentialRow,
  insertDeviceCredential,
  revokeDeviceCredentials,
  updateDeviceCredential,
} from "./store/device-credentials.ts";
import type { OrganizationRow } from "./store/organizations.ts";
import { insertRefreshToken } from "./store/refresh-tokens.ts";
import { latestRevocation } from "./store/revocations.ts";

/** What a device's tokens are made of, once its transaction has committed. Times in milliseconds. */
export interface DeviceGrant {
  readonly id: string;
  readonly orgId: string;
  readonly deviceId: string;
  readonly plan: number;
  readonly generation: number;
  readonly issueTime: number;
  readonly expireTime: number;
  readonly refreshExpireTime: number;
}

/** A device's tokens. */
export interface DeviceTokens {
  readonly accessToken: string;
  readonly refreshToken: string;
}

/** A registration that a credential is issued for. */
export interface Registration {
  readonly deviceId: string;
  readonly registrationId: string;
  /** Id of the token that was redeemed; "" where an API key registered the device. */
  readonly bootstrapTokenId: string;
  readonly clientKeyDigest: Buffer | undefined;
}

/** Digest of a client key as given: none for none. */
export function digestClientKey(clientKey: string): Buffer | undefined {
  return clientKey === "" ? undefined : digestToken(clientKey);
}

/**
 * Whether a registration that was answered before may be answered again with the same credential: by the same client
 * key, with the same token, within the grace, as long as the credential has not been used to get another.
 */
export function isRepeatable(
  family: DeviceCredentialRow,
  registration: Registration,
  now: number,
  graceMs: number,
): boolean {
  return (
    family.revoke_time === null &&
    family.generation === 1 &&
    family.bootstrap_token_id === registration.bootstrapTokenId &&
    family.client_key_digest !== null &&
    isSameDigest(family.client_key_digest, registration.clientKeyDigest) &&
    now - family.create_time.getTime() <= graceMs
  );
}

/** Begins a family for a registration. */
export async function beginFamily(
  deps: Dependencies,
  tx: IdentityTransaction,
  org: OrganizationRow,
  registration: Registration,
): Promise<DeviceGrant> {
  const now = deps.clock.now();
  const id = newId("crd", now);
  const { deviceId } = registration;
  const grant = grantOf(org, { id, deviceId, generation: 1 }, await issueTimeOf(deps, tx, org, deviceId), {
    refreshExpireTime: now + deviceRefreshMs,
  });
  const isNew = await insertDeviceCredential(tx, {
    org_id: org.org_id,
    id,
    device_id: deviceId,
    registration_id: registration.registrationId,
    bootstrap_token_id: registration.bootstrapTokenId,
    client_key_digest: registration.clientKeyDigest ?? null,
    generation: 1,
    rotate_time: new Date(now),
    expire_time: new Date(grant.refreshExpireTime),
    issue_time: new Date(grant.issueTime),
    access_expire_time: new Date(grant.expireTime),
    create_time: new Date(now),
    revoke_time: null,
  });
  if (!isNew) throw new Error("the device's lock admits one registration at a time");
  await rememberToken(deps, tx, grant);
  return grant;
}

/** Renews a family: as the next generation, or, for an answer that was lost, with the newest one again. */
export async function renewFamily(
  deps: Dependencies,
  tx: IdentityTransaction,
  org: OrganizationRow,
  family: DeviceCredentialRow,
  generation: number,
): Promise<DeviceGrant> {
  const now = deps.clock.now();
  const isNew = generation > family.generation;
  const { id, device_id: deviceId } = family;
  const grant = grantOf(org, { id, deviceId, generation }, await issueTimeOf(deps, tx, org, deviceId), {
    refreshExpireTime: isNew ? now + deviceRefreshMs : family.expire_time.getTime(),
  });
  await updateDeviceCredential(tx, org.org_id, id, {
    ...(isNew ? { generation, rotate_time: new Date(now), expire_time: new Date(grant.refreshExpireTime) } : {}),
    issue_time: new Date(Math.max(grant.issueTime, family.issue_time.getTime())),
    access_expire_time: new Date(Math.max(grant.expireTime, family.access_expire_time.getTime())),
  });
  if (isNew) await rememberToken(deps, tx, grant);
  return grant;
}

/** Ends families of one device, and tells what to record so that its access tokens end too. */
export async function endFamilies(
  deps: Dependencies,
  tx: IdentityTransaction,
  device: { orgId: string; deviceId: string },
  families: readonly DeviceCredentialRow[],
  cause: string,
): Promise<NewRevocation> {
  const now = deps.clock.now();
  const ids = families.filter((family) => family.revoke_time === null).map((family) => family.id);
  await revokeDeviceCredentials(tx, device.orgId, ids, { time: new Date(now), cause });
  const revokeTime = revokeTimeFor(
    now,
    families.map((family) => family.issue_time),
  );
  const lastExpiry = Math.max(revokeTime.getTime(), ...families.map((family) => family.access_expire_time.getTime()));
  return {
    subject: Subject.DEVICE,
    orgId: device.orgId,
    id: device.deviceId,
    revokeTime,
    forgetTime: new Date(lastExpiry + revocationSlackMs),
  };
}

/** Makes the tokens of a grant. The same generation has the same refresh token every time (DESIGN 8.15). */
export async function deviceTokens(deps: Dependencies, grant: DeviceGrant): Promise<DeviceTokens> {
  const accessToken = await signAccessToken(deps.keyRing.signingKey(), {
    issuer: deps.issuer,
    kind: "device",
    subject: grant.deviceId,
    orgId: grant.orgId,
    credentialId: grant.id,
    plan: grant.plan,
    issueTime: grant.issueTime,
    expireTime: grant.expireTime,
  });
  return { accessToken, refreshToken: refreshToken(deps, grant.id, grant.generation) };
}

function grantOf(
  org: OrganizationRow,
  family: { id: string; deviceId: string; generation: number },
  issueTime: number,
  times: { refreshExpireTime: number },
): DeviceGrant {
  return {
    ...family,
    orgId: org.org_id,
    plan: org.plan,
    issueTime,
    expireTime: Math.floor((issueTime + Number(org.device_token_expiry_ms)) / 1000) * 1000,
    refreshExpireTime: times.refreshExpireTime,
  };
}

async function issueTimeOf(
  deps: Dependencies,
  tx: IdentityTransaction,
  org: OrganizationRow,
  deviceId: string,
): Promise<number> {
  const revoked = await latestRevocation(tx, org.org_id, [{ subject: Subject.DEVICE, id: deviceId }]);
  return issueTimeAfter(deps.clock.now(), revoked);
}

async function rememberToken(deps: Dependencies, tx: IdentityTransaction, grant: DeviceGrant): Promise<void> {
  const digest = digestToken(refreshToken(deps, grant.id, grant.generation));
  const { orgId, id, generation } = grant;
  await insertRefreshToken(tx, { org_id: orgId, digest, family_id: id, generation }, rememberedGenerations);
}

function refreshToken(deps: Dependencies, familyId: string, generation: number): string {
  return deriveToken("edg_refresh_", deps.refreshKey, `${familyId}/${generation}`);
}
