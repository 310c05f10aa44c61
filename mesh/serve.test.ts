import { once } from "node:events";
import http from "node:http";
import http2 from "node:http2";
import net from "node:net";
import { fromBinary, toBinary } from "@bufbuild/protobuf";
import { type CallOptions, Code, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import { Client as GrpcClient, credentials as grpcCredentials, Metadata, type ServiceError } from "@grpc/grpc-js";
import { ViolationsSchema } from "@octomesh/proto/buf/validate/validate_pb";
import { RetryInfoSchema } from "@octomesh/proto/google/rpc/error_details_pb";
import { Health, HealthCheckResponse_ServingStatus as ServingStatus } from "@octomesh/proto/grpc/health/v1/health_pb";
import { ServerReflection } from "@octomesh/proto/grpc/reflection/v1/reflection_pb";
import { DeviceService } from "@octomesh/proto/octomesh/device/v1/device_service_pb";
import {
  CredentialService,
  WatchRevocationsResponse_Revocation_Subject as Subject,
} from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { ModelSchema } from "@octomesh/proto/octomesh/model/v1/model_pb";
import {
  CreateModelRequestSchema,
  GetModelRequestSchema,
  ModelService,
} from "@octomesh/proto/octomesh/model/v1/model_service_pb";
import { CallerKind, Role, Scope } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { AssignmentService } from "@octomesh/proto/octomesh/rollout/v1/assignment_service_pb";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Reason, reasonOf } from "./errors.ts";
import { newId } from "./ids.ts";
import { mintToken } from "./opaque-token.ts";
import { startTestMesh, type TestMesh } from "./test/mesh-fixture.ts";
import { createToyRollout } from "./test/toy-rollout.ts";
import { clientTlsOptions, defaultTrustDomain, openDevelopmentAuthority, spiffeIdOf } from "./tls.ts";

let mesh: TestMesh;
const org = newId("org");
const otherOrg = newId("org");
const device = newId("dev");
let key: { token: string; id: string };

beforeAll(async () => {
  mesh = await startTestMesh({
    services: { rollout: createToyRollout() },
    environment: { OCTOMESH_CORS_ORIGINS: "https://app.example.com", OCTOMESH_LIMIT_CONTROL_DEVICE: "5" },
  });
  key = mesh.identity.issue({
    prefix: "edg_live_",
    kind: CallerKind.API_KEY,
    orgId: org,
    scopes: [Scope.MODELS_READ, Scope.MODELS_WRITE],
  });
});

afterAll(() => mesh.stop());

function bearer(token: string): CallOptions {
  return { headers: { authorization: `Bearer ${token}` } };
}

async function refusal(work: Promise<unknown>): Promise<ConnectError> {
  try {
    await work;
  } catch (error) {
    return ConnectError.from(error);
  }
  throw new Error("the call was not refused");
}

const protocols: [string, (baseUrl: string) => Transport][] = [
  [
    "Connect over HTTP/1.1, JSON",
    (baseUrl) => createConnectTransport({ baseUrl, httpVersion: "1.1", useBinaryFormat: false }),
  ],
  [
    "Connect over HTTP/1.1, binary",
    (baseUrl) => createConnectTransport({ baseUrl, httpVersion: "1.1", useBinaryFormat: true }),
  ],
  ["Connect over HTTP/2", (baseUrl) => createConnectTransport({ baseUrl, httpVersion: "2" })],
  ["Connect over HTTP GET", (baseUrl) => createConnectTransport({ baseUrl, httpVersion: "1.1", useHttpGet: true })],
  ["gRPC", (baseUrl) => createGrpcTransport({ baseUrl })],
  ["gRPC-Web over HTTP/1.1", (baseUrl) => createGrpcWebTransport({ baseUrl, httpVersion: "1.1" })],
  ["gRPC-Web over HTTP/2", (baseUrl) => createGrpcWebTransport({ baseUrl, httpVersion: "2" })],
];

