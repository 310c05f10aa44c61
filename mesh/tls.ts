import { constants, createHash, createPublicKey, X509Certificate } from "node:crypto";
import {
  chmodSync,
  existsSync,
  linkSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  watch,
  writeFileSync,
} from "node:fs";
import type { SecureClientSessionOptions, SecureServerOptions } from "node:http2";
import { dirname, join } from "node:path";
import type { PeerCertificate, SecureContextOptions, TLSSocket } from "node:tls";
import type { Logger } from "pino";
import { type Clock, systemClock } from "./clock.ts";
import { ConfigError } from "./config.ts";
import { isServiceName, type ServiceName } from "./service-name.ts";
import * as x509 from "./x509.ts";

/** Trust domain of a deployment that names none. */
export const defaultTrustDomain = "octomesh.internal";

/** How long a leaf of the development authority is good; it is replaced at half of that. */
const leafLifetimeMs = 24 * 3_600_000;
const authorityLifetimeMs = 3650 * 24 * 3_600_000;
/** How often an identity looks whether it is due for renewal, or whether its files changed unseen. */
const checkIntervalMs = 30_000;

/** Key, certificate chain and trust bundle of a service, PEM. */
export interface IdentityMaterial {
  readonly key: string;
  readonly certificate: string;
  readonly bundle: string;
}

/** A service's own identity, which may be replaced while the service runs. */
export interface MeshIdentity {
  readonly spiffeId: string;
  current(): IdentityMaterial;
  /** Calls back when key, certificate or bundle were replaced. Returns the way to stop it. */
  onChange(callback: () => void): () => void;
  close(): void;
}

/** The SPIFFE ID of a service of the mesh. The trust domain is `isTrustDomain`. */
export function spiffeIdOf(trustDomain: string, service: ServiceName): string {
  return `spiffe://${trustDomain}/${service}`;
}

/** Whether text is a trust domain: 1 to 255 of `a-z0-9.-_` (SPIFFE ID specification, section 2.1). */
export function isTrustDomain(text: string): boolean {
  return /^[a-z0-9._-]{1,255}$/.test(text);
}

/** The service that a SPIFFE ID names in a trust domain; undefined for anything else, edges included. Compared whole. */
export function serviceOfSpiffeId(trustDomain: string, spiffeId: string): ServiceName | undefined {
  const prefix = `spiffe://${trustDomain}/`;
  if (!spiffeId.startsWith(prefix)) return undefined;
  const name = spiffeId.slice(prefix.length);
  return isServiceName(name) ? name : undefined;
}

/**
 * The SPIFFE ID of a certificate: its one URI subject alternative name. Undefined where there is none, more than one,
 * or a name that Node had to quote, since a quoted name may hold what looks like another (CVE-2021-44532).
 */
export function spiffeIdOfCertificate(subjectAltName: string | undefined): string | undefined {
  if (subjectAltName === undefined || subjectAltName.includes('"')) return undefined;
  const uris = subjectAltName.split(", ").filter((name) => name.startsWith("URI:"));
  const [uri] = uris;
  if (uris.length !== 1 || uri === undefined) return undefined;
  const id = uri.slice(4);
  return id.startsWith("spiffe://") && id.length <= 2048 ? id : undefined;
}

/**
 * The service that a connection's peer proved to be: only where the handshake verified its certificate against the
 * bundle, and the certificate's whole SPIFFE ID is that of a service of the trust domain. Never an edge. Remembered for
 * as long as the connection lives.
 */
export function peerOf(socket: TLSSocket, trustDomain: string): { service: ServiceName; spiffeId: string } | undefined {
  if (!socket.authorized) return undefined;
  const known = peers.get(socket);
  if (known !== undefined) return known;
  const certificate = socket.getPeerCertificate(false);
  const spiffeId = spiffeIdOfCertificate(certificate.subjectaltname);
  const service = spiffeId === undefined ? undefined : serviceOfSpiffeId(trustDomain, spiffeId);
  if (spiffeId === undefined || service === undefined) return undefined;
  const peer = { service, spiffeId };
  peers.set(socket, peer);
  return peer;
}

