import { createClient, createRouterTransport } from "@connectrpc/connect";
import { CredentialService } from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { pino } from "pino";
import { afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { createEdgeTrust, type EdgeTrust } from "./edge-trust.ts";
import { fail, Reason, reasonOf } from "./errors.ts";
import { createTestAuthority, type TestAuthority } from "./test/certificate-fixture.ts";
import { createLicenseSigner, type TestLicenseSigner } from "./test/license-fixture.ts";

const log = pino({ level: "silent" });
let signers: TestLicenseSigner[];
let authority: TestAuthority;
let answer: {
  licenseKeys: { keyId: string; publicKey: Uint8Array<ArrayBuffer> }[];
  certificateAuthoritiesPem: string[];
};
let refusal: Reason | undefined;
let asked: number;
let changes: number;
let now: number;
let trust: EdgeTrust;

const transport = createRouterTransport((router) => {
  router.service(CredentialService, {
    getEdgeTrust() {
      asked += 1;
      if (refusal !== undefined) throw fail(refusal, "not now");
      return answer;
    },
  });
});

beforeAll(async () => {
  signers = await Promise.all([createLicenseSigner("one"), createLicenseSigner("two")]);
  authority = await createTestAuthority();
});

beforeEach(() => {
  now = Date.now();
  asked = 0;
  changes = 0;
  refusal = undefined;
  answer = { licenseKeys: keysOf("one"), certificateAuthoritiesPem: [authority.bundle] };
  const clock = { now: () => now };
  trust = createEdgeTrust({ client: createClient(CredentialService, transport), clock, log });
  trust.onChange(() => {
    changes += 1;
  });
});

afterEach(async () => {
  await trust.stop();
});

function keysOf(...names: string[]) {
  return signers.filter(({ keyId }) => names.includes(keyId)).map(({ keyId, raw }) => ({ keyId, publicKey: raw }));
}

test("is known once identity has answered, and asks until it does", async () => {
  refusal = Reason.SERVICE_UNAVAILABLE;
  const started = trust.start();
  await expect.poll(() => asked).toBe(1);
  expect([trust.isKnown(), trust.authorities()]).toEqual([false, []]);
  refusal = undefined;
  await started;
  expect([trust.isKnown(), trust.authorities(), changes]).toEqual([true, [authority.bundle], 1]);
  expect(await trust.licenseKey("one")).toBeDefined();
});

test("keeps nobody waiting for an identity that knows no edges", async () => {
  refusal = Reason.NOT_IMPLEMENTED;
  await trust.start();
  expect(trust.isKnown()).toBe(false);
});

test("a new key is asked about when a licence names it, at most once a second, by all at once", async () => {
  await trust.start();
  const ask = (): Promise<boolean[]> =>
    Promise.all(Array.from({ length: 10 }, async () => (await trust.licenseKey("two")) !== undefined));
  expect(new Set(await ask())).toEqual(new Set([false]));
  expect(asked).toBe(1);
  now += 1000;
  expect(new Set(await ask())).toEqual(new Set([false]));
  expect(asked).toBe(2);
  answer = { ...answer, licenseKeys: keysOf("one", "two") };
  now += 1000;
  expect(new Set(await ask())).toEqual(new Set([true]));
  expect([asked, changes]).toEqual([3, 1]);
});

test("what identity withdraws is believed no longer, once it was asked again", async () => {
  await trust.start();
  expect(await trust.licenseKey("one")).toBeDefined();
  answer = { licenseKeys: keysOf("two"), certificateAuthoritiesPem: [] };
  // Whoever names a new key brings the withdrawal along.
  now += 1000;
  expect(await trust.licenseKey("two")).toBeDefined();
  expect([await trust.licenseKey("one"), trust.authorities(), changes]).toEqual([undefined, [], 2]);
});

test("a key that could not be looked after for long is believed no longer", async () => {
  await trust.start();
  refusal = Reason.SERVICE_UNAVAILABLE;
  now += 599_999;
  expect(await trust.licenseKey("one")).toBeDefined();
  now += 1;
  // Nor is it because somebody asked a moment ago.
  for (let each = 0; each < 3; each += 1) {
    expect(reasonOf(await trust.licenseKey("one").catch((error: unknown) => error))).toBe(Reason.SERVICE_UNAVAILABLE);
  }
});

test("an authority that cannot be read, or is none, does not take the others with it", async () => {
  const leaf = await authority.issue();
  answer = { ...answer, certificateAuthoritiesPem: ["nonsense", leaf.certificate, authority.bundle] };
  await trust.start();
  expect(trust.authorities()).toEqual([authority.bundle]);
});
