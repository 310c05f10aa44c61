import { randomUUID } from "node:crypto";
import type { IdentityMaterial, MeshIdentity } from "../tls.ts";
import * as x509 from "../x509.ts";

const signing = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" } as const;

/** What a certificate of a test says; by default what a good one says. */
export interface LeafOptions {
  readonly uris?: readonly string[];
  readonly notBefore?: Date;
  readonly notAfter?: Date;
  readonly usages?: readonly string[];
  readonly subject?: string;
}

/** An authority of a test's own, which signs whatever the test asks for. */
export interface TestAuthority {
  readonly bundle: string;
  issue(options?: LeafOptions): Promise<IdentityMaterial>;
}

/** Makes an authority. */
export async function createTestAuthority(): Promise<TestAuthority> {
  x509.cryptoProvider.set(globalThis.crypto);
  const keys = await crypto.subtle.generateKey(signing, true, ["sign", "verify"]);
  const authority = await x509.X509CertificateGenerator.createSelfSigned({
    // A name of its own: by the name an issuer is looked for.
    name: `CN=Test authority ${randomUUID()}`,
    notBefore: new Date(Date.now() - 10 * 86_400_000),
    notAfter: new Date(Date.now() + 86_400_000),
    signingAlgorithm: signing,
    keys,
    extensions: [new x509.BasicConstraintsExtension(true, 0, true)],
  });
  const bundle = authority.toString("pem");
  return {
    bundle,
    async issue({
      uris = ["spiffe://octomesh.internal/rollout"],
      notBefore = new Date(Date.now() - 60_000),
      notAfter = new Date(Date.now() + 3_600_000),
      usages = [x509.ExtendedKeyUsage.serverAuth, x509.ExtendedKeyUsage.clientAuth],
      subject = "O=Test",
    } = {}) {
      const leafKeys = await crypto.subtle.generateKey(signing, true, ["sign", "verify"]);
      const leaf = await x509.X509CertificateGenerator.create({
        subject,
        issuer: authority.subject,
        notBefore,
        notAfter,
        signingAlgorithm: signing,
        publicKey: leafKeys.publicKey,
        signingKey: keys.privateKey,
        extensions: [
          new x509.BasicConstraintsExtension(false, undefined, true),
          new x509.ExtendedKeyUsageExtension([...usages]),
          new x509.SubjectAlternativeNameExtension([
            ...uris.map((value) => ({ type: "url" as const, value })),
            { type: "dns", value: "localhost" },
            { type: "ip", value: "127.0.0.1" },
          ]),
        ],
      });
      const pkcs8 = await crypto.subtle.exportKey("pkcs8", leafKeys.privateKey);
      return { key: x509.PemConverter.encode(pkcs8, "PRIVATE KEY"), certificate: leaf.toString("pem"), bundle };
    },
  };
}

/** An identity that a test replaces at will. */
export function createTestIdentity(
  spiffeId: string,
  first: IdentityMaterial,
): MeshIdentity & { replace(next: IdentityMaterial): void } {
  let material = first;
  const callbacks = new Set<() => void>();
  return {
    spiffeId,
    current: () => material,
    onChange(callback) {
      callbacks.add(callback);
      return () => callbacks.delete(callback);
    },
    close: () => undefined,
    replace(next) {
      material = next;
      for (const callback of callbacks) callback();
    },
  };
}
