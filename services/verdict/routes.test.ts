import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { toJsonString } from "@bufbuild/protobuf";
import { timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { ConnectError } from "@connectrpc/connect";
import { newId } from "@octomesh/mesh/ids";
import { Subject } from "@octomesh/mesh/revocations";
import { reasonToSkipRedis, startTestRedis, type TestRedis } from "@octomesh/mesh/test/redis-fixture";
import { ErrorInfoSchema } from "@octomesh/proto/google/rpc/error_details_pb";
import { CallerKind, Scope } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { VerdictEvidence_TimingQuality as Quality } from "@octomesh/proto/octomesh/verdict/v1/verdict_evidence_pb";
import { Verdict_Alarm as Alarm } from "@octomesh/proto/octomesh/verdict/v1/verdict_pb";
import {
  type SubmitSignalsResponse,
  SubmitSignalsResponseSchema,
} from "@octomesh/proto/octomesh/verdict/v1/verdict_service_pb";
import { VerdictSession_State as State } from "@octomesh/proto/octomesh/verdict/v1/verdict_session_pb";
import { verifyVerdict } from "@octomesh/sdk";
import fc from "fast-check";
import { createLocalJWKSet } from "jose";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  bundleOf,
  measurementOf,
  outcomeOf,
  type RestAnswer,
  signedBy,
  startVerdictMesh,
  type TestEdge,
  type VerdictMesh,
} from "./test/verdict-fixture.ts";

const landmarkOrg = newId("org");
const skip = reasonToSkipRedis();

describe("the verdict service, with sessions in memory", () => describeService(false));
describe.skipIf(skip !== undefined)("the verdict service, with sessions on Redis", () => describeService(true));

