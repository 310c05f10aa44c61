import type { Clients } from "@octomesh/sdk";

/** Names by which people know what ids stand for. What cannot be read keeps its id. */
export interface ResourceNames {
  /** The name of a model. */
  model(id: string): string;
  /** The number of a version. */
  version(id: string): string;
}

/** What is to be named. */
export interface NamedIds {
  modelId: string;
  /** Empty or absent where only the model is to be named. */
  versionId?: string;
}

/**
 * Reads the names of models, and the numbers of versions where their ids are given, once for a command: each model's
 * list is read no further than until all are found. A name is a comfort, so nothing here fails: a key that may not read
 * models, or a mesh that does not answer, leaves the ids.
 */
export async function readNames(
  clients: Pick<Clients, "models" | "modelVersions">,
  ids: Iterable<NamedIds>,
): Promise<ResourceNames> {
  const versionsOf = new Map<string, Set<string>>();
  for (const { modelId, versionId = "" } of ids) {
    if (modelId === "") continue;
    const versions = versionsOf.get(modelId) ?? new Set<string>();
    if (versionId !== "") versions.add(versionId);
    versionsOf.set(modelId, versions);
  }
  const names = new Map<string, string>();
  await readInto(names, new Set(versionsOf.keys()), async (pageToken) => {
    const answer = await clients.models.listModels({ pageSize: 1000, pageToken });
    return { items: answer.models.map(({ id, name }) => [id, name] as const), nextPageToken: answer.nextPageToken };
  });
  for (const [modelId, versions] of versionsOf) {
    await readInto(names, versions, async (pageToken) => {
      const answer = await clients.modelVersions.listModelVersions({ modelId, pageSize: 1000, pageToken });
      const items = answer.modelVersions.map(({ id, version }) => [id, version] as const);
      return { items, nextPageToken: answer.nextPageToken };
    });
  }
  const nameOf = (id: string) => names.get(id) ?? id;
  return { model: nameOf, version: nameOf };
}

/** Reads the names of licences once for a command, as `readNames`; what cannot be read keeps its id. */
export async function readLicenseNames(
  clients: Pick<Clients, "edgeCredentials">,
  ids: Iterable<string>,
): Promise<(id: string) => string> {
  const names = new Map<string, string>();
  await readInto(names, new Set(ids), async (pageToken) => {
    const answer = await clients.edgeCredentials.listLicenseKeys({ pageSize: 1000, pageToken });
    return {
      items: answer.licenseKeys.map(({ id, name }) => [id, name] as const),
      nextPageToken: answer.nextPageToken,
    };
  });
  return (id) => names.get(id) ?? id;
}

async function readInto(
  names: Map<string, string>,
  wanted: ReadonlySet<string>,
  page: (pageToken: string) => Promise<{ items: (readonly [id: string, name: string])[]; nextPageToken: string }>,
): Promise<void> {
  const missing = new Set(wanted);
  let pageToken = "";
  try {
    while (missing.size > 0) {
      const { items, nextPageToken } = await page(pageToken);
      for (const [id, name] of items) if (missing.delete(id)) names.set(id, name);
      if (nextPageToken === "") return;
      pageToken = nextPageToken;
    }
  } catch {
    // The ids that are left say enough.
  }
}
