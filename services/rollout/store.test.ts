import { randomBytes } from "node:crypto";
import { nameOfReason, Reason, reasonOf } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { acquireLease, releaseLease } from "@octomesh/mesh/lease";
import { createMasterKey } from "@octomesh/mesh/master-key";
import { openOutbox } from "@octomesh/mesh/outbox";
import { sql } from "kysely";
import { pino } from "pino";
import { afterAll, expect, it } from "vitest";
import { openTestDatabase, testCall } from "../../mesh/test/database-fixture.ts";
import { advanceRollouts } from "./advance-rollouts.ts";
import { createDefinitionWatchers } from "./definition-watchers.ts";
import { createDefinitions, definitionsTopic } from "./definitions.ts";
import { ensureManifestKey } from "./manifest-keys.ts";
import type { Plan, Rollout } from "./rollout.ts";
import type { Action } from "./rollout-state.ts";
import { stepOf, stepRollout } from "./step-rollout.ts";
import { insertModelVersion } from "./store/model-versions.ts";
import { insertModel } from "./store/models.ts";
import { insertRollout, listDeciding, listDecidingOfAll, listDue } from "./store/rollouts.ts";
import type { Tables } from "./store/tables.ts";

const database = await openTestDatabase<Tables>({
  service: "rollout",
  migrations: new URL("./migrations/", import.meta.url),
});
const log = pino({ level: "silent" });
const outbox = openOutbox(database, { log });
afterAll(() => outbox.close());
const masterKey = createMasterKey([randomBytes(32)]);
let nowMs = 1_790_000_000_000;
const clock = { now: () => nowMs };

/** A model with one version for each number. */
async function seed(orgId: string, ...versions: string[]): Promise<{ modelId: string; versionIds: string[] }> {
  const modelId = newId("mdl");
  const versionIds = versions.map(() => newId("mvr"));
  await database.write(testCall(orgId), async (tx) => {
    const time = new Date(nowMs);
    await insertModel(tx, {
      orgId,
      id: modelId,
      name: `model-${randomBytes(4).toString("hex")}`,
      description: "",
      time,
    });
    const key = await ensureManifestKey(tx, masterKey, orgId, nowMs);
    const artifactId = newId("art");
    await tx
      .insertInto("artifacts")
      .values({
        org_id: orgId,
        id: artifactId,
        sha256: randomBytes(32),
        size_bytes: 1n,
        create_time: time,
        touch_time: time,
      })
      .execute();
    for (const [index, version] of versions.entries()) {
      await insertModelVersion(tx, {
        org_id: orgId,
        id: versionIds[index] ?? "",
        model_id: modelId,
        version,
        artifact_id: artifactId,
        format: 1,
        manifest: randomBytes(10),
        signature: randomBytes(64),
        key_id: key.id,
        release_notes: "",
        create_time: time,
      });
    }
  });
  return { modelId, versionIds };
}

async function draft(orgId: string, modelId: string, versionId: string, more: Partial<Plan> = {}): Promise<Rollout> {
  const plan: Plan = {
    stages: [{ percentageThousandths: 100_000, minDwellMs: 0, minSample: 0, approvalRequired: false }],
    controlThousandths: 0,
    ...more,
  };
  const call = testCall(orgId);
  const rollout = {
    orgId,
    id: newId("rol"),
    modelId,
    versionId,
    groupIds: [],
    plan,
    salt: newId("slt"),
    priority: 0,
    priorVersionId: "",
  };
  return await database.write(call, (tx) => insertRollout(tx, rollout, stepOf(call, { reason: "", nowMs })));
}

async function step(rollout: Rollout, ...kinds: Exclude<Action["kind"], "set_percentage">[]): Promise<Rollout> {
  let last = rollout;
  for (const kind of kinds) {
    nowMs += 1;
    const call = testCall(rollout.orgId);
    const request = { id: rollout.id, action: { kind } satisfies Action, reason: "", nowMs };
    last = (await database.write(call, (tx) => stepRollout(tx, call, request))).rollout;
  }
  return last;
}

