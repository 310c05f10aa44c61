import { create } from "@bufbuild/protobuf";
import { durationMs, timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import type { Call } from "@octomesh/mesh/call";
import { callOf, withOrganization } from "@octomesh/mesh/call-context";
import { fail, Reason } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { digestToken, mintToken } from "@octomesh/mesh/opaque-token";
import { WatchRevocationsResponse_Revocation_Subject as Subject } from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { type EdgeCertificate, EdgeCertificateSchema } from "@octomesh/proto/octomesh/identity/v1/edge_certificate_pb";
import { EdgeCredentialService } from "@octomesh/proto/octomesh/identity/v1/edge_credential_service_pb";
import {
  LicenseKey_ClientCertificateMode as ClientCertificateMode,
  type LicenseKey,
  LicenseKeySchema,
} from "@octomesh/proto/octomesh/identity/v1/license_key_pb";
import type { Environment } from "@octomesh/proto/octomesh/identity/v1/organization_pb";
import { type PartnerKey, PartnerKeySchema } from "@octomesh/proto/octomesh/identity/v1/partner_key_pb";
import type { Selectable } from "kysely";
import type { Dependencies } from "../dependencies.ts";
import {
  certificateRevocation,
  issueCertificate,
  issueLicense,
  registerSigningKey,
  revokeLicense,
  signingKeyMessage,
  signingKeyRevocation,
} from "../edge-credentials.ts";
import { readSigningRequest } from "../edge-issuer.ts";
import { readEdgePublicKey } from "../edge-public-key.ts";
import { licenseMs, opaqueCacheMs } from "../lifetimes.ts";
import { inEnvironment, newestFirst, readPair } from "../organization-pair.ts";
import { type Page, readPage } from "../page.ts";
import { replayable, replayedHeader } from "../replayable.ts";
import type { NewRevocation } from "../revocation-log.ts";
import type { IdentitySchema, IdentityTransaction } from "../schema.ts";
import {
  type EdgeCertificateRow,
  type EdgeTable,
  findEdgeRow,
  insertPartnerKey,
  type LicenseKeyRow,
  listEdgeRows,
  type PartnerKeyRow,
  revokeEdgeRow,
} from "../store/edge-credentials.ts";
import { type OrganizationRow, readForIssue } from "../store/organizations.ts";

const partnerPrefix = "edg_partner_";
/** How much of a partner key people see again: its kind and the first four of its random characters. */
const shownCharacters = 4;

/** What the rows of a table are called: in refusals, and as the resource of audit events. */
const names: Record<EdgeTable, { readonly text: string; readonly resource: string }> = {
  license_keys: { text: "licence", resource: "license_key" },
  partner_keys: { text: "partner key", resource: "partner_key" },
  edge_certificates: { text: "certificate", resource: "edge_certificate" },
  edge_signing_keys: { text: "signing key", resource: "edge_signing_key" },
};

/**
 * EdgeCredentialService. What is of the sandbox belongs to the paired organisation, where the rows and their audit events
 * are: a member of the live organisation, or its key, looks after both.
 */
export function edgeCredentialRoutes(deps: Dependencies): ServiceImpl<typeof EdgeCredentialService> {
  const { database, clock, pager, revocations } = deps;

  /** The organisation whose row this is: the caller's own or its sandbox. Throws RESOURCE_NOT_FOUND. */
  async function ownerOf(table: EdgeTable, orgId: string, id: string): Promise<OrganizationRow> {
    for (const org of await readPair(deps, orgId)) {
      const row = await database.read(org.org_id, (tx) => findEdgeRow(tx, table, org.org_id, id));
      if (row !== undefined) return org;
    }
    throw notFound(table, id);
  }

  /** The caller's call in the organisation of a row. */
  async function callAt(context: HandlerContext, table: EdgeTable, id: string): Promise<Call> {
    const call = callOf(context);
    const org = await ownerOf(table, call.orgId, id);
    return org.org_id === call.orgId ? call : withOrganization(call, org.org_id);
  }

  /**
   * Revokes in one transaction with the record of it, and answers when every service refuses what was revoked. A
   * repetition records it again, and so waits again.
   */
  async function revoke<T extends EdgeTable>(
    context: HandlerContext,
    table: T,
    id: string,
    change: (
      tx: IdentityTransaction,
      call: Call,
      now: Date,
    ) => Promise<{ row: Selectable<IdentitySchema[T]>; revocations: NewRevocation[] } | undefined>,
  ): Promise<Selectable<IdentitySchema[T]>> {
    const call = await callAt(context, table, id);
    const now = new Date(clock.now());
    const { row, recorded } = await database.write(call, async (tx) => {
      const changed = await change(tx, call, now);
      if (changed === undefined) throw notFound(table, id);
      const name: unknown = "name" in changed.row ? changed.row.name : "";
      call.audit?.resource(names[table].resource, id, typeof name === "string" ? name : "");
      return { row: changed.row, recorded: await revocations.record(tx, ...changed.revocations) };
    });
    await revocations.settle(recorded);
    return row;
  }

  /** A page of a table over the caller's organisation and its sandbox, newest first. */
  async function list<T extends EdgeTable>(
    context: HandlerContext,
    table: T,
    request: { pageSize: number; pageToken: string; licenseKeyId?: string },
  ): Promise<Page<Selectable<IdentitySchema[T]>> & { environments: ReadonlyMap<string, Environment> }> {
    const { orgId } = callOf(context);
    const { licenseKeyId = "" } = request;
    const pair = await readPair(deps, orgId);
    const { rows, nextPageToken } = await readPage(
      pager,
      {
        method: `octomesh.identity.v1.EdgeCredentialService/${table}`,
        orgId,
        filter: licenseKeyId === "" ? [] : [licenseKeyId],
        pageSize: request.pageSize,
        pageToken: request.pageToken,
      },
      async (position) => {
        const lists = await Promise.all(
          pair.map((org) =>
            database.read(org.org_id, (tx) => listEdgeRows(tx, table, org.org_id, { ...position, licenseKeyId })),
          ),
        );
        return lists
          .flat()
          .sort((a, b) => newestFirst(a as OrderedRow, b as OrderedRow))
          .slice(0, position.limit) as (Selectable<IdentitySchema[T]> & OrderedRow)[];
      },
    );
    return { rows, nextPageToken, environments: new Map(pair.map((org) => [org.org_id, org.environment])) };
  }

  async function environmentOf(row: { org_id: string }): Promise<Environment> {
    const [org] = await readPair(deps, row.org_id);
    if (org === undefined) throw fail(Reason.RESOURCE_NOT_FOUND, "there is no such organisation", { id: row.org_id });
    return org.environment;
  }

  return {
    async createLicenseKey(request, context) {
      const { call, environment } = await inEnvironment(deps, callOf(context), request.environment);
      const clientCertificate =
        request.clientCertificate === ClientCertificateMode.UNSPECIFIED
          ? ClientCertificateMode.REQUIRE
          : request.clientCertificate;
      const lifetimeMs = request.lifetime === undefined ? licenseMs : durationMs(request.lifetime);
      let license = "";
      const { message, replayed } = await database.write(call, (tx) =>
        replayable(tx, call, EdgeCredentialService.method.createLicenseKey, request, async () => {
          const made = await issueLicense(deps, tx, call, {
            name: request.name,
            environment,
            clientCertificate,
            lifetimeMs,
          });
          license = made.license;
          return licenseKeyMessage(made.row, environment);
        }),
      );
      if (replayed) context.responseHeader.set(replayedHeader, "true");
      else message.license = license;
      return message;
    },

    async revokeLicenseKey(request, context) {
      const row = await revoke(context, "license_keys", request.id, (tx, call, now) =>
        revokeLicense(tx, call, request.id, now),
      );
      return licenseKeyMessage(row, await environmentOf(row));
    },

    async createPartnerKey(request, context) {
      const { call, environment } = await inEnvironment(deps, callOf(context), request.environment);
      const now = new Date(clock.now());
      const key = mintToken(partnerPrefix);
      const { message, replayed } = await database.write(call, (tx) =>
        replayable(tx, call, EdgeCredentialService.method.createPartnerKey, request, async () => {
          await readForIssue(tx, call.orgId);
          const row = await insertPartnerKey(tx, {
            org_id: call.orgId,
            id: newId("pky", now.getTime()),
            name: request.name,
            prefix: key.slice(0, partnerPrefix.length + shownCharacters),
            digest: digestToken(key),
            create_time: now,
            last_use_time: null,
            revoke_time: null,
          });
          call.audit?.resource(names.partner_keys.resource, row.id, row.name);
          return partnerKeyMessage(row, environment);
        }),
      );
      if (replayed) context.responseHeader.set(replayedHeader, "true");
      else message.partnerKey = key;
      return message;
    },

    async revokePartnerKey(request, context) {
      const row = await revoke(context, "partner_keys", request.id, async (tx, call, now) => {
        const revoked = await revokeEdgeRow(tx, "partner_keys", call.orgId, request.id, now);
        if (revoked === undefined) return undefined;
        const forgetTime = new Date(now.getTime() + opaqueCacheMs);
        const { id, org_id: orgId, digest } = revoked;
        const subject = Subject.PARTNER_KEY;
        return { row: revoked, revocations: [{ subject, orgId, id, revokeTime: now, forgetTime, digest }] };
      });
      return partnerKeyMessage(row, await environmentOf(row));
    },

    async issueEdgeCertificate(request, context) {
      const { licenseKeyId } = request;
      const publicKey = await readSigningRequest(request.csrPem);
      const call = await callAt(context, "license_keys", licenseKeyId);
      const { message, replayed } = await database.write(call, (tx) =>
        replayable(tx, call, EdgeCredentialService.method.issueEdgeCertificate, request, async () => {
          const row = await issueCertificate(deps, tx, call, { licenseKeyId, publicKey });
          call.audit?.note("license_key_id", licenseKeyId);
          return certificateMessage(row);
        }),
      );
      if (replayed) context.responseHeader.set(replayedHeader, "true");
      return message;
    },

    async revokeEdgeCertificate(request, context) {
      const row = await revoke(context, "edge_certificates", request.id, async (tx, call, now) => {
        const revoked = await revokeEdgeRow(tx, "edge_certificates", call.orgId, request.id, now);
        return revoked && { row: revoked, revocations: [certificateRevocation(revoked, now)] };
      });
      return certificateMessage(row);
    },

    async registerEdgeSigningKey(request, context) {
      const { licenseKeyId } = request;
      const publicKey = readEdgePublicKey(request.publicKey);
      const call = await callAt(context, "license_keys", licenseKeyId);
      const row = await database.write(call, async (tx) => {
        const registered = await registerSigningKey(deps, tx, call, { licenseKeyId, publicKey });
        call.audit?.note("license_key_id", licenseKeyId);
        return registered;
      });
      return signingKeyMessage(row);
    },

    async revokeEdgeSigningKey(request, context) {
      const row = await revoke(context, "edge_signing_keys", request.id, async (tx, call, now) => {
        const revoked = await revokeEdgeRow(tx, "edge_signing_keys", call.orgId, request.id, now);
        return revoked && { row: revoked, revocations: [signingKeyRevocation(revoked, now)] };
      });
      return signingKeyMessage(row);
    },

    async listLicenseKeys(request, context) {
      const { rows, nextPageToken, environments } = await list(context, "license_keys", request);
      return { licenseKeys: rows.map((row) => licenseKeyMessage(row, environments.get(row.org_id))), nextPageToken };
    },

    async listPartnerKeys(request, context) {
      const { rows, nextPageToken, environments } = await list(context, "partner_keys", request);
      return { partnerKeys: rows.map((row) => partnerKeyMessage(row, environments.get(row.org_id))), nextPageToken };
    },

    async listEdgeCertificates(request, context) {
      const { rows, nextPageToken } = await list(context, "edge_certificates", request);
      return { edgeCertificates: rows.map(certificateMessage), nextPageToken };
    },

    async listEdgeSigningKeys(request, context) {
      const { rows, nextPageToken } = await list(context, "edge_signing_keys", request);
      return { edgeSigningKeys: rows.map(signingKeyMessage), nextPageToken };
    },
  };
}

interface OrderedRow {
  readonly create_time: Date;
  readonly id: string;
}

function notFound(table: EdgeTable, id: string): Error {
  return fail(Reason.RESOURCE_NOT_FOUND, `there is no such ${names[table].text}`, { id });
}

function licenseKeyMessage(row: LicenseKeyRow, environment: Environment | undefined): LicenseKey {
  return create(LicenseKeySchema, {
    id: row.id,
    orgId: row.org_id,
    name: row.name,
    clientCertificate: row.client_certificate,
    environment,
    createTime: timestampFromDate(row.create_time),
    expireTime: timestampFromDate(row.expire_time),
    revokeTime: row.revoke_time === null ? undefined : timestampFromDate(row.revoke_time),
  });
}

function partnerKeyMessage(row: PartnerKeyRow, environment: Environment | undefined): PartnerKey {
  return create(PartnerKeySchema, {
    id: row.id,
    orgId: row.org_id,
    name: row.name,
    prefix: row.prefix,
    environment,
    createTime: timestampFromDate(row.create_time),
    lastUseTime: row.last_use_time === null ? undefined : timestampFromDate(row.last_use_time),
    revokeTime: row.revoke_time === null ? undefined : timestampFromDate(row.revoke_time),
  });
}

function certificateMessage(row: EdgeCertificateRow): EdgeCertificate {
  return create(EdgeCertificateSchema, {
    id: row.id,
    orgId: row.org_id,
    licenseKeyId: row.license_key_id,
    spiffeId: row.spiffe_id,
    certificatePem: row.certificate_pem,
    createTime: timestampFromDate(row.create_time),
    expireTime: timestampFromDate(row.expire_time),
    revokeTime: row.revoke_time === null ? undefined : timestampFromDate(row.revoke_time),
  });
}
