import { generateKeyPairSync } from "node:crypto";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { fenceLease, type Lease } from "@octomesh/mesh/lease";
import * as x509 from "@octomesh/mesh/x509";
import type { ProvisionEdgeRequestSchema } from "@octomesh/proto/octomesh/edge/v1/edge_service_pb";
import { LicenseKey_ClientCertificateMode as ClientCertificateMode } from "@octomesh/proto/octomesh/identity/v1/license_key_pb";
import { Environment } from "@octomesh/proto/octomesh/identity/v1/organization_pb";
import type { Dependencies } from "./dependencies.ts";
import { issueCertificate, issueLicense, registerSigningKey, revokeLicense } from "./edge-credentials.ts";
import { rawPublicKey } from "./edge-issuer.ts";
import { licenseMs } from "./lifetimes.ts";
import type { IdentityTransaction } from "./schema.ts";
import {
  deleteEmbeddedEdge,
  type EmbeddedEdgeRow,
  findGoodEmbeddedEdge,
  insertEmbeddedEdge,
  listEmbeddedEdges,
} from "./store/edge-credentials.ts";
import { oldestLive, readForIssue } from "./store/organizations.ts";

/** Name of the licence of the deployment's own edge. */
export const builtInEdgeName = "built-in edge";

/** How long a kit that was replaced stays good, for signals that are under way, milliseconds: a minute. */
export const replacedKitMs = 60_000;

/** How often the edge is looked after: with its kit, and while there is no organisation to make one for. */
const keptPauseMs = 10_000;
const idlePauseMs = 5_000;
const firstRetryMs = 250;
const maxRetryMs = 30_000;
/** Failures in a row from which on they are warned about: a deployment's services do not start in one moment. */
const warnedFailures = 5;

/**
 * What one look after the edge found: there is no organisation, the edge has a good kit, or it was given one just now.
 */
export type EdgeTurn = "no organization" | "kept" | "provisioned";

/** Keeps the deployment's own edge provisioned. */
export interface EdgeProvisioner {
  /**
   * Looks after the edge once: gives it a kit if it has none, if its kit is not good any more or is good for less than
   * a third of its life; then revokes kits that another has replaced. Throws where the edge cannot be asked or does not
   * take the kit, which the next turn offers again, and where the lease was lost.
   */
  turn(lease: Lease, signal: AbortSignal): Promise<EdgeTurn>;
}

/** A kit whose private halves are nowhere but here, until the edge has them. */
type Kit = MessageInitShape<typeof ProvisionEdgeRequestSchema> & {
  readonly orgId: string;
  readonly licenseKeyId: string;
  readonly signingKeyId: string;
};

