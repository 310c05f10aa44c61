import { Reason } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { DeviceCredentialService } from "@octomesh/proto/octomesh/identity/v1/device_credential_service_pb";
import { OrganizationService } from "@octomesh/proto/octomesh/identity/v1/organization_service_pb";
import { describe, expect, it } from "vitest";
import { deviceRefreshMs } from "./lifetimes.ts";
import { keepHouse, resumeErasures } from "./maintenance.ts";
import { refusalOf, startTestIdentity } from "./test/identity-fixture.ts";

const identity = await startTestIdentity();
const acme = await identity.setUp();

describe("keepHouse", () => {
  it("deletes what expired long ago, its refresh tokens too, and nothing else", async () => {
    const registry = identity.client(DeviceCredentialService, { peer: "device-registry", actsFor: acme.orgId });
    const issue = () =>
      registry.issueDeviceCredential({
        deviceId: newId("dev"),
        deviceIdentifier: "d",
        registrationId: newId("reg"),
      });
    const old = await issue();
    identity.time.offsetMs = deviceRefreshMs + 29 * 86_400_000;
    const young = await issue();
    const left = () =>
      identity.database.read(acme.orgId, async (tx) => {
        const credentials = await tx.selectFrom("device_credentials").select("id").orderBy("id").execute();
        const tokens = await tx
          .selectFrom("refresh_tokens")
          .select("family_id as id")
          .where("family_id", "like", "crd_%")
          .orderBy("id")
          .execute();
        return { credentials: credentials.map((row) => row.id), tokens: tokens.map((row) => row.id) };
      });
    await keepHouse(identity.dependencies);
    expect((await left()).credentials).toContain(old.credential?.id);
    identity.time.offsetMs += 2 * 86_400_000;
    await keepHouse(identity.dependencies);
    const ids = [young.credential?.id];
    expect(await left()).toEqual({ credentials: ids, tokens: ids });
    identity.time.offsetMs = 0;
  });
});

describe("resumeErasures", () => {
  it("finishes by itself what a failure stopped", async () => {
    const org = await identity.addOrganization("Fragile");
    const rollout = identity.siblings.get("rollout");
    if (rollout === undefined) throw new Error("rollout is a sibling");
    rollout.isAway = true;
    const owner = identity.client(OrganizationService, { bearer: org.session.accessToken });
    expect(await refusalOf(owner.deleteOrganization({ confirmation: "Fragile" }))).toBe(Reason.DEPENDENCY_UNAVAILABLE);
    await resumeErasures(identity.dependencies);
    const left = () =>
      identity.database.system((tx) =>
        tx.selectFrom("organizations").select("org_id").where("org_id", "in", [org.orgId, org.testOrgId]).execute(),
      );
    expect((await left()).length).toBe(2);
    rollout.isAway = false;
    await resumeErasures(identity.dependencies);
    expect(await left()).toEqual([]);
  });
});
