import { generateKeyPairSync } from "node:crypto";
import { createClient, createRouterTransport } from "@connectrpc/connect";
import { fail, Reason, reasonOf } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import { CredentialService } from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { beforeEach, expect, test } from "vitest";
import { createEdgeKeys } from "./edge-keys.ts";

const { publicKey } = generateKeyPairSync("ed25519");
const raw = new Uint8Array(Buffer.from(publicKey.export({ format: "jwk" }).x ?? "", "base64url"));
const id = newId("esk");
let good: Set<string>;
let revoked: Set<string>;
const isRevoked = (key: string): boolean => revoked.has(key);
let asked: string[];
let isAway: boolean;
let now = 0;
let answerMs: number[];

const client = createClient(
  CredentialService,
  createRouterTransport((router) => {
    router.service(CredentialService, {
      getEdgeSigningKey(request) {
        asked.push(request.id);
        if (isAway) throw fail(Reason.SERVICE_UNAVAILABLE, "away", {});
        const isGood = good.has(request.id);
        now += answerMs.shift() ?? 0;
        if (!isGood) throw fail(Reason.RESOURCE_NOT_FOUND, "no such key", {});
        return { id: request.id, orgId: "org_a", licenseKeyId: "lic_a", publicKey: raw };
      },
    });
  }),
);

beforeEach(() => {
  revoked = new Set();
  good = new Set([id]);
  asked = [];
  isAway = false;
  now = 0;
  answerMs = [];
});

test("a key that was revoked is known no longer, whatever was answered before and whoever waits for an answer", async () => {
  const keys = createEdgeKeys(client, isRevoked, () => now);
  expect(await keys.find(id)).toBeDefined();
  revoked.add(id);
  expect(await keys.find(id)).toBeUndefined();
  revoked.clear();
  now = 1000;
  const waiting = [keys.find(id), keys.find(id)];
  revoked.add(id);
  expect(await Promise.all(waiting)).toEqual([undefined, undefined]);
});

test("whoever needs a key at the same time waits for one answer, which counts for less than a second", async () => {
  const keys = createEdgeKeys(client, isRevoked, () => now);
  const found = await Promise.all(Array.from({ length: 20 }, () => keys.find(id)));
  for (const each of found) expect(each).toMatchObject({ id, orgId: "org_a", licenseId: "lic_a" });
  expect(found[0]?.publicKey.equals(publicKey)).toBe(true);
  now = 800;
  await keys.find(id);
  expect(asked).toEqual([id]);
  good.clear();
  now = 1000;
  expect(await keys.find(id)).toBeUndefined();
  expect(keys.isRemembered(id)).toBe(false);
  expect(asked).toHaveLength(2);
});

test("an unknown key is asked about once a second, and known a second after it was registered", async () => {
  const keys = createEdgeKeys(client, isRevoked, () => now);
  const late = newId("esk");
  for (let each = 0; each < 5; each += 1) expect(await keys.find(late)).toBeUndefined();
  expect(asked).toEqual([late]);
  good.add(late);
  now = 1000;
  expect(await keys.find(late)).toMatchObject({ id: late });
});

test("what is no key id is not asked about", async () => {
  const keys = createEdgeKeys(client, isRevoked, () => now);
  for (const each of ["", "esk_", "esk_x", newId("key"), `${id} `]) expect(await keys.find(each)).toBeUndefined();
  expect(asked).toEqual([]);
});

test("with identity away nobody is believed, not even who was before", async () => {
  const keys = createEdgeKeys(client, isRevoked, () => now);
  await keys.find(id);
  isAway = true;
  now = 1000;
  const refused = await keys.find(id).catch((error: unknown) => error);
  expect(reasonOf(refused)).toBe(Reason.DEPENDENCY_UNAVAILABLE);
  isAway = false;
  expect(await keys.find(id)).toMatchObject({ id });
});

test("an answer that was longer on its way than it counts for is not believed", async () => {
  const keys = createEdgeKeys(client, isRevoked, () => now);
  answerMs = [2000, 2000];
  const refused = await keys.find(id).catch((error: unknown) => error);
  expect(reasonOf(refused)).toBe(Reason.DEPENDENCY_UNAVAILABLE);
  expect(asked).toHaveLength(2);
  answerMs = [2000, 100];
  expect(await keys.find(id)).toMatchObject({ id });
});