describe.each(protocols)("the public port, %s", (name, transportOf) => {
  const client = () => createClient(ModelService, transportOf(mesh.publicUrl("rollout")));
  const model = `m-${name.toLowerCase().replace(/[^a-z0-9]+/g, "-")}`.slice(0, 60);

  test("answers with the message, headers, trailers and the request's id", async () => {
    await client().createModel({ name: model, description: "äöü" }, bearer(key.token));
    const header: Record<string, string | null> = {};
    let trailer: string | null = null;
    const answer = await client().getModel(
      { id: model },
      {
        headers: { authorization: `Bearer ${key.token}`, "x-request-id": "request-0001" },
        onHeader: (headers) => {
          header.toy = headers.get("x-toy");
          header.request = headers.get("x-request-id");
          header.limit = headers.get("ratelimit-policy");
        },
        onTrailer: (trailers) => {
          trailer = trailers.get("x-toy-end");
        },
      },
    );
    expect(answer.description).toBe("äöü");
    expect(header).toEqual({ toy: "header", request: "request-0001", limit: '"default";q=1000;w=60' });
    expect(trailer).toBe("trailer");
  });

  test("refuses without a credential, with a malformed, an unknown and an expired one", async () => {
    const expired = mesh.identity.issue({
      prefix: "edg_live_",
      kind: CallerKind.API_KEY,
      orgId: org,
      scopes: [Scope.MODELS_READ],
      expiresMs: Date.now() - 1000,
    });
    const cases: [CallOptions, Reason][] = [
      [{}, Reason.CREDENTIAL_MISSING],
      [bearer("edg_live_nonsense"), Reason.CREDENTIAL_MALFORMED],
      [bearer(`${key.token.slice(0, -1)}${key.token.endsWith("0") ? "1" : "0"}`), Reason.CREDENTIAL_MALFORMED],
      [bearer(mintToken("edg_live_")), Reason.CREDENTIAL_UNKNOWN],
      [bearer(expired.token), Reason.CREDENTIAL_EXPIRED],
      [bearer("eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.x"), Reason.CREDENTIAL_MALFORMED],
    ];
    for (const [options, reason] of cases) {
      const error = await refusal(client().getModel({ id: model }, options));
      expect([Code[error.code], reasonOf(error)]).toEqual(["Unauthenticated", reason]);
    }
  });

  test("says which scope is missing", async () => {
    const poor = mesh.identity.issue({
      prefix: "edg_live_",
      kind: CallerKind.API_KEY,
      orgId: org,
      scopes: [Scope.MODELS_READ],
    });
    const error = await refusal(client().createModel({ name: "x" }, bearer(poor.token)));
    expect([error.code, reasonOf(error), error.rawMessage]).toEqual([
      Code.PermissionDenied,
      Reason.SCOPE_MISSING,
      "the scope models:write is missing",
    ]);
  });

  test("authorises before it validates, then says which field is wrong", async () => {
    const anonymous = await refusal(client().createModel({ name: "NOT A NAME" }));
    expect(anonymous.code).toBe(Code.Unauthenticated);
    const error = await refusal(client().createModel({ name: "NOT A NAME" }, bearer(key.token)));
    expect([error.code, reasonOf(error)]).toEqual([Code.InvalidArgument, Reason.VALIDATION_FAILED]);
    expect(error.findDetails(ViolationsSchema)[0]?.violations[0]?.field?.elements[0]?.fieldName).toBe("name");
  });

  test("hides what nobody meant to throw", async () => {
    const error = await refusal(client().getModel({ id: "boom" }, bearer(key.token)));
    expect([error.code, error.rawMessage, reasonOf(error)]).toEqual([Code.Internal, "internal error", Reason.INTERNAL]);
  });

  test("carries the details of an error", async () => {
    const error = await refusal(client().getModel({ id: "busy" }, bearer(key.token)));
    expect([error.code, reasonOf(error)]).toEqual([Code.ResourceExhausted, Reason.OVERLOADED]);
    expect(error.findDetails(RetryInfoSchema)[0]?.retryDelay).toMatchObject({ seconds: 1n, nanos: 500_000_000 });
  });

  test("aborts the handler at the caller's deadline", async () => {
    const error = await refusal(client().getModel({ id: "slow" }, { ...bearer(key.token), timeoutMs: 80 }));
    expect(error.code).toBe(Code.DeadlineExceeded);
  });

  test("keeps another organisation's models out of sight", async () => {
    const foreign = mesh.identity.issue({
      prefix: "edg_live_",
      kind: CallerKind.API_KEY,
      orgId: otherOrg,
      scopes: [Scope.MODELS_READ],
    });
    await client().createModel({ name: model }, bearer(key.token));
    const error = await refusal(client().getModel({ id: model }, bearer(foreign.token)));
    expect([error.code, reasonOf(error)]).toEqual([Code.NotFound, Reason.RESOURCE_NOT_FOUND]);
  });
});

