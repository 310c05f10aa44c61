import { rootCertificates } from "node:tls";
import type { Runtime } from "@octomesh/mesh/service";
import { readClientCertificate } from "./edge/client-certificate.ts";
import type { Edge } from "./edge/edge.ts";
import { readLicenseFacts } from "./edge/license-facts.ts";
import { createSigner } from "./edge/sign-bundle.ts";
import type { KitStore, StoredKit } from "./kit-store.ts";

/** The one kit of the deployment's edge. */
export interface Provisioning {
  readonly kit: StoredKit | undefined;
  /** When the kit's licence or certificate expires, whichever is first, milliseconds since the Unix epoch. */
  expiresMs(): number | undefined;
  /** Forwards with the kit that was kept, if there is one. A file that cannot be opened leaves the edge without. */
  restore(): Promise<void>;
  /** Keeps the kit and forwards with it from then on. The kit that is in use already changes nothing. */
  provision(kit: StoredKit): Promise<void>;
  /** Forgets an organisation's kit and drops what waits under it; answers how many kits that were. */
  erase(orgId: string): Promise<number>;
}

/** Opens the provisioning of an edge. Changes come one after the other. */
export function createProvisioning(
  edge: Pick<Edge, "provision">,
  store: KitStore,
  runtime: Pick<Runtime, "log" | "verdictUrl" | "trustBundle">,
): Provisioning {
  let kit: StoredKit | undefined;
  let last: Promise<unknown> = Promise.resolve();
  const authorities = createAuthorities(() => runtime.trustBundle());

  const inTurn = <T>(work: () => Promise<T>): Promise<T> => {
    const next = last.then(work, work);
    last = next.catch(() => undefined);
    return next;
  };

  const use = (next: StoredKit): void => {
    kit = next;
    const tls = { certificate: next.certificatePem || undefined, key: next.privateKeyPem || undefined };
    edge.provision({
      license: next.license,
      signer: createSigner(next.signingKeyId, Buffer.from(next.signingKey, "base64")),
      url: () => next.verdictUrl || runtime.verdictUrl(),
      tls: () => ({ ca: authorities(), ...tls }),
    });
  };

  return {
    get kit() {
      return kit;
    },
    expiresMs() {
      if (kit === undefined) return undefined;
      const times = [readLicenseFacts(kit.license)?.expiresMs, readClientCertificate(kit.certificatePem)?.expiresMs];
      return Math.min(...times.filter((time) => time !== undefined));
    },
    restore: () =>
      inTurn(async () => {
        try {
          const stored = await store.read();
          if (stored !== undefined) use(stored);
        } catch (error) {
          runtime.log.error({ err: error }, "the edge's kit cannot be opened: the edge waits for a new one");
        }
      }),
    provision: (next) =>
      inTurn(async () => {
        if (kit !== undefined && JSON.stringify(kit) === JSON.stringify(next)) return;
        await store.write(next);
        use(next);
        runtime.log.info({ org_id: next.orgId, license_key_id: next.licenseKeyId }, "the edge was handed its kit");
      }),
    erase: (orgId) =>
      inTurn(async () => {
        if (kit?.orgId !== orgId) return 0;
        // First the file: a removal that fails is tried again, for which the kit must be known still.
        await store.remove();
        edge.provision(undefined);
        kit = undefined;
        return 1;
      }),
  };
}

/** The public's authorities and the deployment's own, PEM: a verdict service may have a certificate of either. */
function createAuthorities(bundle: () => string): () => string {
  let seen: string | undefined;
  let all = "";
  return () => {
    const current = bundle();
    if (current !== seen) {
      seen = current;
      all = [...rootCertificates, current].join("\n");
    }
    return all;
  };
}