it("shows no table's rows to another organisation, with or without a filter", async () => {
  const orgId = newId("org");
  const other = newId("org");
  const { modelId, versionIds } = await seed(orgId, "1.0.0");
  await step(await draft(orgId, modelId, versionIds[0] ?? ""), "start");
  const { rows: tables } = await database.ingest([orgId], (tx) =>
    sql<{ name: string }>`
      select table_name as name from information_schema.columns
      where table_schema = 'rollout' and column_name = 'org_id'
        and table_name not in ('outbox', 'audit_outbox')`.execute(tx),
  );
  expect(tables.length).toBeGreaterThan(9);
  const count = async (org: string, name: string) =>
    await database.read(org, async (tx) => {
      const { rows } = await sql<{ count: bigint }>`select count(*) as count from ${sql.table(name)}`.execute(tx);
      return rows[0]?.count;
    });
  const filled = await Promise.all(tables.map(async ({ name }) => [name, await count(orgId, name)] as const));
  expect(
    filled
      .filter(([, rows]) => rows !== 0n)
      .map(([name]) => name)
      .sort(),
  ).toEqual(
    [
      "artifacts",
      "manifest_keys",
      "model_versions",
      "models",
      "rollout_revisions",
      "rollout_transitions",
      "rollouts",
    ].sort(),
  );
  for (const { name } of tables) expect([name, await count(other, name)]).toEqual([name, 0n]);
  const written = database.write(testCall(other), (tx) =>
    sql`update rollouts set org_id = ${other} where true`.execute(tx).then((result) => result.numAffectedRows),
  );
  expect(await written).toBe(0n);
  const foreign = database.write(testCall(other), (tx) =>
    sql`insert into rollout_revisions (org_id, revision) values (${orgId}, 1)`.execute(tx),
  );
  await expect(foreign).rejects.toThrow(/row-level security/);
});

it("lists what decides: rollouts under way and the last completed one of each target", async () => {
  const orgId = newId("org");
  const { modelId, versionIds } = await seed(orgId, "1.0.0", "1.1.0", "1.2.0");
  const [first = "", second = "", third = ""] = versionIds;
  await draft(orgId, modelId, third);
  await step(await draft(orgId, modelId, first), "start", "complete");
  const one = await step(await draft(orgId, modelId, second), "start", "complete");
  const two = await step(await draft(orgId, modelId, third), "start");
  expect(two.priorVersionId).toBe(second);
  const ids = async () => (await database.read(orgId, (tx) => listDeciding(tx, orgId))).map((each) => each.id).sort();
  expect(await ids()).toEqual([one.id, two.id].sort());
  await step(two, "roll_back", "devices_told");
  expect(await ids()).toEqual([one.id]);
  await step(one, "roll_back");
  expect((await ids()).length).toBe(2);

  const pages: string[] = [];
  let after = { orgId: "", id: "" };
  for (;;) {
    const from = after;
    const page = await database.system((tx) => listDecidingOfAll(tx, from, 1));
    const last = page.at(-1);
    if (last === undefined) break;
    pages.push(...page.filter((each) => each.orgId === orgId).map((each) => each.id));
    after = { orgId: last.orgId, id: last.id };
  }
  expect(pages.sort()).toEqual(await ids());
});

it("announces each step once, in order, and a deleted rollout as aborted", async () => {
  const orgId = newId("org");
  const { modelId, versionIds } = await seed(orgId, "1.0.0");
  const cursor = await outbox.head(definitionsTopic);
  const rollout = await draft(orgId, modelId, versionIds[0] ?? "");
  await step(rollout, "start", "start", "pause", "roll_back", "devices_told", "delete");
  const ending = new AbortController();
  const keys: string[] = [];
  for await (const event of outbox.watch({ topic: definitionsTopic, cursor, signal: ending.signal })) {
    if (event.orgId === orgId) keys.push(event.key);
    if (keys.length === 5) ending.abort();
  }
  expect(keys).toEqual([2, 3, 4, 5, 6].map((revision) => `${rollout.id}/${revision}`));
});

it("sees a change at once, however many ask at the same time", async () => {
  const orgId = newId("org");
  const { modelId, versionIds } = await seed(orgId, "1.0.0");
  const definitions = createDefinitions(database, outbox);
  const replica = createDefinitions(await database.reopen(), outbox);
  expect((await replica.current(orgId)).index.byRollout.size).toBe(0);
  const rollout = await step(await draft(orgId, modelId, versionIds[0] ?? ""), "start");
  const seen = await Promise.all([1, 2, 3, 4].map(() => replica.current(orgId)));
  for (const each of seen) expect([...each.index.byRollout.keys()]).toEqual([rollout.id]);
  expect(new Set(seen).size).toBe(1);
  expect((await definitions.current(orgId)).versions.get(rollout.versionId)?.version).toBe("1.0.0");
  await step(rollout, "roll_back");
  expect((await replica.current(orgId)).index.byRollout.size).toBe(0);
});

