import { chmod, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Database } from "@octomesh/mesh/database";
import { sqlStateOf } from "@octomesh/mesh/database-error";
import { digestToken, mintToken, parseToken } from "@octomesh/mesh/opaque-token";
import type { IdentitySchema } from "./schema.ts";
import { hasOrganization } from "./store/organizations.ts";
import { deleteSetUpCodes, hasSetUpCode, insertSetUpCode, lockSetUp } from "./store/set-up-codes.ts";

/** Where the code that creates the first organisation stands until it is used. */
export function setUpCodePath(stateDir: string): string {
  return join(stateDir, "secrets", "set-up-code");
}

/**
 * Makes the set-up code if there is no organisation: its digest goes into the database, the code itself into a file
 * (0600). A code that an earlier start left there stays good; replicas with folders of their own have one each, and
 * all end with the first that is used. Where there is an organisation, a file that is left over is deleted.
 */
export async function ensureSetUpCode(options: {
  database: Database<IdentitySchema>;
  stateDir: string;
  now: Date;
}): Promise<"none" | "waiting"> {
  const { database, stateDir, now } = options;
  const path = setUpCodePath(stateDir);
  const left = await readCode(path);
  const state = await database.system(async (tx) => {
    await lockSetUp(tx);
    if (await hasOrganization(tx)) {
      await deleteSetUpCodes(tx);
      return "none";
    }
    if (left !== undefined && (await hasSetUpCode(tx, digestToken(left)))) return "waiting";
    // The file is written before the commit: a code without its file would be lost, a file without its code is replaced.
    const code = mintToken("edg_setup_");
    await writeCode(path, code);
    await insertSetUpCode(tx, digestToken(code), now);
    return "waiting";
  });
  if (state === "none") await deleteSetUpCode(stateDir);
  return state;
}

/** Deletes the file, once its code has been used. */
export async function deleteSetUpCode(stateDir: string): Promise<void> {
  await rm(setUpCodePath(stateDir), { force: true });
}

async function readCode(path: string): Promise<string | undefined> {
  try {
    const code = (await readFile(path, "utf8")).trim();
    return parseToken(code)?.prefix === "edg_setup_" ? code : undefined;
  } catch (error) {
    if (sqlStateOf(error) === "ENOENT") return undefined;
    throw error;
  }
}

async function writeCode(path: string, code: string): Promise<void> {
  await mkdir(join(path, ".."), { recursive: true, mode: 0o700 });
  await writeFile(path, `${code}\n`, { mode: 0o600 });
  // The mode above counts for new files only.
  await chmod(path, 0o600);
}