describe("an audited method", () => {
  test("that commits no record is answered as a fault", async () => {
    const client = createClient(ModelService, createGrpcTransport({ baseUrl: mesh.publicUrl("rollout") }));
    const error = await refusal(client.createModel({ name: "unaudited" }, bearer(key.token)));
    expect(error.code).toBe(Code.Internal);
    expect(mesh.logged.some((line) => line.includes("committed nothing to the audit log"))).toBe(true);
  });
});

describe("grpc-js, a foreign client", () => {
  function call(method: string, request: Uint8Array, metadata: Metadata, options = {}): Promise<Buffer> {
    const client = new GrpcClient(new URL(mesh.publicUrl("rollout")).host, grpcCredentials.createInsecure());
    return new Promise<Buffer>((resolve, reject) => {
      client.makeUnaryRequest(
        `/octomesh.model.v1.ModelService/${method}`,
        (bytes: Buffer) => bytes,
        (bytes: Buffer) => bytes,
        Buffer.from(request),
        metadata,
        options,
        (error: ServiceError | null, answer?: Buffer) =>
          error === null ? resolve(answer ?? Buffer.alloc(0)) : reject(error),
      );
    }).finally(() => client.close());
  }

  test("is answered and refused like any other", async () => {
    const metadata = new Metadata();
    metadata.set("authorization", `Bearer ${key.token}`);
    const made = await call(
      "CreateModel",
      toBinary(CreateModelRequestSchema, {
        $typeName: CreateModelRequestSchema.typeName,
        name: "grpc-js",
        description: "",
        requestId: "",
      }),
      metadata,
    );
    expect(fromBinary(ModelSchema, made).name).toBe("grpc-js");
    const request = toBinary(GetModelRequestSchema, { $typeName: GetModelRequestSchema.typeName, id: "nowhere" });
    await expect(call("GetModel", request, metadata)).rejects.toMatchObject({
      code: 5,
      details: "there is no such model",
    });
    await expect(call("GetModel", request, new Metadata())).rejects.toMatchObject({ code: 16 });
    const slow = toBinary(GetModelRequestSchema, { $typeName: GetModelRequestSchema.typeName, id: "slow" });
    await expect(call("GetModel", slow, metadata, { deadline: Date.now() + 100 })).rejects.toMatchObject({ code: 4 });
  });
});