function describeService(onRedis: boolean): void {
  let redis: TestRedis | undefined;
  let world: VerdictMesh;
  let edge: TestEdge;
  let org: string;

  beforeAll(async () => {
    if (onRedis) redis = await startTestRedis();
    world = await startVerdictMesh({
      OCTOMESH_VERDICT_LANDMARK_ORGS: landmarkOrg,
      ...(redis === undefined ? {} : { REDIS_URL: redis.url }),
    });
    edge = await world.edge();
    org = edge.orgId;
  });
  afterAll(async () => {
    await world?.stop();
    await redis?.stop();
  });

  const newRef = (): string => `session-${randomBytes(12).toString("base64url")}`;
  const submit = (bundle: Uint8Array<ArrayBuffer>, by = edge) =>
    world.signals.submitSignals(signedBy(by, bundle), by.options);
  const jsonOf = ({ body }: RestAnswer): Record<string, unknown> => JSON.parse(body) as Record<string, unknown>;
  const pendingOf = async (path: string, token: string): Promise<unknown> => {
    const answer = await world.get(path, { "x-octet-partner-key": token });
    expect(answer.status).toBe(404);
    expect(Number(answer.headers["retry-after"])).toBeGreaterThanOrEqual(1);
    return jsonOf(answer);
  };

  test("a session is registered, collected once, read and verified", async () => {
    const partner = world.as("partner", org);
    const sessionRef = newRef();
    const nonce = randomBytes(16).toString("base64url");
    const path = `/v1/verdict/${sessionRef}`;
    expect(await pendingOf(path, partner.token)).toEqual({ status: "pending", ref: sessionRef, reason: "unknown" });
    const session = await world.verdicts.createVerdictSession({ sessionRef, nonce }, partner);
    expect(session).toMatchObject({ sessionRef, orgId: org, nonce, state: State.COLLECTING });
    expect(await world.verdicts.createVerdictSession({ sessionRef, nonce }, partner)).toEqual(session);
    expect(await pendingOf(path, partner.token)).toEqual({ status: "pending", ref: sessionRef, reason: "collecting" });
    expect(await outcomeOf(world.verdicts.getVerdict({ sessionRef }, partner))).toBe("VERDICT_PENDING");

    const answer = await submit(bundleOf(sessionRef, {}, { nonce }));
    expect(answer).toMatchObject({ ok: true, duplicate: false });
    expect(answer.verdict).toBeUndefined();

    const verdict = await world.verdicts.getVerdict({ sessionRef }, partner);
    expect(verdict).toMatchObject({ sessionRef, nonce, country: "DE", alarm: Alarm.NONE });
    const [created, expires] = [verdict.createTime, verdict.expireTime].map((each) => each && timestampMs(each));
    expect((expires ?? 0) - (created ?? 0)).toBe(600_000);

    const rest = await world.get(path, { "x-octet-partner-key": partner.token });
    expect(rest.status).toBe(200);
    expect(rest.headers["content-type"]).toBe("application/json");
    expect(rest.headers["cache-control"]).toBe("no-store");
    const shown = jsonOf(rest);
    expect(Object.keys(shown).sort()).toEqual([
      "alarm",
      "confidence",
      "confidenceRadiusKm",
      "country",
      "estimatedLocation",
      "feasibleRegion",
      "token",
    ]);
    expect(shown).toMatchObject({ country: "DE", alarm: "none", confidence: verdict.confidence, token: verdict.token });

    const keySet = await world.get("/.well-known/verdict-jwks.json");
    expect(keySet.headers["cache-control"]).toBe("public, max-age=300");
    const keys = createLocalJWKSet(jsonOf(keySet) as unknown as Parameters<typeof createLocalJWKSet>[0]);
    const verified = await verifyVerdict(verdict.token, { keys, audience: org, sessionRef, nonce });
    expect(verified).toMatchObject({ country: "DE", alarm: "none", confidence: verdict.confidence });
    expect(verified.expireTime.getTime()).toBe(Math.floor((expires ?? 0) / 1000) * 1000);

    const again = await world.verdicts.createVerdictSession({ sessionRef, nonce }, partner);
    expect(again.state).toBe(State.READY);
  });

  test("an edge that asks gets the verdict without its token", async () => {
    const bundle = bundleOf(newRef());
    const request = { ...signedBy(edge, bundle), returnVerdict: true };
    const first = await world.signals.submitSignals(request, edge.options);
    expect(first.verdict).toMatchObject({ country: "DE", token: "" });
    const second = await world.signals.submitSignals(request, edge.options);
    expect(second).toEqual({ ...first, duplicate: true });
  });

  test("every credential that may read reads, over every header, and no other", async () => {
    const ref = newRef();
    await submit(bundleOf(ref));
    const path = `/v1/verdict/${ref}`;
    const statusOf = async (headers: Record<string, string>): Promise<number> =>
      (await world.get(path, headers)).status;
    const bearer = (token: string) => ({ authorization: `Bearer ${token}` });
    const scopes = [Scope.VERDICTS_READ];
    expect(await statusOf({ "x-octet-partner-key": world.as("partner", org).token })).toBe(200);
    expect(await statusOf(bearer(world.as("partner", org).token))).toBe(200);
    expect(await statusOf(bearer(world.as("read_token", org, { scopes }).token))).toBe(200);
    expect(await statusOf(bearer(world.as("api_key", org, { scopes }).token))).toBe(200);
    expect(await statusOf(bearer(world.as("api_key", org).token))).toBe(403);
    expect(await statusOf({})).toBe(401);
    expect(await statusOf(edge.options.headers as Record<string, string>)).toBe(403);
    expect(await outcomeOf(world.verdicts.getVerdictEvidence({ sessionRef: ref }, world.as("partner", org)))).toBe(
      "CALLER_KIND_NOT_ALLOWED",
    );
  });

  test("evidence is in classes, and says nothing of the signals", async () => {
    const reader = world.as("api_key", org, { scopes: [Scope.EVIDENCE_READ] });
    const ref = newRef();
    expect(await outcomeOf(world.verdicts.getVerdictEvidence({ sessionRef: ref }, reader))).toBe("VERDICT_PENDING");
    await submit(bundleOf(ref, {}, { env: { languages: ["ja"], tz: "Asia/Tokyo" } }));
    const evidence = await world.verdicts.getVerdictEvidence({ sessionRef: ref }, reader);
    expect(evidence).toMatchObject({ sessionRef: ref, pings: 20, landmarks: 1, timingQuality: Quality.FULL });
    expect(evidence.findings.length).toBeGreaterThan(0);
    const rest = await world.get(`/v1/verdict/${ref}/evidence`, reader.headers as Record<string, string>);
    expect(rest.status).toBe(200);
    for (const signal of ["141.1.1.1", "Tokyo", "edge-berlin", "20500"]) expect(rest.body).not.toContain(signal);
  });

  test("the query is waitMs within its bounds, and nothing else", async () => {
    const { token } = world.as("partner", org);
    const headers = { "x-octet-partner-key": token };
    const path = `/v1/verdict/${newRef()}`;
    const statusOf = async (query: string): Promise<number> => (await world.get(`${path}?${query}`, headers)).status;
    expect(await statusOf("waitMs=0")).toBe(404);
    expect(await statusOf("wait_ms=20")).toBe(404);
    for (const wrong of ["waitMs=10001", "waitMs=-1", "waitMs=1.5", "waitMs=", "waitMs=NaN", "wait=5"]) {
      expect(await statusOf(wrong)).toBe(400);
    }
    expect((await world.get(`/v1/verdict/${"a".repeat(129)}`, headers)).status).toBe(400);
    const head = await world.get(path, headers, "HEAD");
    expect([head.status, head.body]).toEqual([404, ""]);
  });

  test("who waits is woken by the report, over both protocols", async () => {
    const partner = world.as("partner", org);
    const ref = newRef();
    const began = performance.now();
    const waiting = Promise.all([
      world.get(`/v1/verdict/${ref}?waitMs=10000`, { "x-octet-partner-key": partner.token }),
      world.verdicts.getVerdict({ sessionRef: ref, waitMs: 10_000 }, partner),
    ]);
    // Nobody is told that they wait: some of this time they do.
    const later = await world.verdicts
      .getVerdict({ sessionRef: newRef(), waitMs: 100 }, partner)
      .catch(() => undefined);
    expect(later).toBeUndefined();
    await submit(bundleOf(ref));
    const [rest, rpc] = await waiting;
    expect(rest.status).toBe(200);
    expect(jsonOf(rest).token).toBe(rpc.token);
    expect(performance.now() - began).toBeLessThan(9_000);
  });

  test("who waits learns nothing any more once the credential is revoked, over both protocols", async () => {
    const { token, id } = world.mesh.identity.issue({
      prefix: "edg_partner_",
      kind: CallerKind.PARTNER,
      orgId: org,
      scopes: [],
    });
    const ref = newRef();
    const waiting = Promise.all([
      world.get(`/v1/verdict/${ref}?waitMs=10000`, { "x-octet-partner-key": token }).catch(() => undefined),
      outcomeOf(
        world.verdicts.getVerdict(
          { sessionRef: ref, waitMs: 10_000 },
          { headers: { authorization: `Bearer ${token}` } },
        ),
      ),
    ]);
    await sleep(300);
    world.mesh.identity.revoke(Subject.PARTNER_KEY, id, org);
    const revokedMs = performance.now();
    await sleep(1000);
    await submit(bundleOf(ref));
    const [rest, rpc] = await waiting;
    expect(rest?.status).not.toBe(200);
    expect(rpc).toBe("CREDENTIAL_REVOKED");
    expect(performance.now() - revokedMs).toBeLessThan(5000);
  });

  test("a reference is good for one report; the same bundle again is known; two at once make one verdict", async () => {
    const ref = newRef();
    const bundles = Array.from({ length: 8 }, () => bundleOf(ref));
    const outcomes = await Promise.all(bundles.map((bundle) => outcomeOf(submit(bundle))));
    expect(outcomes.sort()).toEqual([...Array(7).fill("SESSION_REPORTED"), "taken"]);
    const other = newRef();
    const bundle = bundleOf(other);
    const answers = await Promise.all(Array.from({ length: 8 }, () => submit(bundle)));
    expect(answers.filter(({ duplicate }) => !duplicate)).toHaveLength(1);
    expect(answers.every(({ ok }) => ok)).toBe(true);
    expect(await outcomeOf(submit(bundleOf(other)))).toBe("SESSION_REPORTED");
  });

  test("only the page that has the nonce reports", async () => {
    const partner = world.as("partner", org);
    const sessionRef = newRef();
    const nonce = randomBytes(16).toString("base64url");
    await world.verdicts.createVerdictSession({ sessionRef, nonce }, partner);
    expect(await outcomeOf(submit(bundleOf(sessionRef)))).toBe("NONCE_MISMATCH");
    expect(await outcomeOf(submit(bundleOf(sessionRef, {}, { nonce: `${nonce}x` })))).toBe("NONCE_MISMATCH");
    expect(await outcomeOf(submit(bundleOf(sessionRef, {}, { nonce })))).toBe("taken");
    // A nonce that the session does not have says nothing.
    const unregistered = newRef();
    await submit(bundleOf(unregistered, {}, { nonce }));
    expect((await world.verdicts.getVerdict({ sessionRef: unregistered }, partner)).nonce).toBe("");
    expect(await outcomeOf(world.verdicts.createVerdictSession({ sessionRef: unregistered }, partner))).toBe(
      "RESOURCE_EXISTS",
    );
  });

  test("a registered reference is good for its time alone", async () => {
    const partner = world.as("partner", org);
    const sessionRef = newRef();
    await world.verdicts.createVerdictSession({ sessionRef, lifetime: { seconds: 1n, nanos: 0 } }, partner);
    await expect
      .poll(() => pendingOf(`/v1/verdict/${sessionRef}`, partner.token), { timeout: 5000 })
      .toEqual({ status: "pending", ref: sessionRef, reason: "expired" });
    expect(await outcomeOf(submit(bundleOf(sessionRef)))).toBe("SESSION_REPORTED");
  });

  test("no organisation sees or spoils another's session, nor a sandbox the live one", async () => {
    const foreign = await world.edge();
    const sandbox = await world.edge({ orgId: org, sandbox: true });
    const ref = newRef();
    await submit(bundleOf(ref));
    const readers = [world.as("partner", foreign.orgId), world.as("partner", org, { sandbox: true })];
    for (const reader of readers) {
      expect(await pendingOf(`/v1/verdict/${ref}`, reader.token)).toMatchObject({ reason: "unknown" });
    }
    expect(await outcomeOf(submit(bundleOf(ref, { sourceAddress: "8.8.8.8" }), foreign))).toBe("taken");
    expect(await outcomeOf(submit(bundleOf(ref), sandbox))).toBe("taken");
    const own = await world.verdicts.getVerdict({ sessionRef: ref }, world.as("partner", org));
    const theirs = await world.verdicts.getVerdict({ sessionRef: ref }, readers[0]);
    expect(own.country).toBe("DE");
    expect(theirs.token).not.toBe(own.token);
    const keys = createLocalJWKSet(
      JSON.parse((await world.get("/.well-known/verdict-jwks.json")).body) as Parameters<typeof createLocalJWKSet>[0],
    );
    await verifyVerdict(theirs.token, { keys, audience: foreign.orgId, sessionRef: ref });
    await expect(verifyVerdict(theirs.token, { keys, audience: org, sessionRef: ref })).rejects.toThrow();
  });

  test("what is not signed by a key of the licence is refused", async () => {
    const bundle = bundleOf(newRef());
    const signed = signedBy(edge, bundle);
    const colleague = await world.edge({ orgId: org });
    const foreign = await world.edge();
    const outcome = (request: Parameters<typeof world.signals.submitSignals>[0]) =>
      outcomeOf(world.signals.submitSignals(request, edge.options));
    expect(await outcome({ ...signed, keyId: "" })).toBe("EDGE_SIGNATURE_REQUIRED");
    expect(await outcome({ ...signed, signature: new Uint8Array() })).toBe("EDGE_SIGNATURE_REQUIRED");
    expect(await outcome({ ...signed, keyId: newId("esk") })).toBe("EDGE_KEY_UNKNOWN");
    expect(await outcome(signedBy(colleague, bundle))).toBe("EDGE_KEY_UNKNOWN");
    expect(await outcome(signedBy(foreign, bundle))).toBe("EDGE_KEY_UNKNOWN");
    expect(await outcome({ ...signed, signature: signed.signature.slice(0, 63) })).toBe("EDGE_SIGNATURE_INVALID");
    expect(await outcome({ ...signed, signedBundle: bundleOf(newRef()) })).toBe("EDGE_SIGNATURE_INVALID");
    const forLandmarks = edge.key.sign("octomesh landmark measurement v1", bundle);
    expect(await outcome({ ...signed, signature: forLandmarks })).toBe("EDGE_SIGNATURE_INVALID");
    for (const index of [0, 31, 63]) {
      const signature = signed.signature.slice();
      signature[index] = (signature[index] ?? 0) ^ 1;
      expect(await outcome({ ...signed, signature })).toBe("EDGE_SIGNATURE_INVALID");
    }
    expect(await outcome(signed)).toBe("taken");
  });

  test("a revoked key is believed for no more than a second", async () => {
    const another = world.signingKey(org, edge.licenseId);
    const outcome = () =>
      outcomeOf(world.signals.submitSignals(signedBy(edge, bundleOf(newRef()), another), edge.options));
    expect(await outcome()).toBe("taken");
    world.revokeKey(another.id);
    const revokedMs = performance.now();
    let believedMs = 0;
    for (;;) {
      const askedMs = performance.now() - revokedMs;
      if ((await outcome()) !== "taken") break;
      believedMs = askedMs;
    }
    expect(believedMs).toBeLessThan(1000);
    expect(await outcome()).toBe("EDGE_KEY_UNKNOWN");
  });

  test("signals must be whole, of one session, and of now", async () => {
    const ref = newRef();
    const now = Date.now();
    const outcome = (bundle: Uint8Array<ArrayBuffer>) => outcomeOf(submit(bundle));
    expect(await outcome(new Uint8Array([255, 255, 255]))).toBe("SIGNALS_INCOMPLETE");
    expect(await outcome(bundleOf(ref, { bundleId: "short" }))).toBe("SIGNALS_INCOMPLETE");
    expect(await outcome(bundleOf(ref, { receiveTime: undefined }))).toBe("SIGNALS_INCOMPLETE");
    expect(await outcome(bundleOf(ref, { collectorReport: new Uint8Array() }))).toBe("SIGNALS_INCOMPLETE");
    expect(await outcome(bundleOf(ref, {}, { ref: newRef() }))).toBe("SIGNALS_INCOMPLETE");
    expect(await outcome(bundleOf(ref, {}, { v: 0 }))).toBe("CLIENT_TOO_OLD");
    expect(await outcome(bundleOf(ref, { receiveTime: timestampFromMs(now - 310_000) }))).toBe("VALIDATION_FAILED");
    expect(await outcome(bundleOf(ref, { receiveTime: timestampFromMs(now + 120_000) }))).toBe("VALIDATION_FAILED");
    expect(await outcome(bundleOf(ref, { receiveTime: timestampFromMs(now - 120_000) }))).toBe("taken");
  });

  test("measurements are believed of the organisation's landmarks and of listed ones, for this session, now", async () => {
    const landmark = await world.edge({ orgId: org });
    const listed = await world.edge({ orgId: landmarkOrg });
    const foreign = await world.edge();
    const reader = world.as("api_key", org, { scopes: [Scope.EVIDENCE_READ] });
    const ref = newRef();
    const revoked = world.signingKey(org, landmark.licenseId);
    const gone = measurementOf(revoked, ref, { landmarkId: "gone" });
    world.revokeKey(revoked.id);
    const good = measurementOf(landmark.key, ref);
    const bytes = Buffer.from(good, "base64url");
    bytes[bytes.length - 1] = (bytes[bytes.length - 1] ?? 0) ^ 1;
    const landmarks = [
      good,
      good,
      measurementOf(listed.key, ref, { landmarkId: "listed" }),
      measurementOf(foreign.key, ref, { landmarkId: "foreign" }),
      measurementOf(landmark.key, newRef(), { landmarkId: "another-session" }),
      measurementOf(landmark.key, ref, { landmarkId: "old", measureTime: timestampFromMs(Date.now() - 300_000) }),
      measurementOf(landmark.key, ref, { landmarkId: "wrong", position: { latitude: 1000, longitude: 0 } }),
      gone,
      bytes.toString("base64url"),
      "AAAA",
    ].map((m) => ({ url: "wss://landmark.example", m }));
    await submit(bundleOf(ref, {}, { landmarks }));
    const evidence = await world.verdicts.getVerdictEvidence({ sessionRef: ref }, reader);
    // The edge itself, the organisation's landmark, and the listed one.
    expect(evidence.landmarks).toBe(3);
  });

  test("test sessions have fixed verdicts in the sandbox, and are nothing elsewhere", async () => {
    const sandbox = world.as("partner", org, { sandbox: true });
    const reader = world.as("api_key", org, { sandbox: true, scopes: [Scope.EVIDENCE_READ] });
    const shown = async (name: string) => {
      const { token, ...verdict } = jsonOf(
        await world.get(`/v1/verdict/test_de_${name}`, { "x-octet-partner-key": sandbox.token }),
      );
      return verdict;
    };
    expect(await shown("clean")).toMatchObject({ country: "DE", alarm: "none", confidence: 0.96 });
    expect(await shown("clean")).toEqual(await shown("clean"));
    expect(await shown("proxy")).toMatchObject({ country: "DE", alarm: "high" });
    expect(await shown("vpn")).toMatchObject({ country: "DE", alarm: "medium" });
    expect(await shown("unknown")).toEqual({ alarm: "none", confidence: 0 });
    expect(await shown("pending")).toEqual({ status: "pending", ref: "test_de_pending", reason: "collecting" });
    expect((await world.verdicts.getVerdictEvidence({ sessionRef: "test_us_vpn" }, reader)).findings).toHaveLength(2);
    expect(await pendingOf("/v1/verdict/test_qq_clean", sandbox.token)).toMatchObject({ reason: "unknown" });
    const live = world.as("partner", org);
    expect(await pendingOf("/v1/verdict/test_de_clean", live.token)).toMatchObject({ reason: "unknown" });
    // A page in a test may report under them as often as it likes.
    const sandboxEdge = await world.edge({ orgId: org, sandbox: true });
    for (let each = 0; each < 2; each += 1) {
      expect(await outcomeOf(submit(bundleOf("test_de_clean", { sourceAddress: "8.8.8.8" }), sandboxEdge))).toBe(
        "taken",
      );
    }
    expect(await shown("clean")).toMatchObject({ country: "DE" });
  });

  test("an organisation is erased, and no other", async () => {
    const doomed = await world.edge();
    const sandbox = await world.edge({ orgId: doomed.orgId, sandbox: true });
    const [ref, spared] = [newRef(), newRef()];
    await submit(bundleOf(ref), doomed);
    await submit(bundleOf(ref), sandbox);
    await submit(bundleOf(spared));
    const erased = await world.tenants.eraseTenant({ orgId: doomed.orgId });
    expect(erased).toMatchObject({ erased: { sessions: 2n }, remaining: 0n });
    const reader = world.as("partner", doomed.orgId);
    expect(await pendingOf(`/v1/verdict/${ref}`, reader.token)).toMatchObject({ reason: "unknown" });
    await world.verdicts.getVerdict({ sessionRef: spared }, world.as("partner", org));
  });

  test("whatever an edge signs is answered, and nothing personal is in an answer or a log", async () => {
    const begin = world.mesh.logged.length;
    const markers = ["203.0.113.77", "Marker-Agent", "xx-Marker", "Marker/Zone", "marker-nonce-123456", "markerhost"];
    const textOf = fc.oneof(fc.constantFrom(...markers), fc.string({ maxLength: 200 }), fc.string({ unit: "binary" }));
    const answers: string[] = [];
    const outcomes = new Set<string>();
    const numbers = fc.oneof(fc.integer(), fc.double(), fc.constant(Number.MAX_VALUE));
    const reports = fc.oneof(
      fc.record(
        {
          v: fc.constantFrom(1, 1, 1, 2, 0, "1", null),
          nonce: textOf,
          mode: fc.oneof(fc.constant("full"), textOf),
          env: fc.record({
            languages: fc.array(textOf, { maxLength: 12 }),
            tz: textOf,
            offset: numbers,
            platform: textOf,
          }),
          timing: fc.record({
            step: numbers,
            rt: fc.array(fc.record({ url: textOf, n: numbers, min: numbers, med: numbers })),
          }),
          landmarks: fc.array(fc.record({ url: textOf, m: fc.base64String({ maxLength: 400 }) }), { maxLength: 18 }),
          end: textOf,
        },
        { requiredKeys: ["v", "mode"] },
      ),
      fc.dictionary(textOf, fc.jsonValue()),
    );
    const micros = fc.bigInt({ min: -10n, max: 2n ** 63n - 1n });
    const bundles = fc.record({
      sourceAddress: textOf.map((text) => text.slice(0, 64)),
      userAgent: textOf,
      acceptLanguage: textOf,
      icmpRttUs: micros,
      headerOrder: fc.array(textOf, { maxLength: 5 }),
      connection: fc.record({ minRttUs: micros, helloDelayUs: micros, mss: fc.integer({ min: -5, max: 70_000 }) }),
      edgePosition: fc.record({ latitude: fc.double(), longitude: fc.double() }),
    });
    await fc.assert(
      fc.asyncProperty(
        reports,
        bundles,
        fc.boolean(),
        fc.uint8Array({ maxLength: 40 }),
        async (report, changed, cut, noise) => {
          const whole = bundleOf(newRef(), changed, report as Record<string, unknown>);
          const bundle = cut ? new Uint8Array([...whole.slice(0, whole.length / 2), ...noise]) : whole;
          const request = {
            ...signedBy(edge, bundle.length === 0 ? new Uint8Array([0]) : bundle),
            returnVerdict: true,
          };
          for (;;) {
            const { outcome, text } = await answerTo(world.signals.submitSignals(request, edge.options));
            // A machine with too much to do may lose sight of revocations for a moment.
            if (outcome === "REVOCATIONS_STALE") continue;
            expect(["taken", "SIGNALS_INCOMPLETE", "CLIENT_TOO_OLD", "VALIDATION_FAILED"]).toContain(outcome);
            outcomes.add(outcome);
            answers.push(text);
            return;
          }
        },
      ),
      { numRuns: 150 },
    );
    expect(outcomes.size).toBeGreaterThan(1);
    expect(outcomes).toContain("taken");
    const seen = [...answers, ...world.mesh.logged.slice(begin)].join("\n");
    expect([...markers, "141.1.1.1"].filter((marker) => seen.includes(marker))).toEqual([]);
  }, 120_000);

  test("counts what it did, by nothing that names anybody", async () => {
    const admin = world.mesh.service("verdict").ports.admin;
    const text = await (await fetch(`http://127.0.0.1:${admin}/metrics`)).text();
    const countOf = (name: string): number =>
      Number(
        text
          .split("\n")
          .find((line) => line.startsWith(name))
          ?.split(" ")
          .at(-1) ?? Number.NaN,
      );
    expect(countOf("octomesh_verdict_sessions_taken_total")).toBeGreaterThan(10);
    expect(countOf("octomesh_verdict_sessions_registered_total")).toBeGreaterThan(0);
    expect(countOf("octomesh_verdict_duplicates_total")).toBeGreaterThan(0);
    expect(countOf("octomesh_verdict_submit_seconds_count")).toBeGreaterThan(10);
    expect(text).toMatch(/octomesh_verdict_refused_total\{[^}]*reason="NONCE_MISMATCH"[^}]*\} 2/);
    expect(text).toMatch(/octomesh_verdict_verdicts_total\{[^}]*alarm="none"/);
    expect(text).toMatch(/octomesh_verdict_measurements_total\{[^}]*believed="no"/);
    expect(text.includes("octomesh_verdict_sessions_held")).toBe(!onRedis);
    expect(text).not.toContain(org);
  });

  test("has logged no reference, nonce, address or token in all of this", () => {
    const entries = world.mesh.logged.map((line) => JSON.parse(line) as Record<string, unknown>);
    expect(entries.length).toBeGreaterThan(100);
    // At level trace a line holds the request too, its identifiers shown and what is personal redacted.
    const lines = entries.map(({ request: _, ...line }) => JSON.stringify(line)).join("\n");
    expect(["session-", "141.1.1.1", "8.8.8.8", "arker", "eyJ"].filter((each) => lines.includes(each))).toEqual([]);
    const traced = world.mesh.logged.join("\n");
    expect(["141.1.1.1", "8.8.8.8", "arker", "eyJ"].filter((each) => traced.includes(each))).toEqual([]);
  });

  test("a thousand reads at the same time, by several keys, agree", async () => {
    const ref = newRef();
    const partners = Array.from({ length: 8 }, () => world.as("partner", org));
    // One process plays all sides here: with too much to do it loses sight of revocations for a moment, and is asked again.
    const read = async (index: number): Promise<unknown> => {
      const partner = partners[index % partners.length];
      const path = `/v1/verdict/${ref}?waitMs=10000`;
      for (;;) {
        if (index % 5 === 0) {
          const answer = await world.get(path, { "x-octet-partner-key": partner?.token ?? "" });
          if (answer.status !== 503) return jsonOf(answer).token;
        } else {
          const reading = world.verdicts.getVerdict({ sessionRef: ref, waitMs: 10_000 }, partner);
          const outcome = await outcomeOf(reading);
          if (outcome !== "REVOCATIONS_STALE") return outcome === "taken" ? (await reading).token : outcome;
        }
        await sleep(100);
      }
    };
    const readFrom = (from: number, to: number) =>
      Promise.all(Array.from({ length: to - from }, (_, index) => read(from + index)));
    // Some wait before there is a verdict; the rest come when there is one.
    const [waited] = await Promise.all([readFrom(0, 100), submit(bundleOf(ref))]);
    const answers = [...waited, ...(await readFrom(100, 1000))];
    expect(answers).toHaveLength(1000);
    expect([...new Set(answers)]).toEqual([expect.stringMatching(/^eyJ/)]);
  }, 240_000);
}

/** All that an edge is told. */
async function answerTo(work: Promise<SubmitSignalsResponse>): Promise<{ outcome: string; text: string }> {
  try {
    return { outcome: "taken", text: toJsonString(SubmitSignalsResponseSchema, await work) };
  } catch (error) {
    const refusal = ConnectError.from(error);
    const facts = refusal.findDetails(ErrorInfoSchema).map(({ metadata }) => metadata);
    return { outcome: await outcomeOf(Promise.reject(error)), text: JSON.stringify([refusal.message, facts]) };
  }
}
