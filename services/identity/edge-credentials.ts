import { create } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { Call } from "@octomesh/mesh/call";
import { fail, Reason } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import type * as x509 from "@octomesh/mesh/x509";
import { WatchRevocationsResponse_Revocation_Subject as Subject } from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { type EdgeSigningKey, EdgeSigningKeySchema } from "@octomesh/proto/octomesh/identity/v1/edge_signing_key_pb";
import { LicenseKey_ClientCertificateMode } from "@octomesh/proto/octomesh/identity/v1/license_key_pb";
import { Environment } from "@octomesh/proto/octomesh/identity/v1/organization_pb";
import type { Dependencies } from "./dependencies.ts";
import { revokeTimeFor } from "./issue-time.ts";
import { edgeCertificateMs, opaqueCacheMs, revocationSlackMs } from "./lifetimes.ts";
import type { NewRevocation } from "./revocation-log.ts";
import type { IdentityTransaction } from "./schema.ts";
import {
  countGood,
  type EdgeCertificateRow,
  type EdgeSigningKeyRow,
  findByPublicKey,
  insertEdgeCertificate,
  insertLicense,
  insertSigningKeyOfEdge,
  type LicenseKeyRow,
  lockLicense,
  revokeEdgeRow,
  revokeOfLicense,
} from "./store/edge-credentials.ts";
import { readForIssue } from "./store/organizations.ts";

const claimedModes = {
  [LicenseKey_ClientCertificateMode.UNSPECIFIED]: "require",
  [LicenseKey_ClientCertificateMode.OFF]: "off",
  [LicenseKey_ClientCertificateMode.REQUEST]: "request",
  [LicenseKey_ClientCertificateMode.REQUIRE]: "require",
} as const;

/** Certificates, and signing keys, of one licence that may be good at a time. */
export const maxOfLicense = 3;

/** Issues a licence to the call's organisation, which is live or a sandbox as `environment` says. */
export async function issueLicense(
  deps: Dependencies,
  tx: IdentityTransaction,
  call: Call,
  request: {
    name: string;
    environment: Environment;
    clientCertificate: LicenseKey_ClientCertificateMode;
    lifetimeMs: number;
  },
): Promise<{ row: LicenseKeyRow; license: string }> {
  await readForIssue(tx, call.orgId);
  const now = new Date(deps.clock.now());
  const row = await insertLicense(tx, {
    org_id: call.orgId,
    id: newId("lic", now.getTime()),
    name: request.name,
    client_certificate: request.clientCertificate,
    create_time: now,
    expire_time: new Date(now.getTime() + request.lifetimeMs),
    revoke_time: null,
  });
  const license = await deps.edgeIssuer.signLicense({
    id: row.id,
    orgId: row.org_id,
    environment: request.environment === Environment.LIVE ? "live" : "test",
    clientCertificate: claimedModes[request.clientCertificate],
    createTime: row.create_time,
    expireTime: row.expire_time,
  });
  call.audit?.resource("license_key", row.id, row.name);
  return { row, license };
}

/**
 * Revokes a licence of the call's organisation and all that was issued for it; an earlier revocation keeps its time.
 * Answers what to record, nothing where there is no such licence.
 */
export async function revokeLicense(
  tx: IdentityTransaction,
  call: Call,
  id: string,
  now: Date,
): Promise<{ row: LicenseKeyRow; revocations: NewRevocation[] } | undefined> {
  const row = await revokeEdgeRow(tx, "license_keys", call.orgId, id, now);
  if (row === undefined) return undefined;
  const certificates = await revokeOfLicense(tx, "edge_certificates", call.orgId, id, now);
  const signingKeys = await revokeOfLicense(tx, "edge_signing_keys", call.orgId, id, now);
  return {
    row,
    revocations: [
      ...certificates.map((each) => certificateRevocation(each, now)),
      ...signingKeys.map((each) => signingKeyRevocation(each, now)),
      licenseRevocation(row, now),
    ],
  };
}

/** Issues a client certificate for a licence of the call's organisation. Throws for a licence that is not good. */
export async function issueCertificate(
  deps: Dependencies,
  tx: IdentityTransaction,
  call: Call,
  request: { licenseKeyId: string; publicKey: x509.PublicKey },
): Promise<EdgeCertificateRow> {
  const license = await holdLicense(tx, call, request.licenseKeyId, new Date(deps.clock.now()));
  const now = notBefore(license, deps.clock.now());
  await checkQuota(tx, "edge_certificates", license, now);
  const id = newId("ecr", now.getTime());
  const expireTime = new Date(Math.min(now.getTime() + edgeCertificateMs, license.expire_time.getTime()));
  const { pem, spiffeId, serial } = await deps.edgeIssuer.issueCertificate({
    id,
    orgId: call.orgId,
    licenseId: license.id,
    publicKey: request.publicKey,
    now,
    expireTime,
  });
  call.audit?.resource("edge_certificate", id);
  return await insertEdgeCertificate(tx, {
    org_id: call.orgId,
    id,
    license_key_id: license.id,
    spiffe_id: spiffeId,
    serial,
    certificate_pem: pem,
    create_time: now,
    expire_time: expireTime,
    revoke_time: null,
  });
}