const peers = new WeakMap<TLSSocket, { service: ServiceName; spiffeId: string }>();

/**
 * Options of a server on the mesh: TLS 1.3, and nobody without a certificate from the bundle. Sessions are not resumed,
 * so every connection proves its certificate against the bundle of the moment.
 */
export function serverTlsOptions(identity: MeshIdentity): SecureServerOptions {
  return { ...contextOptions(identity), requestCert: true, rejectUnauthorized: true };
}

/** What `server.setSecureContext` takes when the identity was replaced. */
export function contextOptions(identity: MeshIdentity): SecureContextOptions {
  const { key, certificate, bundle } = identity.current();
  return { key, cert: certificate, ca: bundle, minVersion: "TLSv1.3", secureOptions: constants.SSL_OP_NO_TICKET };
}

/** Options of a client: our certificate, and a server that proves exactly the expected SPIFFE ID, whatever its host name. */
export function clientTlsOptions(identity: MeshIdentity, expectedSpiffeId: string): SecureClientSessionOptions {
  return {
    ...contextOptions(identity),
    rejectUnauthorized: true,
    checkServerIdentity(_host: string, certificate: PeerCertificate): Error | undefined {
      const spiffeId = spiffeIdOfCertificate(certificate.subjectaltname);
      if (spiffeId === expectedSpiffeId) return undefined;
      return new Error(`the server proves ${spiffeId ?? "no SPIFFE ID"}, not ${expectedSpiffeId}`);
    },
  } as SecureClientSessionOptions;
}

/** Files of an identity that something else issues and rotates. */
export interface IdentityFiles {
  readonly keyFile: string;
  readonly certificateFile: string;
  readonly bundleFile: string;
}

/**
 * Opens an identity from files and follows them: a change is taken when key and certificate belong together, so that a
 * half-written pair is passed over. Throws a ConfigError where the files cannot be read, the key is not the
 * certificate's, or the certificate is another service's or has expired.
 */
export function openIdentityFiles(
  files: IdentityFiles,
  trustDomain: string,
  service: ServiceName,
  log?: Logger,
): MeshIdentity {
  const expected = spiffeIdOf(trustDomain, service);
  const read = (): IdentityMaterial => {
    const material = {
      key: readPem(files.keyFile),
      certificate: readPem(files.certificateFile),
      bundle: readPem(files.bundleFile),
    };
    checkMaterial(material, files, expected);
    return material;
  };
  const identity = createIdentity(expected, read());
  const reload = (): void => {
    try {
      identity.replace(read());
    } catch (error) {
      // The pair may be half-written; a change of its other half brings us back here.
      log?.warn({ err: error }, "the identity's files are not taken");
    }
  };
  const folders = new Set([files.keyFile, files.certificateFile, files.bundleFile].map(dirname));
  const watchers = [...folders].map((folder) =>
    watch(folder, { persistent: false }, reload).on("error", (error) =>
      log?.debug({ err: error }, "the identity's folder cannot be watched: it is read now and then"),
    ),
  );
  const timer = setInterval(reload, checkIntervalMs);
  timer.unref();
  return {
    ...identity.view,
    close() {
      clearInterval(timer);
      for (const watcher of watchers) watcher.close();
    },
  };
}

/** An identity whose material can be replaced, without the part that decides when. */
function createIdentity(
  spiffeId: string,
  first: IdentityMaterial,
): { view: Omit<MeshIdentity, "close">; replace(next: IdentityMaterial): void } {
  let material = first;
  const callbacks = new Set<() => void>();
  return {
    view: {
      spiffeId,
      current: () => material,
      onChange(callback) {
        callbacks.add(callback);
        return () => callbacks.delete(callback);
      },
    },
    replace(next) {
      if (fingerprint(next) === fingerprint(material)) return;
      material = next;
      for (const callback of callbacks) callback();
    },
  };
}

function fingerprint(material: IdentityMaterial): string {
  return createHash("sha256").update(material.key).update(material.certificate).update(material.bundle).digest("hex");
}

function readPem(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (error) {
    throw new ConfigError([`${file} cannot be read (${codeOf(error)}): a PEM file of the mesh identity is expected`]);
  }
}

