import { randomBytes } from "node:crypto";
import { Reason, reasonOf } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { testCall } from "@octomesh/mesh/test/database-fixture";
import { ApiKeyService } from "@octomesh/proto/octomesh/identity/v1/api_key_service_pb";
import { BootstrapTokenService } from "@octomesh/proto/octomesh/identity/v1/bootstrap_token_service_pb";
import { DeviceCredentialService } from "@octomesh/proto/octomesh/identity/v1/device_credential_service_pb";
import { EdgeCredentialService } from "@octomesh/proto/octomesh/identity/v1/edge_credential_service_pb";
import { ReadTokenService } from "@octomesh/proto/octomesh/identity/v1/read_token_service_pb";
import { Scope } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { sql } from "kysely";
import pg from "pg";
import { beforeAll, describe, expect, it } from "vitest";
import { insertEmbeddedEdge } from "./store/edge-credentials.ts";
import { readForIssue } from "./store/organizations.ts";
import { startTestIdentity, type TestOrganization } from "./test/identity-fixture.ts";
import { createSigningRequest } from "./test/signing-request.ts";

const identity = await startTestIdentity();
const acme = await identity.setUp();
const other = await identity.addOrganization("Other");
const { database } = identity;

/** Tables of tenants, as the database itself knows them: those with an `org_id` that the app role may read. */
async function tenantTables(): Promise<string[]> {
  const client = new pg.Client({ connectionString: database.adminUrl });
  await client.connect();
  try {
    const { rows } = await client.query<{ name: string }>(
      `select c.relname as name from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'org_id'
       where c.relnamespace = 'identity'::regnamespace and c.relkind = 'r'
         and has_table_privilege('identity_app', c.oid, 'select') order by 1`,
    );
    return rows.map((row) => row.name);
  } finally {
    await client.end();
  }
}

async function fill(org: TestOrganization): Promise<void> {
  const bearer = org.session.accessToken;
  const key = await identity
    .client(ApiKeyService, { bearer })
    .createApiKey({ name: "k", scopes: [Scope.ORG_READ], requestId: "r" });
  await identity.client(ReadTokenService, { bearer }).createReadToken({ scopes: [Scope.ORG_READ] });
  await identity.client(ApiKeyService, { bearer }).revokeApiKey({ id: key.id });
  const token = await identity.client(BootstrapTokenService, { bearer }).createBootstrapToken({});
  await identity
    .client(DeviceCredentialService, { peer: "device-registry", actsFor: org.orgId })
    .issueDeviceCredential({
      deviceId: newId("dev"),
      deviceIdentifier: "d",
      bootstrapTokenId: token.id,
      registrationId: newId("reg"),
    });
  await fillEdges(org);
}

async function fillEdges(org: TestOrganization): Promise<void> {
  const edges = identity.client(EdgeCredentialService, { bearer: org.session.accessToken });
  const { id: licenseKeyId } = await edges.createLicenseKey({ name: "l" });
  await edges.createPartnerKey({ name: "p" });
  const { pem: csrPem } = await createSigningRequest();
  const certificate = await edges.issueEdgeCertificate({ licenseKeyId, csrPem });
  const signingKey = await edges.registerEdgeSigningKey({ licenseKeyId, publicKey: randomBytes(32) });
  await database.write(testCall(org.orgId), (tx) =>
    insertEmbeddedEdge(tx, {
      org_id: org.orgId,
      license_key_id: licenseKeyId,
      certificate_id: certificate.id,
      signing_key_id: signingKey.id,
      provision_time: new Date(),
    }),
  );
}

beforeAll(async () => {
  await fill(acme);
  await fill(other);
});

describe("row-level security", () => {
  it("shows a transaction without a filter its own organisation's rows, in every table of tenants", async () => {
    const tables = await tenantTables();
    expect(tables.length).toBeGreaterThanOrEqual(15);
    for (const table of tables.filter((name) => name !== "erasures")) {
      for (const { orgId } of [acme, other]) {
        const rows = await database.read(orgId, async (tx) => {
          const result = await sql<{ org_id: string }>`select org_id from ${sql.table(table)}`.execute(tx);
          return result.rows;
        });
        expect(rows.length, table).toBeGreaterThan(0);
        expect(new Set(rows.map((row) => row.org_id)), table).toEqual(new Set([orgId]));
      }
    }
  });

  it("changes nothing of another's, and writes nothing into it", async () => {
    for (const table of await tenantTables()) {
      const { numAffectedRows } = await database.write(testCall(acme.orgId), (tx) =>
        sql`delete from ${sql.table(table)} where org_id = ${other.orgId}`.execute(tx),
      );
      expect(numAffectedRows, table).toBe(0n);
    }
    const forged = database.write(testCall(acme.orgId), (tx) =>
      tx
        .insertInto("members")
        .values({
          org_id: other.orgId,
          id: newId("usr"),
          email: "intruder@example.com",
          role: 3,
          state: 2,
          create_time: new Date(),
          update_time: new Date(),
          invitation_digest: null,
          invitation_expire_time: null,
        })
        .execute(),
    );
    await expect(forged).rejects.toMatchObject({ code: "42501" });
  });

  it("keeps keys, subscribers and set-up codes from the tenants' role", async () => {
    for (const table of [
      "signing_keys",
      "revocation_subscribers",
      "set_up_codes",
      "license_signing_keys",
      "edge_authorities",
    ]) {
      const read = database.read(acme.orgId, (tx) => sql`select 1 from ${sql.table(table)}`.execute(tx));
      await expect(read, table).rejects.toMatchObject({ code: "42501" });
    }
  });
});

describe("readForIssue", () => {
  it("keeps a deletion from beginning until what is being issued is committed", async () => {
    const events: string[] = [];
    let release: () => void = () => undefined;
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    let locked: () => void = () => undefined;
    const isLocked = new Promise<void>((resolve) => {
      locked = resolve;
    });
    const issuing = database.write(testCall(other.orgId), async (tx) => {
      await readForIssue(tx, other.orgId);
      locked();
      await held;
      events.push("issued");
    });
    await isLocked;
    const deleting = database.system(async (tx) => {
      await sql`select 1 from organizations where org_id = ${other.orgId} for update`.execute(tx);
      events.push("deleting");
      await tx
        .updateTable("organizations")
        .set({ delete_time: new Date() })
        .where("org_id", "=", other.orgId)
        .execute();
    });
    release();
    await Promise.all([issuing, deleting]);
    expect(events).toEqual(["issued", "deleting"]);
    const refused = await database
      .write(testCall(other.orgId), (tx) => readForIssue(tx, other.orgId))
      .catch((error: unknown) => error);
    expect(reasonOf(refused)).toBe(Reason.CREDENTIAL_REVOKED);
  });
});
