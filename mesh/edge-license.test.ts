import fc from "fast-check";
import { beforeAll, describe, expect, test } from "vitest";
import { isLicense, type VerifyLicenseOptions, verifyLicense } from "./edge-license.ts";
import { Reason, reasonOf } from "./errors.ts";
import { newId } from "./ids.ts";
import { createLicenseSigner, type TestLicenseSigner } from "./test/license-fixture.ts";
import { defaultTrustDomain } from "./tls.ts";

let signer: TestLicenseSigner;
let foreign: TestLicenseSigner;
let now = Date.now();
const asked: string[] = [];

beforeAll(async () => {
  signer = await createLicenseSigner("key-1");
  foreign = await createLicenseSigner("key-1");
});

const options: VerifyLicenseOptions = {
  trust: {
    async licenseKey(keyId) {
      asked.push(keyId);
      return keyId === signer.keyId ? signer.publicKey : undefined;
    },
  },
  issuer: defaultTrustDomain,
  clock: { now: () => now },
};

async function outcome(license: string): Promise<string> {
  try {
    await verifyLicense(license, options);
    return "verified";
  } catch (error) {
    return Reason[reasonOf(error) ?? Reason.UNSPECIFIED];
  }
}

describe("a licence", () => {
  test("says whose it is, for what, and until when", async () => {
    now = Date.now();
    const claims = {
      sub: newId("lic"),
      org: newId("org"),
      env: "test",
      mtls: "request",
      iat: "2026-01-01T00:00:00Z",
      exp: "2126-01-01T00:00:00.500Z",
    };
    expect(await verifyLicense(await signer.sign({ claims }), options)).toEqual({
      id: claims.sub,
      orgId: claims.org,
      environment: "test",
      clientCertificate: "request",
      issuedMs: Date.UTC(2026, 0, 1),
      expiresMs: Date.UTC(2126, 0, 1) + 500,
    });
  });

  test("lapses at its time, to the millisecond, and begins before ours where a clock is slow", async () => {
    now = Date.now();
    const license = await signer.sign({ now: now + 30_000 });
    const found: string[] = [];
    for (const at of [now, now + 3_629_999, now + 3_630_000, now + 10_000_000]) {
      now = at;
      found.push(await outcome(license));
    }
    now = Date.now();
    expect(found).toEqual(["verified", "verified", "CREDENTIAL_EXPIRED", "CREDENTIAL_EXPIRED"]);
  });

  const cases: [string, Parameters<TestLicenseSigner["sign"]>[0], string][] = [
    ["of another issuer", { claims: { iss: "elsewhere.example" } }, "CREDENTIAL_UNKNOWN"],
    ["without an issuer", { claims: { iss: undefined } }, "CREDENTIAL_UNKNOWN"],
    ["of another product", { claims: { product: "server" } }, "CREDENTIAL_MALFORMED"],
    ["without an id", { claims: { sub: undefined } }, "CREDENTIAL_MALFORMED"],
    ["with an id of something else", { claims: { sub: newId("key") } }, "CREDENTIAL_MALFORMED"],
    ["without an organisation", { claims: { org: undefined } }, "CREDENTIAL_MALFORMED"],
    ["of an unknown environment", { claims: { env: "staging" }, prefix: "octet_live_" }, "CREDENTIAL_MALFORMED"],
    [
      "of the sandbox that is passed off as live",
      { claims: { env: "test" }, prefix: "octet_live_" },
      "CREDENTIAL_MALFORMED",
    ],
    ["that demands something unknown", { claims: { mtls: "perhaps" } }, "CREDENTIAL_MALFORMED"],
    ["that never lapses", { claims: { exp: undefined } }, "CREDENTIAL_MALFORMED"],
    ["without the time of its issue", { claims: { iat: undefined } }, "CREDENTIAL_MALFORMED"],
    ["of the future", { claims: { iat: "2999-01-01T00:00:00Z", exp: "2999-02-01T00:00:00Z" } }, "CREDENTIAL_MALFORMED"],
    ["signed for another purpose", { assertion: "something else" }, "CREDENTIAL_UNKNOWN"],
    ["of a key that nobody knows", { footer: '{"kid":"key-2"}' }, "CREDENTIAL_UNKNOWN"],
    ["that names no key", { footer: "{}" }, "CREDENTIAL_MALFORMED"],
    ["with a footer that is no JSON", { footer: "key-1" }, "CREDENTIAL_MALFORMED"],
    ["with a key's name that is none", { footer: '{"kid":"../key-1"}' }, "CREDENTIAL_MALFORMED"],
    ["with another prefix", { prefix: "octet_prod_" }, "CREDENTIAL_MALFORMED"],
    ["without a prefix", { prefix: "" }, "CREDENTIAL_MALFORMED"],
  ];
  test.each(cases)("%s is refused", async (_, change, expected) => {
    expect(await outcome(await signer.sign(change))).toBe(expected);
  });

  test("signed by somebody else under the name of our key is unknown", async () => {
    expect(await outcome(await foreign.sign())).toBe("CREDENTIAL_UNKNOWN");
  });

  test("that is too long is not even looked at", async () => {
    asked.length = 0;
    const long = await signer.sign({ claims: { more: "x".repeat(2000) } });
    expect([isLicense(long), await outcome(long), asked]).toEqual([false, "CREDENTIAL_MALFORMED", []]);
  });

  test("changed anywhere does not verify", async () => {
    const license = await signer.sign();
    const changes = fc.record({
      at: fc.nat(license.length - 1),
      by: fc.oneof(fc.constantFrom(..."abcXYZ019-_.="), fc.string({ minLength: 0, maxLength: 3 })),
      drop: fc.integer({ min: 0, max: 2 }),
    });
    await fc.assert(
      fc.asyncProperty(changes, async ({ at, by, drop }) => {
        const changed = license.slice(0, at) + by + license.slice(at + drop);
        fc.pre(changed !== license);
        expect(await outcome(changed)).toMatch(/^CREDENTIAL_(MALFORMED|UNKNOWN)$/);
      }),
      { numRuns: 500 },
    );
  });

  test("has one spelling: the bits that its base64 leaves over are nobody's to choose", async () => {
    for (let padding = 0; padding < 3; padding += 1) {
      const license = await signer.sign({ claims: { more: "x".repeat(padding) } });
      const at = license.lastIndexOf(".") - 1;
      for (const letter of "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") {
        if (letter === license[at]) continue;
        expect(await outcome(license.slice(0, at) + letter + license.slice(at + 1))).not.toBe("verified");
      }
    }
  });

  test("is no other text", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.string({ maxLength: 200 }),
        fc.constantFrom("", "octet_live_", "octet_live_v4.public."),
        async (text, prefix) => {
          expect(await outcome(prefix + text)).toBe("CREDENTIAL_MALFORMED");
        },
      ),
    );
  });
});
