import { type CallOptions, Code, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport } from "@connectrpc/connect-node";
import { WatchRevocationsResponse_Revocation_Subject as Subject } from "@octomesh/proto/octomesh/identity/v1/credential_service_pb";
import { CallerKind } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { VerdictService } from "@octomesh/proto/octomesh/verdict/v1/verdict_service_pb";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { callOf } from "./call-context.ts";
import type { Caller } from "./caller.ts";
import { edgeSpiffeIdOf } from "./edge-connection.ts";
import { Reason, reasonOf } from "./errors.ts";
import { newId } from "./ids.ts";
import type { CreateService, Runtime } from "./service.ts";
import { createTestAuthority, type TestAuthority } from "./test/certificate-fixture.ts";
import { createLicenseSigner, type TestLicenseSigner } from "./test/license-fixture.ts";
import { startTestMesh, type TestMesh } from "./test/mesh-fixture.ts";
import { createToyRollout } from "./test/toy-rollout.ts";
import { defaultTrustDomain } from "./tls.ts";
import * as x509 from "./x509.ts";

const org = newId("org");
const bundle = { signedBundle: new Uint8Array([1]) };
const callers: Caller[] = [];
let runtime: Runtime;
let mesh: TestMesh;
let signer: TestLicenseSigner;
let authority: TestAuthority;
let url: string;

/** A verdict service that says yes to everybody whom the runtime lets through. */
const createToyVerdict: CreateService = async (given) => {
  runtime = given;
  return {
    start: async () => undefined,
    stop: async () => undefined,
    http: [],
    ports: () => ({ own: 4242 }),
    routes(router) {
      router.service(VerdictService, {
        submitSignals(_request, context) {
          callers.push(callOf(context).caller);
          return { ok: true };
        },
        getVerdict: () => ({}),
        getVerdictKeySet: () => ({}),
      });
    },
  };
};

beforeAll(async () => {
  signer = await createLicenseSigner();
  authority = await createTestAuthority();
  mesh = await startTestMesh({
    services: { verdict: createToyVerdict, rollout: createToyRollout() },
    environment: { OCTOMESH_LIMIT_EDGE: "30" },
    prepare(identity) {
      identity.edgeTrust.licenseKeys.push({ keyId: signer.keyId, publicKey: signer.raw });
      identity.edgeTrust.certificateAuthoritiesPem.push(authority.bundle);
    },
  });
  url = `https://localhost:${mesh.service("verdict").ports.public}`;
});

afterAll(() => mesh.stop());

interface Kit {
  readonly licenseId: string;
  readonly certificateId: string;
  readonly options: CallOptions;
  readonly transport: Transport;
}

/** An edge with a licence, and a certificate of it on its connections. */
async function edge(claims: Record<string, unknown> = {}, orgId = org): Promise<Kit> {
  const licenseId = newId("lic");
  const certificateId = newId("ecr");
  const license = await signer.sign({ claims: { sub: licenseId, org: orgId, ...claims } });
  const leaf = await authority.issue({
    uris: [edgeSpiffeIdOf(defaultTrustDomain, orgId, certificateId)],
    subject: `O=${orgId}, OU=${licenseId}, CN=${certificateId}`,
    usages: [x509.ExtendedKeyUsage.clientAuth],
  });
  const nodeOptions = { ca: runtime.trustBundle(), key: leaf.key, cert: leaf.certificate };
  return {
    licenseId,
    certificateId,
    options: { headers: { "x-octet-license": license } },
    transport: createConnectTransport({ baseUrl: url, httpVersion: "2", nodeOptions }),
  };
}

function bare(): Transport {
  return createGrpcTransport({ baseUrl: url, nodeOptions: { ca: runtime.trustBundle() } });
}

async function submit(transport: Transport, options: CallOptions = {}): Promise<string> {
  try {
    await createClient(VerdictService, transport).submitSignals(bundle, options);
    return "taken";
  } catch (error) {
    const { code } = ConnectError.from(error);
    return `${Code[code]} ${Reason[reasonOf(error) ?? Reason.UNSPECIFIED]}`;
  }
}