describe("REST", () => {
  const url = (path: string) => `${mesh.publicUrl("rollout")}${path}`;
  const headers = () => ({ authorization: `Bearer ${key.token}` });

  test("is the same call by another path, with snake_case and RFC 3339 times", async () => {
    const made = await fetch(url("/api/v1/models"), {
      method: "POST",
      headers: { ...headers(), "content-type": "application/json" },
      body: JSON.stringify({ name: "rest-model", description: "by REST" }),
    });
    expect(made.status).toBe(200);
    expect(await made.json()).toMatchObject({ name: "rest-model", org_id: org, create_time: "2023-11-14T22:13:20Z" });
    const read = await fetch(url("/api/v1/models/rest-model"), { headers: headers() });
    expect(read.headers.get("cache-control")).toBe("no-store");
    expect(read.headers.get("x-toy")).toBe("header");
    expect(await read.json()).toMatchObject({ description: "by REST" });
    const listed = (await (await fetch(url("/api/v1/models?page_size=5"), { headers: headers() })).json()) as {
      models: { name: string }[];
    };
    expect(listed.models.map((model) => model.name)).toContain("rest-model");
  });

  test("says errors as problem+json", async () => {
    const cases: [string, RequestInit, number, string][] = [
      ["/api/v1/models/nowhere", { headers: headers() }, 404, "RESOURCE_NOT_FOUND"],
      ["/api/v1/models/nowhere", {}, 401, "CREDENTIAL_MISSING"],
      ["/api/v1/models?no_such_filter=1", { headers: headers() }, 400, "REQUEST_MALFORMED"],
      ["/api/v1/models", { method: "POST", headers: headers(), body: "{" }, 400, "REQUEST_MALFORMED"],
      ["/api/v1/models", { method: "POST", headers: headers(), body: "[]" }, 400, "REQUEST_MALFORMED"],
      ["/api/v1/models", { method: "POST", headers: headers(), body: '{"name":"x","extra":1}' }, 400, "UNKNOWN_FIELD"],
      [
        "/api/v1/models",
        { method: "POST", headers: headers(), body: `{"name":"${"x".repeat(2_000_000)}"}` },
        413,
        "REQUEST_TOO_LARGE",
      ],
      ["/api/v1/models/busy", { headers: headers() }, 429, "OVERLOADED"],
      ["/api/v1/models/boom", { headers: headers() }, 500, "INTERNAL"],
      ["/nowhere", { headers: headers() }, 404, "METHOD_NOT_FOUND"],
    ];
    for (const [path, init, status, code] of cases) {
      const body = init.body === undefined ? {} : { headers: { ...init.headers, "content-type": "application/json" } };
      const answer = await fetch(url(path), { ...init, ...body });
      expect([path, answer.status, answer.headers.get("content-type")]).toEqual([
        path,
        status,
        "application/problem+json",
      ]);
      expect(await answer.json()).toMatchObject({ status, code });
    }
    const busy = await fetch(url("/api/v1/models/busy"), { headers: headers() });
    expect(busy.headers.get("retry-after")).toBe("2");
    const method = await fetch(url("/api/v1/models"), { method: "PUT", headers: headers() });
    expect([method.status, method.headers.get("allow")?.split(", ").sort()]).toEqual([405, ["GET", "POST"]]);
  });

  test("does not let a violation through", async () => {
    const answer = await fetch(url("/api/v1/models"), {
      method: "POST",
      headers: { ...headers(), "content-type": "application/json" },
      body: JSON.stringify({ name: "NOT A NAME" }),
    });
    expect(await answer.json()).toMatchObject({
      status: 400,
      code: "VALIDATION_FAILED",
      violations: [{ field: "name" }],
    });
  });

  test("serves HTTP that is no rpc under the same policy, and cuts it when the credential is revoked", async () => {
    const reader = mesh.identity.issue({
      prefix: "edg_live_",
      kind: CallerKind.API_KEY,
      orgId: org,
      scopes: [Scope.MODELS_READ],
    });
    const path = url(`/api/v1/artifacts/${newId("art")}/content`);
    expect((await fetch(path)).status).toBe(401);
    const whole = await fetch(path, { headers: { authorization: `Bearer ${reader.token}` } });
    expect(await whole.text()).toBe("first last");
    const token = await mesh.identity.sign({ kind: "device", orgId: org, id: newId("dev") });
    const owner = await mesh.identity.sign({
      kind: "session",
      orgId: org,
      id: newId("usr"),
      credentialId: newId("ses"),
      role: Role.OWNER,
    });
    expect(token).not.toBe(owner);
    const member = newId("usr");
    const session = await mesh.identity.sign({ kind: "session", orgId: org, id: member, role: Role.MEMBER });
    const cut = await fetch(path, { headers: { authorization: `Bearer ${session}` } });
    const body = cut.body?.getReader();
    expect(Buffer.from((await body?.read())?.value ?? []).toString()).toBe("first ");
    mesh.identity.revoke(Subject.MEMBER, member, org);
    await expect(body?.read()).rejects.toThrow();
  });

  test("answers browsers' questions about origins by the list alone", async () => {
    const ask = (origin: string) =>
      fetch(url("/api/v1/models"), { method: "OPTIONS", headers: { origin, "access-control-request-method": "GET" } });
    const allowed = await ask("https://app.example.com");
    expect([allowed.status, allowed.headers.get("access-control-allow-origin")]).toEqual([
      204,
      "https://app.example.com",
    ]);
    const foreign = await ask("https://app.example.com.evil.example");
    expect(foreign.headers.get("access-control-allow-origin")).toBeNull();
  });
});

