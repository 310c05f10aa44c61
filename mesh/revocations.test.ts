import { once } from "node:events";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { createClient, createRouterTransport } from "@connectrpc/connect";
import {
  CredentialService,
  WatchRevocationsResponseSchema,
} from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { pino } from "pino";
import { afterEach, describe, expect, test } from "vitest";
import { fail, Reason } from "./errors.ts";
import { createRevocations, type Revocations, Subject } from "./revocations.ts";

const log = pino({ level: "silent" });
const issuedMs = 1_700_000_000_000;

type Message = MessageInitShape<typeof WatchRevocationsResponseSchema>;

/** Identity as a script: it says what the test tells it to, and writes down what it hears. */
function createIdentity() {
  const events: string[] = [];
  const queue: (Message | "end")[] = [];
  let refusing = false;
  let holdAcknowledgement: Promise<void> | undefined;
  const changed = new EventTarget();
  const transport = createRouterTransport((router) => {
    router.service(CredentialService, {
      async *watchRevocations(request, context) {
        events.push(`watch from "${request.cursor}"`);
        if (refusing) throw fail(Reason.SERVICE_UNAVAILABLE, "away");
        while (!context.signal.aborted) {
          const next = queue.shift();
          if (next === "end") return;
          if (next !== undefined) yield create(WatchRevocationsResponseSchema, next);
          else await once(changed, "change", { signal: context.signal }).catch(() => undefined);
        }
      },
      async acknowledgeRevocations(request) {
        events.push(request.leaving ? "leaving" : `acknowledged ${request.cursor}`);
        await holdAcknowledgement;
        return {};
      },
    });
  });
  return {
    events,
    client: createClient(CredentialService, transport),
    say(...messages: (Message | "end")[]) {
      queue.push(...messages);
      changed.dispatchEvent(new Event("change"));
    },
    refuse(value: boolean) {
      refusing = value;
    },
    hold(until: Promise<void> | undefined) {
      holdAcknowledgement = until;
    },
  };
}

let now = issuedMs + 1000;
const open: Revocations[] = [];

function follow(identity: ReturnType<typeof createIdentity>, staleAfterMs = 5000): Revocations {
  now = issuedMs + 1000;
  const revocations = createRevocations({
    client: identity.client,
    subscriberId: "test",
    clock: { now: () => now },
    log,
    staleAfterMs,
  });
  open.push(revocations);
  return revocations;
}

afterEach(async () => {
  await Promise.all(open.splice(0).map((revocations) => revocations.stop()));
});

function revoked(subject: Subject, id: string, revokeMs: number, forgetMs = revokeMs + 3_600_000) {
  return { subject, id, revokeTime: timestampFromMs(revokeMs), forgetTime: timestampFromMs(forgetMs) };
}

