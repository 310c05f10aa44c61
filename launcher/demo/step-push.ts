import { fileURLToPath } from "node:url";
import { formatBytes } from "@octomesh/cli/format-bytes";
import { digestFile, uploadArtifact } from "@octomesh/cli/upload";
import { apiKey, createClients } from "@octomesh/sdk";
import type { World } from "./world.ts";

const models = new URL("../../node_modules/@ricky0123/vad-web/dist/", import.meta.url);
const files = [
  ["1.0.0", "silero_vad_legacy.onnx"],
  ["1.1.0", "silero_vad_v5.onnx"],
  ["1.2.0", "silero_vad_v6.onnx"],
] as const;

/** Step 2: three versions of a real model, in chunks, one of them cut half-way. */
export async function push(world: World): Promise<void> {
  const { narrator } = world;
  const env = { OCTOMIL_API_KEY: world.ciKey };
  narrator.say("Three releases of a voice-activity model (ONNX, from the npm package @ricky0123/vad-web).");
  for (const [version, name] of files) {
    const path = fileURLToPath(new URL(name, models));
    const file = await digestFile(path);
    world.published.push({ version, path, sha256: file.sha256, sizeBytes: file.sizeBytes });
    const isCut = version === "1.2.0";
    if (isCut) await cutHalfWay(world, path);
    const args = ["push", path, "--model", world.model, "--version", version];
    const shown = await world.octomil(args, { env, showStderr: process.stderr.isTTY === true && !isCut });
    if (isCut) world.check(/Going on at/.test(shown.stderr), "the cut upload went on where it stopped");
  }

  const listed = await world.octomil(["models", "versions", world.model, "--json"], { env, quiet: true });
  const { model_versions: versions } = JSON.parse(listed.stdout) as {
    model_versions: { version: string; model_id: string; signature: string; artifact: { sha256: string } }[];
  };
  world.modelId = versions[0]?.model_id ?? "";
  const right = world.published.every(({ version, sha256 }) =>
    versions.some((found) => found.version === version && found.artifact.sha256 === sha256 && found.signature !== ""),
  );
  world.check(right && versions.length === 3, "the mesh holds three versions, digests checked, manifests signed");
  const [first] = world.published;
  const other = world.published[1];
  if (first === undefined || other === undefined) return;
  const again = await world.octomil(["push", first.path, "--model", world.model, "--version", "1.0.0"], {
    env,
    quiet: true,
  });
  world.check(again.stdout.includes("published already"), "pushing the same again changes nothing");
  const changed = await world.octomil(["push", other.path, "--model", world.model, "--version", "1.0.0"], {
    env,
    expect: 1,
  });
  world.check(changed.stderr.includes("holds other bytes"), "a version never changes");
}

/** Sends the first half of a file and goes away, as a build server that is shut down does. */
async function cutHalfWay(world: World, path: string): Promise<void> {
  const clients = createClients({ baseUrl: world.url, credential: apiKey(world.ciKey) });
  const file = await digestFile(path);
  const cut = new AbortController();
  const bar = world.narrator.bar({ label: "uploading 1.2.0", total: file.sizeBytes, format: formatBytes });
  let stored = 0;
  try {
    await uploadArtifact({
      url: world.url,
      clients,
      file,
      chunkBytes: 128 * 1024,
      signal: cut.signal,
      onProgress(bytes) {
        stored = bytes;
        bar.set(bytes);
        if (bytes >= file.sizeBytes / 2) cut.abort(new Error("cut by the demonstration"));
      },
    });
    world.check(false, "the upload was to be cut, and was not");
  } catch (error) {
    if (!cut.signal.aborted) throw error;
    world.narrator.say(`The upload of 1.2.0 is cut at ${formatBytes(stored)}, and begun again:`);
  } finally {
    bar.end();
    clients.close();
  }
}
