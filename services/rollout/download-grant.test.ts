import { randomBytes } from "node:crypto";
import { newId } from "@octomesh/mesh/ids";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { checkDownloadGrant, type DownloadGrant, mintDownloadGrant } from "./download-grant.ts";

const key = randomBytes(32);
const grant: DownloadGrant = {
  orgId: newId("org"),
  deviceId: newId("dev"),
  artifactId: newId("art"),
  rolloutId: newId("rol"),
  versionId: newId("mvr"),
  expireTimeMs: 1_800_000_000_000,
};
const { orgId, deviceId, artifactId, rolloutId, versionId } = grant;
const use = { orgId, deviceId, artifactId, nowMs: grant.expireTimeMs - 1 };

describe("a download grant", () => {
  it("says which rollout gave which version, to the device and for the artifact that it was made for", () => {
    expect(checkDownloadGrant(key, mintDownloadGrant(key, grant), use)).toEqual({ rolloutId, versionId });
  });

  it("is nothing to another device, organisation or artifact, nor under another key", () => {
    const text = mintDownloadGrant(key, grant);
    expect(checkDownloadGrant(key, text, { ...use, deviceId: newId("dev") })).toBeUndefined();
    expect(checkDownloadGrant(key, text, { ...use, orgId: newId("org") })).toBeUndefined();
    expect(checkDownloadGrant(key, text, { ...use, artifactId: newId("art") })).toBeUndefined();
    expect(checkDownloadGrant(randomBytes(32), text, use)).toBeUndefined();
  });

  it("lapses", () => {
    const text = mintDownloadGrant(key, grant);
    expect(checkDownloadGrant(key, text, { ...use, nowMs: grant.expireTimeMs })).toBeUndefined();
  });

  it("is refused when it is missing, or when any character of it was changed", () => {
    const text = mintDownloadGrant(key, grant);
    expect(text.length).toBeLessThan(512);
    expect(checkDownloadGrant(key, undefined, use)).toBeUndefined();
    fc.assert(
      fc.property(fc.nat(text.length - 1), fc.constantFrom(..."0a9z.A-_"), (at, character) => {
        fc.pre(text[at] !== character);
        const changed = text.slice(0, at) + character + text.slice(at + 1);
        expect(checkDownloadGrant(key, changed, use)).toBeUndefined();
      }),
    );
  });

  it("is refused for any other text", () => {
    fc.assert(
      fc.property(fc.string({ maxLength: 600 }), (text) => {
        expect(checkDownloadGrant(key, text, use)).toBeUndefined();
      }),
    );
  });
});
