import { bearer, createClients } from "@octomesh/sdk";
import type { MeshProcess } from "../launcher/demo/mesh-process.ts";
import { waitUntil } from "../launcher/demo/wait-until.ts";

/** Sets up an organisation and waits for the mesh's own edge to have its kit; answers a key that reads verdicts. */
export async function setUpVerdicts(mesh: MeshProcess): Promise<string> {
  const anonymous = createClients({ baseUrl: mesh.url });
  const { session } = await anonymous.organizations.setUpOrganization({
    setupCode: mesh.setUpCode,
    displayName: "Bench",
    ownerEmail: "bench@example.com",
  });
  anonymous.close();
  const owner = createClients({ baseUrl: mesh.url, credential: bearer(session?.accessToken ?? "") });
  const { partnerKey } = await owner.edgeCredentials.createPartnerKey({ name: "bench" });
  owner.close();
  const isReady = await waitUntil(async () => (await fetch(`${mesh.edgeUrl}/ready`)).ok, {
    timeoutMs: 60_000,
    everyMs: 200,
  });
  if (!isReady) throw new Error("the edge was not provisioned within a minute");
  return partnerKey;
}
