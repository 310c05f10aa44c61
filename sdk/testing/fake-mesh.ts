import { createHash, generateKeyPairSync, type KeyObject, randomBytes, sign } from "node:crypto";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { create, toBinary } from "@bufbuild/protobuf";
import { durationFromMs, durationMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type ConnectRouter, cors, type HandlerContext } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { ErrorInfoSchema, RetryInfoSchema } from "@octomesh/proto/google/rpc/error_details_pb";
import {
  type DesiredState_DesiredModel,
  DesiredStateSchema,
} from "@octomesh/proto/octomesh/device/v1/desired_state_pb";
import { Device_State } from "@octomesh/proto/octomesh/device/v1/device_pb";
import { DeviceService, type ReportObservedStateRequest } from "@octomesh/proto/octomesh/device/v1/device_service_pb";
import { DeviceCredentialService } from "@octomesh/proto/octomesh/identity/v1/device_credential_service_pb";
import { SessionService } from "@octomesh/proto/octomesh/identity/v1/session_service_pb";
import { ManifestSchema } from "@octomesh/proto/octomesh/model/v1/manifest_pb";
import { ModelService } from "@octomesh/proto/octomesh/model/v1/model_service_pb";
import {
  type ReportTelemetryRequest_Report,
  TelemetryService,
} from "@octomesh/proto/octomesh/telemetry/v1/telemetry_service_pb";
import type { ReasonName } from "../reason.ts";

/** A version that the fake mesh can put on devices. */
export interface FakeVersion {
  modelId: string;
  modelName: string;
  version: string;
  versionId: string;
  artifactId: string;
  bytes: Uint8Array;
  sha256: string;
  manifest: Uint8Array;
  signature: Uint8Array;
}

/** What can be told to go wrong, and for how often. */
export interface FakeFaults {
  /** Refuses that many registrations with RATE_LIMITED. */
  throttledRegistrations: number;
  /** Loses the answers of that many registrations: they happen, and the connection is cut. */
  lostRegistrations: number;
  /** Loses the answers of that many refreshes. */
  lostRefreshes: number;
  /** Answers that many calls of ListModels with UNAVAILABLE. */
  unavailableLists: number;
  /** Cuts one download after each of these numbers of bytes. */
  cutDownloads: number[];
  /** Answers that many downloads with 429 and Retry-After: 0. */
  throttledDownloads: number;
  /** Answers 403 to downloads with grants from before this generation. */
  grantGeneration: number;
  /** Serves no streams. */
  withoutStreams: boolean;
  /** Sends these bytes in place of the artifact. */
  substitutedBytes: Uint8Array | undefined;
  /** Refuses that many batches of telemetry with RATE_LIMITED. */
  throttledTelemetry: number;
  /** Stores that many batches of telemetry, and loses the answer. */
  lostTelemetry: number;
  /** Refuses batches that hold a report for which this is true. */
  isPoison: ((report: ReportTelemetryRequest_Report) => boolean) | undefined;
  /** New devices wait for approval. */
  approvalRequired: boolean;
}

interface FakeDevice {
  id: string;
  identifier: string;
  clientKey: string;
  state: Device_State;
  generation: number;
  accessTokens: Map<string, number>;
  refreshTokens: string[];
}

/** A mesh in one process that keeps the contract for what the SDK does with it: real HTTP, real tokens, real signatures. */
export type FakeMesh = Awaited<ReturnType<typeof startFakeMesh>>;

const orgId = "org_aaaaaaaaaaaaaaaaaaaaaaaaaa";
const alphabet = "abcdefghijklmnopqrstuvwxyz234567";

/** Makes an id of the contract's form. */
export function fakeId(prefix: string): string {
  return `${prefix}_${Array.from(randomBytes(26), (byte) => alphabet[byte & 31]).join("")}`;
}

/** An error as the mesh makes it. */
export function refusal(code: Code, reason: ReasonName, retryAfterMs?: number, metadata = {}): ConnectError {
  const error = new ConnectError(reason.toLowerCase(), code);
  error.details.push({
    desc: ErrorInfoSchema,
    value: create(ErrorInfoSchema, { reason, domain: "octomesh", metadata }),
  });
  if (retryAfterMs !== undefined) {
    const value = create(RetryInfoSchema, { retryDelay: durationFromMs(retryAfterMs) });
    error.details.push({ desc: RetryInfoSchema, value });
  }
  return error;
}

