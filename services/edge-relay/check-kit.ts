import { isLoopbackHost } from "@octomesh/mesh/cidr";
import { fail, Reason } from "@octomesh/mesh/errors";
import type { ProvisionEdgeRequest } from "@octomesh/proto/octomesh/edge/v1/edge_service_pb";
import { readClientCertificate } from "./edge/client-certificate.ts";
import { readLicenseFacts } from "./edge/license-facts.ts";
import { isKeyPair } from "./edge/server-files.ts";
import type { StoredKit } from "./kit-store.ts";

/**
 * Makes a kit of what was handed over. Throws VALIDATION_FAILED, with the field, where its parts are not of one licence
 * or cannot be used: an edge with such a kit would take reports and forward none.
 */
export function checkKit(request: ProvisionEdgeRequest, trustDomain: string, nowMs: number): StoredKit {
  const { orgId, license, licenseKeyId, signingKeyId, signingKey, certificatePem, privateKeyPem, verdictUrl } = request;
  const refuse = (field: string, text: string): never => {
    throw fail(Reason.VALIDATION_FAILED, `${field}: ${text}`, { field });
  };
  const facts = readLicenseFacts(license);
  if (facts === undefined) return refuse("license", "a licence is expected");
  if (facts.orgId !== orgId) refuse("org_id", "the licence is another organisation's");
  if (facts.id !== licenseKeyId) refuse("license_key_id", "the licence is another one");
  if (signingKey.length !== 32) refuse("signing_key", "32 bytes are expected");
  if ((certificatePem === "") !== (privateKeyPem === "")) refuse("private_key_pem", "it goes with a certificate");
  if (certificatePem === "") {
    if (facts.clientCertificate === "require") refuse("certificate_pem", "the licence requires a client certificate");
  } else {
    const certificate = readClientCertificate(certificatePem);
    if (certificate?.trustDomain !== trustDomain) return refuse("certificate_pem", "an edge's certificate is expected");
    if (certificate.orgId !== orgId || certificate.licenseId !== licenseKeyId)
      refuse("certificate_pem", "the certificate is another licence's");
    if (certificate.expiresMs <= nowMs) refuse("certificate_pem", "the certificate has expired");
    if (!isKeyPair({ certificate: certificatePem, key: privateKeyPem }))
      refuse("private_key_pem", "the certificate's own key is expected");
  }
  if (verdictUrl !== "" && !isVerdictUrl(verdictUrl)) refuse("verdict_url", "an https URL is expected");
  return {
    orgId,
    license,
    licenseKeyId,
    signingKeyId,
    signingKey: Buffer.from(signingKey).toString("base64"),
    certificatePem,
    privateKeyPem,
    verdictUrl: verdictUrl.replace(/\/+$/, ""),
  };
}

/** Plain http reaches this machine alone. */
function isVerdictUrl(text: string): boolean {
  if (!URL.canParse(text)) return false;
  const { protocol, hostname } = new URL(text);
  return protocol === "https:" || (protocol === "http:" && isLoopbackHost(hostname));
}
