import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject, randomBytes } from "node:crypto";
import type { Clock } from "@octomesh/mesh/clock";
import type { Database } from "@octomesh/mesh/database";
import { licenseAssertion } from "@octomesh/mesh/edge-license";
import { fail, Reason } from "@octomesh/mesh/errors";
import { newId } from "@octomesh/mesh/ids";
import type { MasterKey } from "@octomesh/mesh/master-key";
import * as x509 from "@octomesh/mesh/x509";
import { PublicProtocol } from "paseto";
import { SecretKeyFromCryptoKey, SignFactory } from "paseto/v4/public";
import { edgeAuthorityMs } from "./lifetimes.ts";
import type { IdentitySchema } from "./schema.ts";
import {
  findEdgeAuthority,
  findLicenseSigningKey,
  insertEdgeAuthority,
  insertLicenseSigningKey,
  lockEdgeIssuer,
} from "./store/edge-issuer.ts";

/** What a licence says. */
export interface LicenseClaims {
  readonly id: string;
  readonly orgId: string;
  readonly environment: "live" | "test";
  readonly clientCertificate: "off" | "request" | "require";
  readonly createTime: Date;
  readonly expireTime: Date;
}

/** What a client certificate of an edge says. */
export interface CertificateClaims {
  readonly id: string;
  readonly orgId: string;
  readonly licenseId: string;
  readonly publicKey: x509.PublicKey;
  readonly now: Date;
  readonly expireTime: Date;
}

/** Signs licences and edges' client certificates. */
export interface EdgeIssuer {
  signLicense(claims: LicenseClaims): Promise<string>;
  issueCertificate(claims: CertificateClaims): Promise<{ pem: string; spiffeId: string; serial: string }>;
  /** Keys by which licences are verified: 32 bytes each. */
  licenseKeys(): readonly { readonly kid: string; readonly publicKey: Uint8Array }[];
  /** Certificates of the edges' authorities, PEM. */
  authorities(): readonly string[];
}

const authorityAlgorithm = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" } as const;
const { Sign } = new PublicProtocol(SignFactory);

/** Opens the issuer: makes its key and its authority if there are none. Private keys rest sealed by the master key. */
export async function openEdgeIssuer(options: {
  database: Database<IdentitySchema>;
  masterKey: MasterKey;
  clock: Clock;
  issuer: string;
}): Promise<EdgeIssuer> {
  const { database, masterKey, clock, issuer } = options;
  x509.cryptoProvider.set(globalThis.crypto);
  const stored = await database.system(async (tx) => {
    await lockEdgeIssuer(tx);
    const now = new Date(clock.now());
    let key = await findLicenseSigningKey(tx);
    if (key === undefined) {
      const pair = generateKeyPairSync("ed25519");
      const kid = newId("lsk", now.getTime());
      const sealed = masterKey.seal(pair.privateKey.export({ format: "der", type: "pkcs8" }), keyPlace(kid));
      const row = { kid, public_key: rawPublicKey(pair.publicKey), sealed_private_key: sealed };
      key = await insertLicenseSigningKey(tx, { ...row, create_time: now, activate_time: now });
    }
    let authority = await findEdgeAuthority(tx);
    if (authority === undefined) {
      const id = newId("eca", now.getTime());
      const expireTime = new Date(now.getTime() + edgeAuthorityMs);
      const made = await makeAuthority({ id, issuer, now, expireTime });
      const sealed = masterKey.seal(made.pkcs8, authorityPlace(id));
      authority = await insertEdgeAuthority(tx, {
        id,
        certificate_pem: made.pem,
        sealed_private_key: sealed,
        create_time: now,
        expire_time: expireTime,
      });
    }
    return { key, authority };
  });
  const { key, authority } = stored;
  const licenseKey = createPrivateKey({
    key: masterKey.open(key.sealed_private_key, keyPlace(key.kid)),
    format: "der",
    type: "pkcs8",
  });
  const secretKey = await SecretKeyFromCryptoKey(
    await crypto.subtle.importKey("jwk", licenseKey.export({ format: "jwk" }), "Ed25519", true, ["sign"]),
  );
  const certificate = new x509.X509Certificate(authority.certificate_pem);
  const signingKey = await crypto.subtle.importKey(
    "pkcs8",
    new Uint8Array(masterKey.open(authority.sealed_private_key, authorityPlace(authority.id))),
    authorityAlgorithm,
    false,
    ["sign"],
  );
  return {
    async signLicense({ id, orgId, environment, clientCertificate, createTime, expireTime }) {
      const token = await Sign(
        secretKey,
        {
          iss: issuer,
          sub: id,
          org: orgId,
          product: "browser",
          env: environment,
          mtls: clientCertificate,
          iat: createTime.toISOString(),
          exp: expireTime.toISOString(),
        },
        {
          footer: Buffer.from(JSON.stringify({ kid: key.kid })),
          implicitAssertion: Buffer.from(licenseAssertion),
          addIssuedAt: false,
        },
      );
      return `octet_${environment}_${token}`;
    },
    async issueCertificate({ id, orgId, licenseId, publicKey, now, expireTime }) {
      const spiffeId = `spiffe://${issuer}/edge/${orgId}/${id}`;
      const serial = newSerial();
      const leaf = await x509.X509CertificateGenerator.create({
        serialNumber: serial,
        subject: `O=${orgId}, OU=${licenseId}, CN=${id}`,
        issuer: certificate.subject,
        notBefore: new Date(now.getTime() - 60_000),
        notAfter: expireTime,
        signingAlgorithm: authorityAlgorithm,
        publicKey,
        signingKey,
        extensions: [
          new x509.BasicConstraintsExtension(false, undefined, true),
          new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
          new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.clientAuth]),
          new x509.SubjectAlternativeNameExtension([{ type: "url", value: spiffeId }]),
          await x509.SubjectKeyIdentifierExtension.create(publicKey),
          await x509.AuthorityKeyIdentifierExtension.create(certificate),
        ],
      });
      return { pem: leaf.toString("pem"), spiffeId, serial };
    },
    licenseKeys: () => [{ kid: key.kid, publicKey: new Uint8Array(key.public_key) }],
    authorities: () => [authority.certificate_pem],
  };
}