/** Makes the provisioner. It remembers a kit that did not arrive, so that a failure does not make a new one each time. */
export function createEdgeProvisioner(deps: Dependencies): EdgeProvisioner {
  const { database, clock, log } = deps;
  let undelivered: Kit | undefined;

  const isLasting = async (kit: { orgId: string; licenseKeyId: string; signingKeyId: string }): Promise<boolean> => {
    const now = clock.now();
    const found = await database.system((tx) => findGoodEmbeddedEdge(tx, kit, new Date(now)));
    if (found === undefined) return false;
    const expires = found.expire_time.getTime();
    return expires - now >= (expires - found.provision_time.getTime()) / 3;
  };

  const makeKit = async (orgId: string, lease: Lease): Promise<Kit> => {
    const call = deps.systemCall(orgId, "embedded_edge.provision");
    const certified = generateKeyPairSync("ec", { namedCurve: "prime256v1" });
    const signing = generateKeyPairSync("ed25519");
    const publicKey = new x509.PublicKey(certified.publicKey.export({ format: "der", type: "spki" }));
    return await database.write(call, async (tx) => {
      await checkLease(tx, lease);
      const { row, license } = await issueLicense(deps, tx, call, {
        name: builtInEdgeName,
        environment: Environment.LIVE,
        clientCertificate: ClientCertificateMode.REQUIRE,
        lifetimeMs: licenseMs,
      });
      const certificate = await issueCertificate(deps, tx, call, { licenseKeyId: row.id, publicKey });
      const signingKey = await registerSigningKey(deps, tx, call, {
        licenseKeyId: row.id,
        publicKey: rawPublicKey(signing.publicKey),
      });
      await insertEmbeddedEdge(tx, {
        org_id: orgId,
        license_key_id: row.id,
        certificate_id: certificate.id,
        signing_key_id: signingKey.id,
        provision_time: row.create_time,
      });
      call.audit?.resource("license_key", row.id, row.name);
      call.audit?.note("edge_certificate_id", certificate.id);
      call.audit?.note("edge_signing_key_id", signingKey.id);
      return {
        orgId,
        license,
        licenseKeyId: row.id,
        certificatePem: certificate.certificate_pem,
        privateKeyPem: certified.privateKey.export({ format: "pem", type: "pkcs8" }).toString(),
        signingKey: new Uint8Array(Buffer.from(signing.privateKey.export({ format: "jwk" }).d ?? "", "base64url")),
        signingKeyId: signingKey.id,
        // The edge knows where the deployment's own verdict service is.
        verdictUrl: "",
      };
    });
  };

  /** Revokes kits that the one in use has replaced, and those that never arrived. */
  const retire = async (kits: readonly EmbeddedEdgeRow[], lease: Lease): Promise<void> => {
    for (const kit of kits) {
      const call = deps.systemCall(kit.org_id, "embedded_edge.retire");
      const now = new Date(clock.now());
      const recorded = await database.write(call, async (tx) => {
        await checkLease(tx, lease);
        // What is being erased takes its kits with it, and is audited no more.
        await readForIssue(tx, kit.org_id);
        await deleteEmbeddedEdge(tx, kit.org_id, kit.license_key_id);
        call.audit?.resource("license_key", kit.license_key_id, builtInEdgeName);
        const revoked = await revokeLicense(tx, call, kit.license_key_id, now);
        return revoked && (await deps.revocations.record(tx, ...revoked.revocations));
      });
      await deps.revocations.settle(recorded);
      log.info({ org_id: kit.org_id, license_key_id: kit.license_key_id }, "a kit of the built-in edge is revoked");
    }
  };

  return {
    async turn(lease, signal) {
      const org = await database.system((tx) => oldestLive(tx, Environment.LIVE));
      if (org === undefined) return "no organization";
      const state = await deps.edge().getEdgeState({}, { signal });
      if (!state.provisioned || !(await isLasting(state))) {
        if (undelivered === undefined || !(await isLasting(undelivered))) {
          undelivered = undefined;
          undelivered = await makeKit(org.org_id, lease);
        }
        const { orgId, licenseKeyId } = undelivered;
        const answer = await deps.edge().provisionEdge(undelivered, { signal });
        if (!answer.provisioned) throw new Error("the built-in edge did not take its kit");
        undelivered = undefined;
        log.info({ org_id: orgId, license_key_id: licenseKeyId }, "the built-in edge has its kit");
        return "provisioned";
      }
      undelivered = undefined;
      const kits = await database.system(listEmbeddedEdges);
      const held = kits.find((kit) => kit.license_key_id === state.licenseKeyId);
      if (held !== undefined && clock.now() - held.provision_time.getTime() >= replacedKitMs) {
        await retire(
          kits.filter((kit) => kit !== held),
          lease,
        );
      }
      return "kept";
    },
  };
}

/** Keeps the deployment's own edge provisioned until the signal aborts: for the replica that holds the lease. */
export async function keepEdgeProvisioned(deps: Dependencies, lease: Lease, signal: AbortSignal): Promise<void> {
  const provisioner = createEdgeProvisioner(deps);
  let failures = 0;
  while (!signal.aborted) {
    let pauseMs: number;
    try {
      const turn = await provisioner.turn(lease, signal);
      failures = 0;
      pauseMs = turn === "no organization" ? idlePauseMs : keptPauseMs;
    } catch (error) {
      if (signal.aborted) return;
      failures += 1;
      pauseMs = Math.min(maxRetryMs, firstRetryMs * 2 ** (failures - 1)) * (0.75 + Math.random() / 2);
      const level = failures < warnedFailures ? "debug" : "warn";
      deps.log[level]({ err: error, failures }, "the built-in edge could not be looked after");
    }
    await deps.edgeBell.pause(pauseMs, signal);
  }
}

/** Throws where another replica may look after the edge by now: then nothing must change here. */
async function checkLease(tx: IdentityTransaction, lease: Lease): Promise<void> {
  if (!(await fenceLease(tx, lease))) throw new Error("the lease of the built-in edge is lost");
}
