import { create } from "@bufbuild/protobuf";
import { durationFromMs, durationMs, timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { callOf, withOrganization } from "@octomesh/mesh/call-context";
import { fail, Reason } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { digestToken, parseToken } from "@octomesh/mesh/opaque-token";
import { WatchRevocationsResponse_Revocation_Subject as Subject } from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { Member_State } from "@octomesh/proto/octomesh/identity/v1/member_pb";
import {
  Environment,
  type Organization,
  OrganizationSchema,
  Plan,
} from "@octomesh/proto/octomesh/identity/v1/organization_pb";
import type { OrganizationService } from "@octomesh/proto/octomesh/identity/v1/organization_service_pb";
import { Role } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import type { Dependencies } from "../dependencies.ts";
import { eraseOrganization } from "../erase-organization.ts";
import { revokeTimeFor } from "../issue-time.ts";
import { defaultDeviceTokenExpiryMs, maxAccessMs, revocationSlackMs } from "../lifetimes.ts";
import { beginSession, sessionTokens } from "../sessions.ts";
import { deleteSetUpCode } from "../set-up-code.ts";
import { lastLicenseExpiry } from "../store/edge-credentials.ts";
import { insertMember } from "../store/members.ts";
import {
  hasOrganization,
  insertOrganizations,
  lastIssueTime,
  lockOrganization,
  markDeleted,
  type OrganizationRow,
  readForIssue,
  readOrganization,
  updateOrganization,
} from "../store/organizations.ts";
import { deleteSetUpCodes, hasSetUpCode, lockSetUp } from "../store/set-up-codes.ts";
import { sessionMessage } from "./sessions.ts";

/**
 * Plan of an organisation that is set up here: whoever hosts the mesh has paid for it, so nothing is held back. The
 * lesser plans are for those who host it for others.
 */
const setUpPlan = Plan.ENTERPRISE;

/** OrganizationService. */
export function organizationRoutes(deps: Dependencies): ServiceImpl<typeof OrganizationService> {
  const { database, clock } = deps;
  return {
    async setUpOrganization(request, context) {
      if (parseToken(request.setupCode)?.prefix !== "edg_setup_") {
        throw fail(Reason.CREDENTIAL_MALFORMED, "the set-up code is not well formed");
      }
      const now = new Date(clock.now());
      const orgId = newId("org", now.getTime());
      const pairedId = newId("org", now.getTime());
      const memberId = newId("usr", now.getTime());
      const call = withOrganization(callOf(context), orgId);
      call.audit?.resource("organization", orgId, request.displayName);
      call.audit?.note("member_id", memberId);
      const common = {
        display_name: request.displayName,
        plan: setUpPlan,
        device_token_expiry_ms: defaultDeviceTokenExpiryMs,
        create_time: now,
        update_time: now,
        delete_time: null,
      };
      const { org, grant } = await database.systemWrite(call, async (tx) => {
        await lockSetUp(tx);
        if (await hasOrganization(tx)) throw fail(Reason.ALREADY_SET_UP, "the organisation exists already");
        if (!(await hasSetUpCode(tx, digestToken(request.setupCode)))) {
          throw fail(Reason.CREDENTIAL_UNKNOWN, "the set-up code is unknown");
        }
        await deleteSetUpCodes(tx);
        await insertOrganizations(tx, [
          { ...common, org_id: orgId, paired_id: pairedId, environment: Environment.LIVE },
          { ...common, org_id: pairedId, paired_id: orgId, environment: Environment.TEST },
        ]);
        const member = { id: memberId, role: Role.OWNER };
        await insertMember(tx, {
          ...member,
          org_id: orgId,
          email: request.ownerEmail.toLowerCase(),
          state: Member_State.ACTIVE,
          create_time: now,
          update_time: now,
          invitation_digest: null,
          invitation_expire_time: null,
        });
        const row = await readOrganization(tx, orgId);
        return { org: row, grant: await beginSession(deps, tx, row, member) };
      });
      deps.edgeBell.ring();
      await deleteSetUpCode(deps.stateDir);
      return {
        organization: organizationMessage(org),
        session: sessionMessage(grant, await sessionTokens(deps, grant)),
      };
    },

    async getOrganization(_request, context) {
      const { orgId } = callOf(context);
      return organizationMessage(await database.read(orgId, (tx) => readOrganization(tx, orgId)));
    },

    async updateOrganization(request, context) {
      const call = callOf(context);
      const { orgId } = call;
      const org = await database.write(call, async (tx) => {
        await readForIssue(tx, orgId);
        const before = await lockOrganization(tx, orgId);
        if (request.etag !== "" && request.etag !== etagOf(before)) {
          throw fail(Reason.ETAG_MISMATCH, "the organisation changed since it was read", { etag: etagOf(before) });
        }
        return await updateOrganization(tx, orgId, {
          displayName: request.displayName,
          deviceTokenExpiryMs:
            request.deviceTokenExpiry === undefined ? undefined : durationMs(request.deviceTokenExpiry),
          now: new Date(clock.now()),
        });
      });
      call.audit?.resource("organization", orgId, org.display_name);
      return organizationMessage(org);
    },

    async deleteOrganization(request, context) {
      const call = callOf(context);
      const { orgId } = call;
      const { org, recorded } = await database.systemWrite(call, async (tx) => {
        const row = await lockOrganization(tx, orgId);
        if (row.environment !== Environment.LIVE) {
          throw fail(Reason.ILLEGAL_TRANSITION, "a sandbox is deleted with its live organisation", { id: orgId });
        }
        if (request.confirmation !== row.display_name) {
          throw fail(Reason.CONFIRMATION_MISMATCH, "the confirmation is not the organisation's name");
        }
        call.audit?.resource("organization", orgId, row.display_name);
        const orgIds = [orgId, row.paired_id];
        // Whoever calls again after a failure has a session of after the revocation: it must not end a second time.
        if (row.delete_time !== null) return { org: row, recorded: undefined };
        await lockOrganization(tx, row.paired_id);
        const now = clock.now();
        await markDeleted(tx, orgIds, new Date(now));
        const lastIssue = await lastIssueTime(tx, orgIds);
        const revokeTime = revokeTimeFor(now, lastIssue === undefined ? [] : [lastIssue]);
        const lastLicense = await lastLicenseExpiry(tx, orgIds);
        const forgetTime = new Date(
          Math.max(revokeTime.getTime() + maxAccessMs, lastLicense?.getTime() ?? 0) + revocationSlackMs,
        );
        const subject = Subject.ORGANIZATION;
        return {
          org: row,
          recorded: await deps.revocations.record(
            tx,
            ...orgIds.map((id) => ({ subject, orgId: id, id, revokeTime, forgetTime })),
          ),
        };
      });
      await deps.revocations.settle(recorded);
      const proof = await eraseOrganization(deps, { orgId, pairedId: org.paired_id });
      return {
        erasures: proof.map(({ service, erased, remaining }) => ({
          service,
          erased: Object.fromEntries(Object.entries(erased).map(([table, count]) => [table, BigInt(count)])),
          remaining,
        })),
      };
    },
  };
}

/** An organisation as the contract shows it. */
export function organizationMessage(row: OrganizationRow): Organization {
  return create(OrganizationSchema, {
    id: row.org_id,
    displayName: row.display_name,
    environment: row.environment,
    pairedId: row.paired_id,
    plan: row.plan,
    deviceTokenExpiry: durationFromMs(Number(row.device_token_expiry_ms)),
    createTime: timestampFromDate(row.create_time),
    updateTime: timestampFromDate(row.update_time),
    etag: etagOf(row),
  });
}

function etagOf(row: OrganizationRow): string {
  return `r${row.revision}`;
}