function checkMaterial(material: IdentityMaterial, files: IdentityFiles, expected: string): void {
  const certificate = parsePem(files.certificateFile, "a certificate", () => new X509Certificate(material.certificate));
  const publicKey = parsePem(files.keyFile, "a private key", () => createPublicKey(material.key));
  parsePem(files.bundleFile, "the authorities' certificates", () => new X509Certificate(material.bundle));
  const spiffeId = spiffeIdOfCertificate(certificate.subjectAltName);
  const problem =
    spiffeId !== expected
      ? `it is the certificate of ${spiffeId ?? "nobody"}, that of ${expected} is expected`
      : !certificate.publicKey.equals(publicKey)
        ? `it is not the certificate of the key in ${files.keyFile}`
        : Date.parse(certificate.validTo) <= Date.now()
          ? `it expired at ${certificate.validTo}`
          : undefined;
  if (problem !== undefined) throw new ConfigError([`${files.certificateFile}: ${problem}`]);
}

function parsePem<T>(file: string, expected: string, parse: () => T): T {
  try {
    return parse();
  } catch {
    throw new ConfigError([`${file}: ${expected} in PEM is expected`]);
  }
}

function codeOf(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : "error";
}

/** The certificate authority of a development deployment. */
export interface DevelopmentAuthority {
  /** Issues an identity for a service, good for a day, which renews itself at half its life. */
  issue(service: ServiceName): Promise<MeshIdentity>;
  /** The authority's certificate, PEM. */
  readonly bundle: string;
}

const signing = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" } as const;

/**
 * Opens the development authority, and makes it on the first start: key and certificate in `<stateDir>/ca`, readable by
 * the owner only. For one machine; production has cert-manager or SPIRE. Throws a ConfigError where the folder cannot be
 * written, or holds the authority of another trust domain or one that has expired.
 */
export async function openDevelopmentAuthority(
  stateDir: string,
  trustDomain: string,
  clock: Clock = systemClock,
  log?: Logger,
): Promise<DevelopmentAuthority> {
  if (!isTrustDomain(trustDomain)) {
    throw new ConfigError([
      `OCTOMESH_TRUST_DOMAIN is ${JSON.stringify(trustDomain)}: a name such as octomesh.internal is expected`,
    ]);
  }
  x509.cryptoProvider.set(globalThis.crypto);
  const stored = await openAuthorityFile(join(stateDir, "ca"), trustDomain, clock);
  const authority = new x509.X509Certificate(stored.certificate);
  const signingKey = await importKey(stored.key);
  const issue = (spiffeId: string) => issueLeaf({ authority, signingKey, spiffeId, now: clock.now() });
  return {
    bundle: stored.certificate,
    async issue(service) {
      const spiffeId = spiffeIdOf(trustDomain, service);
      const identity = createIdentity(spiffeId, await issue(spiffeId));
      let renewMs = clock.now() + leafLifetimeMs / 2;
      // Looked at often instead of timed once: a machine that slept is late, and its certificate may have expired.
      const timer = setInterval(() => {
        if (clock.now() < renewMs) return;
        renewMs = clock.now() + leafLifetimeMs / 2;
        issue(spiffeId).then(identity.replace, (error: unknown) => {
          renewMs = 0;
          log?.error({ err: error }, "the certificate cannot be renewed");
        });
      }, checkIntervalMs);
      timer.unref();
      return { ...identity.view, close: () => clearInterval(timer) };
    },
  };
}

interface StoredAuthority {
  readonly key: string;
  readonly certificate: string;
}

