import type { TLSSocket } from "node:tls";
import type { EdgeCertificateIdentity, EdgeConnection } from "./connection.ts";
import { isId } from "./ids.ts";
import { spiffeIdOfCertificate } from "./tls.ts";

/** The SPIFFE ID of an edge's certificate. The trust domain is `isTrustDomain`, the ids are `org_…` and `ecr_…`. */
export function edgeSpiffeIdOf(trustDomain: string, orgId: string, certificateId: string): string {
  return `spiffe://${trustDomain}/edge/${orgId}/${certificateId}`;
}

/**
 * Whose certificate it is by what it says: exactly one URI, the SPIFFE ID of an edge of the trust domain, and a subject
 * of exactly `O` (the organisation), `OU` (the licence) and `CN` (the certificate) that says the same. Undefined for
 * anything else. Says nothing of who signed it.
 */
export function edgeOfCertificate(
  certificate: { readonly subject?: unknown; readonly subjectaltname?: string },
  trustDomain: string,
): EdgeCertificateIdentity | undefined {
  const spiffeId = spiffeIdOfCertificate(certificate.subjectaltname);
  if (spiffeId === undefined) return undefined;
  // A name that stands more than once is a list here, and an empty subject may be none.
  const subject = (certificate.subject ?? {}) as Record<string, unknown>;
  const { O: orgId, OU: licenseId, CN: certificateId, ...others } = subject;
  if (!isId("org", orgId) || !isId("lic", licenseId) || !isId("ecr", certificateId)) return undefined;
  if (Object.keys(others).length > 0) return undefined;
  if (spiffeId !== edgeSpiffeIdOf(trustDomain, orgId, certificateId)) return undefined;
  return { spiffeId, orgId, licenseId, certificateId };
}

/**
 * What a connection over the edges' listener has proved. A certificate counts only where the handshake verified it, and
 * only until it expires, however long the connection lives. Read once for each connection.
 *
 * @param nowMs milliseconds since the Unix epoch
 */
export function edgeConnectionOf(socket: TLSSocket, trustDomain: string, nowMs: number): EdgeConnection {
  if (!socket.authorized) return {};
  let proved = provedBy.get(socket);
  if (proved === undefined) {
    const certificate = socket.getPeerCertificate(false);
    const edge = edgeOfCertificate(certificate, trustDomain);
    proved =
      edge === undefined ? {} : { connection: { certificate: edge }, expiresMs: Date.parse(certificate.valid_to) };
    provedBy.set(socket, proved);
  }
  const { connection, expiresMs = Number.NEGATIVE_INFINITY } = proved;
  return connection !== undefined && nowMs < expiresMs ? connection : {};
}

const provedBy = new WeakMap<TLSSocket, { connection?: EdgeConnection; expiresMs?: number }>();
