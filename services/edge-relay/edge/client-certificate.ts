import { X509Certificate } from "node:crypto";
import { edgeOfCertificate } from "@octomesh/mesh/edge-connection";

/** What an edge's client certificate says of itself. Who signed it is for the verdict service to verify. */
export interface ClientCertificateFacts {
  readonly orgId: string;
  readonly licenseId: string;
  readonly certificateId: string;
  readonly trustDomain: string;
  /** Milliseconds since the Unix epoch. */
  readonly expiresMs: number;
}

/** Reads the first certificate of a chain, PEM; undefined for what is no certificate of an edge. */
export function readClientCertificate(pem: string): ClientCertificateFacts | undefined {
  try {
    const certificate = new X509Certificate(pem);
    const { subjectAltName = "" } = certificate;
    const trustDomain = /^URI:spiffe:\/\/([^/,\s]{1,255})\/edge\//.exec(subjectAltName)?.[1];
    if (trustDomain === undefined) return undefined;
    const { subject } = certificate.toLegacyObject();
    const edge = edgeOfCertificate({ subject, subjectaltname: subjectAltName }, trustDomain);
    if (edge === undefined) return undefined;
    const { orgId, licenseId, certificateId } = edge;
    return { orgId, licenseId, certificateId, trustDomain, expiresMs: Date.parse(certificate.validTo) };
  } catch {
    return undefined;
  }
}
