import { generateKeyPairSync, sign } from "node:crypto";
import { newId } from "@octomesh/mesh/ids";
import { expect, test } from "vitest";
import type { EdgeKeys } from "./edge-keys.ts";
import { createMeasurementVerifier } from "./landmark-measurements.ts";
import { measurementOf, type TestSigningKey } from "./test/verdict-fixture.ts";

const edge = { keyId: newId("esk"), name: "edge" };
const stranger = (): TestSigningKey => ({ id: newId("esk"), sign: () => new Uint8Array(64) });

function countingKeys(): EdgeKeys & { readonly asked: string[] } {
  const asked: string[] = [];
  return {
    asked,
    async find(id) {
      asked.push(id);
      return undefined;
    },
    isRemembered: () => false,
  };
}

test("invented keys are asked about a bounded number of times, in a second and for an organisation", async () => {
  const edgeKeys = countingKeys();
  let now = 0;
  const verify = createMeasurementVerifier({ edgeKeys, landmarkOrgs: [], strangersPerSecond: 5, now: () => now });
  const signed = Array.from({ length: 12 }, (_, index) =>
    Buffer.from(measurementOf(stranger(), "session", { landmarkId: `l${index}` }), "base64url"),
  );
  const session = (orgId: string) => ({ orgId, ref: "session", receiveMs: Date.now(), edge });
  expect(await verify(signed, session("org_a"))).toEqual([]);
  expect(edgeKeys.asked).toHaveLength(5);
  await verify(signed, session("org_b"));
  expect(edgeKeys.asked).toHaveLength(10);
  now = 1000;
  await verify(signed, session("org_a"));
  expect(edgeKeys.asked).toHaveLength(15);
});

test("measurements of other sessions and times are not even asked about", async () => {
  const edgeKeys = countingKeys();
  const verify = createMeasurementVerifier({ edgeKeys, landmarkOrgs: [] });
  const signed = [Buffer.from(measurementOf(stranger(), "another"), "base64url"), new Uint8Array([1, 2, 3])];
  expect(await verify(signed, { orgId: "org_a", ref: "session", receiveMs: Date.now(), edge })).toEqual([]);
  const late = Buffer.from(measurementOf(stranger(), "session"), "base64url");
  expect(await verify([late], { orgId: "org_a", ref: "session", receiveMs: Date.now() + 600_000, edge })).toEqual([]);
  expect(edgeKeys.asked).toEqual([]);
});

test("the edge that forwards a report is no landmark beside itself", async () => {
  const { publicKey, privateKey } = generateKeyPairSync("ed25519");
  const key: TestSigningKey = {
    id: edge.keyId,
    sign: (purpose, bytes) =>
      new Uint8Array(sign(null, Buffer.concat([Buffer.from(`${purpose}\0`), bytes]), privateKey)),
  };
  const edgeKeys: EdgeKeys = {
    find: async (id) => ({ id, orgId: "org_a", licenseId: "lic_a", publicKey }),
    isRemembered: () => true,
  };
  const verify = createMeasurementVerifier({ edgeKeys, landmarkOrgs: [] });
  const signed = ["edge", "another"].map((landmarkId) =>
    Buffer.from(measurementOf(key, "session", { landmarkId }), "base64url"),
  );
  const believed = await verify(signed, { orgId: "org_a", ref: "session", receiveMs: Date.now(), edge });
  expect(believed.map(({ landmarkId }) => landmarkId)).toEqual(["another"]);
});
