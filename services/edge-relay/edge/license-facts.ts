/** What a licence says of itself. Nothing here is verified: the verdict service does that at each forward. */
export interface LicenseFacts {
  readonly id: string;
  readonly orgId: string;
  readonly environment: "live" | "test";
  readonly clientCertificate: "off" | "request" | "require";
  /** Milliseconds since the Unix epoch. */
  readonly expiresMs: number;
}

const pattern = /^octet_(live|test)_v4\.public\.([\w-]{1,2000})\.[\w-]{1,200}$/;
const signatureBytes = 64;
const modes = ["off", "request", "require"] as const;

/** Reads a licence of at most 2048 characters without verifying it; undefined for what is no licence. */
export function readLicenseFacts(license: string): LicenseFacts | undefined {
  const match = license.length <= 2048 ? pattern.exec(license) : null;
  if (match === null) return undefined;
  const body = Buffer.from(match[2] ?? "", "base64url");
  if (body.length <= signatureBytes) return undefined;
  let claims: unknown;
  try {
    claims = JSON.parse(body.subarray(0, -signatureBytes).toString("utf8"));
  } catch {
    return undefined;
  }
  if (typeof claims !== "object" || claims === null) return undefined;
  const { sub, org, env, mtls, exp } = claims as Record<string, unknown>;
  const clientCertificate = modes.find((mode) => mode === mtls);
  const expiresMs = typeof exp === "string" ? Date.parse(exp) : Number.NaN;
  if (typeof sub !== "string" || typeof org !== "string" || clientCertificate === undefined) return undefined;
  if ((env !== "live" && env !== "test") || env !== match[1] || Number.isNaN(expiresMs)) return undefined;
  return { id: sub, orgId: org, environment: env, clientCertificate, expiresMs };
}
