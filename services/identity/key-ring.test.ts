import { randomBytes } from "node:crypto";
import { createMasterKey } from "@octomesh/mesh/master-key";
import { openTestDatabase } from "@octomesh/mesh/test/database-fixture";
import { createLocalJWKSet, jwtVerify } from "jose";
import { pino } from "pino";
import { describe, expect, it } from "vitest";
import { signAccessToken } from "./access-token.ts";
import { keyLifeMs, keyNoticeMs, keyRetentionMs } from "./key-plan.ts";
import { type KeyRing, openKeyRing } from "./key-ring.ts";
import type { IdentitySchema } from "./schema.ts";

const database = await openTestDatabase<IdentitySchema>({
  service: "identity",
  migrations: new URL("./migrations/", import.meta.url),
});
const log = pino({ level: "silent" });
const masterKey = createMasterKey([randomBytes(32)]);
const time = { now: Date.now() };
const clock = { now: () => time.now };
const open = (key = masterKey) => openKeyRing({ database, masterKey: key, clock, log });

async function sign(ring: KeyRing): Promise<string> {
  return await signAccessToken(ring.signingKey(), {
    issuer: "octomesh.test",
    kind: "device",
    subject: "dev_1",
    orgId: "org_1",
    credentialId: "crd_1",
    plan: 1,
    issueTime: time.now,
    expireTime: time.now + 30 * 86_400_000,
  });
}

async function isGood(ring: KeyRing, token: string): Promise<boolean> {
  const keys = ring.publicKeys().map((key) => ({ ...key, alg: "ES256", use: "sig" }));
  const options = { currentDate: new Date(time.now), issuer: "octomesh.test", audience: "octomesh" };
  return await jwtVerify(token, createLocalJWKSet({ keys }), options).then(
    () => true,
    () => false,
  );
}

describe("the key ring", () => {
  it("makes one key, however many replicas start at once, and keeps it over a restart", async () => {
    const rings = await Promise.all([open(), open(), open()]);
    const kids = new Set(rings.map((ring) => ring.signingKey().kid));
    expect(kids.size).toBe(1);
    const again = await open();
    expect(await isGood(again, await sign(rings[0] as KeyRing))).toBe(true);
  });

  it("seals the private half: without the master key the database gives nothing", async () => {
    const rows = await database.system((tx) => tx.selectFrom("signing_keys").selectAll().execute());
    expect(rows.length).toBe(1);
    expect(rows[0]?.sealed_private_key.includes("PRIVATE KEY")).toBe(false);
    expect(rows[0]?.public_key).not.toHaveProperty("d");
    await expect(open(createMasterKey([randomBytes(32)]))).rejects.toThrow();
  });

  it("rotates: publishes the next key ahead, keeps the old one for its tokens, then retires it", async () => {
    const ring = await open();
    const replica = await open();
    const first = ring.signingKey().kid;
    time.now += keyLifeMs - keyNoticeMs;
    await ring.refresh();
    expect(ring.publicKeys().length).toBe(2);
    expect(ring.signingKey().kid).toBe(first);
    await replica.refresh();
    expect(replica.publicKeys()).toEqual(ring.publicKeys());
    const early = await sign(ring);
    time.now += keyNoticeMs;
    expect(ring.signingKey().kid).not.toBe(first);
    expect(replica.signingKey().kid).toBe(ring.signingKey().kid);
    expect(await isGood(replica, early)).toBe(true);
    const late = await sign(ring);
    expect(await isGood(replica, late)).toBe(true);
    time.now += keyRetentionMs;
    await ring.refresh();
    expect(ring.publicKeys().map((key) => key.kid)).not.toContain(first);
  });
});
