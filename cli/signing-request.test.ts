import { createPrivateKey, createPublicKey } from "node:crypto";
import * as x509 from "@octomesh/mesh/x509";
import { describe, expect, test } from "vitest";
import { readSigningRequest } from "../services/identity/edge-issuer.ts";
import { certifies, createSigningRequest } from "./signing-request.ts";

x509.cryptoProvider.set(globalThis.crypto);
const algorithm = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" } as const;

describe("createSigningRequest", () => {
  test("makes requests that identity takes, for the key that it hands out", async () => {
    // Signatures are now and then a byte shorter: several requests, several lengths.
    for (let count = 0; count < 20; count += 1) {
      const { csrPem, keyPem } = await createSigningRequest();
      const asked = await readSigningRequest(csrPem);
      const own = createPublicKey(createPrivateKey(keyPem)).export({ format: "der", type: "spki" });
      expect(Buffer.from(asked.rawData).equals(own)).toBe(true);
    }
  });

  test("makes another key every time, and names nobody", async () => {
    const [one, two] = [await createSigningRequest(), await createSigningRequest()];
    expect(one.keyPem).not.toBe(two.keyPem);
    const request = new x509.Pkcs10CertificateRequest(one.csrPem);
    expect([request.subject, request.attributes]).toEqual(["", []]);
  });
});

describe("certifies", () => {
  test("tells the certificate of a key from that of another, and from what is none", async () => {
    const keys = await crypto.subtle.generateKey(algorithm, true, ["sign", "verify"]);
    const pem = (await x509.X509CertificateGenerator.createSelfSigned({ keys, signingAlgorithm: algorithm })).toString(
      "pem",
    );
    const pkcs8 = Buffer.from(await crypto.subtle.exportKey("pkcs8", keys.privateKey));
    const keyPem = createPrivateKey({ key: pkcs8, format: "der", type: "pkcs8" }).export({
      format: "pem",
      type: "pkcs8",
    });
    expect(certifies(pem, keyPem.toString())).toBe(true);
    expect(certifies(pem, (await createSigningRequest()).keyPem)).toBe(false);
    expect(certifies("", keyPem.toString())).toBe(false);
  });
});
