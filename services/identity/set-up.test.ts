import { readFile, stat, writeFile } from "node:fs/promises";
import { Code } from "@connectrpc/connect";
import { Reason, reasonOf } from "@octomesh/mesh/errors";
import { digestToken, mintToken } from "@octomesh/mesh/opaque-token";
import { Environment, Plan } from "@octomesh/proto/octomesh/identity/v1/organization_pb";
import { OrganizationService } from "@octomesh/proto/octomesh/identity/v1/organization_service_pb";
import { SessionService } from "@octomesh/proto/octomesh/identity/v1/session_service_pb";
import { CallerKind, Role } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { sql } from "kysely";
import { describe, expect, it } from "vitest";
import { ensureSetUpCode, setUpCodePath } from "./set-up-code.ts";
import { refusalOf, startTestIdentity } from "./test/identity-fixture.ts";

const identity = await startTestIdentity();
/** The owner's token, once the organisation is set up. */
const owner = { accessToken: "" };
const organizations = identity.client(OrganizationService, "public");

describe("the first start", () => {
  it("leaves a set-up code in a file that only its owner reads, and its digest in the database", async () => {
    const path = setUpCodePath(identity.stateDir);
    expect((await stat(path)).mode & 0o777).toBe(0o600);
    const code = await identity.setUpCode();
    expect(code).toMatch(/^edg_setup_[0-9A-Za-z]{28}$/);
    const rows = await identity.database.system((tx) => tx.selectFrom("set_up_codes").selectAll().execute());
    expect(rows.map((row) => row.digest)).toEqual([digestToken(code)]);
  });

  it("keeps the code over a restart, and makes another when the file is gone or spoilt", async () => {
    const options = { database: identity.database, stateDir: identity.stateDir, now: new Date() };
    const before = await identity.setUpCode();
    expect(await ensureSetUpCode(options)).toBe("waiting");
    expect(await identity.setUpCode()).toBe(before);
    await writeFile(setUpCodePath(identity.stateDir), "edg_setup_spoilt\n");
    expect(await ensureSetUpCode(options)).toBe("waiting");
    expect(await identity.setUpCode()).not.toBe(before);
  });
});

describe("SetUpOrganization", () => {
  const request = { displayName: "Acme", ownerEmail: "Owner@Example.com" };

  it("refuses what is no code and a code that was never made", async () => {
    const refusal = (setupCode: string) => refusalOf(organizations.setUpOrganization({ ...request, setupCode }));
    expect(await refusal("edg_setup_nonsense")).toBe(Reason.CREDENTIAL_MALFORMED);
    expect(await refusal(mintToken("edg_setup_"))).toBe(Reason.CREDENTIAL_UNKNOWN);
    expect(await refusal(mintToken("edg_live_"))).toBe(Reason.CREDENTIAL_MALFORMED);
  });

  it("makes one organisation, its sandbox and its owner, of many calls at once", async () => {
    const setupCode = await identity.setUpCode();
    const answers = await Promise.allSettled(
      Array.from({ length: 10 }, () => organizations.setUpOrganization({ ...request, setupCode })),
    );
    const done = answers.filter((answer) => answer.status === "fulfilled");
    const refused = answers.filter((answer) => answer.status === "rejected");
    expect(done.length).toBe(1);
    expect(refused.map((answer) => reasonOf(answer.reason))).toEqual(Array(9).fill(Reason.ALREADY_SET_UP));
    const { organization, session } = done[0]?.value ?? {};
    expect(organization).toMatchObject({
      displayName: "Acme",
      environment: Environment.LIVE,
      plan: Plan.ENTERPRISE,
      deviceTokenExpiry: { seconds: 86_400n, nanos: 0 },
      etag: "r1",
    });
    owner.accessToken = session?.accessToken ?? "";
    const bearer = owner.accessToken;
    const caller = await identity.client(SessionService, { bearer }).getCaller({});
    expect(caller).toMatchObject({
      kind: CallerKind.SESSION,
      orgId: organization?.id,
      id: session?.memberId,
      role: Role.OWNER,
      member: { email: "owner@example.com", role: Role.OWNER },
    });
    const sandbox = await identity.database.read(organization?.pairedId ?? "", (tx) =>
      tx.selectFrom("organizations").selectAll().execute(),
    );
    expect(sandbox).toMatchObject([{ environment: Environment.TEST, paired_id: organization?.id }]);
  });

  it("leaves no code behind, neither file nor digest, and makes none again", async () => {
    await expect(readFile(setUpCodePath(identity.stateDir))).rejects.toMatchObject({ code: "ENOENT" });
    const options = { database: identity.database, stateDir: identity.stateDir, now: new Date() };
    expect(await ensureSetUpCode(options)).toBe("none");
    await expect(readFile(setUpCodePath(identity.stateDir))).rejects.toMatchObject({ code: "ENOENT" });
    const rows = await identity.database.system((tx) => tx.selectFrom("set_up_codes").selectAll().execute());
    expect(rows).toEqual([]);
  });

  it("writes one audit event, in the organisation that it made", async () => {
    const { rows } = await auditEvents("organization.set_up");
    expect(rows).toMatchObject([{ actor_kind: "public", resource_type: "organization", outcome: "success" }]);
  });

  it("never logs the code, the address or a token", () => {
    const secret = /edg_[a-z]+_[0-9A-Za-z]{28}|eyJ[\w-]+\.eyJ|example\.com/i;
    expect(identity.logged.find((line) => secret.test(line))).toBeUndefined();
  });
});

describe("UpdateOrganization", () => {
  it("changes name and settings, and refuses an old etag", async () => {
    const client = identity.client(OrganizationService, { bearer: owner.accessToken });
    const before = await client.getOrganization({});
    const after = await client.updateOrganization({
      etag: before.etag,
      displayName: "Acme Robotics",
      deviceTokenExpiry: { seconds: 172_800n, nanos: 0 },
    });
    expect(after).toMatchObject({ displayName: "Acme Robotics", deviceTokenExpiry: { seconds: 172_800n }, etag: "r2" });
    expect(await refusalOf(client.updateOrganization({ etag: before.etag, displayName: "Late" }))).toBe(
      Reason.ETAG_MISMATCH,
    );
    const tooLong = client.updateOrganization({ deviceTokenExpiry: { seconds: 2_592_001n, nanos: 0 } });
    await expect(tooLong).rejects.toMatchObject({ code: Code.InvalidArgument });
    expect((await client.getOrganization({ id: "-" })).displayName).toBe("Acme Robotics");
  });
});

async function auditEvents(action: string) {
  return await identity.database.system((tx) => sql`select * from audit_outbox where action = ${action}`.execute(tx));
}