/**
 * Reads a certificate signing request, PEM, and answers its public key once its signature proved that whoever asks holds
 * the private one. Throws VALIDATION_FAILED for what is none, is not signed by its key, or asks for another key than
 * ECDSA P-256, P-384 or Ed25519. The names in it are ignored.
 */
export async function readSigningRequest(pem: string): Promise<x509.PublicKey> {
  const refuse = (text: string): Error => fail(Reason.VALIDATION_FAILED, text, { field: "csr_pem" });
  let request: x509.Pkcs10CertificateRequest;
  let key: KeyObject;
  try {
    const found =
      /^\s*-----BEGIN (NEW )?CERTIFICATE REQUEST-----[A-Za-z0-9+/=\s]+-----END (NEW )?CERTIFICATE REQUEST-----\s*$/;
    if (!found.test(pem)) throw new Error("no signing request");
    const der = Buffer.from(pem.replace(/-----[^-]+-----|\s/g, ""), "base64");
    if (!isOneSequence(der)) throw new Error("no signing request");
    request = new x509.Pkcs10CertificateRequest(der);
    key = createPublicKey({ key: Buffer.from(request.publicKey.rawData), format: "der", type: "spki" });
  } catch {
    throw refuse("this is no certificate signing request in PEM");
  }
  const curve = key.asymmetricKeyDetails?.namedCurve;
  const isKnownCurve = key.asymmetricKeyType === "ec" && (curve === "prime256v1" || curve === "secp384r1");
  if (!isKnownCurve && key.asymmetricKeyType !== "ed25519") {
    throw refuse("the key of a signing request is ECDSA P-256 or P-384, or Ed25519");
  }
  if (!(await request.verify().catch(() => false))) throw refuse("the signing request is not signed by its own key");
  return request.publicKey;
}

/** The 32 bytes of an Ed25519 public key. */
export function rawPublicKey(key: KeyObject): Buffer {
  return Buffer.from(key.export({ format: "jwk" }).x ?? "", "base64url");
}

/** Whether bytes are one DER sequence of 128 to 65,535 bytes with nothing after it. */
function isOneSequence(bytes: Buffer): boolean {
  const size = (bytes[1] ?? 0) - 0x80;
  if (bytes[0] !== 0x30 || (size !== 1 && size !== 2) || bytes.length < 2 + size) return false;
  return bytes.length === 2 + size + bytes.readUIntBE(2, size);
}

async function makeAuthority(options: {
  id: string;
  issuer: string;
  now: Date;
  expireTime: Date;
}): Promise<{ pem: string; pkcs8: Buffer }> {
  const keys = await crypto.subtle.generateKey(authorityAlgorithm, true, ["sign", "verify"]);
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: newSerial(),
    name: `O=Octomesh, CN=Octomesh edge authority ${options.id}`,
    notBefore: new Date(options.now.getTime() - 60_000),
    notAfter: options.expireTime,
    signingAlgorithm: authorityAlgorithm,
    keys,
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      new x509.SubjectAlternativeNameExtension([{ type: "url", value: `spiffe://${options.issuer}` }]),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  });
  return {
    pem: certificate.toString("pem"),
    pkcs8: Buffer.from(await crypto.subtle.exportKey("pkcs8", keys.privateKey)),
  };
}

function newSerial(): string {
  const bytes = randomBytes(16);
  bytes[0] = ((bytes[0] ?? 0) & 0x3f) | 0x40;
  return bytes.toString("hex");
}

function keyPlace(kid: string): string {
  return `octomesh identity licence key ${kid}`;
}

function authorityPlace(id: string): string {
  return `octomesh identity edge authority ${id}`;
}
