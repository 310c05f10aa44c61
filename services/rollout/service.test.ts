import { createHash, randomBytes } from "node:crypto";
import { type ClientRequest, request as httpRequest } from "node:http";
import { connect as connectHttp2 } from "node:http2";
import { fromBinary } from "@bufbuild/protobuf";
import { type Client, createClient, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { bucketOf } from "@octomesh/mesh/bucket";
import { callOf } from "@octomesh/mesh/call-context";
import { createSiblingClients } from "@octomesh/mesh/client";
import { fail, nameOfReason, Reason, reasonOf } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import type { Runtime } from "@octomesh/mesh/service";
import { defaultTrustDomain, openDevelopmentAuthority } from "@octomesh/mesh/tls";
import { DeviceGroupService } from "@octomesh/proto/octomesh/device/v1/device_group_service_pb";
import { WatchRevocationsResponse_Revocation_Subject as Subject } from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { type Artifact, ArtifactUploadSchema } from "@octomesh/proto/octomesh/model/v1/artifact_pb";
import { ArtifactService } from "@octomesh/proto/octomesh/model/v1/artifact_service_pb";
import { ArtifactFormat, ManifestSchema } from "@octomesh/proto/octomesh/model/v1/manifest_pb";
import { ModelService } from "@octomesh/proto/octomesh/model/v1/model_service_pb";
import { ModelVersion_State } from "@octomesh/proto/octomesh/model/v1/model_version_pb";
import { ModelVersionService } from "@octomesh/proto/octomesh/model/v1/model_version_service_pb";
import { CallerKind, Role, Scope } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import {
  AssignmentService,
  type WatchRolloutDefinitionsResponse,
} from "@octomesh/proto/octomesh/rollout/v1/assignment_service_pb";
import { Rollout_State } from "@octomesh/proto/octomesh/rollout/v1/rollout_pb";
import { RolloutService } from "@octomesh/proto/octomesh/rollout/v1/rollout_service_pb";
import { TenantService } from "@octomesh/proto/octomesh/tenant/v1/tenant_service_pb";
import { sql } from "kysely";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openTestDatabase } from "../../mesh/test/database-fixture.ts";
import { startTestMesh, type TestMesh } from "../../mesh/test/mesh-fixture.ts";
import { verifyManifest } from "./manifest.ts";
import { createService } from "./service.ts";
import type { Tables } from "./store/tables.ts";

const database = await openTestDatabase<Tables>({
  service: "rollout",
  migrations: new URL("./migrations/", import.meta.url),
});
const orgId = newId("org");
let mesh: TestMesh;
let deviceRegistry: Runtime | undefined;
let key = "";
let session = "";
let foreignKey = "";
/** The device registry's groups, and whose they are. */
const groups = new Map<string, string>();

beforeAll(async () => {
  mesh = await startTestMesh({
    services: {
      rollout: createService,
      "device-registry": async (runtime) => {
        deviceRegistry = runtime;
        return {
          http: [],
          routes(router) {
            router.service(DeviceGroupService, {
              getDeviceGroup({ id }, context) {
                if (groups.get(id) !== callOf(context).orgId)
                  throw fail(Reason.RESOURCE_NOT_FOUND, "no such group", {});
                return { id };
              },
            });
          },
          start: async () => undefined,
          stop: async () => undefined,
        };
      },
    },
    environment: { OCTOMESH_ROLLOUT_DATABASE_URL: database.url },
  });
  const scopes = [Scope.MODELS_READ, Scope.MODELS_WRITE, Scope.ROLLOUTS_READ, Scope.ROLLOUTS_WRITE];
  key = mesh.identity.issue({ prefix: "edg_live_", kind: CallerKind.API_KEY, orgId, scopes }).token;
  foreignKey = mesh.identity.issue({
    prefix: "edg_live_",
    kind: CallerKind.API_KEY,
    orgId: newId("org"),
    scopes,
  }).token;
  session = await mesh.identity.sign({ kind: "session", orgId, id: newId("usr"), role: Role.ADMIN });
});
afterAll(() => mesh?.stop());

function clients(token: string) {
  const authorize: Interceptor = (next) => (request) => {
    request.header.set("authorization", `Bearer ${token}`);
    return next(request);
  };
  const transport = createConnectTransport({
    baseUrl: mesh.publicUrl("rollout"),
    httpVersion: "1.1",
    interceptors: [authorize],
  });
  return {
    models: createClient(ModelService, transport),
    versions: createClient(ModelVersionService, transport),
    artifacts: createClient(ArtifactService, transport),
    rollouts: createClient(RolloutService, transport),
  };
}

function registry(): Runtime {
  if (deviceRegistry === undefined) throw new Error("device-registry does not run");
  return deviceRegistry;
}

function assignments(): Client<typeof AssignmentService> {
  return registry().client(AssignmentService);
}

const url = (path: string) => `${mesh.publicUrl("rollout")}${path}`;
const bearer = (token = key) => ({ authorization: `Bearer ${token}` });
const hex = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");

async function patch(uploadId: string, offset: number, bytes: Uint8Array, token = key): Promise<Response> {
  return await fetch(url(`/api/v1/artifact-uploads/${uploadId}`), {
    method: "PATCH",
    headers: {
      ...bearer(token),
      "content-type": "application/offset+octet-stream",
      "upload-offset": String(offset),
    },
    body: new Uint8Array(bytes),
  });
}

async function upload(bytes: Uint8Array, token = key): Promise<Artifact> {
  const { artifacts } = clients(token);
  const begun = await artifacts.createArtifactUpload({ sha256: hex(bytes), sizeBytes: BigInt(bytes.length) });
  if (begun.artifact !== undefined) return begun.artifact;
  expect((await patch(begun.id, 0, bytes, token)).status).toBe(204);
  return await artifacts.completeArtifactUpload({ id: begun.id });
}

let made = 0;
async function newModel(token = key) {
  made++;
  return await clients(token).models.createModel({ name: `model-${made}`, description: "hears" });
}

async function publish(modelId: string, version: string, bytes: Uint8Array = randomBytes(1000), token = key) {
  const artifact = await upload(bytes, token);
  return await clients(token).versions.createModelVersion({
    modelId,
    version,
    artifactId: artifact.id,
    format: ArtifactFormat.ONNX,
  });
}

