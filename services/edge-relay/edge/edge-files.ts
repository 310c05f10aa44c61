import { X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { ConfigError } from "@octomesh/mesh/config";
import type { ListenTls } from "@octomesh/mesh/listen";
import { readClientCertificate } from "./client-certificate.ts";
import type { EdgeConfig } from "./edge-config.ts";
import { createReloadingFiles } from "./reloading-files.ts";
import { isKeyPair, openServerFiles, readKeyPair } from "./server-files.ts";
import type { VerdictTls } from "./verdict-client.ts";

/** The certificates of a stand-alone edge, which follow their files. */
export interface EdgeFiles {
  /** What pages are served with; undefined in plaintext. */
  readonly server: ListenTls | undefined;
  /** What the verdict service is reached with, as the files stand now. */
  verdictTls(): VerdictTls;
  /** When the client certificate that is in use expires, milliseconds since the Unix epoch; undefined without one. */
  clientExpiresMs(): number | undefined;
}

const clientVariables = "EDGE_CLIENT_CERT_FILE and EDGE_CLIENT_KEY_FILE";

/**
 * Opens the files that the configuration names. Throws one ConfigError that lists every problem: a key that is another
 * certificate's, a certificate that expired, one of another licence, an authority that is no certificate.
 *
 * @param reloadMs how long a replaced file may go unnoticed
 */
export function openEdgeFiles(config: EdgeConfig, nowMs = Date.now(), reloadMs = 2_000): EdgeFiles {
  const problems: string[] = [];
  let server: ListenTls | undefined;
  try {
    if (config.tlsFiles !== undefined)
      server = openServerFiles(config.tlsFiles, {
        variables: ["EDGE_TLS_CERT_FILE", "EDGE_TLS_KEY_FILE"],
        intervalMs: reloadMs,
      });
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    problems.push(...error.problems);
  }
  const read = (): VerdictTls => {
    const pair = config.clientFiles === undefined ? undefined : readKeyPair(config.clientFiles);
    return {
      ca: config.caFile === undefined ? undefined : readFileSync(config.caFile, "utf8"),
      certificate: pair?.certificate,
      key: pair?.key,
    };
  };
  const verdictTls = createReloadingFiles({
    read,
    isGood: (tls) => problemsOf(tls, config).length === 0,
    everyMs: reloadMs,
  });
  const first = verdictTls();
  problems.push(...problemsOf(first, config));
  const expiresMs = first.certificate === undefined ? undefined : readClientCertificate(first.certificate)?.expiresMs;
  if (expiresMs !== undefined && expiresMs <= nowMs)
    problems.push(`EDGE_CLIENT_CERT_FILE: the certificate expired at ${new Date(expiresMs).toISOString()}`);
  if (problems.length > 0) throw new ConfigError(problems);
  return {
    server,
    verdictTls,
    clientExpiresMs() {
      const { certificate } = verdictTls();
      return certificate === undefined ? undefined : readClientCertificate(certificate)?.expiresMs;
    },
  };
}

function problemsOf({ ca, certificate, key }: VerdictTls, { facts }: EdgeConfig): string[] {
  const problems: string[] = [];
  if (ca !== undefined && !isCertificate(ca)) problems.push("OCTET_CA_FILE: certificates in PEM are expected");
  if (certificate === undefined || key === undefined) return problems;
  if (!isKeyPair({ certificate, key })) {
    problems.push(`${clientVariables}: a certificate in PEM and its own key are expected`);
    return problems;
  }
  const edge = readClientCertificate(certificate);
  if (edge === undefined) problems.push("EDGE_CLIENT_CERT_FILE: a client certificate of an edge is expected");
  else if (facts !== undefined && (edge.licenseId !== facts.id || edge.orgId !== facts.orgId))
    problems.push(
      `EDGE_CLIENT_CERT_FILE: a certificate of the licence ${facts.id} is expected, not of ${edge.licenseId}`,
    );
  return problems;
}

function isCertificate(pem: string): boolean {
  try {
    return new X509Certificate(pem).raw.length > 0;
  } catch {
    return false;
  }
}