/** Registers a signing key for a licence of the call's organisation; the same one again is the same resource. */
export async function registerSigningKey(
  deps: Dependencies,
  tx: IdentityTransaction,
  call: Call,
  request: { licenseKeyId: string; publicKey: Buffer },
): Promise<EdgeSigningKeyRow> {
  const license = await holdLicense(tx, call, request.licenseKeyId, new Date(deps.clock.now()));
  const now = notBefore(license, deps.clock.now());
  const exists = (): Error => fail(Reason.RESOURCE_EXISTS, "the key is registered already", {});
  const known = await findByPublicKey(tx, call.orgId, request.publicKey);
  if (known !== undefined) {
    if (known.license_key_id !== license.id) throw exists();
    if (known.revoke_time !== null) throw fail(Reason.CREDENTIAL_REVOKED, "the key was revoked");
    call.audit?.resource("edge_signing_key", known.id);
    return known;
  }
  await checkQuota(tx, "edge_signing_keys", license, now);
  const row = await insertSigningKeyOfEdge(tx, {
    org_id: call.orgId,
    id: newId("esk", now.getTime()),
    license_key_id: license.id,
    public_key: request.publicKey,
    create_time: now,
    revoke_time: null,
  });
  if (row === undefined) throw exists();
  call.audit?.resource("edge_signing_key", row.id);
  return row;
}

/** What to record when a licence is revoked. It is refused until it would have expired by itself. */
function licenseRevocation(row: LicenseKeyRow, now: Date): NewRevocation {
  return { subject: Subject.LICENSE_KEY, orgId: row.org_id, id: row.id, ...timesOf(row, now) };
}

/** What to record when a certificate is revoked. It is refused until it would have expired by itself. */
export function certificateRevocation(row: EdgeCertificateRow, now: Date): NewRevocation {
  return { subject: Subject.EDGE_CERTIFICATE, orgId: row.org_id, id: row.id, ...timesOf(row, now) };
}

/** What to record when a signing key is revoked. */
export function signingKeyRevocation(row: EdgeSigningKeyRow, now: Date): NewRevocation {
  const forgetTime = new Date(now.getTime() + opaqueCacheMs);
  return { subject: Subject.EDGE_SIGNING_KEY, orgId: row.org_id, id: row.id, revokeTime: now, forgetTime };
}

/** A signing key as the contract shows it. */
export function signingKeyMessage(row: EdgeSigningKeyRow): EdgeSigningKey {
  return create(EdgeSigningKeySchema, {
    id: row.id,
    orgId: row.org_id,
    licenseKeyId: row.license_key_id,
    publicKey: new Uint8Array(row.public_key),
    createTime: timestampFromDate(row.create_time),
    revokeTime: row.revoke_time === null ? undefined : timestampFromDate(row.revoke_time),
  });
}

/** Times of a revocation: never before what it revokes was made, whatever the clocks of replicas say. */
function timesOf(row: { create_time: Date; expire_time: Date }, now: Date): { revokeTime: Date; forgetTime: Date } {
  const revokeTime = revokeTimeFor(now.getTime(), [row.create_time]);
  const last = Math.max(row.expire_time.getTime(), revokeTime.getTime());
  return { revokeTime, forgetTime: new Date(last + revocationSlackMs) };
}

/** The time of what is issued for a licence: never before the licence's own. */
function notBefore(license: LicenseKeyRow, now: number): Date {
  return new Date(Math.max(now, license.create_time.getTime()));
}

async function holdLicense(tx: IdentityTransaction, call: Call, id: string, now: Date): Promise<LicenseKeyRow> {
  await readForIssue(tx, call.orgId);
  const license = await lockLicense(tx, call.orgId, id);
  if (license === undefined) throw fail(Reason.RESOURCE_NOT_FOUND, "there is no such licence", { id });
  if (license.revoke_time !== null) throw fail(Reason.CREDENTIAL_REVOKED, "the licence was revoked");
  if (license.expire_time <= now) throw fail(Reason.CREDENTIAL_EXPIRED, "the licence has expired");
  return license;
}

async function checkQuota(
  tx: IdentityTransaction,
  table: "edge_certificates" | "edge_signing_keys",
  license: LicenseKeyRow,
  now: Date,
): Promise<void> {
  if ((await countGood(tx, table, license, now)) < maxOfLicense) return;
  throw fail(Reason.QUOTA_EXCEEDED, `the licence has ${maxOfLicense} good ones already: revoke one`, {
    limit: String(maxOfLicense),
  });
}
