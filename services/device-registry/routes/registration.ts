import { createHash } from "node:crypto";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type ServiceImpl } from "@connectrpc/connect";
import type { Call } from "@octomesh/mesh/call";
import { callOf } from "@octomesh/mesh/call-context";
import { fail, Reason, reasonOf } from "@octomesh/mesh/errors";
import type { DeviceService, RegisterDeviceRequest } from "@octomesh/proto/octomesh/device/v1/device_service_pb";
import type { IssueDeviceCredentialResponse } from "@octomesh/proto/octomesh/identity/v1/device_credential_service_pb";
import { deviceMessage } from "../device.ts";
import { minClientKeyLength, type RefusalCause, registrationGraceMs } from "../registration.ts";
import type { ServiceContext } from "../service-context.ts";
import { assertStorable } from "../store/database-text.ts";
import type { Reservation } from "../store/registrations.ts";

const issueTimeoutMs = 10_000;

/**
 * RegisterDevice, in steps each of which a retry finds again: the registration is written down here, identity issues
 * its credential, the registration is completed here, and only then is anyone answered.
 */
export function registrationRoutes(context: ServiceContext): Pick<ServiceImpl<typeof DeviceService>, "registerDevice"> {
  const { store, clock, credentials, manifestKeys, delegated, heartbeatIntervalMs } = context;

  const abandon = async (call: Call, reservation: Reservation & { kind: "proceed" }): Promise<void> => {
    const { deviceId, registrationId } = reservation;
    await store.registrations.abandon(call.orgId, deviceId, registrationId).catch((error: unknown) => {
      // It lapses by itself.
      call.log.warn({ err: error, device_id: deviceId }, "a refused registration was not given up");
    });
  };

  const issue = async (
    call: Call,
    request: RegisterDeviceRequest,
    reservation: Reservation & { kind: "proceed" },
  ): Promise<IssueDeviceCredentialResponse> => {
    const { deviceId, registrationId } = reservation;
    return await credentials.issueDeviceCredential(
      {
        deviceId,
        deviceIdentifier: request.deviceIdentifier,
        bootstrapTokenId: call.caller.kind === "bootstrap" ? call.caller.id : "",
        clientKey: request.clientKey,
        registrationId,
      },
      { ...delegated(call), timeoutMs: issueTimeoutMs },
    );
  };

  return {
    async registerDevice(request, handlerContext) {
      const call = callOf(handlerContext);
      const description = descriptionOf(request);
      const { labels, platform: _, ...texts } = description;
      assertStorable({ device_identifier: request.deviceIdentifier, ...texts });
      assertStorable(Object.fromEntries(Object.entries(labels).map(([key, value]) => ["labels", key + value])));

      // Before anything is written: a device without these keys could not trust any model.
      const keys = await manifestKeys.get(call.orgId);
      const keyDigest = clientKeyDigest(call.orgId, request.clientKey);
      const attempt = { tokenId: call.caller.id, keyDigest, time: clock.now() };
      const reservation = await store.registrations.reserve(call.orgId, request.deviceIdentifier, attempt);
      if (reservation.kind === "refuse") throw refusal(reservation.cause);
      if (reservation.kind === "busy") throw busy();

      let issued: IssueDeviceCredentialResponse;
      try {
        issued = await issue(call, request, reservation);
      } catch (error) {
        // Without a client key nobody can carry the registration on, so it must not stand in anyone's way.
        if (!reservation.repeated && (keyDigest === undefined || isRefusal(error))) await abandon(call, reservation);
        throw error;
      }

      call.audit?.resource("device", reservation.deviceId, request.deviceIdentifier);
      const completion = await store.registrations.complete(call, {
        deviceId: reservation.deviceId,
        registrationId: reservation.registrationId,
        description,
        approvalRequired: issued.approvalRequired,
        groupIds: issued.groupIds,
      });
      if (completion.kind === "revoked") {
        await credentials.revokeDeviceCredentials(
          { deviceId: reservation.deviceId },
          { ...delegated(call), timeoutMs: issueTimeoutMs },
        );
        throw refusal("revoked");
      }
      if (completion.kind === "overtaken") throw refusal("taken");
      return {
        device: deviceMessage(completion.device, { nowMs: clock.now(), heartbeatIntervalMs }),
        credential: issued.credential,
        manifestKeys: [...keys],
        heartbeatInterval: durationFromMs(heartbeatIntervalMs),
      };
    },
  };
}

/**
 * The digest by which a client key is recognised; undefined for one that is too short to prove anything. The key is
 * random, so the digest needs no secret, and stays what it is when the master key changes.
 */
export function clientKeyDigest(orgId: string, clientKey: string): Buffer | undefined {
  if (clientKey.length < minClientKeyLength) return undefined;
  return createHash("sha256").update(`octomesh client key\0${orgId}\0${clientKey}`).digest();
}

function descriptionOf(request: RegisterDeviceRequest) {
  const { displayName, platform, osVersion, sdkVersion, appVersion, manufacturer, hardwareModel, labels } = request;
  return { displayName, platform, osVersion, sdkVersion, appVersion, manufacturer, hardwareModel, labels };
}

const refusalTexts: Record<RefusalCause, string> = {
  taken: "the device identifier is taken: a member must allow its re-enrolment",
  under_way: "another installation is registering this device identifier",
  revoked: "the device was revoked: a member must allow its re-enrolment",
};

function refusal(cause: RefusalCause): ConnectError {
  const retryAfterMs = cause === "under_way" ? registrationGraceMs : undefined;
  return fail(Reason.REENROLMENT_NOT_GRANTED, refusalTexts[cause], { cause }, { retryAfterMs });
}

function busy(): ConnectError {
  return fail(
    Reason.TRANSACTION_CONFLICT,
    "the same registration is under way: repeat the call",
    {},
    { retryAfterMs: 1000 },
  );
}

const refusalCodes: ReadonlySet<Code> = new Set([
  Code.InvalidArgument,
  Code.NotFound,
  Code.AlreadyExists,
  Code.PermissionDenied,
  Code.Unauthenticated,
  Code.FailedPrecondition,
  Code.OutOfRange,
]);

/** Whether identity said no for good, rather than failing to answer. */
function isRefusal(error: unknown): boolean {
  if (!(error instanceof ConnectError)) return false;
  return refusalCodes.has(error.code) || reasonOf(error) === Reason.QUOTA_EXCEEDED;
}