describe("a service that edges call", () => {
  test("has a public port with TLS of its own, whose certificate the trust bundle vouches for", async () => {
    const answer = await createClient(VerdictService, bare()).getVerdictKeySet({});
    expect(answer.keys).toEqual([]);
    const plain = fetch(url.replace("https", "http"));
    await expect(plain).rejects.toThrow();
    expect(mesh.service("verdict").ownPorts()).toEqual({ own: 4242 });
    expect(mesh.service("rollout").ownPorts()).toEqual({});
  });

  test("takes signals of an edge whose certificate is its licence's", async () => {
    const one = await edge();
    expect(await submit(one.transport, one.options)).toBe("taken");
    expect(callers.at(-1)).toMatchObject({
      kind: "edge",
      orgId: org,
      id: one.licenseId,
      credentialId: one.certificateId,
      sandbox: false,
    });
    const sandboxed = await edge({ env: "test", mtls: "off" });
    expect(await submit(bare(), sandboxed.options)).toBe("taken");
    expect(callers.at(-1)).toMatchObject({ id: sandboxed.licenseId, credentialId: "", sandbox: true });
  });

  test("refuses an edge without what it needs", async () => {
    const one = await edge();
    const other = await edge();
    const foreign = await edge({}, newId("org"));
    expect(await submit(one.transport)).toBe("Unauthenticated CREDENTIAL_MISSING");
    expect(await submit(bare(), { headers: { "x-octet-license": "octet_live_nonsense" } })).toBe(
      "Unauthenticated CREDENTIAL_MALFORMED",
    );
    expect(await submit(bare(), one.options)).toBe("Unauthenticated EDGE_CERTIFICATE_REQUIRED");
    expect(await submit(other.transport, one.options)).toBe("PermissionDenied EDGE_CERTIFICATE_MISMATCH");
    expect(await submit(foreign.transport, one.options)).toBe("PermissionDenied EDGE_CERTIFICATE_MISMATCH");
  });

  test("refuses an edge at the moment of a revocation, on the connection that it has", async () => {
    const one = await edge();
    expect(await submit(one.transport, one.options)).toBe("taken");
    mesh.identity.revoke(Subject.EDGE_CERTIFICATE, one.certificateId, org);
    await expect.poll(() => submit(one.transport, one.options)).toBe("PermissionDenied EDGE_CERTIFICATE_REVOKED");
    mesh.identity.revoke(Subject.LICENSE_KEY, one.licenseId, org);
    await expect.poll(() => submit(one.transport, one.options)).toBe("Unauthenticated CREDENTIAL_REVOKED");
  });

  test("counts by licence, over all its connections", async () => {
    const one = await edge({ mtls: "request" });
    const found: string[] = [];
    for (let i = 0; i < 31; i += 1) found.push(await submit(i % 2 === 0 ? one.transport : bare(), one.options));
    expect(new Set(found.slice(0, 30))).toEqual(new Set(["taken"]));
    expect(found[30]).toBe("ResourceExhausted RATE_LIMITED");
  });

  test("admits a partner's backend over the same port, which a licence is not", async () => {
    const partner = mesh.identity.issue({ prefix: "edg_partner_", kind: CallerKind.PARTNER, orgId: org });
    const client = createClient(VerdictService, bare());
    const read = (headers: Record<string, string>): Promise<string> =>
      client.getVerdict({ sessionRef: "session-1" }, { headers }).then(
        () => "read",
        (error: unknown) => Reason[reasonOf(error) ?? Reason.UNSPECIFIED],
      );
    expect(await read({ "x-octet-partner-key": partner.token })).toBe("read");
    const one = await edge({ mtls: "off" });
    expect(await read(one.options.headers as Record<string, string>)).toBe("CALLER_KIND_NOT_ALLOWED");
    expect(await submit(bare(), { headers: { "x-octet-partner-key": partner.token } })).toBe(
      "PermissionDenied CALLER_KIND_NOT_ALLOWED",
    );
  });

  test("is alone in looking at licences", async () => {
    const one = await edge({ mtls: "off" });
    const answer = await fetch(`${mesh.publicUrl("rollout")}/api/v1/models`, {
      headers: one.options.headers as Record<string, string>,
    });
    expect([answer.status, ((await answer.json()) as { code: string }).code]).toEqual([401, "CREDENTIAL_MISSING"]);
  });

  test("says where it is reached", () => {
    expect(runtime.verdictUrl()).toBe("https://localhost:7206");
    expect(runtime.redisUrl).toBeUndefined();
    expect(runtime.trustBundle()).toContain("BEGIN CERTIFICATE");
  });
});

test("logs hold no licence", () => {
  expect(mesh.logged.length).toBeGreaterThan(0);
  expect(mesh.logged.join("\n")).not.toMatch(/v4\.public\./);
});