async function openAuthorityFile(folder: string, trustDomain: string, clock: Clock): Promise<StoredAuthority> {
  const file = join(folder, "authority.json");
  const publicFile = join(folder, "authority.pem");
  try {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    chmodSync(folder, 0o700);
    if (!existsSync(file)) createOnce(file, JSON.stringify(await makeAuthority(trustDomain, clock.now())));
  } catch (error) {
    throw new ConfigError([`OCTOMESH_STATE_DIR: ${folder} cannot be written (${codeOf(error)})`]);
  }
  const stored = parsePem(file, "key and certificate of the development authority", () => {
    const parsed = JSON.parse(readFileSync(file, "utf8")) as Partial<StoredAuthority>;
    const { key = "", certificate = "" } = parsed;
    return { key, certificate, parsed: new X509Certificate(certificate) };
  });
  const name = `spiffe://${trustDomain}`;
  if (spiffeIdOfCertificate(stored.parsed.subjectAltName) !== name) {
    throw new ConfigError([
      `OCTOMESH_TRUST_DOMAIN is ${JSON.stringify(trustDomain)}: ${file} holds the authority of another trust domain; name that one, or remove the file`,
    ]);
  }
  if (Date.parse(stored.parsed.validTo) - leafLifetimeMs <= clock.now()) {
    throw new ConfigError([
      `${file}: the development authority expires at ${stored.parsed.validTo}; remove the file for a new one`,
    ]);
  }
  // The certificate alone too, for edges and backends that are to believe the verdict service's port.
  if (!existsSync(publicFile) || readFileSync(publicFile, "utf8") !== stored.certificate) {
    const temporary = `${publicFile}.${process.pid}`;
    writeFileSync(temporary, stored.certificate, { mode: 0o644 });
    renameSync(temporary, publicFile);
  }
  return stored;
}

/** Writes a file whole or not at all. Of two processes that start at once one wins, and both read what it wrote. */
function createOnce(file: string, content: string): void {
  const temporary = `${file}.${process.pid}`;
  try {
    writeFileSync(temporary, content, { mode: 0o600, flush: true });
    linkSync(temporary, file);
  } catch (error) {
    if (codeOf(error) !== "EEXIST") throw error;
  } finally {
    rmSync(temporary, { force: true });
  }
}

async function makeAuthority(trustDomain: string, now: number): Promise<StoredAuthority> {
  const keys = await crypto.subtle.generateKey(signing, true, ["sign", "verify"]);
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: serial(),
    name: "CN=Octomesh development authority",
    notBefore: new Date(now - 60_000),
    notAfter: new Date(now + authorityLifetimeMs),
    signingAlgorithm: signing,
    keys,
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      new x509.SubjectAlternativeNameExtension([{ type: "url", value: `spiffe://${trustDomain}` }]),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  });
  return { key: await exportKey(keys.privateKey), certificate: certificate.toString("pem") };
}

interface LeafRequest {
  readonly authority: x509.X509Certificate;
  readonly signingKey: CryptoKey;
  readonly spiffeId: string;
  readonly now: number;
}

async function issueLeaf({ authority, signingKey, spiffeId, now }: LeafRequest): Promise<IdentityMaterial> {
  const keys = await crypto.subtle.generateKey(signing, true, ["sign", "verify"]);
  const leaf = await x509.X509CertificateGenerator.create({
    serialNumber: serial(),
    subject: "O=Octomesh",
    issuer: authority.subject,
    notBefore: new Date(now - 60_000),
    notAfter: new Date(now + leafLifetimeMs),
    signingAlgorithm: signing,
    publicKey: keys.publicKey,
    signingKey,
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth, x509.ExtendedKeyUsage.clientAuth]),
      new x509.SubjectAlternativeNameExtension([
        { type: "url", value: spiffeId },
        { type: "dns", value: "localhost" },
        { type: "ip", value: "127.0.0.1" },
      ]),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
      await x509.AuthorityKeyIdentifierExtension.create(authority),
    ],
  });
  return {
    key: await exportKey(keys.privateKey),
    certificate: leaf.toString("pem"),
    bundle: authority.toString("pem"),
  };
}

function serial(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[0] = (bytes[0] ?? 0) & 0x7f;
  return Buffer.from(bytes).toString("hex");
}

async function exportKey(key: CryptoKey): Promise<string> {
  return x509.PemConverter.encode(await crypto.subtle.exportKey("pkcs8", key), "PRIVATE KEY");
}

function importKey(pem: string): Promise<CryptoKey> {
  const bytes = x509.PemConverter.decode(pem)[0];
  if (bytes === undefined) throw new Error("the authority's key cannot be read");
  return crypto.subtle.importKey("pkcs8", bytes, signing, false, ["sign"]);
}