describe("limits", () => {
  test("a device that calls too often is told when to come back, and its neighbour is not", async () => {
    const client = createClient(
      DeviceService,
      createConnectTransport({ baseUrl: mesh.publicUrl("rollout"), httpVersion: "1.1" }),
    );
    const token = await mesh.identity.sign({ kind: "device", orgId: org, id: device });
    for (let i = 0; i < 5; i += 1) await client.getDevice({ id: device }, bearer(token));
    const error = await refusal(client.getDevice({ id: device }, bearer(token)));
    expect([error.code, reasonOf(error)]).toEqual([Code.ResourceExhausted, Reason.RATE_LIMITED]);
    const seconds = Number(error.metadata.get("retry-after"));
    expect(seconds).toBeGreaterThan(0);
    expect(seconds).toBeLessThanOrEqual(120);
    const neighbour = newId("dev");
    const other = await mesh.identity.sign({ kind: "device", orgId: org, id: neighbour });
    await expect(client.getDevice({ id: neighbour }, bearer(other))).resolves.toMatchObject({ id: neighbour });
  });

  test("a body over the limit is refused before it is kept", async () => {
    const client = createClient(ModelService, createGrpcTransport({ baseUrl: mesh.publicUrl("rollout") }));
    const error = await refusal(
      client.createModel({ name: "x", description: "x".repeat(5_000_000) }, bearer(key.token)),
    );
    expect(error.code).toBe(Code.ResourceExhausted);
  });
});

