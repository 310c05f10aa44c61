import { randomBytes } from "node:crypto";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ConnectRouter } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { createValidateInterceptor } from "@connectrpc/validate";
import { fail, Reason } from "@octomesh/mesh/errors";
import * as x509 from "@octomesh/mesh/x509";
import { type EdgeCertificate, EdgeCertificateSchema } from "@octomesh/proto/octomesh/identity/v1/edge_certificate_pb";
import { EdgeCredentialService } from "@octomesh/proto/octomesh/identity/v1/edge_credential_service_pb";
import { type EdgeSigningKey, EdgeSigningKeySchema } from "@octomesh/proto/octomesh/identity/v1/edge_signing_key_pb";
import {
  LicenseKey_ClientCertificateMode as ClientCertificateMode,
  type LicenseKey,
  LicenseKeySchema,
} from "@octomesh/proto/octomesh/identity/v1/license_key_pb";
import { Environment } from "@octomesh/proto/octomesh/identity/v1/organization_pb";
import { type PartnerKey, PartnerKeySchema } from "@octomesh/proto/octomesh/identity/v1/partner_key_pb";
import type { CreateReadTokenRequest } from "@octomesh/proto/octomesh/identity/v1/read_token_service_pb";
import { ReadTokenService } from "@octomesh/proto/octomesh/identity/v1/read_token_service_pb";

/** A mesh on HTTP that keeps edges' credentials in memory: requests are validated, certificates are real. */
export interface FakeEdgeIdentity {
  readonly url: string;
  /** Names of the methods that were called, in order. */
  readonly asked: string[];
  readonly licenses: LicenseKey[];
  readonly certificates: EdgeCertificate[];
  readonly signingKeys: EdgeSigningKey[];
  readonly partnerKeys: PartnerKey[];
  readonly readTokenRequests: CreateReadTokenRequest[];
  /** Ids of what was revoked, in order. */
  readonly revoked: string[];
  /** Called before each method with its name; what it throws is the answer. */
  before: (method: string) => void;
  /** Leaves secrets out of answers, as where an answer is given once more. */
  replays: boolean;
  /** Certifies another key than that of the request. */
  confusesKeys: boolean;
  /** The authority's certificate, PEM. */
  readonly authorityPem: string;
  close(): Promise<void>;
}

const algorithm = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" } as const;
const orgId = `org_${"o".repeat(26)}`;
const hourMs = 3_600_000;
const modeWords = ["", "off", "request", "require"] as const;