/** Starts a fake mesh on a port of the kernel's choice. */
export async function startFakeMesh(
  settings: { accessTokenMs?: number; heartbeatMs?: number; pollMs?: number; allowedOrigin?: string } = {},
) {
  const keys = generateKeyPairSync("ed25519");
  const keyId = fakeId("mky");
  const faults: FakeFaults = {
    throttledRegistrations: 0,
    lostRegistrations: 0,
    lostRefreshes: 0,
    unavailableLists: 0,
    cutDownloads: [],
    throttledDownloads: 0,
    grantGeneration: 0,
    withoutStreams: false,
    substitutedBytes: undefined,
    throttledTelemetry: 0,
    lostTelemetry: 0,
    isPoison: undefined,
    approvalRequired: false,
  };
  const calls = new Map<string, number>();
  const requestIds: string[] = [];
  const ranges: (string | undefined)[] = [];
  const sources: (string | undefined)[] = [];
  const devices = new Map<string, FakeDevice>();
  const bootstrapTokens = new Map<string, string | undefined>();
  const artifacts = new Map<string, FakeVersion>();
  const observed = new Map<string, ReportObservedStateRequest>();
  const batches = new Map<string, ReportTelemetryRequest_Report[]>();
  const sessions = { accessToken: "session-1", refreshToken: "edg_session_1", generation: 1, isRevoked: false };
  let duplicates = 0;
  let desired: FakeVersion[] = [];
  let revision = 0;
  let changed = deferred();
  let grants = 0;
  let clockOffsetMs = 0;
  const now = () => Date.now() + clockOffsetMs;

  const count = (name: string) => calls.set(name, (calls.get(name) ?? 0) + 1);

  function issue(device: FakeDevice) {
    device.generation++;
    const accessToken = `access.${device.id}.${device.generation}`;
    const expireTimeMs = now() + (settings.accessTokenMs ?? 86_400_000);
    device.accessTokens.set(accessToken, expireTimeMs);
    device.refreshTokens.push(`edg_refresh_${device.id}_${device.generation}`);
    return credentialOf(device);
  }

  function credentialOf(device: FakeDevice) {
    const accessToken = `access.${device.id}.${device.generation}`;
    return {
      id: fakeId("crd"),
      deviceId: device.id,
      orgId,
      accessToken,
      expireTime: timestampFromMs(device.accessTokens.get(accessToken) ?? 0),
      refreshToken: device.refreshTokens.at(-1) ?? "",
      refreshExpireTime: timestampFromMs(now() + 30 * 86_400_000),
    };
  }

  function deviceOf(authorization: string | null): FakeDevice {
    const token = authorization?.replace(/^Bearer /, "") ?? "";
    const device = [...devices.values()].find((candidate) => candidate.accessTokens.has(token));
    if (device === undefined) throw refusal(Code.Unauthenticated, "CREDENTIAL_UNKNOWN");
    if (device.state === Device_State.REVOKED) throw refusal(Code.Unauthenticated, "CREDENTIAL_REVOKED");
    if ((device.accessTokens.get(token) ?? 0) <= now()) throw refusal(Code.Unauthenticated, "CREDENTIAL_EXPIRED");
    if (device.state === Device_State.AWAITING_APPROVAL) throw refusal(Code.PermissionDenied, "DEVICE_NOT_ACTIVE");
    return device;
  }

  function self(id: string, ctx: HandlerContext): FakeDevice {
    const device = deviceOf(ctx.requestHeader.get("authorization"));
    if (device.id !== id) throw refusal(Code.PermissionDenied, "NOT_SELF");
    return device;
  }

  function desiredModel(version: FakeVersion): Partial<DesiredState_DesiredModel> {
    const { modelId, modelName, versionId, manifest, signature, artifactId } = version;
    return {
      modelId,
      modelName,
      version: version.version,
      versionId,
      rolloutId: "rol_aaaaaaaaaaaaaaaaaaaaaaaaaa",
      manifest,
      signature,
      keyId,
      downloadPath: `/api/v1/artifacts/${artifactId}/content`,
      downloadGrant: `grant-${++grants}-${faults.grantGeneration}`,
    };
  }

  function desiredState(deviceId: string) {
    return create(DesiredStateSchema, {
      deviceId,
      etag: `e${revision}`,
      createTime: timestampFromMs(now()),
      models: desired.map((version) => desiredModel(version) as DesiredState_DesiredModel),
      pollInterval: durationFromMs(settings.pollMs ?? 1_000),
    });
  }

  async function waitForChange(etag: string, ms: number, signal: AbortSignal) {
    const timeout = AbortSignal.any([signal, AbortSignal.timeout(ms)]);
    while (`e${revision}` === etag && !timeout.aborted) {
      await Promise.race([
        changed.promise,
        new Promise((resolve) => timeout.addEventListener("abort", resolve, { once: true })),
      ]);
    }
  }

  function routes(router: ConnectRouter) {
    router.service(DeviceService, {
      async registerDevice(request, ctx) {
        count("register");
        if (faults.throttledRegistrations > 0) {
          faults.throttledRegistrations--;
          throw refusal(Code.ResourceExhausted, "RATE_LIMITED", 50);
        }
        const token = ctx.requestHeader.get("authorization")?.replace(/^Bearer /, "") ?? "";
        if (!bootstrapTokens.has(token)) throw refusal(Code.Unauthenticated, "CREDENTIAL_UNKNOWN");
        const usedBy = bootstrapTokens.get(token);
        let device = devices.get(request.deviceIdentifier);
        const isRetry = device !== undefined && device.clientKey === request.clientKey && usedBy === device.id;
        if (usedBy !== undefined && !isRetry) throw refusal(Code.Unauthenticated, "CREDENTIAL_USED");
        if (device !== undefined && !isRetry && device.state !== Device_State.REVOKED) {
          throw refusal(Code.FailedPrecondition, "REENROLMENT_NOT_GRANTED");
        }
        if (device === undefined || !isRetry) {
          device = {
            id: fakeId("dev"),
            identifier: request.deviceIdentifier,
            clientKey: request.clientKey,
            state: faults.approvalRequired ? Device_State.AWAITING_APPROVAL : Device_State.ACTIVE,
            generation: 0,
            accessTokens: new Map(),
            refreshTokens: [],
          };
          devices.set(request.deviceIdentifier, device);
          bootstrapTokens.set(token, device.id);
          issue(device);
        }
        if (faults.lostRegistrations > 0) {
          faults.lostRegistrations--;
          throw new LostAnswer();
        }
        const { publicKey } = keys;
        const rawKey = Buffer.from(publicKey.export({ format: "jwk" }).x as string, "base64url");
        return {
          device: { id: device.id, orgId, deviceIdentifier: device.identifier, state: device.state },
          credential: credentialOf(device),
          manifestKeys: [{ id: keyId, publicKey: new Uint8Array(rawKey) }],
          heartbeatInterval: durationFromMs(settings.heartbeatMs ?? 60_000),
        };
      },
      async heartbeat(request, ctx) {
        count("heartbeat");
        self(request.id, ctx);
        return {
          serverTime: timestampFromMs(now()),
          desiredStateEtag: `e${revision}`,
          heartbeatInterval: durationFromMs(settings.heartbeatMs ?? 60_000),
        };
      },
      async getDesiredState(request, ctx) {
        count("getDesiredState");
        self(request.id, ctx);
        if (request.wait !== undefined) await waitForChange(request.etag, durationMs(request.wait), ctx.signal);
        self(request.id, ctx);
        return desiredState(request.id);
      },
      async *watchDesiredState(request, ctx) {
        count("watchDesiredState");
        if (faults.withoutStreams) throw refusal(Code.Unimplemented, "NOT_IMPLEMENTED");
        let { etag } = request;
        while (!ctx.signal.aborted) {
          self(request.id, ctx);
          if (etag !== `e${revision}`) {
            etag = `e${revision}`;
            yield desiredState(request.id);
          }
          await waitForChange(etag, 50, ctx.signal);
        }
      },
      async reportObservedState(request, ctx) {
        count("reportObservedState");
        const device = self(request.id, ctx);
        const before = observed.get(device.id);
        const isNewer = before?.bootId !== request.bootId || before.sequence < request.sequence;
        if (isNewer) observed.set(device.id, request);
        return { applied: isNewer };
      },
    });
    router.service(DeviceCredentialService, {
      async refreshDeviceCredential(request) {
        count("refresh");
        const device = [...devices.values()].find((each) => each.refreshTokens.includes(request.refreshToken));
        if (device === undefined) throw refusal(Code.Unauthenticated, "CREDENTIAL_UNKNOWN");
        if (device.state === Device_State.REVOKED) throw refusal(Code.Unauthenticated, "CREDENTIAL_REVOKED");
        const place = device.refreshTokens.indexOf(request.refreshToken);
        const isLast = place === device.refreshTokens.length - 1;
        const isRetry = place === device.refreshTokens.length - 2 && device.clientKey === request.clientKey;
        if (!isLast && !isRetry) {
          device.state = Device_State.REVOKED;
          throw refusal(Code.Unauthenticated, "CREDENTIAL_REVOKED");
        }
        const credential = isLast ? issue(device) : credentialOf(device);
        if (faults.lostRefreshes > 0) {
          faults.lostRefreshes--;
          throw new LostAnswer();
        }
        return credential;
      },
    });
    router.service(TelemetryService, {
      async reportTelemetry(request, ctx) {
        count("reportTelemetry");
        const device = self(request.id, ctx);
        if (faults.throttledTelemetry > 0) {
          faults.throttledTelemetry--;
          throw refusal(Code.ResourceExhausted, "RATE_LIMITED", 30);
        }
        if (faults.isPoison && request.reports.some(faults.isPoison)) {
          throw refusal(Code.InvalidArgument, "VALIDATION_FAILED");
        }
        const name = `${device.id}/${request.bootId}/${request.sequence}`;
        const duplicate = batches.has(name);
        if (duplicate) duplicates++;
        else batches.set(name, request.reports);
        if (faults.lostTelemetry > 0) {
          faults.lostTelemetry--;
          throw new LostAnswer();
        }
        return { accepted: duplicate ? 0 : request.reports.length, duplicate };
      },
    });
    router.service(SessionService, {
      async refreshSession(request) {
        count("refreshSession");
        if (sessions.isRevoked || request.refreshToken !== sessions.refreshToken) {
          throw refusal(Code.Unauthenticated, "CREDENTIAL_REVOKED");
        }
        sessions.generation++;
        sessions.accessToken = `session-${sessions.generation}`;
        sessions.refreshToken = `edg_session_${sessions.generation}`;
        return {
          accessToken: sessions.accessToken,
          refreshToken: sessions.refreshToken,
          expireTime: timestampFromMs(now() + (settings.accessTokenMs ?? 86_400_000)),
        };
      },
    });
    router.service(ModelService, {
      async listModels(_request, ctx) {
        count("listModels");
        if (faults.unavailableLists > 0) {
          faults.unavailableLists--;
          throw refusal(Code.Unavailable, "SERVICE_UNAVAILABLE");
        }
        const token = ctx.requestHeader.get("authorization")?.replace(/^Bearer /, "");
        if (token === undefined) throw refusal(Code.Unauthenticated, "CREDENTIAL_MISSING");
        if (token.startsWith("session-") && token !== sessions.accessToken) {
          throw refusal(Code.Unauthenticated, "CREDENTIAL_EXPIRED");
        }
        if (token === "edg_test_narrow") {
          throw refusal(Code.PermissionDenied, "SCOPE_MISSING", undefined, { scope: "models:read" });
        }
        return { models: [{ id: fakeId("mdl"), name: "vad" }] };
      },
      async createModel(request) {
        count("createModel");
        requestIds.push(request.requestId);
        if (faults.unavailableLists > 0) {
          faults.unavailableLists--;
          throw refusal(Code.Unavailable, "SERVICE_UNAVAILABLE");
        }
        return { id: fakeId("mdl"), name: request.name };
      },
    });
  }

  const adapter = connectNodeAdapter({
    routes,
    interceptors: [
      (next) => async (request) => {
        try {
          return await next(request);
        } catch (error) {
          if (!(error instanceof LostAnswer)) throw error;
          sockets.get(request.header.get("x-socket") ?? "")?.destroy();
          throw new ConnectError("the answer is lost", Code.Aborted);
        }
      },
    ],
  });
  const sockets = new Map<string, IncomingMessage["socket"]>();
  let socketCount = 0;

  function download(request: IncomingMessage, response: ServerResponse): void {
    count("download");
    ranges.push(request.headers.range);
    sources.push(request.socket.remoteAddress);
    const artifact = artifacts.get((request.url ?? "").split("/")[4] ?? "");
    try {
      deviceOf(request.headers.authorization ?? null);
    } catch {
      response.writeHead(401).end();
      return;
    }
    if (faults.throttledDownloads > 0) {
      faults.throttledDownloads--;
      response.writeHead(429, { "retry-after": "0" }).end();
      return;
    }
    const grant = /^grant-\d+-(\d+)$/.exec(String(request.headers["octomesh-download-grant"] ?? ""));
    if (grant === null || Number(grant[1]) < faults.grantGeneration || artifact === undefined) {
      response.writeHead(403).end();
      return;
    }
    const bytes = faults.substitutedBytes ?? artifact.bytes;
    const etag = `"${artifact.sha256}"`;
    const range = /^bytes=(\d+)-$/.exec(request.headers.range ?? "");
    const isPartial = range !== null && request.headers["if-range"] === etag;
    const from = isPartial ? Number(range[1]) : 0;
    if (isPartial && from >= bytes.length) {
      response.writeHead(416, { "content-range": `bytes */${bytes.length}` }).end();
      return;
    }
    const body = bytes.subarray(from);
    response.writeHead(isPartial ? 206 : 200, {
      etag,
      "content-length": body.length,
      "accept-ranges": "bytes",
      ...(isPartial ? { "content-range": `bytes ${from}-${bytes.length - 1}/${bytes.length}` } : {}),
    });
    const cut = faults.cutDownloads.shift();
    if (cut === undefined || cut >= body.length) {
      response.end(body);
    } else {
      // Given time to be read: a browser drops what it has not handed to the page when a connection breaks.
      response.write(body.subarray(0, cut), () => setTimeout(() => request.socket.destroy(), 50));
    }
  }

  const server = createServer((request, response) => {
    if (request.headers.origin !== undefined && request.headers.origin === settings.allowedOrigin) {
      response.setHeader("access-control-allow-origin", settings.allowedOrigin);
      response.setHeader("access-control-expose-headers", [...cors.exposedHeaders, "etag", "content-range"].join());
    }
    if (request.method === "OPTIONS") {
      const own = ["authorization", "range", "if-range", "octomesh-download-grant"];
      response.setHeader("access-control-allow-methods", cors.allowedMethods.join());
      response.setHeader("access-control-allow-headers", [...cors.allowedHeaders, ...own].join());
      response.writeHead(204).end();
      return;
    }
    const name = String(++socketCount);
    sockets.set(name, request.socket);
    response.on("close", () => sockets.delete(name));
    request.headers["x-socket"] = name;
    if (/^\/api\/v1\/artifacts\/[^/]+\/content$/.test(request.url ?? "")) download(request, response);
    else adapter(request, response);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;

  return {
    url: `http://127.0.0.1:${port}`,
    port,
    orgId,
    keyId,
    faults,
    calls: (name: string) => calls.get(name) ?? 0,
    requestIds,
    /** The `Range` headers of downloads, in order. */
    ranges,
    sources,
    sessions,
    duplicates: () => duplicates,
    /** Reports that were stored, in no particular order of batches. */
    reports: () => [...batches.values()].flat(),
    batches,
    device: (identifier: string) => devices.get(identifier),
    observed: (identifier: string) => observed.get(devices.get(identifier)?.id ?? "")?.models ?? [],
    mintBootstrapToken() {
      const token = `edg_bootstrap_${randomBytes(14).toString("hex")}`;
      bootstrapTokens.set(token, undefined);
      return token;
    },
    revoke(identifier: string) {
      const device = devices.get(identifier);
      if (device !== undefined) device.state = Device_State.REVOKED;
    },
    approve(identifier: string) {
      const device = devices.get(identifier);
      if (device !== undefined) device.state = Device_State.ACTIVE;
    },
    expireAccessTokens(identifier: string) {
      const device = devices.get(identifier);
      for (const token of device?.accessTokens.keys() ?? []) device?.accessTokens.set(token, 0);
    },
    /** Publishes a version; signed by the organisation's key unless another is given. */
    publish(init: { modelId?: string; modelName?: string; version: string; bytes: Uint8Array; key?: KeyObject }) {
      const { bytes } = init;
      const digest = createHash("sha256").update(bytes).digest();
      const modelId = init.modelId ?? "mdl_aaaaaaaaaaaaaaaaaaaaaaaaaa";
      const modelName = init.modelName ?? "vad";
      const ids = { versionId: fakeId("mvr"), artifactId: fakeId("art") };
      const manifest = toBinary(
        ManifestSchema,
        create(ManifestSchema, {
          orgId,
          modelId,
          modelName,
          version: init.version,
          ...ids,
          sha256: new Uint8Array(digest),
          sizeBytes: BigInt(bytes.length),
        }),
      );
      const signed = Buffer.concat([Buffer.from("octomesh-manifest-v1\0"), manifest]);
      const version: FakeVersion = {
        modelId,
        modelName,
        version: init.version,
        ...ids,
        bytes,
        sha256: digest.toString("hex"),
        manifest,
        signature: new Uint8Array(sign(null, signed, init.key ?? keys.privateKey)),
      };
      artifacts.set(version.artifactId, version);
      return version;
    },
    /** Makes these versions what every device is to run. */
    setDesired(...versions: FakeVersion[]) {
      desired = versions;
      revision++;
      changed.resolve();
      changed = deferred();
    },
    advance(ms: number) {
      clockOffsetMs += ms;
    },
    async close() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

class LostAnswer extends Error {}

function deferred(): { promise: Promise<void>; resolve: () => void } {
  let resolve = () => {};
  const promise = new Promise<void>((settle) => {
    resolve = settle;
  });
  return { promise, resolve };
}