describe("a device", () => {
  const client = () => createClient(DeviceService, createGrpcTransport({ baseUrl: mesh.publicUrl("rollout") }));

  test("acts on itself only, and `-` is itself", async () => {
    const id = newId("dev");
    const token = await mesh.identity.sign({ kind: "device", orgId: org, id });
    expect((await client().getDevice({ id: "-" }, bearer(token))).id).toBe(id);
    const error = await refusal(client().getDevice({ id: newId("dev") }, bearer(token)));
    expect([error.code, reasonOf(error)]).toEqual([Code.PermissionDenied, Reason.NOT_SELF]);
  });

  test("loses its stream at the moment of its revocation, and its next call", async () => {
    const id = newId("dev");
    const token = await mesh.identity.sign({ kind: "device", orgId: org, id });
    const stream = client().watchDesiredState({ id }, bearer(token))[Symbol.asyncIterator]();
    expect((await stream.next()).value?.etag).toBe("1");
    const ended = refusal(stream.next());
    mesh.identity.revoke(Subject.DEVICE, id, org);
    const error = await ended;
    expect([error.code, reasonOf(error)]).toEqual([Code.Unauthenticated, Reason.CREDENTIAL_REVOKED]);
    const next = await refusal(client().getDevice({ id }, bearer(token)));
    expect(reasonOf(next)).toBe(Reason.CREDENTIAL_REVOKED);
    await expect.poll(() => [...mesh.identity.acknowledged.values()]).toContain(mesh.identity.head());
  });

  test("with a token of another issuer, audience or time is nobody", async () => {
    const id = newId("dev");
    const cases: [Parameters<typeof mesh.identity.sign>[0], Reason][] = [
      [{ kind: "device", orgId: org, id, issuer: "elsewhere" }, Reason.CREDENTIAL_MALFORMED],
      [{ kind: "device", orgId: org, id, audience: "elsewhere" }, Reason.CREDENTIAL_MALFORMED],
      [{ kind: "device", orgId: org, id, expiresInS: -10 }, Reason.CREDENTIAL_EXPIRED],
    ];
    for (const [token, reason] of cases) {
      const error = await refusal(client().getDevice({ id }, bearer(await mesh.identity.sign(token))));
      expect([error.code, reasonOf(error)]).toEqual([Code.Unauthenticated, reason]);
    }
    const good = await mesh.identity.sign({ kind: "device", orgId: org, id });
    const [head, body, signature] = good.split(".");
    const forged = `${head}.${Buffer.from(
      Buffer.from(body ?? "", "base64url")
        .toString()
        .replace(org, otherOrg),
    ).toString("base64url")}.${signature}`;
    const error = await refusal(client().getDevice({ id }, bearer(forged)));
    expect(reasonOf(error)).toBe(Reason.CREDENTIAL_UNKNOWN);
  });
});

describe("a member", () => {
  test("is held to the role that the method demands", async () => {
    const client = createClient(ModelService, createGrpcTransport({ baseUrl: mesh.publicUrl("rollout") }));
    const member = await mesh.identity.sign({ kind: "session", orgId: org, id: newId("usr"), role: Role.MEMBER });
    const admin = await mesh.identity.sign({ kind: "session", orgId: org, id: newId("usr"), role: Role.ADMIN });
    const error = await refusal(client.createModel({ name: "by-member" }, bearer(member)));
    expect([error.code, reasonOf(error)]).toEqual([Code.PermissionDenied, Reason.ROLE_MISSING]);
    await expect(client.createModel({ name: "by-admin" }, bearer(admin))).resolves.toMatchObject({ name: "by-admin" });
  });
});