/** Starts one. */
export async function startFakeEdgeIdentity(): Promise<FakeEdgeIdentity> {
  x509.cryptoProvider.set(globalThis.crypto);
  const keys = await crypto.subtle.generateKey(algorithm, true, ["sign", "verify"]);
  const authority = await x509.X509CertificateGenerator.createSelfSigned({
    name: "CN=edges",
    keys,
    signingAlgorithm: algorithm,
    extensions: [new x509.BasicConstraintsExtension(true, 0, true)],
  });
  const asked: string[] = [];
  const revoked: string[] = [];
  const licenses: LicenseKey[] = [];
  const certificates: EdgeCertificate[] = [];
  const signingKeys: EdgeSigningKey[] = [];
  const partnerKeys: PartnerKey[] = [];
  const readTokenRequests: CreateReadTokenRequest[] = [];
  const now = () => timestampFromMs(Date.now());

  const enter = (method: string): void => {
    asked.push(method);
    fake.before(method);
  };
  const withdraw = <T extends { id: string; revokeTime?: unknown }>(items: readonly T[], id: string): T => {
    const found = items.find((item) => item.id === id);
    if (found === undefined) throw fail(Reason.RESOURCE_NOT_FOUND, "there is no such credential", { id });
    found.revokeTime = now();
    revoked.push(id);
    return found;
  };
  const licenseOf = (id: string): LicenseKey => {
    const license = licenses.find((item) => item.id === id);
    if (license === undefined) throw fail(Reason.RESOURCE_NOT_FOUND, "there is no such licence", { id });
    if (license.revokeTime !== undefined) throw fail(Reason.CREDENTIAL_REVOKED, "the licence was revoked");
    return license;
  };
  const bare = <T extends object>(item: T, secret: keyof T): T => ({ ...item, [secret]: "" });

  const routes = (router: ConnectRouter): void => {
    router.service(EdgeCredentialService, {
      createLicenseKey(request) {
        enter("createLicenseKey");
        const environment = request.environment === Environment.TEST ? Environment.TEST : Environment.LIVE;
        const clientCertificate = request.clientCertificate || ClientCertificateMode.REQUIRE;
        const id = newId("lic");
        const expireMs = Date.now() + Number(request.lifetime?.seconds ?? 31_536_000) * 1000;
        const license = create(LicenseKeySchema, {
          id,
          orgId,
          name: request.name,
          license: fake.replays ? "" : licenseText({ id, environment, clientCertificate, expireMs }),
          clientCertificate,
          environment,
          createTime: now(),
          expireTime: timestampFromMs(expireMs),
        });
        licenses.push(license);
        return license;
      },
      revokeLicenseKey({ id }) {
        enter("revokeLicenseKey");
        return bare(withdraw(licenses, id), "license");
      },
      createPartnerKey(request) {
        enter("createPartnerKey");
        const key = create(PartnerKeySchema, {
          id: newId("pky"),
          orgId,
          name: request.name,
          partnerKey: fake.replays ? "" : "edg_partner_shownOnce",
          prefix: "edg_partner_show",
          environment: request.environment || Environment.LIVE,
          createTime: now(),
        });
        partnerKeys.push(key);
        return key;
      },
      revokePartnerKey({ id }) {
        enter("revokePartnerKey");
        return bare(withdraw(partnerKeys, id), "partnerKey");
      },
      async issueEdgeCertificate(request) {
        enter("issueEdgeCertificate");
        const license = licenseOf(request.licenseKeyId);
        const asking = new x509.Pkcs10CertificateRequest(request.csrPem);
        if (!(await asking.verify())) throw fail(Reason.VALIDATION_FAILED, "the request is not signed by its key", {});
        const id = newId("ecr");
        const spiffeId = `spiffe://octomesh.test/edge/${orgId}/${id}`;
        const notAfter = new Date(Date.now() + 90 * 24 * hourMs);
        const leaf = await x509.X509CertificateGenerator.create({
          subject: `O=${orgId}, OU=${license.id}, CN=${id}`,
          issuer: authority.subject,
          notAfter,
          signingAlgorithm: algorithm,
          publicKey: fake.confusesKeys ? keys.publicKey : asking.publicKey,
          signingKey: keys.privateKey,
          extensions: [new x509.SubjectAlternativeNameExtension([{ type: "url", value: spiffeId }])],
        });
        const certificate = create(EdgeCertificateSchema, {
          id,
          orgId,
          licenseKeyId: license.id,
          spiffeId,
          certificatePem: `${leaf.toString("pem")}\n`,
          createTime: now(),
          expireTime: timestampFromMs(notAfter.getTime()),
        });
        certificates.push(certificate);
        return certificate;
      },
      revokeEdgeCertificate({ id }) {
        enter("revokeEdgeCertificate");
        return withdraw(certificates, id);
      },
      registerEdgeSigningKey(request) {
        enter("registerEdgeSigningKey");
        const license = licenseOf(request.licenseKeyId);
        const key = create(EdgeSigningKeySchema, {
          id: newId("esk"),
          orgId,
          licenseKeyId: license.id,
          publicKey: request.publicKey,
          createTime: now(),
        });
        signingKeys.push(key);
        return key;
      },
      revokeEdgeSigningKey({ id }) {
        enter("revokeEdgeSigningKey");
        return withdraw(signingKeys, id);
      },
      listLicenseKeys() {
        enter("listLicenseKeys");
        return { licenseKeys: licenses.map((item) => bare(item, "license")) };
      },
      listPartnerKeys() {
        enter("listPartnerKeys");
        return { partnerKeys: partnerKeys.map((item) => bare(item, "partnerKey")) };
      },
      listEdgeCertificates({ licenseKeyId }) {
        enter("listEdgeCertificates");
        return { edgeCertificates: certificates.filter((item) => ["", item.licenseKeyId].includes(licenseKeyId)) };
      },
      listEdgeSigningKeys({ licenseKeyId }) {
        enter("listEdgeSigningKeys");
        return { edgeSigningKeys: signingKeys.filter((item) => ["", item.licenseKeyId].includes(licenseKeyId)) };
      },
    });
    router.service(ReadTokenService, {
      createReadToken(request) {
        enter("createReadToken");
        readTokenRequests.push(request);
        const { scopes } = request;
        return { id: newId("rdt"), orgId, token: fake.replays ? "" : "edg_read_shownOnce", scopes, createTime: now() };
      },
      revokeReadToken({ id }) {
        enter("revokeReadToken");
        revoked.push(id);
        return {};
      },
    });
  };

  const server = createServer(connectNodeAdapter({ routes, interceptors: [createValidateInterceptor()] }));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const fake: FakeEdgeIdentity = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    asked,
    licenses,
    certificates,
    signingKeys,
    partnerKeys,
    readTokenRequests,
    revoked,
    before: () => {},
    replays: false,
    confusesKeys: false,
    authorityPem: authority.toString("pem"),
    close: () => close(server),
  };
  return fake;
}

/** An id that looks like one and is like no other. */
function newId(prefix: string): string {
  return `${prefix}_${[...randomBytes(26)].map((byte) => "abcdefghijklmnopqrstuvwxyz234567"[byte & 31]).join("")}`;
}

/** A licence as edges read it; its signature is none. */
function licenseText(facts: {
  id: string;
  environment: Environment;
  clientCertificate: ClientCertificateMode;
  expireMs: number;
}): string {
  const env = facts.environment === Environment.TEST ? "test" : "live";
  const claims = {
    iss: "octomesh.test",
    sub: facts.id,
    org: orgId,
    product: "browser",
    env,
    mtls: modeWords[facts.clientCertificate],
    iat: new Date().toISOString(),
    exp: new Date(facts.expireMs).toISOString(),
  };
  const body = Buffer.concat([Buffer.from(JSON.stringify(claims)), randomBytes(64)]).toString("base64url");
  return `octet_${env}_v4.public.${body}.${Buffer.from('{"kid":"lsk_1"}').toString("base64url")}`;
}

async function close(server: Server): Promise<void> {
  await new Promise<void>((resolve) => {
    server.close(() => resolve());
    server.closeAllConnections();
  });
}
