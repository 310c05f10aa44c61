import { chmod, mkdir, open, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import type { MasterKey } from "@octomesh/mesh/master-key";

/** What the edge was handed, as it rests on disk. */
export interface StoredKit {
  readonly orgId: string;
  readonly license: string;
  /** `lic_…` */
  readonly licenseKeyId: string;
  /** `esk_…` */
  readonly signingKeyId: string;
  /** Seed of the Ed25519 key, 32 bytes in base64. */
  readonly signingKey: string;
  /** PEM; both empty without a client certificate. */
  readonly certificatePem: string;
  readonly privateKeyPem: string;
  /** Empty: where the deployment's own verdict service is. */
  readonly verdictUrl: string;
}

/** Keeps one kit in a file that the master key seals, readable by its owner alone. */
export interface KitStore {
  /** The kit; undefined if there is none. Throws for a file that was changed, or sealed by another master key. */
  read(): Promise<StoredKit | undefined>;
  /** Replaces the kit, whole or not at all. */
  write(kit: StoredKit): Promise<void>;
  /** Forgets the kit; no error if there is none. */
  remove(): Promise<void>;
}

const place = "edge-relay/kit";
const names = [
  "orgId",
  "license",
  "licenseKeyId",
  "signingKeyId",
  "signingKey",
  "certificatePem",
  "privateKeyPem",
  "verdictUrl",
] as const satisfies readonly (keyof StoredKit)[];

/** Opens the store at `<stateDir>/edge-relay/kit`. */
export function openKitStore(stateDir: string, masterKey: Pick<MasterKey, "seal" | "open">): KitStore {
  const folder = join(stateDir, "edge-relay");
  const file = join(folder, "kit");
  return {
    async read() {
      let sealed: Buffer;
      try {
        sealed = await readFile(file);
      } catch (error) {
        if (error instanceof Error && "code" in error && error.code === "ENOENT") return undefined;
        throw error;
      }
      const parsed = JSON.parse(masterKey.open(sealed, place).toString("utf8")) as Record<string, unknown>;
      if (names.some((name) => typeof parsed[name] !== "string")) throw new Error(`${file} holds no kit`);
      return parsed as unknown as StoredKit;
    },
    async write(kit) {
      await mkdir(folder, { recursive: true, mode: 0o700 });
      await chmod(folder, 0o700);
      const temporary = `${file}.${process.pid}`;
      await rm(temporary, { force: true });
      const handle = await open(temporary, "wx", 0o600);
      try {
        await handle.writeFile(masterKey.seal(Buffer.from(JSON.stringify(kit, [...names])), place));
        await handle.sync();
      } finally {
        await handle.close();
      }
      await rename(temporary, file);
    },
    async remove() {
      await rm(file, { force: true });
    },
  };
}
