import { InspectFooter, PasetoError, PublicProtocol } from "paseto";
import { VerifyFactory } from "paseto/v4/public";
import type { Clock } from "./clock.ts";
import type { EdgeTrust } from "./edge-trust.ts";
import { fail, Reason } from "./errors.ts";
import { isId } from "./ids.ts";

/** Header in which an edge presents its licence. */
export const licenseHeader = "x-octet-license";

/** Binds the signature to licences, so that no other token under the same key can pass for one. */
export const licenseAssertion = "octomesh-licence-v1";

/** What a licence demands of the edge's client certificate: nothing, that one that is shown fits, or that one is shown. */
export type ClientCertificateMode = "off" | "request" | "require";

/** What a licence says. */
export interface EdgeLicense {
  /** `lic_…`. */
  readonly id: string;
  readonly orgId: string;
  readonly environment: "live" | "test";
  readonly clientCertificate: ClientCertificateMode;
  /** Milliseconds since the Unix epoch. */
  readonly issuedMs: number;
  readonly expiresMs: number;
}

/** What verifying a licence needs. */
export interface VerifyLicenseOptions {
  readonly trust: Pick<EdgeTrust, "licenseKey">;
  /** The trust domain, which must have issued the licence. */
  readonly issuer: string;
  readonly clock: Clock;
}

const maxLicenseLength = 2048;
const licensePattern = /^octet_(live|test)_(v4\.public\.[\w-]{1,2000}\.[\w-]{1,200})$/;
const modes: ReadonlySet<unknown> = new Set<ClientCertificateMode>(["off", "request", "require"]);
const paseto = new PublicProtocol(VerifyFactory);
const encoder = new TextEncoder();

/** Whether text has the form of a licence: `octet_live_` or `octet_test_` and a v4.public token with a footer. */
export function isLicense(text: string): boolean {
  return text.length <= maxLicenseLength && licensePattern.test(text);
}

/**
 * Verifies a licence: PASETO v4.public under a key of identity's that its footer names. Throws CREDENTIAL_MALFORMED for
 * what is none, CREDENTIAL_UNKNOWN for one that was not issued here, CREDENTIAL_EXPIRED for one that has lapsed.
 */
export async function verifyLicense(license: string, options: VerifyLicenseOptions): Promise<EdgeLicense> {
  const match = license.length <= maxLicenseLength ? licensePattern.exec(license) : null;
  const [, environment, token] = match ?? [];
  const keyId = token === undefined ? undefined : keyIdOf(token);
  if (token === undefined || keyId === undefined) throw malformed();
  const key = await options.trust.licenseKey(keyId);
  if (key === undefined) throw unknown();
  const { claims } = await paseto
    .Verify(key, token, {
      implicitAssertion: encoder.encode(licenseAssertion),
      now: new Date(options.clock.now()),
      // A clock that is a little slow refuses no new licence. Whether it has lapsed is looked at again below, exactly.
      allowNonExpiring: true,
      clockTolerance: 60,
    })
    .catch((error: unknown) => {
      if (!(error instanceof PasetoError)) throw error;
      if (error.code !== "ERR_PASETO_CLAIM_VALIDATION") throw unknown();
      throw "claim" in error && error.claim === "exp" ? expired() : malformed();
    });
  const { iss, sub, org, product, env, mtls, iat, exp } = claims as Record<string, unknown>;
  if (iss !== options.issuer) throw unknown();
  const issuedMs = typeof iat === "string" ? Date.parse(iat) : Number.NaN;
  const expiresMs = typeof exp === "string" ? Date.parse(exp) : Number.NaN;
  if (!isId("lic", sub) || !isId("org", org) || product !== "browser" || env !== environment || !isMode(mtls)) {
    throw malformed();
  }
  if (Number.isNaN(issuedMs) || Number.isNaN(expiresMs)) throw malformed();
  if (expiresMs <= options.clock.now()) throw expired();
  return {
    id: sub,
    orgId: org,
    environment: env === "live" ? "live" : "test",
    clientCertificate: mtls,
    issuedMs,
    expiresMs,
  };
}

/** The id of the key that a token's footer names, before anything is verified; undefined where it names none. */
function keyIdOf(token: string): string | undefined {
  try {
    const footer: unknown = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(InspectFooter(token)));
    if (typeof footer !== "object" || footer === null || !("kid" in footer)) return undefined;
    const { kid } = footer;
    return typeof kid === "string" && /^[\w-]{1,64}$/.test(kid) ? kid : undefined;
  } catch {
    return undefined;
  }
}

function isMode(value: unknown): value is ClientCertificateMode {
  return modes.has(value);
}

function malformed(): Error {
  return fail(Reason.CREDENTIAL_MALFORMED, "the licence is not well formed");
}

function unknown(): Error {
  return fail(Reason.CREDENTIAL_UNKNOWN, "the licence was not issued here");
}

function expired(): Error {
  return fail(Reason.CREDENTIAL_EXPIRED, "the licence has expired");
}