describe("the mesh port", () => {
  async function transportAs(
    service: "device-registry" | "verdict",
    expected: "rollout" | "identity" = "rollout",
  ): Promise<Transport> {
    const authority = await openDevelopmentAuthority(mesh.stateDir, defaultTrustDomain);
    const identity = await authority.issue(service);
    return createGrpcTransport({
      baseUrl: mesh.meshUrl("rollout"),
      nodeOptions: clientTlsOptions(identity, spiffeIdOf(defaultTrustDomain, expected)),
    });
  }

  test("admits the peers that the contract names, and no others", async () => {
    const admitted = createClient(AssignmentService, await transportAs("device-registry"));
    const request = { orgId: org, devices: [{ deviceId: device, groupIds: [] }] };
    await expect(admitted.resolveDesiredStates(request)).resolves.toMatchObject({ cursor: "1" });
    const stranger = createClient(AssignmentService, await transportAs("verdict"));
    const error = await refusal(stranger.resolveDesiredStates(request));
    expect([error.code, reasonOf(error)]).toEqual([Code.PermissionDenied, Reason.PEER_NOT_ALLOWED]);
  });

  test("does not take a caller's credential for a peer's", async () => {
    const client = createClient(ModelService, await transportAs("device-registry"));
    const error = await refusal(client.getModel({ id: "x" }, bearer(key.token)));
    expect(reasonOf(error)).toBe(Reason.CALLER_KIND_NOT_ALLOWED);
  });

  test("a client refuses a server that is not the service it meant", async () => {
    const client = createClient(AssignmentService, await transportAs("device-registry", "identity"));
    await refusal(client.resolveDesiredStates({ orgId: org, devices: [{ deviceId: device }] }));
  });

  test("nobody enters without a certificate", async () => {
    const session = http2.connect(mesh.meshUrl("rollout"), { rejectUnauthorized: false });
    session.on("error", () => undefined);
    const stream = session.request({
      ":path": "/octomesh.rollout.v1.AssignmentService/ResolveDesiredStates",
      ":method": "POST",
    });
    stream.on("error", () => undefined);
    const [outcome] = await Promise.race([
      once(stream, "response").then(
        () => ["answered"],
        () => ["closed"],
      ),
      once(session, "close").then(
        () => ["closed"],
        () => ["closed"],
      ),
      once(stream, "close").then(
        () => ["closed"],
        () => ["closed"],
      ),
    ]);
    session.destroy();
    expect(outcome).toBe("closed");
  });

  test("methods for peers only do not exist on the public port", async () => {
    const client = createClient(
      AssignmentService,
      createConnectTransport({ baseUrl: mesh.publicUrl("rollout"), httpVersion: "1.1" }),
    );
    const error = await refusal(
      client.resolveDesiredStates({ orgId: org, devices: [{ deviceId: device }] }, bearer(key.token)),
    );
    expect(error.code === Code.Unimplemented || error.code === Code.NotFound).toBe(true);
    const keys = createClient(
      CredentialService,
      createConnectTransport({ baseUrl: mesh.publicUrl("identity"), httpVersion: "1.1" }),
    );
    await expect(keys.getJsonWebKeySet({})).resolves.toMatchObject({ keys: [{ kid: "one" }] });
    const hidden = await refusal(keys.resolveCredential({ digest: new Uint8Array(32) }));
    expect(hidden.code === Code.Unimplemented || hidden.code === Code.NotFound).toBe(true);
  });
});

describe("out of sight of identity", () => {
  test("nobody is accepted after a few seconds, and everyone again afterwards", async () => {
    const client = createClient(ModelService, createGrpcTransport({ baseUrl: mesh.publicUrl("rollout") }));
    await client.listModels({}, bearer(key.token));
    mesh.identity.interrupt();
    await expect
      .poll(async () => reasonOf(await refusal(client.listModels({}, bearer(key.token))).catch(() => undefined)), {
        timeout: 10_000,
      })
      .toBe(Reason.REVOCATIONS_STALE);
    mesh.identity.resume();
    await expect
      .poll(
        () =>
          client.listModels({}, bearer(key.token)).then(
            () => "accepted",
            () => "refused",
          ),
        { timeout: 10_000 },
      )
      .toBe("accepted");
  });
});

describe("health, reflection and metrics", () => {
  test("grpc.health.v1 answers on the public and the admin port", async () => {
    const admin = `http://127.0.0.1:${mesh.service("rollout").ports.admin}`;
    for (const baseUrl of [mesh.publicUrl("rollout"), admin]) {
      const client = createClient(Health, createGrpcTransport({ baseUrl }));
      expect((await client.check({})).status).toBe(ServingStatus.SERVING);
      expect((await refusal(client.check({ service: "nobody" }))).code).toBe(Code.NotFound);
    }
    expect(await (await fetch(`${admin}/readyz`)).text()).toBe("ready\n");
    expect(await (await fetch(`${admin}/metrics`)).text()).toContain("octomesh_rpc_calls_total");
  });

  test("reflection lists what is public and describes it", async () => {
    const client = createClient(ServerReflection, createGrpcTransport({ baseUrl: mesh.publicUrl("rollout") }));
    async function* ask() {
      yield { messageRequest: { case: "listServices" as const, value: "" } };
      yield { messageRequest: { case: "fileContainingSymbol" as const, value: "octomesh.model.v1.ModelService" } };
      yield { messageRequest: { case: "fileContainingSymbol" as const, value: "octomesh.Nowhere" } };
    }
    const answers = [];
    for await (const answer of client.serverReflectionInfo(ask())) answers.push(answer.messageResponse);
    const [services, file, unknown] = answers;
    expect(services?.case === "listServicesResponse" && services.value.service.map((each) => each.name)).toEqual([
      "octomesh.device.v1.DeviceService",
      "octomesh.model.v1.ArtifactService",
      "octomesh.model.v1.ModelService",
    ]);
    expect(file?.case === "fileDescriptorResponse" && file.value.fileDescriptorProto.length).toBeGreaterThan(3);
    expect(unknown?.case).toBe("errorResponse");
  });
});

