import { createHash, generateKeyPairSync, type KeyObject, randomBytes, sign } from "node:crypto";
import { Agent, request as httpsRequest } from "node:https";
import { create, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { type CallOptions, type Client, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { fail, Reason, reasonOf } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import type { Runtime } from "@octomesh/mesh/service";
import type { FakeIdentity } from "@octomesh/mesh/test/fake-identity";
import { createLicenseSigner } from "@octomesh/mesh/test/license-fixture";
import { startTestMesh, type TestMesh } from "@octomesh/mesh/test/mesh-fixture";
import {
  LandmarkMeasurementSchema,
  SignedMeasurementSchema,
} from "@octomesh/proto/octomesh/edge/v1/landmark_measurement_pb";
import { SignalBundleSchema } from "@octomesh/proto/octomesh/edge/v1/signal_bundle_pb";
import { CredentialService } from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { Environment } from "@octomesh/proto/octomesh/identity/v1/organization_pb";
import { CallerKind, type Scope } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { TenantService } from "@octomesh/proto/octomesh/tenant/v1/tenant_service_pb";
import { VerdictService } from "@octomesh/proto/octomesh/verdict/v1/verdict_service_pb";
import type { SignaturePurpose } from "../edge-signature.ts";
import { createService } from "../service.ts";

/** The verdict service as edges and backends reach it, with its real port; identity is a fake with behaviour. */
export interface VerdictMesh {
  readonly mesh: TestMesh;
  /** Calls of backends, without a credential of their own: pass one in the options. */
  readonly verdicts: Client<typeof VerdictService>;
  /** Calls of edges, over another connection, likewise. */
  readonly signals: Client<typeof VerdictService>;
  /** What identity may call. */
  readonly tenants: Client<typeof TenantService>;
  /** A licence of an organisation and one signing key registered for it. */
  edge(options?: { orgId?: string; sandbox?: boolean }): Promise<TestEdge>;
  /** Registers another signing key. */
  signingKey(orgId: string, licenseId: string): TestSigningKey;
  revokeKey(id: string): void;
  /** Options that make a call one of a credential of the organisation. */
  as(
    kind: "partner" | "read_token" | "api_key",
    orgId: string,
    more?: { sandbox?: boolean; scopes?: Scope[] },
  ): CallOptions & { readonly token: string };
  /** A GET over HTTPS. */
  get(path: string, headers?: Record<string, string>, method?: string): Promise<RestAnswer>;
  stop(): Promise<void>;
}

/** What a GET answered. */
export interface RestAnswer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly body: string;
}

/** A key with which a test signs. */
export interface TestSigningKey {
  readonly id: string;
  sign(purpose: SignaturePurpose, bytes: Uint8Array): Uint8Array<ArrayBuffer>;
}

/** An edge of a test. */
export interface TestEdge {
  readonly orgId: string;
  readonly licenseId: string;
  readonly key: TestSigningKey;
  readonly options: CallOptions;
}

/** Starts it. */
export async function startVerdictMesh(environment: Record<string, string> = {}): Promise<VerdictMesh> {
  const signer = await createLicenseSigner();
  const keys = new Map<string, { orgId: string; licenseKeyId: string; publicKey: Uint8Array }>();
  const sandboxed = new Set<string>();
  let identityRuntime: Runtime | undefined;
  let runtime: Runtime | undefined;
  const mesh = await startTestMesh({
    services: {
      async verdict(given) {
        runtime = given;
        return await createService(given);
      },
    },
    environment: { OCTOMESH_LIMIT_EDGE: "100000", ...environment },
    prepare(identity) {
      identity.edgeTrust.licenseKeys.push({ keyId: signer.keyId, publicKey: signer.raw });
      withSigningKeys(identity, keys, sandboxed, (given) => {
        identityRuntime = given;
      });
    },
  });
  if (runtime === undefined || identityRuntime === undefined) throw new Error("the mesh did not start");
  const ca = runtime.trustBundle();
  const url = `https://localhost:${mesh.service("verdict").ports.public}`;
  const agent = new Agent({ keepAlive: true, maxSockets: 50, ca });
  const connect = () => createConnectTransport({ baseUrl: url, httpVersion: "2", nodeOptions: { ca } });

  const signingKey = (orgId: string, licenseKeyId: string): TestSigningKey => {
    const pair = generateKeyPairSync("ed25519");
    const id = newId("esk");
    keys.set(id, { orgId, licenseKeyId, publicKey: rawOf(pair.publicKey) });
    return {
      id,
      sign: (purpose, bytes) =>
        new Uint8Array(sign(null, Buffer.concat([Buffer.from(`${purpose}\0`), bytes]), pair.privateKey)),
    };
  };
  return {
    mesh,
    verdicts: createClient(VerdictService, connect()),
    signals: createClient(VerdictService, connect()),
    tenants: identityRuntime.clientOf("verdict", TenantService),
    signingKey,
    revokeKey: (id) => void keys.delete(id),
    async edge({ orgId = newId("org"), sandbox = false } = {}) {
      const licenseId = newId("lic");
      const claims = { sub: licenseId, org: orgId, env: sandbox ? "test" : "live", mtls: "off" };
      const license = await signer.sign({ claims });
      const options = { headers: { "x-octet-license": license } };
      return { orgId, licenseId, key: signingKey(orgId, licenseId), options };
    },
    as(kind, orgId, { sandbox = false, scopes = [] } = {}) {
      const prefixes = { partner: "edg_partner_", read_token: "edg_read_", api_key: "edg_live_" } as const;
      const kinds = {
        partner: CallerKind.PARTNER,
        read_token: CallerKind.READ_TOKEN,
        api_key: CallerKind.API_KEY,
      } as const;
      const { token, id } = mesh.identity.issue({ prefix: prefixes[kind], kind: kinds[kind], orgId, scopes });
      if (sandbox) sandboxed.add(id);
      return { token, headers: { authorization: `Bearer ${token}` } };
    },
    get: (path, headers = {}, method = "GET") =>
      new Promise((resolve, reject) => {
        const call = httpsRequest(`${url}${path}`, { agent, headers, method }, (response) => {
          const chunks: Buffer[] = [];
          response.on("data", (chunk: Buffer) => chunks.push(chunk));
          response.on("error", reject);
          response.on("end", () =>
            resolve({
              status: response.statusCode ?? 0,
              headers: response.headers,
              body: Buffer.concat(chunks).toString(),
            }),
          );
        });
        call.on("error", reject);
        call.end();
      }),
    async stop() {
      agent.destroy();
      await mesh.stop();
    },
  };
}

/** What an edge in Berlin measured of a browser that is near and hides nothing. */
export function bundleOf(
  ref: string,
  changed: MessageInitShape<typeof SignalBundleSchema> = {},
  report: Record<string, unknown> = {},
): Uint8Array<ArrayBuffer> {
  const connection = { minRttUs: 20_000n, acceptRttUs: 20_000n };
  const collected = {
    v: 1,
    ref,
    mode: "full",
    env: { languages: ["de-DE"], tz: "Europe/Berlin", offset: -60, platform: "Windows" },
    timing: { step: 0.1, pings: 20, ms: 800 },
    end: "done",
    ...report,
  };
  return toBinary(
    SignalBundleSchema,
    create(SignalBundleSchema, {
      sessionRef: ref,
      edgeId: "edge-berlin",
      receiveTime: timestampFromMs(Date.now()),
      sourceAddress: "141.1.1.1",
      collectorReport: new TextEncoder().encode(JSON.stringify(collected)),
      connection,
      bundleId: randomBytes(16).toString("base64url"),
      edgePosition: { latitude: 52.5, longitude: 13.4 },
      edgeVersion: "0.1.0",
      latencyChannel: {
        connection,
        sourceAddress: "141.1.1.1",
        roundTripUs: Array.from({ length: 20 }, (_, index) => BigInt(20_500 + 50 * index)),
      },
      ...(changed as object),
    }),
  );
}

/** What `landmarks[].m` of a report holds: a measurement of the session, signed. */
export function measurementOf(
  key: TestSigningKey,
  ref: string,
  changed: MessageInitShape<typeof LandmarkMeasurementSchema> = {},
): string {
  const measurement = toBinary(
    LandmarkMeasurementSchema,
    create(LandmarkMeasurementSchema, {
      sessionDigest: createHash("sha256").update(ref).digest(),
      landmarkId: "landmark-hamburg",
      measureTime: timestampFromMs(Date.now()),
      channel: { roundTripUs: [24_000n, 25_000n] },
      position: { latitude: 53.6, longitude: 10 },
      ...(changed as object),
    }),
  );
  const signature = key.sign("octomesh landmark measurement v1", measurement);
  const signed = create(SignedMeasurementSchema, { measurement, keyId: key.id, signature });
  return Buffer.from(toBinary(SignedMeasurementSchema, signed)).toString("base64url");
}

/** A request of an edge, signed. */
export function signedBy(edge: TestEdge, signedBundle: Uint8Array<ArrayBuffer>, key = edge.key) {
  return { signedBundle, keyId: key.id, signature: key.sign("octomesh edge signals v1", signedBundle) };
}

/** The reason of a refusal, or `taken`. */
export async function outcomeOf(work: Promise<unknown>): Promise<string> {
  try {
    await work;
    return "taken";
  } catch (error) {
    const reason = reasonOf(error);
    if (reason === undefined) throw error;
    return Reason[reason];
  }
}

function rawOf(key: KeyObject): Uint8Array {
  return new Uint8Array(Buffer.from(key.export({ format: "jwk" }).x ?? "", "base64url"));
}

/** Identity's fake knows neither signing keys nor sandboxes: both are added in front of it. */
function withSigningKeys(
  identity: FakeIdentity,
  keys: ReadonlyMap<string, { orgId: string; licenseKeyId: string; publicKey: Uint8Array }>,
  sandboxed: ReadonlySet<string>,
  onRuntime: (runtime: Runtime) => void,
): void {
  const { create: createIdentity } = identity;
  Object.assign(identity, {
    async create(runtime: Runtime) {
      onRuntime(runtime);
      const service = await createIdentity(runtime);
      const routes: typeof service.routes = (router) =>
        service.routes({
          ...router,
          handlers: router.handlers,
          service(desc, implementation) {
            if (desc.typeName !== CredentialService.typeName) return router.service(desc, implementation);
            const own = implementation as Parameters<typeof router.service<typeof CredentialService>>[1];
            return router.service(CredentialService, {
              ...own,
              async resolveCredential(request, context) {
                const found = await own.resolveCredential?.(request, context);
                const isTest = sandboxed.has(String((found as { id?: string } | undefined)?.id));
                return { ...found, environment: isTest ? Environment.TEST : Environment.LIVE };
              },
              getEdgeSigningKey({ id }) {
                const key = keys.get(id);
                if (key === undefined) throw fail(Reason.RESOURCE_NOT_FOUND, "no such key", {});
                return { id, ...key };
              },
            });
          },
        });
      return { ...service, routes };
    },
  });
}