describe("a follower of revocations", () => {
  test("knows nothing until it knows everything, and then what was revoked and when", async () => {
    const identity = createIdentity();
    const revocations = follow(identity);
    const started = revocations.start();
    identity.say({ cursor: "1", revocations: [revoked(Subject.DEVICE, "dev_1", issuedMs)] });
    await expect.poll(() => revocations.isRevoked(Subject.DEVICE, "dev_1", issuedMs)).toBe(true);
    expect(revocations.isFresh()).toBe(false);
    identity.say({ cursor: "1", caughtUp: true });
    await started;
    expect(revocations.isFresh()).toBe(true);
    expect(revocations.isRevoked(Subject.DEVICE, "dev_1", issuedMs + 1)).toBe(false);
    expect(revocations.isRevoked(Subject.MEMBER, "dev_1", issuedMs)).toBe(false);
    expect(revocations.isRevoked(Subject.DEVICE, "dev_2", 0)).toBe(false);
  });

  test("keeps the later of two revocations of the same", async () => {
    const identity = createIdentity();
    const revocations = follow(identity);
    const started = revocations.start();
    identity.say({
      cursor: "2",
      revocations: [revoked(Subject.DEVICE, "dev_1", issuedMs + 5), revoked(Subject.DEVICE, "dev_1", issuedMs)],
      caughtUp: true,
    });
    await started;
    expect(revocations.isRevoked(Subject.DEVICE, "dev_1", issuedMs + 5)).toBe(true);
  });

  test("resumes where it was, and is not fresh again before it has caught up", async () => {
    const identity = createIdentity();
    const revocations = follow(identity);
    const started = revocations.start();
    identity.say({ cursor: "7", caughtUp: true });
    await started;
    now += 6000;
    expect(revocations.isFresh()).toBe(false);
    identity.say("end", { cursor: "8", revocations: [revoked(Subject.API_KEY, "key_1", now)], caughtUp: false });
    await expect.poll(() => revocations.isRevoked(Subject.API_KEY, "key_1", 0)).toBe(true);
    expect(identity.events).toContain('watch from "7"');
    // What else was revoked meanwhile may still be on its way.
    expect(revocations.isFresh()).toBe(false);
    identity.say({ cursor: "8", caughtUp: true });
    await expect.poll(() => revocations.isFresh()).toBe(true);
  });

  test("is stale once it has heard nothing for the bound, by the clock", async () => {
    const identity = createIdentity();
    const revocations = follow(identity);
    const started = revocations.start();
    identity.say({ cursor: "1", caughtUp: true });
    await started;
    now += 5000;
    expect(revocations.isFresh()).toBe(true);
    now += 1;
    expect(revocations.isFresh()).toBe(false);
  });

  test("is stale once it has heard nothing for the bound, whatever becomes of the clock", async () => {
    const identity = createIdentity();
    const revocations = follow(identity, 50);
    const started = revocations.start();
    identity.say({ cursor: "1", caughtUp: true });
    await started;
    now -= 3_600_000;
    await expect.poll(() => revocations.isFresh()).toBe(false);
    // The silent stream was given up for a new one.
    await expect.poll(() => identity.events.filter((event) => event === 'watch from "1"').length).toBeGreaterThan(0);
  });

  test("tries again, with growing pauses, while identity is away", async () => {
    const identity = createIdentity();
    identity.refuse(true);
    const revocations = follow(identity);
    const began = performance.now();
    const started = revocations.start();
    const attempts = () => identity.events.filter((event) => event.startsWith("watch")).length;
    await expect.poll(attempts, { interval: 5 }).toBeGreaterThanOrEqual(4);
    // 25 ms doubled each time, at least half of it: 25 + 50 + 100.
    expect(performance.now() - began).toBeGreaterThanOrEqual(175);
    identity.refuse(false);
    identity.say({ cursor: "1", caughtUp: true });
    await started;
    expect(revocations.isFresh()).toBe(true);
  });

  test("acknowledges what it has applied, the newest after the one under way, and beats too", async () => {
    const identity = createIdentity();
    let release = (): void => undefined;
    identity.hold(
      new Promise((resolve) => {
        release = resolve;
      }),
    );
    const revocations = follow(identity);
    const applied: string[] = [];
    revocations.onRevocation(({ id }) => {
      applied.push(id);
      identity.events.push(`applied ${id}`);
    });
    const started = revocations.start();
    for (const cursor of ["1", "2", "3"]) {
      identity.say({ cursor, revocations: [revoked(Subject.DEVICE, `dev_${cursor}`, now)], caughtUp: true });
    }
    await started;
    await expect.poll(() => applied).toEqual(["dev_1", "dev_2", "dev_3"]);
    identity.hold(undefined);
    release();
    await expect.poll(() => identity.events.at(-1)).toBe("acknowledged 3");
    expect(identity.events.filter((event) => event !== 'watch from ""')).toEqual([
      "applied dev_1",
      "acknowledged 1",
      "applied dev_2",
      "applied dev_3",
      "acknowledged 3",
    ]);
    identity.say({ cursor: "3", caughtUp: true });
    await expect.poll(() => identity.events.filter((event) => event === "acknowledged 3").length).toBe(2);
  });

  test("forgets what concerns no token any more", async () => {
    const identity = createIdentity();
    const revocations = follow(identity);
    const started = revocations.start();
    identity.say({ cursor: "1", revocations: [revoked(Subject.DEVICE, "dev_1", now, now + 1000)], caughtUp: true });
    await started;
    now += 120_000;
    identity.say({ cursor: "1", caughtUp: true });
    await expect.poll(() => revocations.isRevoked(Subject.DEVICE, "dev_1", 0)).toBe(false);
  });

  test("says good-bye, so that no revoke waits for it", async () => {
    const identity = createIdentity();
    const revocations = follow(identity);
    const started = revocations.start();
    identity.say({ cursor: "1", caughtUp: true });
    await started;
    await revocations.stop();
    expect(identity.events.at(-1)).toBe("leaving");
  });
});
