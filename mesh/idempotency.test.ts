import { createHash } from "node:crypto";
import pg from "pg";
import { describe, expect, it } from "vitest";
import { Reason, reasonOf } from "./errors.ts";
import { once, trimIdempotency } from "./idempotency.ts";
import { openTestDatabase, testCall, writeMigrations } from "./test/database-fixture.ts";

const database = await openTestDatabase<Record<never, never>>({
  service: "mesh-test",
  migrations: await writeMigrations({}),
});
const digest = (text: string) => createHash("sha256").update(text).digest();
let runs = 0;

function create(orgId: string, requestId: string, request = "request", method = "Create") {
  const call = testCall(orgId);
  const answer = database.write(call, (tx) =>
    once(tx, call, method, requestId, digest(request), async () => Buffer.from(`answer ${++runs}`)),
  );
  return { call, answer };
}

async function asAdmin(text: string): Promise<void> {
  const admin = new pg.Client({ connectionString: database.adminUrl });
  await admin.connect();
  await admin.query(text);
  await admin.end();
}

describe("once", () => {
  it("runs a mutation once and repeats its answer, without a second audit event", async () => {
    const first = await create("org_a", "r1").answer;
    expect(first.replayed).toBe(false);
    const again = create("org_a", "r1");
    const second = await again.answer;
    expect(second.replayed).toBe(true);
    expect(Buffer.from(second.answer)).toEqual(Buffer.from(first.answer));
    expect(again.call.audit?.state).toBe("skipped");
  });

  it("keeps organisations and methods apart", async () => {
    const answers = await Promise.all([
      create("org_a", "r2").answer,
      create("org_b", "r2").answer,
      create("org_a", "r2", "request", "Delete").answer,
    ]);
    expect(answers.map((answer) => answer.replayed)).toEqual([false, false, false]);
  });

  it("refuses the id for another request", async () => {
    await create("org_a", "r3").answer;
    await expect(create("org_a", "r3", "other").answer).rejects.toSatisfy(
      (error) => reasonOf(error) === Reason.REQUEST_ID_REUSED,
    );
  });

  it("lets one of several at the same time do the work", async () => {
    const before = runs;
    const answers = await Promise.all(Array.from({ length: 5 }, () => create("org_a", "r4").answer));
    expect(runs).toBe(before + 1);
    expect(new Set(answers.map((answer) => Buffer.from(answer.answer).toString())).size).toBe(1);
  });

  it("remembers nothing of work that failed", async () => {
    const call = testCall("org_a");
    const failed = database.write(call, (tx) =>
      once(tx, call, "Create", "r5", digest("request"), async () => {
        throw new Error("no");
      }),
    );
    await expect(failed).rejects.toThrow("no");
    expect((await create("org_a", "r5").answer).replayed).toBe(false);
  });

  it("simply runs without a request id", async () => {
    expect((await create("org_a", "").answer).replayed).toBe(false);
    expect((await create("org_a", "").answer).replayed).toBe(false);
  });

  it("forgets after a day", async () => {
    await create("org_a", "r6").answer;
    await create("org_a", "r7").answer;
    await asAdmin(
      "update mesh_test.idempotency set time = time - interval '25 hours' where request_id in ('r6', 'r7')",
    );
    expect((await create("org_a", "r6", "other").answer).replayed).toBe(false);
    expect(await trimIdempotency(database)).toBe(1);
    expect(await trimIdempotency(database)).toBe(0);
  });
});
