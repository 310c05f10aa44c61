import { createHmac, timingSafeEqual } from "node:crypto";

/** What a download grant says: this device may fetch this artifact because this rollout gives it this version. */
export interface DownloadGrant {
  readonly orgId: string;
  readonly deviceId: string;
  readonly artifactId: string;
  readonly rolloutId: string;
  readonly versionId: string;
  /** Milliseconds since the Unix epoch; kept to the second. */
  readonly expireTimeMs: number;
}

/** What a grant is checked against: who shows it, for what, and when. */
export interface GrantUse {
  readonly orgId: string;
  readonly deviceId: string;
  readonly artifactId: string;
  readonly nowMs: number;
}

/** Name of the header that carries a grant. */
export const downloadGrantHeader = "octomesh-download-grant";

/** How long a grant is good for: 15 minutes. Each desired state brings a new one. */
export const downloadGrantLifetimeMs = 15 * 60_000;

const maxCharacters = 512;
const grantPattern = /^1\.([0-9a-z]{1,9})\.(rol_[a-z2-7]{26})\.(mvr_[a-z2-7]{26})\.([A-Za-z0-9_-]{43})$/;

/** Makes a grant: under 512 characters of URL-safe text, authenticated with HMAC-SHA-256 under `key`. */
export function mintDownloadGrant(key: Buffer, grant: DownloadGrant): string {
  const expiry = Math.floor(grant.expireTimeMs / 1000).toString(36);
  const mac = macOf(key, { ...grant, expiry }).toString("base64url");
  return `1.${expiry}.${grant.rolloutId}.${grant.versionId}.${mac}`;
}

/**
 * Checks a grant: that it was made here, for this device and artifact, and has not lapsed. Answers what it says, or
 * undefined. Whether the rollout still delivers is for the caller to ask.
 */
export function checkDownloadGrant(
  key: Buffer,
  text: string | undefined,
  use: GrantUse,
): { rolloutId: string; versionId: string } | undefined {
  if (text === undefined || text.length > maxCharacters) return undefined;
  const match = grantPattern.exec(text);
  if (match === null) return undefined;
  const [, expiry = "", rolloutId = "", versionId = "", macText = ""] = match;
  const { orgId, deviceId, artifactId } = use;
  const expected = macOf(key, { orgId, deviceId, artifactId, rolloutId, versionId, expiry });
  const given = Buffer.from(macText, "base64url");
  // The last character of base64url carries two bits that mean nothing: only their one right form is a grant.
  if (given.toString("base64url") !== macText) return undefined;
  if (given.length !== expected.length || !timingSafeEqual(given, expected)) return undefined;
  if (Number.parseInt(expiry, 36) * 1000 <= use.nowMs) return undefined;
  return { rolloutId, versionId };
}

/** No part can hold the separator, so no two grants have the same text. */
function macOf(key: Buffer, parts: Omit<DownloadGrant, "expireTimeMs"> & { expiry: string }): Buffer {
  const { orgId, deviceId, artifactId, rolloutId, versionId, expiry } = parts;
  return createHmac("sha256", key)
    .update(["octomesh-download-grant-v1", orgId, deviceId, artifactId, rolloutId, versionId, expiry].join("\0"))
    .digest();
}