it("moves on by time what is due, under the lease alone, and ends a rollback once the watchers were told", async () => {
  const orgId = newId("org");
  const { modelId, versionIds } = await seed(orgId, "1.0.0");
  const [versionId = ""] = versionIds;
  const watchers = createDefinitionWatchers(clock);
  const deps = { database, watchers, clock, log };
  const systemCall = (org: string, action: string) => {
    const call = testCall(org, action);
    return { ...call, caller: { ...call.caller, kind: "system", id: "rollout" } } as typeof call;
  };
  const lease = await acquireLease(database, { name: "advance", ttlMs: 600_000, holder: "a" });
  if (lease === undefined) throw new Error("no lease");
  const advance = () => advanceRollouts(deps, lease, systemCall);
  const stateOf = async () => (await database.read(orgId, (tx) => listDeciding(tx, orgId))).map((each) => each.state);
  const ours = async () =>
    (await database.system((tx) => listDue(tx, new Date(nowMs), 1000))).filter((each) => each.orgId === orgId).length;

  const stage = { minSample: 0, approvalRequired: false };
  const rollout = await draft(orgId, modelId, versionId, {
    scheduleTimeMs: nowMs + 1000,
    stages: [
      { ...stage, percentageThousandths: 10, minDwellMs: 500 },
      { ...stage, percentageThousandths: 20, minDwellMs: 0 },
    ],
  });
  await step(rollout, "start");
  expect(await ours()).toBe(0);
  nowMs += 1000;
  await advance();
  expect(await stateOf()).toEqual(["running"]);
  nowMs += 500;
  await advance();
  expect((await database.read(orgId, (tx) => listDeciding(tx, orgId)))[0]?.percentageThousandths).toBe(20);
  expect(await ours()).toBe(0);

  const watch = watchers.begin();
  const rolling = await step(rollout, "roll_back");
  watch.busy();
  nowMs += 5000;
  await advance();
  expect(await stateOf()).toEqual(["rolling_back"]);
  watch.told(rollout.id, rolling.revision);

  await releaseLease(database, lease);
  await advance();
  expect(await stateOf()).toEqual(["rolling_back"]);
  const again = await acquireLease(database, { name: "advance", ttlMs: 600_000, holder: "b" });
  if (again === undefined) throw new Error("no lease");
  await advanceRollouts(deps, again, systemCall);
  expect(await stateOf()).toEqual([]);
});

it("does not start a version that was deprecated since the draft", async () => {
  const orgId = newId("org");
  const { modelId, versionIds } = await seed(orgId, "1.0.0");
  const rollout = await draft(orgId, modelId, versionIds[0] ?? "");
  await database.write(testCall(orgId), (tx) =>
    tx.updateTable("model_versions").set({ state: "deprecated" }).where("org_id", "=", orgId).execute(),
  );
  const started = step(rollout, "start");
  await expect(started).rejects.toSatisfy(
    (error) => nameOfReason(reasonOf(error) ?? Reason.UNSPECIFIED) === "VERSION_NOT_READY",
  );
});

it("takes concurrent steps of an organisation one after the other, each from the state that the last one left", async () => {
  const orgId = newId("org");
  const { modelId, versionIds } = await seed(orgId, "1.0.0");
  const rollout = await step(await draft(orgId, modelId, versionIds[0] ?? ""), "start");
  const results = await Promise.allSettled([
    step(rollout, "pause"),
    step(rollout, "complete"),
    step(rollout, "roll_back"),
    step(rollout, "pause"),
  ]);
  expect(results.some((result) => result.status === "fulfilled")).toBe(true);
  const { rows } = await database.read(orgId, (tx) =>
    sql<{ from_state: string; to_state: string }>`
      select from_state, to_state from rollout_transitions where rollout_id = ${rollout.id} order by sequence`.execute(
      tx,
    ),
  );
  for (const [index, row] of rows.entries()) if (index > 0) expect(row.from_state).toBe(rows[index - 1]?.to_state);
});