const single = (percentageThousandths: number, controlThousandths = 0) => ({
  stages: [{ percentageThousandths }],
  controlThousandths,
});

async function refused(work: Promise<unknown>): Promise<string> {
  try {
    await work;
  } catch (error) {
    return nameOfReason(reasonOf(error) ?? Reason.UNSPECIFIED);
  }
  return "not refused";
}

async function eventually<T>(read: () => Promise<T>, isDone: (value: T) => boolean): Promise<T> {
  const deadline = Date.now() + 15_000;
  for (;;) {
    const value = await read();
    if (isDone(value)) return value;
    if (Date.now() > deadline) throw new Error(`still ${JSON.stringify(value)}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

async function auditOf(resourceId: string): Promise<string[]> {
  return await database.system(async (tx) => {
    const { rows } = await sql<{ action: string }>`
      select action from audit_outbox where resource_id = ${resourceId} order by xid, sequence`.execute(tx);
    return rows.map((row) => row.action);
  });
}

describe("models and versions", () => {
  it("are made, found by id and by name, listed by page, changed under their etag, and deleted with their versions", async () => {
    const token = mesh.identity.issue({
      prefix: "edg_live_",
      kind: CallerKind.API_KEY,
      orgId: newId("org"),
      scopes: [Scope.MODELS_READ, Scope.MODELS_WRITE],
    }).token;
    const { models, versions } = clients(token);
    for (const name of ["c", "a", "b"]) await models.createModel({ name, description: name });
    const first = await models.listModels({ pageSize: 2 });
    const second = await models.listModels({ pageSize: 2, pageToken: first.nextPageToken });
    expect([...first.models, ...second.models].map((model) => model.name)).toEqual(["a", "b", "c"]);
    expect(second.nextPageToken).toBe("");
    expect(await refused(models.listModels({ pageToken: `${first.nextPageToken}x` }))).toBe("PAGE_TOKEN_INVALID");

    const a = await models.getModel({ id: "a" });
    expect(await models.getModel({ id: a.id })).toEqual(a);
    const changed = await models.updateModel({ id: "a", description: "new", etag: a.etag });
    expect(changed.description).toBe("new");
    expect(await refused(models.updateModel({ id: "a", description: "lost", etag: a.etag }))).toBe("ETAG_MISMATCH");
    expect(await refused(models.createModel({ name: "a" }))).toBe("RESOURCE_EXISTS");

    const version = await publish("a", "1.0.0", randomBytes(10), token);
    await models.deleteModel({ id: "a" });
    expect(await refused(versions.getModelVersion({ modelId: a.id, version: version.id }))).toBe("RESOURCE_NOT_FOUND");
    expect(await auditOf(a.id)).toEqual(["model.create", "model.update", "model.delete"]);
  });

  it("answers a repeated create with what it made, and refuses the id for another request", async () => {
    const request = { name: "replayed", requestId: "one" };
    const { models } = clients(key);
    const first = await models.createModel(request);
    let replayed: string | null = null;
    const again = await models.createModel(request, {
      onHeader: (header) => {
        replayed = header.get("octomesh-replayed");
      },
    });
    expect(again).toEqual(first);
    expect(replayed).toBe("true");
    expect(await auditOf(first.id)).toEqual(["model.create"]);
    expect(await refused(models.createModel({ ...request, name: "other" }))).toBe("REQUEST_ID_REUSED");
  });

  it("publishes a version with a manifest that the organisation's key signed, which never changes", async () => {
    const bytes = randomBytes(5000);
    const model = await newModel();
    const version = await publish(model.name, "1.0.0", bytes);
    expect(fromBinary(ManifestSchema, version.manifest)).toMatchObject({
      orgId,
      modelId: model.id,
      modelName: model.name,
      version: "1.0.0",
      versionId: version.id,
      artifactId: version.artifact?.id,
      sizeBytes: 5000n,
      format: ArtifactFormat.ONNX,
    });
    const { keys } = await registry().client(ModelVersionService).listManifestKeys({ orgId });
    const [signing] = keys;
    expect(signing?.id).toBe(version.keyId);
    expect(signing?.id).toMatch(/^mky_[a-z2-7]{26}$/);
    expect(verifyManifest(version.manifest, version.signature, signing?.publicKey ?? new Uint8Array())).toBe(true);

    const { versions } = clients(key);
    expect(await refused(publish(model.name, "1.0.0", bytes))).toBe("RESOURCE_EXISTS");
    expect(await refused(publish(model.name, "1.0.0-01", bytes))).toBe("VALIDATION_FAILED");
    const tampered = database.system((tx) =>
      sql`update model_versions set manifest = 'x' where id = ${version.id}`.execute(tx),
    );
    await expect(tampered).rejects.toThrow(/permission denied/);
    const changed = database.ingest([orgId], (tx) =>
      sql`update model_versions set manifest = 'x' where id = ${version.id}`.execute(tx),
    );
    await expect(changed).rejects.toThrow(/immutable/);
    expect(await versions.getModelVersion({ modelId: model.id, version: "1.0.0" })).toEqual(version);
    expect(await versions.getModelVersion({ modelId: model.id, version: version.id })).toEqual(version);
  });

  it("makes one key for versions that are an organisation's first at the same time", async () => {
    const token = mesh.identity.issue({
      prefix: "edg_live_",
      kind: CallerKind.API_KEY,
      orgId: newId("org"),
      scopes: [Scope.MODELS_READ, Scope.MODELS_WRITE],
    }).token;
    const model = await newModel(token);
    const artifact = await upload(randomBytes(10), token);
    const versions = await Promise.all(
      [1, 2, 3, 4].map((major) =>
        clients(token).versions.createModelVersion({
          modelId: model.id,
          version: `${major}.0.0`,
          artifactId: artifact.id,
          format: ArtifactFormat.ONNX,
        }),
      ),
    );
    expect(new Set(versions.map((version) => version.keyId)).size).toBe(1);
  });

  it("takes the newest published version for the latest, and lists newest first", async () => {
    const model = await newModel();
    const { versions } = clients(key);
    for (const version of ["1.0.0", "2.0.0", "1.0.1"]) await publish(model.id, version);
    expect((await versions.getModelVersion({ modelId: model.id, version: "latest" })).version).toBe("1.0.1");
    const deprecated = await versions.deprecateModelVersion({ modelId: model.id, version: "1.0.1" });
    expect(deprecated.state).toBe(ModelVersion_State.DEPRECATED);
    expect(await versions.deprecateModelVersion({ modelId: model.id, version: "1.0.1" })).toEqual(deprecated);
    expect((await versions.getModelVersion({ modelId: model.id, version: "latest" })).version).toBe("2.0.0");
    const page = await versions.listModelVersions({ modelId: model.id, pageSize: 2 });
    const rest = await versions.listModelVersions({ modelId: model.id, pageSize: 2, pageToken: page.nextPageToken });
    expect([...page.modelVersions, ...rest.modelVersions].map((each) => each.version)).toEqual([
      "1.0.1",
      "2.0.0",
      "1.0.0",
    ]);
    const rollout = clients(key).rollouts.createRollout({ modelId: model.id, version: "1.0.1", plan: single(1000) });
    expect(await refused(rollout)).toBe("VERSION_NOT_READY");
  });

  it("shows another organisation none of it", async () => {
    const model = await newModel();
    const version = await publish(model.id, "1.0.0");
    const rollout = await clients(key).rollouts.createRollout({ modelId: model.id, version: "1.0.0", plan: single(1) });
    const foreign = clients(foreignKey);
    const own = await newModel(foreignKey);
    const artifactId = version.artifact?.id ?? "";
    for (const attempt of [
      () => foreign.models.getModel({ id: model.id }),
      () => foreign.models.getModel({ id: model.name }),
      () => foreign.models.updateModel({ id: model.id, description: "x" }),
      () => foreign.models.deleteModel({ id: model.id }),
      () => foreign.versions.getModelVersion({ modelId: own.id, version: version.id }),
      () =>
        foreign.versions.createModelVersion({
          modelId: own.id,
          version: "1.0.0",
          artifactId,
          format: ArtifactFormat.ONNX,
        }),
      () => foreign.artifacts.getArtifact({ id: artifactId }),
      () => foreign.rollouts.getRollout({ id: rollout.id }),
      () => foreign.rollouts.startRollout({ id: rollout.id }),
      () => foreign.rollouts.createRollout({ modelId: own.id, version: version.id, plan: single(1) }),
      () => foreign.rollouts.listRolloutTransitions({ rolloutId: rollout.id }),
    ]) {
      expect(await refused(attempt())).toBe("RESOURCE_NOT_FOUND");
    }
    expect((await foreign.rollouts.listRollouts({})).rollouts).toEqual([]);
    expect((await fetch(url(`/api/v1/artifacts/${artifactId}/content`), { headers: bearer(foreignKey) })).status).toBe(
      404,
    );
  });
});

describe("uploads", () => {
  it("go on where they stand, with the right offset for whoever is wrong about it", async () => {
    const bytes = randomBytes(100_000);
    const { artifacts } = clients(key);
    const begun = await artifacts.createArtifactUpload({ sha256: hex(bytes), sizeBytes: 100_000n });
    expect(begun).toMatchObject({ offset: 0n, maxChunkBytes: 8n * 1024n * 1024n });
    const first = await patch(begun.id, 0, bytes.subarray(0, 40_000));
    expect([first.status, first.headers.get("upload-offset")]).toEqual([204, "40000"]);
    const wrong = await patch(begun.id, 0, bytes.subarray(0, 40_000));
    expect([wrong.status, wrong.headers.get("upload-offset")]).toEqual([409, "40000"]);
    expect(await wrong.json()).toMatchObject({ code: "OFFSET_MISMATCH", metadata: { offset: "40000" } });
    expect(await refused(artifacts.completeArtifactUpload({ id: begun.id }))).toBe("OFFSET_MISMATCH");

    // Whoever begins again with the same bytes is told where to go on.
    const again = await artifacts.createArtifactUpload({ sha256: hex(bytes), sizeBytes: 100_000n });
    expect(again).toMatchObject({ id: begun.id, offset: 40_000n });
    expect((await patch(begun.id, 40_000, randomBytes(60_001))).status).toBe(400);
    expect((await patch(begun.id, 40_000, bytes.subarray(40_000))).headers.get("upload-offset")).toBe("100000");

    const artifact = await artifacts.completeArtifactUpload({ id: begun.id });
    expect(artifact).toMatchObject({ sha256: hex(bytes), sizeBytes: 100_000n, orgId });
    expect(await artifacts.completeArtifactUpload({ id: begun.id })).toEqual(artifact);
    expect((await artifacts.getArtifactUpload({ id: begun.id })).artifact).toEqual(artifact);
    expect(await auditOf(artifact.id)).toEqual(["artifact.create"]);

    const known = await artifacts.createArtifactUpload({ sha256: hex(bytes), sizeBytes: 100_000n });
    expect(known).toMatchObject({ artifact, offset: 100_000n });
    expect(await artifacts.completeArtifactUpload({ id: known.id })).toEqual(artifact);
    const other = artifacts.createArtifactUpload({ sha256: hex(bytes), sizeBytes: 1n });
    expect(await refused(other)).toBe("VALIDATION_FAILED");
  });

  it("take one of two chunks that come for the same place", async () => {
    const bytes = randomBytes(200_000);
    const { artifacts } = clients(key);
    const { id } = await artifacts.createArtifactUpload({ sha256: hex(bytes), sizeBytes: 200_000n });
    const answers = await Promise.all([
      patch(id, 0, bytes.subarray(0, 100_000)),
      patch(id, 0, bytes.subarray(0, 50_000)),
      patch(id, 0, bytes.subarray(0, 70_000)),
    ]);
    expect(answers.map((each) => each.status).sort()).toEqual([204, 409, 409]);
    const { offset } = await artifacts.getArtifactUpload({ id });
    for (const each of answers) expect(each.headers.get("upload-offset")).toBe(String(offset));
    expect((await patch(id, Number(offset), bytes.subarray(Number(offset)))).status).toBe(204);
    expect((await artifacts.completeArtifactUpload({ id })).sha256).toBe(hex(bytes));
  });

  it("drop bytes that have not the announced digest, say so, and may be sent again", async () => {
    const bytes = randomBytes(1000);
    const { artifacts } = clients(key);
    const { id } = await artifacts.createArtifactUpload({ sha256: hex(bytes), sizeBytes: 1000n });
    const wrong = await patch(id, 0, randomBytes(1000));
    expect([wrong.status, wrong.headers.get("upload-offset")]).toEqual([400, "0"]);
    expect(await wrong.json()).toMatchObject({ code: "DIGEST_MISMATCH", metadata: { announced: hex(bytes) } });
    const dropped = await artifacts.getArtifactUpload({ id });
    expect([dropped.offset, dropped.artifact]).toEqual([0n, undefined]);
    expect((await patch(id, 0, bytes)).status).toBe(204);
    expect((await artifacts.completeArtifactUpload({ id })).sha256).toBe(hex(bytes));
  });

  it("refuse chunks that are too large, of another type, without an offset, or cut off, and store nothing of them", async () => {
    const bytes = randomBytes(1000);
    const { artifacts } = clients(key);
    const { id } = await artifacts.createArtifactUpload({ sha256: hex(bytes), sizeBytes: 17_179_869_184n });
    const path = `/api/v1/artifact-uploads/${id}`;
    const type = { "content-type": "application/offset+octet-stream" };
    const send = async (headers: Record<string, string>) =>
      (await fetch(url(path), { method: "PATCH", headers: { ...bearer(), ...headers }, body: bytes })).status;
    expect(await send({ "upload-offset": "0", "content-type": "application/json" })).toBe(400);
    expect(await send(type)).toBe(400);
    expect(await send({ ...type, "upload-offset": "-1" })).toBe(400);
    expect(await send({ ...type, "upload-offset": "0", "content-encoding": "gzip" })).toBe(400);
    const tooLarge = randomBytes(8 * 1024 * 1024 + 1);
    expect(await statusOfSent(path, { ...bearer(), ...type, "upload-offset": "0" }, tooLarge)).toBe(413);
    const announced = { "content-length": String(tooLarge.length) };
    expect(await statusOfSent(path, { ...bearer(), ...type, ...announced, "upload-offset": "0" }, tooLarge)).toBe(413);
    await cutOff(
      path,
      { ...bearer(), ...type, "upload-offset": "0", "content-length": "1000" },
      bytes.subarray(0, 500),
    );
    expect((await artifacts.getArtifactUpload({ id })).offset).toBe(0n);
    expect((await patch(newId("upl"), 0, bytes)).status).toBe(404);
  });

  it("go on for one organisation, however many slow senders another one has", async () => {
    const token = mesh.identity.issue({
      prefix: "edg_live_",
      kind: CallerKind.API_KEY,
      orgId: newId("org"),
      scopes: [Scope.MODELS_WRITE],
    }).token;
    const slow = clients(token).artifacts;
    const sent: ClientRequest[] = [];
    const refusals: Promise<number>[] = [];
    for (let count = 0; count < 10; count++) {
      const { id } = await slow.createArtifactUpload({ sha256: hex(randomBytes(32)), sizeBytes: 16_777_216n });
      const headers = { ...bearer(token), "content-type": "application/offset+octet-stream", "upload-offset": "0" };
      const request = httpRequest(url(`/api/v1/artifact-uploads/${id}`), { method: "PATCH", headers });
      refusals.push(
        new Promise((resolve) => request.on("response", (response) => resolve(response.resume().statusCode ?? 0))),
      );
      request.on("error", () => undefined);
      request.write("a");
      sent.push(request);
    }
    // The first that is turned away says that all those that fit are under way.
    expect(await Promise.race(refusals)).toBe(429);
    await upload(randomBytes(1000));
    for (const request of sent) request.destroy();
  });

  it("refuse rpc, and keep to a bounded number", async () => {
    const { artifacts } = clients(key);
    expect(await refused(artifacts.appendArtifactUpload({ id: newId("upl") }))).toBe("NOT_IMPLEMENTED");
    const token = mesh.identity.issue({
      prefix: "edg_live_",
      kind: CallerKind.API_KEY,
      orgId: newId("org"),
      scopes: [Scope.MODELS_WRITE],
    }).token;
    const many = clients(token).artifacts;
    const announce = () => many.createArtifactUpload({ sha256: hex(randomBytes(8)), sizeBytes: 8n });
    const begun = await announce();
    expect(ArtifactUploadSchema.typeName).toBe(begun.$typeName);
    for (let count = 1; count < 100; count++) await announce();
    expect(await refused(announce())).toBe("QUOTA_EXCEEDED");
  });
});

/** Sends a request with a body, in chunks of HTTP unless it has a length, and answers the status. */
async function statusOfSent(path: string, headers: Record<string, string>, body: Uint8Array): Promise<number> {
  return await new Promise((resolve, reject) => {
    const request = httpRequest(url(path), { method: "PATCH", headers }, (response) => {
      response.resume();
      resolve(response.statusCode ?? 0);
    });
    request.on("error", reject);
    for (let at = 0; at < body.length; at += 1024 * 1024) request.write(body.subarray(at, at + 1024 * 1024));
    request.end();
  });
}

/** Sends a part of a request's body and breaks the connection. */
async function cutOff(path: string, headers: Record<string, string>, part: Uint8Array): Promise<void> {
  await new Promise<void>((resolve) => {
    const request = httpRequest(url(path), { method: "PATCH", headers });
    request.on("error", () => resolve());
    request.on("close", () => resolve());
    request.write(part, () => request.destroy());
  });
}

describe("rollouts", () => {
  it("run through their life, each step with its actor and its reason", async () => {
    const model = await newModel();
    await publish(model.id, "1.0.0");
    const { rollouts } = clients(key);
    const draft = await rollouts.createRollout({ modelId: model.name, version: "1.0.0", plan: single(10_000) });
    expect(draft).toMatchObject({ state: Rollout_State.DRAFT, percentageThousandths: 0, version: "1.0.0", orgId });
    const { id } = draft;
    expect(await refused(rollouts.completeRollout({ id }))).toBe("ILLEGAL_TRANSITION");
    expect(await rollouts.startRollout({ id, reason: "go" })).toMatchObject({
      state: Rollout_State.RUNNING,
      percentageThousandths: 10_000,
    });
    expect((await rollouts.startRollout({ id })).state).toBe(Rollout_State.RUNNING);
    await rollouts.setRolloutPercentage({ id, percentageThousandths: 50_000 });
    const backwards = rollouts.setRolloutPercentage({ id, percentageThousandths: 49_999 });
    expect(await refused(backwards)).toBe("PERCENTAGE_NOT_MONOTONE");
    expect((await rollouts.pauseRollout({ id })).state).toBe(Rollout_State.PAUSED);
    const whilePaused = rollouts.setRolloutPercentage({ id, percentageThousandths: 60_000 });
    expect(await refused(whilePaused)).toBe("ILLEGAL_TRANSITION");
    expect(await refused(rollouts.deleteRollout({ id }))).toBe("ILLEGAL_TRANSITION");
    await rollouts.resumeRollout({ id });
    expect(await refused(rollouts.completeRollout({ id }))).toBe("ILLEGAL_TRANSITION");
    await rollouts.setRolloutPercentage({ id, percentageThousandths: 100_000 });
    const completed = await clients(session).rollouts.completeRollout({ id, reason: "all is well" });
    expect(completed.state).toBe(Rollout_State.COMPLETED);
    expect(completed.salt).toBe(draft.salt);

    const { transitions } = await rollouts.listRolloutTransitions({ rolloutId: id });
    expect(transitions.map((each) => [each.toState, each.percentageThousandths])).toEqual([
      [Rollout_State.DRAFT, 0],
      [Rollout_State.RUNNING, 10_000],
      [Rollout_State.RUNNING, 50_000],
      [Rollout_State.PAUSED, 50_000],
      [Rollout_State.RUNNING, 50_000],
      [Rollout_State.RUNNING, 100_000],
      [Rollout_State.COMPLETED, 100_000],
    ]);
    expect(transitions[1]).toMatchObject({ reason: "go", actorKind: CallerKind.API_KEY });
    expect(transitions.at(-1)).toMatchObject({ reason: "all is well", actorKind: CallerKind.SESSION });
    expect(await auditOf(id)).toEqual([
      "rollout.create",
      "rollout.start",
      "rollout.promote",
      "rollout.pause",
      "rollout.resume",
      "rollout.promote",
      "rollout.complete",
    ]);
    expect(await refused(clients(key).models.deleteModel({ id: model.id }))).toBe("RESOURCE_IN_USE");
  });

  it("are one row each, whatever the number of devices", async () => {
    const model = await newModel();
    await publish(model.id, "1.0.0");
    const rows = () =>
      database.ingest([orgId], async (tx) => {
        const { rows } = await sql<{ count: bigint }>`
          select (select count(*) from rollouts) + (select count(*) from rollout_transitions) as count`.execute(tx);
        return rows[0]?.count ?? 0n;
      });
    const before = await rows();
    await clients(key).rollouts.createRollout({
      modelId: model.id,
      version: "1.0.0",
      plan: single(100_000),
      start: true,
    });
    expect((await rows()) - before).toBe(3n);
  });

  it("are one at a time for a model and a target, also when two start at once", async () => {
    const model = await newModel();
    await publish(model.id, "1.0.0");
    const { rollouts } = clients(key);
    const group = newId("grp");
    groups.set(group, orgId);
    const make = (groupIds: string[]) =>
      rollouts.createRollout({ modelId: model.id, version: "1.0.0", plan: single(1000), target: { groupIds } });
    const drafts = await Promise.all([make([]), make([]), make([]), make([group])]);
    const starts = await Promise.all(drafts.slice(0, 3).map((each) => refused(rollouts.startRollout({ id: each.id }))));
    expect(starts.sort()).toEqual(["ROLLOUT_CONFLICT", "ROLLOUT_CONFLICT", "not refused"]);
    expect(await refused(rollouts.startRollout({ id: drafts[3]?.id ?? "" }))).toBe("not refused");
  });

  it("are not made for a group of another organisation, or of nobody", async () => {
    const model = await newModel();
    await publish(model.id, "1.0.0");
    const foreign = newId("grp");
    groups.set(foreign, newId("org"));
    for (const group of [foreign, newId("grp")]) {
      const made = clients(key).rollouts.createRollout({
        modelId: model.id,
        version: "1.0.0",
        plan: single(1000),
        target: { groupIds: [group] },
      });
      expect(await refused(made)).toBe("RESOURCE_NOT_FOUND");
    }
  });

  it("refuse a plan that does not grow or has no stage", async () => {
    const model = await newModel();
    await publish(model.id, "1.0.0");
    const { rollouts } = clients(key);
    const make = (stages: number[]) =>
      rollouts.createRollout({
        modelId: model.id,
        version: "1.0.0",
        plan: { stages: stages.map((percentageThousandths) => ({ percentageThousandths })) },
      });
    expect(await refused(make([10, 10]))).toBe("VALIDATION_FAILED");
    expect(await refused(make([]))).toBe("VALIDATION_FAILED");
    expect(await refused(make([100_001]))).toBe("VALIDATION_FAILED");
    const farPlan = { ...single(1), scheduleTime: { seconds: 253_402_300_799n, nanos: 0 } };
    const far = rollouts.createRollout({ modelId: model.id, version: "1.0.0", plan: farPlan });
    expect(await refused(far)).toBe("VALIDATION_FAILED");
    expect(await refused(rollouts.createRollout({ modelId: model.id, version: "1.0.0" }))).toBe("VALIDATION_FAILED");
    expect(await refused(rollouts.createRollout({ modelId: model.id, version: "9.9.9", plan: single(1) }))).toBe(
      "RESOURCE_NOT_FOUND",
    );
  });

  it("grow by their plan, wait for a member's approval, and start when their time has come", async () => {
    const model = await newModel();
    await publish(model.id, "1.0.0");
    const { rollouts } = clients(key);
    const soon = Date.now() + 700;
    const { id } = await rollouts.createRollout({
      modelId: model.id,
      version: "1.0.0",
      start: true,
      plan: {
        scheduleTime: { seconds: BigInt(Math.floor(soon / 1000)), nanos: (soon % 1000) * 1_000_000 },
        stages: [
          { percentageThousandths: 1000, minDwell: { seconds: 0n, nanos: 100_000_000 } },
          { percentageThousandths: 2000, approvalRequired: true },
        ],
      },
    });
    expect((await rollouts.getRollout({ id })).state).toBe(Rollout_State.SCHEDULED);
    const waiting = await eventually(
      () => rollouts.getRollout({ id }),
      (rollout) => rollout.state === Rollout_State.AWAITING_APPROVAL,
    );
    expect(waiting).toMatchObject({ stageIndex: 1, percentageThousandths: 1000 });
    expect(await refused(rollouts.approveRolloutStage({ id }))).toBe("CALLER_KIND_NOT_ALLOWED");
    expect(await clients(session).rollouts.approveRolloutStage({ id })).toMatchObject({
      state: Rollout_State.RUNNING,
      percentageThousandths: 2000,
    });
    const { transitions } = await rollouts.listRolloutTransitions({ rolloutId: id });
    expect(transitions.filter((each) => each.actorKind === CallerKind.SYSTEM).map((each) => each.actorId)).toEqual([
      "rollout",
      "rollout",
    ]);
  });

  it("abort and are deleted while they have delivered nothing, and list by model, state and page", async () => {
    const model = await newModel();
    await publish(model.id, "1.0.0");
    const { rollouts } = clients(key);
    const ids: string[] = [];
    for (let count = 0; count < 3; count++) {
      ids.push((await rollouts.createRollout({ modelId: model.id, version: "1.0.0", plan: single(0) })).id);
    }
    const page = await rollouts.listRollouts({ modelId: model.name, pageSize: 2 });
    const rest = await rollouts.listRollouts({ modelId: model.name, pageSize: 2, pageToken: page.nextPageToken });
    expect([...page.rollouts, ...rest.rollouts].map((each) => each.id)).toEqual([...ids].reverse());
    const [first = "", second = ""] = ids;
    await rollouts.startRollout({ id: first });
    expect((await rollouts.abortRollout({ id: first })).state).toBe(Rollout_State.ABORTED);
    const aborted = await rollouts.listRollouts({ modelId: model.id, state: Rollout_State.ABORTED });
    expect(aborted.rollouts.map((each) => each.id)).toEqual([first]);
    await rollouts.deleteRollout({ id: first });
    await rollouts.deleteRollout({ id: second });
    expect(await refused(rollouts.getRollout({ id: first }))).toBe("RESOURCE_NOT_FOUND");
  });
});

describe("assignments", () => {
  const devices = Array.from({ length: 100 }, () => ({ deviceId: newId("dev"), groupIds: [] }));
  const resolve = async (modelId: string) => {
    const { desiredStates } = await assignments().resolveDesiredStates({ orgId, devices });
    return desiredStates.map((state) => state.models.find((each) => each.modelId === modelId)?.version);
  };

  it("follow the bucket at each step, and come back to the prior version within a moment of a rollback", async () => {
    const model = await newModel();
    for (const version of ["1.0.0", "1.1.0", "1.2.0"]) await publish(model.id, version);
    const { rollouts } = clients(key);
    const make = (version: string, plan: ReturnType<typeof single>) =>
      rollouts.createRollout({ modelId: model.id, version, plan, start: true });

    const first = await make("1.0.0", single(100_000));
    await rollouts.completeRollout({ id: first.id });
    expect(new Set(await resolve(model.id))).toEqual(new Set(["1.0.0"]));

    const second = await make("1.1.0", single(10_000));
    expect(second.priorVersion).toBe("1.0.0");
    for (const share of [10_000, 50_000, 100_000]) {
      await rollouts.setRolloutPercentage({ id: second.id, percentageThousandths: share });
      const expected = devices.map(({ deviceId }) => (bucketOf(second.salt, deviceId) < share ? "1.1.0" : "1.0.0"));
      expect(await resolve(model.id)).toEqual(expected);
    }
    await rollouts.completeRollout({ id: second.id });

    const third = await make("1.2.0", single(50_000));
    expect(new Set(await resolve(model.id))).toEqual(new Set(["1.1.0", "1.2.0"]));
    const rolling = await rollouts.rollBackRollout({ id: third.id, reason: "worse" });
    expect(rolling).toMatchObject({
      state: Rollout_State.ROLLING_BACK,
      percentageThousandths: 0,
      priorVersion: "1.1.0",
    });
    expect(new Set(await resolve(model.id))).toEqual(new Set(["1.1.0"]));
    await eventually(
      () => rollouts.getRollout({ id: third.id }),
      (rollout) => rollout.state === Rollout_State.ROLLED_BACK,
    );

    // A completed rollout rolls back too: while it is the one that decides.
    expect(await refused(rollouts.rollBackRollout({ id: first.id }))).toBe("ILLEGAL_TRANSITION");
    expect((await rollouts.rollBackRollout({ id: second.id })).priorVersion).toBe("1.0.0");
    expect(new Set(await resolve(model.id))).toEqual(new Set(["1.0.0"]));
  });

  it("change their etag exactly when what a device runs changes", async () => {
    const model = await newModel();
    for (const version of ["1.0.0", "1.1.0"]) await publish(model.id, version);
    const [device] = devices;
    if (device === undefined) throw new Error("no device");
    const state = async () => {
      const { desiredStates } = await assignments().resolveDesiredStates({ orgId, devices: [device] });
      if (desiredStates[0] === undefined) throw new Error("no state");
      return desiredStates[0];
    };
    const { rollouts } = clients(key);
    const none = await state();
    const rollout = await rollouts.createRollout({
      modelId: model.id,
      version: "1.0.0",
      plan: single(100_000),
      start: true,
    });
    const one = await state();
    expect(one.etag).not.toBe(none.etag);
    await rollouts.completeRollout({ id: rollout.id });
    const same = await state();
    expect(same.etag).toBe(one.etag);
    expect(same.pollInterval?.seconds).toBe(30n);
    const grantOf = (each: typeof one) => each.models.find((found) => found.modelId === model.id)?.downloadGrant;
    expect(grantOf(same)).not.toBe("");
  });

  it("are watched: what stands, then each change, resumed from a cursor", async () => {
    const model = await newModel();
    await publish(model.id, "1.0.0");
    const { rollouts } = clients(key);
    const rollout = await rollouts.createRollout({
      modelId: model.id,
      version: "1.0.0",
      plan: single(1000),
      start: true,
    });
    const watch = openWatch();
    let message = await watch.next();
    const standing = [...message.rollouts];
    while (!message.caughtUp) {
      expect(message.cursor).toBe("");
      message = await watch.next();
      standing.push(...message.rollouts);
    }
    expect(standing.find((each) => each.id === rollout.id)).toEqual(rollout);
    const { cursor } = message;
    await rollouts.setRolloutPercentage({ id: rollout.id, percentageThousandths: 2000 });
    await rollouts.pauseRollout({ id: rollout.id });
    const paused = await watch.until((each) => each.rollouts[0]?.state === Rollout_State.PAUSED);
    expect(paused).toMatchObject({ orgIds: [orgId], rollouts: [{ id: rollout.id, percentageThousandths: 2000 }] });
    await watch.end();

    const resumed = openWatch(cursor);
    expect(await resumed.next()).toMatchObject({ cursor, rollouts: [], caughtUp: true });
    const caughtUp = await resumed.until((each) => each.rollouts[0]?.id === rollout.id);
    expect(caughtUp.rollouts).toEqual(paused.rollouts);
    await resumed.end();
    const malformed = openWatch("nonsense");
    expect(await refused(malformed.next().then(() => malformed.next()))).toBe("REQUEST_MALFORMED");
  });

  it("are told to the services of the mesh alone", async () => {
    const answer = await fetch(url("/octomesh.rollout.v1.AssignmentService/ResolveDesiredStates"), {
      method: "POST",
      headers: { ...bearer(), "content-type": "application/json" },
      body: "{}",
    });
    expect(answer.status).toBe(404);
  });

  function openWatch(cursor = "") {
    const ending = new AbortController();
    const stream = assignments().watchRolloutDefinitions({ cursor }, { signal: ending.signal, timeoutMs: 0 });
    const iterator = stream[Symbol.asyncIterator]();
    async function next(): Promise<WatchRolloutDefinitionsResponse> {
      const result = await iterator.next();
      if (result.done === true) throw new Error("the watch ended");
      return result.value;
    }
    return {
      next,
      async until(
        isIt: (message: WatchRolloutDefinitionsResponse) => boolean,
      ): Promise<WatchRolloutDefinitionsResponse> {
        for (;;) {
          const message = await next();
          if (isIt(message)) return message;
        }
      },
      async end(): Promise<void> {
        ending.abort();
        await iterator.next().catch(() => undefined);
      },
    };
  }
});

describe("downloads", () => {
  const bytes = randomBytes(50_000);
  let artifactId = "";
  let etag = "";
  let modelId = "";
  beforeAll(async () => {
    modelId = (await newModel()).id;
    const version = await publish(modelId, "1.0.0", bytes);
    artifactId = version.artifact?.id ?? "";
    etag = `"${hex(bytes)}"`;
  });
  const download = (headers: Record<string, string> = {}, method = "GET") =>
    fetch(url(`/api/v1/artifacts/${artifactId}/content`), { method, headers: { ...bearer(), ...headers } });
  const bodyOf = async (response: Response) => Buffer.from(await response.arrayBuffer());

  it("send the whole with its digest", async () => {
    const response = await download();
    expect(response.status).toBe(200);
    const digest = `sha-256=:${createHash("sha256").update(bytes).digest("base64")}:`;
    expect(Object.fromEntries(response.headers)).toMatchObject({
      etag,
      "accept-ranges": "bytes",
      "content-length": "50000",
      "content-type": "application/octet-stream",
      "content-digest": digest,
      "repr-digest": digest,
      "cache-control": "private, no-transform",
    });
    expect((await bodyOf(response)).equals(bytes)).toBe(true);
  });

  it("send a part, the head alone, or nothing where nothing changed", async () => {
    const part = await download({ range: "bytes=100-199", "if-range": etag });
    expect([part.status, part.headers.get("content-range"), part.headers.get("content-digest")]).toEqual([
      206,
      "bytes 100-199/50000",
      null,
    ]);
    expect(await bodyOf(part)).toEqual(bytes.subarray(100, 200));
    const rest = await download({ range: "bytes=49990-" });
    expect(await bodyOf(rest)).toEqual(bytes.subarray(49_990));
    const suffix = await download({ range: "bytes=-3" });
    expect(await bodyOf(suffix)).toEqual(bytes.subarray(-3));
    const changed = await download({ range: "bytes=0-1", "if-range": '"other"' });
    expect([changed.status, (await bodyOf(changed)).length]).toEqual([200, 50_000]);
    const head = await download({ range: "bytes=0-1" }, "HEAD");
    expect([head.status, head.headers.get("content-length"), (await bodyOf(head)).length]).toEqual([200, "50000", 0]);
    const beyond = await download({ range: "bytes=50000-" });
    expect([beyond.status, beyond.headers.get("content-range")]).toEqual([416, "bytes */50000"]);
    expect(await beyond.json()).toMatchObject({ code: "RANGE_NOT_SATISFIABLE" });
    const same = await download({ "if-none-match": etag });
    expect([same.status, (await bodyOf(same)).length]).toEqual([304, 0]);
    const other = await download({ "if-match": '"other"' });
    expect([other.status, ((await other.json()) as { code: string }).code]).toEqual([412, "ETAG_MISMATCH"]);
  });

  it("go over HTTP/2 too", async () => {
    const session = connectHttp2(mesh.publicUrl("rollout"));
    const stream = session.request({
      ":path": `/api/v1/artifacts/${artifactId}/content`,
      range: "bytes=10-49",
      ...bearer(),
    });
    const status = new Promise((resolve) => stream.once("response", (headers) => resolve(headers[":status"])));
    const parts: Buffer[] = [];
    for await (const part of stream as AsyncIterable<Buffer>) parts.push(part);
    expect(await status).toBe(206);
    expect(Buffer.concat(parts)).toEqual(bytes.subarray(10, 50));
    session.close();
  });

  it("go to a device only with a grant of its own, for this artifact, while the rollout delivers to it", async () => {
    const deviceId = newId("dev");
    const token = await mesh.identity.sign({ kind: "device", orgId, id: deviceId });
    const other = await mesh.identity.sign({ kind: "device", orgId, id: newId("dev") });
    const { rollouts } = clients(key);
    const rollout = await rollouts.createRollout({ modelId, version: "1.0.0", plan: single(100_000), start: true });
    const { desiredStates } = await assignments().resolveDesiredStates({
      orgId,
      devices: [{ deviceId, groupIds: [] }],
    });
    const desired = desiredStates[0]?.models.find((each) => each.modelId === modelId);
    const grant = desired?.downloadGrant ?? "";
    expect(desired?.downloadPath).toBe(`/api/v1/artifacts/${artifactId}/content`);
    const get = (as: string, shown: string) =>
      download({ ...bearer(as), ...(shown === "" ? {} : { "octomesh-download-grant": shown }) });
    const codeOf = async (response: Response) => ((await response.json()) as { code: string }).code;
    expect((await bodyOf(await get(token, grant))).equals(bytes)).toBe(true);
    expect(await codeOf(await get(token, ""))).toBe("ARTIFACT_NOT_ASSIGNED");
    expect(await codeOf(await get(token, `${grant}x`))).toBe("ARTIFACT_NOT_ASSIGNED");
    expect(await codeOf(await get(other, grant))).toBe("ARTIFACT_NOT_ASSIGNED");
    const another = await upload(randomBytes(10));
    const foreign = await fetch(url(`/api/v1/artifacts/${another.id}/content`), {
      headers: { ...bearer(token), "octomesh-download-grant": grant },
    });
    expect(await codeOf(foreign)).toBe("ARTIFACT_NOT_ASSIGNED");
    await rollouts.rollBackRollout({ id: rollout.id });
    expect(await codeOf(await get(token, grant))).toBe("ARTIFACT_NOT_ASSIGNED");
  });

  it("end in the middle when the device is revoked", async () => {
    const large = randomBytes(48 * 1024 * 1024);
    const model = await newModel();
    const artifact = await uploadLarge(large);
    await clients(key).versions.createModelVersion({
      modelId: model.id,
      version: "1.0.0",
      artifactId: artifact.id,
      format: ArtifactFormat.ONNX,
    });
    await clients(key).rollouts.createRollout({
      modelId: model.id,
      version: "1.0.0",
      plan: single(100_000),
      start: true,
    });
    const deviceId = newId("dev");
    const token = await mesh.identity.sign({ kind: "device", orgId, id: deviceId });
    const { desiredStates } = await assignments().resolveDesiredStates({
      orgId,
      devices: [{ deviceId, groupIds: [] }],
    });
    const grant = desiredStates[0]?.models.find((each) => each.modelId === model.id)?.downloadGrant ?? "";
    const response = await fetch(url(`/api/v1/artifacts/${artifact.id}/content`), {
      headers: { ...bearer(token), "octomesh-download-grant": grant },
    });
    expect(response.status).toBe(200);
    const reader = response.body?.getReader();
    const first = await reader?.read();
    expect(first?.value?.length).toBeGreaterThan(0);
    // Nothing is read until the service has applied the revocation: most of the bytes wait on its side.
    mesh.identity.revoke(Subject.DEVICE, deviceId, orgId);
    await eventually(
      async () => [...mesh.identity.acknowledged.values()],
      (cursors) => cursors.length > 0 && cursors.every((cursor) => cursor === mesh.identity.head()),
    );
    let received = first?.value?.length ?? 0;
    const ending = (async () => {
      for (;;) {
        const next = await reader?.read();
        if (next === undefined || next.done) return "whole";
        received += next.value.length;
      }
    })();
    await expect(ending).rejects.toThrow();
    expect(received).toBeLessThan(large.length);
  });

  async function uploadLarge(large: Buffer): Promise<Artifact> {
    const { artifacts } = clients(key);
    const { id } = await artifacts.createArtifactUpload({ sha256: hex(large), sizeBytes: BigInt(large.length) });
    for (let offset = 0; offset < large.length; offset += 8 * 1024 * 1024) {
      expect((await patch(id, offset, large.subarray(offset, offset + 8 * 1024 * 1024))).status).toBe(204);
    }
    return await artifacts.completeArtifactUpload({ id });
  }
});

describe("erasing a tenant", () => {
  it("leaves nothing of the organisation, and everything of the others", async () => {
    const erasedOrg = newId("org");
    const scopes = [Scope.MODELS_READ, Scope.MODELS_WRITE, Scope.ROLLOUTS_READ, Scope.ROLLOUTS_WRITE];
    const token = mesh.identity.issue({
      prefix: "edg_live_",
      kind: CallerKind.API_KEY,
      orgId: erasedOrg,
      scopes,
    }).token;
    const model = await newModel(token);
    await publish(model.id, "1.0.0", randomBytes(10), token);
    await clients(token).artifacts.createArtifactUpload({ sha256: hex(randomBytes(9)), sizeBytes: 9n });
    await clients(token).rollouts.createRollout({ modelId: model.id, version: "1.0.0", plan: single(10), start: true });
    const kept = await clients(key).models.listModels({});

    const authority = await openDevelopmentAuthority(mesh.stateDir, defaultTrustDomain);
    const asIdentity = createSiblingClients({
      identity: await authority.issue("identity"),
      trustDomain: defaultTrustDomain,
      urlOf: (sibling) => mesh.meshUrl(sibling),
    });
    const eraser = asIdentity.client("rollout", TenantService);
    const { erased, remaining } = await eraser.eraseTenant({ orgId: erasedOrg });
    expect(remaining).toBe(0n);
    expect(erased).toMatchObject({ models: 1n, model_versions: 1n, rollouts: 1n, artifacts: 1n, blobs: 1n });
    // Audit events name the organisation's models and who made them, with addresses.
    expect(erased.audit_outbox).toBeGreaterThan(0n);
    expect((await clients(token).models.listModels({})).models).toEqual([]);
    const again = await eraser.eraseTenant({ orgId: erasedOrg });
    expect(Object.values(again.erased).every((count) => count === 0n)).toBe(true);
    expect(await clients(key).models.listModels({})).toEqual(kept);
    const { desiredStates } = await assignments().resolveDesiredStates({
      orgId: erasedOrg,
      devices: [{ deviceId: newId("dev"), groupIds: [] }],
    });
    expect(desiredStates[0]?.models).toEqual([]);
    asIdentity.close();
  });
});
