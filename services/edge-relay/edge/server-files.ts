import { createPrivateKey, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { createSecureContext } from "node:tls";
import { ConfigError } from "@octomesh/mesh/config";
import type { ListenTls } from "@octomesh/mesh/listen";
import { createReloadingFiles } from "./reloading-files.ts";

/** A certificate chain and its key, PEM. */
export interface KeyPair {
  readonly certificate: string;
  readonly key: string;
}

/** Whether a key belongs to a certificate; false also for what is neither, and for a chain that is cut off. */
export function isKeyPair(pair: KeyPair): boolean {
  try {
    // TLS reads the whole chain, and throws for what it cannot use.
    createSecureContext({ cert: pair.certificate, key: pair.key });
    return new X509Certificate(pair.certificate).checkPrivateKey(createPrivateKey(pair.key));
  } catch {
    return false;
  }
}

/** When the first certificate of a chain expires, milliseconds since the Unix epoch; undefined for what is none. */
export function expiryOf(certificate: string): number | undefined {
  try {
    return Date.parse(new X509Certificate(certificate).validTo);
  } catch {
    return undefined;
  }
}

/** Reads a pair from two files. */
export function readKeyPair(files: KeyPair): KeyPair {
  return { certificate: readFileSync(files.certificate, "utf8"), key: readFileSync(files.key, "utf8") };
}

/**
 * Serves TLS 1.2 and 1.3 from two files, and within `intervalMs` from what replaces them: a pair that does not fit, being
 * half written, is passed over. Throws a ConfigError that names the variables if the first pair does not fit or expired.
 */
export function openServerFiles(
  files: KeyPair,
  options: { readonly variables: readonly [certificate: string, key: string]; readonly intervalMs?: number },
): ListenTls {
  const { variables, intervalMs = 2_000 } = options;
  const current = createReloadingFiles({ read: () => readKeyPair(files), isGood: isKeyPair, everyMs: 0 });
  let pair = current();
  if (!isKeyPair(pair))
    throw new ConfigError([`${variables[1]}: the key of the certificate in ${variables[0]} is expected`]);
  const expiresMs = expiryOf(pair.certificate) ?? 0;
  if (expiresMs <= Date.now())
    throw new ConfigError([`${variables[0]}: the certificate expired at ${new Date(expiresMs).toISOString()}`]);
  return {
    options: () => ({ cert: pair.certificate, key: pair.key, minVersion: "TLSv1.2" }),
    onChange(callback) {
      const timer = setInterval(() => {
        const next = current();
        if (next.certificate === pair.certificate && next.key === pair.key) return;
        pair = next;
        callback();
      }, intervalMs);
      timer.unref();
      return () => clearInterval(timer);
    },
  };
}
