import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ConnectRouter, HandlerContext } from "@connectrpc/connect";
import { delegateHeader, parseDelegation } from "@octomesh/mesh/delegation";
import { fail, Reason } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { DeviceCredentialService } from "@octomesh/proto/octomesh/identity/v1/device_credential_service_pb";

/** A bootstrap token of the fake. */
export interface FakeToken {
  readonly orgId: string;
  readonly maxUses: number;
  readonly approvalRequired: boolean;
  readonly groupIds: readonly string[];
  uses: number;
}

/** A family of credentials of the fake. */
export interface FakeFamily {
  readonly id: string;
  readonly orgId: string;
  readonly deviceId: string;
  readonly registrationId: string;
  readonly clientKey: string;
  readonly refreshToken: string;
  revoked: boolean;
}

/** Identity as this service sees it: issues once per registration, repeats it for the same client key,
 * cuts off the installation before, revokes. */
export interface FakeIdentity {
  readonly families: FakeFamily[];
  addToken(token: {
    orgId: string;
    maxUses?: number;
    approvalRequired?: boolean;
    groupIds?: readonly string[];
  }): string;
  /** Does the next issue, and then fails as if the answer were lost. */
  loseNextAnswer(): void;
  /** Runs before each issue answers. */
  beforeIssue(hook: () => Promise<void>): void;
  /** Runs once after the next revocation, before it answers. */
  afterNextRevocation(hook: () => Promise<void>): void;
  live(deviceId: string): FakeFamily[];
  routes(router: ConnectRouter): void;
}

/** Makes the fake. */
export function fakeIdentity(): FakeIdentity {
  const tokens = new Map<string, FakeToken>();
  const families: FakeFamily[] = [];
  let lose = false;
  let hook = async (): Promise<void> => {};
  let afterRevocation: (() => Promise<void>) | undefined;

  const organizationOf = (context: HandlerContext): string => {
    const delegation = parseDelegation(context.requestHeader.get(delegateHeader) ?? "");
    if (delegation === undefined) throw fail(Reason.CREDENTIAL_MISSING, "the call is not delegated");
    return delegation.orgId;
  };

  return {
    families,
    addToken({ orgId, maxUses = 1, approvalRequired = false, groupIds = [] }) {
      const id = newId("btk");
      tokens.set(id, { orgId, maxUses, approvalRequired, groupIds, uses: 0 });
      return id;
    },
    loseNextAnswer() {
      lose = true;
    },
    beforeIssue(next) {
      hook = next;
    },
    afterNextRevocation(next) {
      afterRevocation = next;
    },
    live: (deviceId) => families.filter((family) => family.deviceId === deviceId && !family.revoked),
    routes(router) {
      router.service(DeviceCredentialService, {
        async issueDeviceCredential(request, context) {
          const orgId = organizationOf(context);
          await hook();
          const token = tokens.get(request.bootstrapTokenId);
          if (request.bootstrapTokenId !== "" && token?.orgId !== orgId) {
            throw fail(Reason.CREDENTIAL_UNKNOWN, "there is no such token");
          }
          let family = families.find(
            ({ deviceId, registrationId }) =>
              deviceId === request.deviceId && registrationId === request.registrationId,
          );
          if (family === undefined) {
            if (token !== undefined && token.uses >= token.maxUses) {
              throw fail(Reason.CREDENTIAL_USED, "the token was used");
            }
            if (token !== undefined) token.uses += 1;
            // A new registration cuts off the installation before it.
            for (const each of families) if (each.deviceId === request.deviceId) each.revoked = true;
            family = {
              id: newId("crd"),
              orgId,
              deviceId: request.deviceId,
              registrationId: request.registrationId,
              clientKey: request.clientKey,
              refreshToken: `edg_refresh_${families.length}`,
              revoked: false,
            };
            families.push(family);
          } else if (family.revoked || family.clientKey !== request.clientKey) {
            throw fail(Reason.CREDENTIAL_USED, "the registration was answered before");
          }
          if (lose) {
            lose = false;
            throw fail(Reason.SERVICE_UNAVAILABLE, "the answer is lost");
          }
          return {
            credential: {
              id: family.id,
              deviceId: family.deviceId,
              orgId,
              accessToken: `access ${family.id}`,
              refreshToken: family.refreshToken,
              expireTime: timestampFromMs(Date.now() + 86_400_000),
            },
            approvalRequired: token?.approvalRequired ?? false,
            groupIds: [...(token?.groupIds ?? [])],
          };
        },
        async revokeDeviceCredentials(request, context) {
          const orgId = organizationOf(context);
          const live = families.filter(
            (family) => family.orgId === orgId && family.deviceId === request.deviceId && !family.revoked,
          );
          for (const family of live) family.revoked = true;
          const next = afterRevocation;
          afterRevocation = undefined;
          await next?.();
          return { revoked: live.length };
        },
      });
    },
  };
}