describe("malformed HTTP", () => {
  function raw(bytes: string): Promise<string> {
    const { port } = new URL(mesh.publicUrl("rollout"));
    return new Promise((resolve, reject) => {
      const socket = net.connect(Number(port), "127.0.0.1", () => socket.write(bytes));
      let text = "";
      socket.on("data", (chunk) => {
        text += chunk;
      });
      socket.on("close", () => resolve(text));
      socket.on("error", reject);
      socket.setTimeout(5000, () => socket.destroy());
    });
  }

  test("HTTP/1.0 without Host is answered and harms nobody", async () => {
    const path = "/octomesh.model.v1.ModelService/GetModel";
    const answer = await raw(`POST ${path} HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}`);
    expect(answer).toMatch(/^HTTP\/1\.1 400 /);
    expect((await fetch(`${mesh.publicUrl("rollout")}/healthz`)).status).toBe(200);
  });

  test("garbage is refused and harms nobody", async () => {
    expect(await raw("\x16\x03\x01 this is no HTTP\r\n\r\n")).toMatch(/^HTTP\/1\.1 400 |^$/);
    expect(await raw("GET http://absolute.example/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).toMatch(
      /^HTTP\/1\.1 (400|404) /,
    );
    expect((await fetch(`${mesh.publicUrl("rollout")}/healthz`)).status).toBe(200);
  });
});

describe("logs", () => {
  test("hold none of the credentials that were used", () => {
    const all = mesh.logged.join("\n");
    expect(all).not.toContain(key.token);
    expect(all).not.toMatch(/edg_live_[0-9A-Za-z]{28}/);
    expect(all).not.toMatch(/eyJ[\w-]{20,}\./);
  });
});

describe("drain", () => {
  test("lets a call under way finish, refuses new connections, and ends streams", async () => {
    const own = await startTestMesh({ services: { rollout: createToyRollout() } });
    const id = newId("dev");
    const token = await own.identity.sign({ kind: "device", orgId: org, id });
    const reader = own.identity.issue({
      prefix: "edg_live_",
      kind: CallerKind.API_KEY,
      orgId: org,
      scopes: [Scope.MODELS_READ],
    });
    const url = own.publicUrl("rollout");
    const devices = createClient(DeviceService, createGrpcTransport({ baseUrl: url }));
    const stream = devices.watchDesiredState({ id }, bearer(token))[Symbol.asyncIterator]();
    await stream.next();
    const ended = stream.next().then(
      (result) => (result.done === true ? "ended" : "message"),
      () => "ended",
    );
    const models = createClient(ModelService, createGrpcTransport({ baseUrl: url }));
    await models.listModels({}, bearer(reader.token));
    await own.stop();
    expect(await ended).toBe("ended");
    const error = await refusal(models.listModels({}, { ...bearer(reader.token), timeoutMs: 1000 }));
    expect(error.code).toBe(Code.Unavailable);
  });
});

test("an agent that keeps its connection alive is served again on it", async () => {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  const get = () =>
    new Promise<number>((resolve, reject) => {
      http
        .get(`${mesh.publicUrl("rollout")}/healthz`, { agent }, (response) => {
          response.resume();
          response.on("end", () => resolve(response.statusCode ?? 0));
        })
        .on("error", reject);
    });
  expect([await get(), await get(), await get()]).toEqual([200, 200, 200]);
  agent.destroy();
});
