import type { Clock } from "@octomesh/mesh/clock";
import type { Database } from "@octomesh/mesh/database";
import { fail, Reason } from "@octomesh/mesh/errors";
import type { MasterKey } from "@octomesh/mesh/master-key";
import { type CryptoKey, calculateJwkThumbprint, exportJWK, exportPKCS8, generateKeyPair, importPKCS8 } from "jose";
import type { Logger } from "pino";
import type { SigningKey } from "./access-token.ts";
import { currentKey, planKeys } from "./key-plan.ts";
import type { IdentitySchema, PublicKeyJwk } from "./schema.ts";
import {
  deleteSigningKeys,
  insertSigningKey,
  listSigningKeys,
  lockSigningKeys,
  type SigningKeyRow,
} from "./store/signing-keys.ts";

/** The keys that sign access tokens, as this process knows them. */
export interface KeyRing {
  /** The key that signs now. Throws SERVICE_UNAVAILABLE without any, which the plan never lets happen. */
  signingKey(): SigningKey;
  /** Every key by which a token may still be verified, those that will sign soon included. */
  publicKeys(): readonly (PublicKeyJwk & { readonly kid: string })[];
  /** Makes and retires keys as the plan says, and reads those that other replicas made. */
  refresh(): Promise<void>;
}

interface LoadedKey {
  readonly kid: string;
  readonly activateTime: number;
  readonly publicKey: PublicKeyJwk;
  readonly privateKey: CryptoKey;
}

/** Opens the key ring: makes the first key if there is none. Private keys rest sealed by the master key. */
export async function openKeyRing(options: {
  database: Database<IdentitySchema>;
  masterKey: MasterKey;
  clock: Clock;
  log: Logger;
}): Promise<KeyRing> {
  const { database, masterKey, clock, log } = options;
  let keys: readonly LoadedKey[] = [];

  async function load(row: SigningKeyRow): Promise<LoadedKey> {
    const { kid } = row;
    const known = keys.find((key) => key.kid === kid);
    if (known !== undefined) return known;
    const pem = masterKey.open(row.sealed_private_key, associatedData(kid)).toString("utf8");
    return {
      kid,
      activateTime: row.activate_time.getTime(),
      publicKey: row.public_key,
      privateKey: await importPKCS8(pem, "ES256"),
    };
  }

  async function refresh(): Promise<void> {
    const rows = await database.system(async (tx) => {
      await lockSigningKeys(tx);
      const now = clock.now();
      const stored = await listSigningKeys(tx);
      const plan = planKeys(
        stored.map((row) => ({ kid: row.kid, activateTime: row.activate_time.getTime() })),
        now,
      );
      await deleteSigningKeys(tx, plan.retire);
      if (plan.create !== undefined) {
        const made = await makeKey();
        await insertSigningKey(tx, {
          kid: made.kid,
          public_key: JSON.stringify(made.publicKey),
          sealed_private_key: masterKey.seal(Buffer.from(made.pem, "utf8"), associatedData(made.kid)),
          create_time: new Date(now),
          activate_time: new Date(plan.create.activateTime),
        });
        log.info({ kid: made.kid, activate_time: new Date(plan.create.activateTime) }, "signing key made");
      }
      return await listSigningKeys(tx);
    });
    keys = await Promise.all(rows.map(load));
  }

  await refresh();
  return {
    signingKey() {
      const key = currentKey(keys, clock.now());
      if (key === undefined) throw fail(Reason.SERVICE_UNAVAILABLE, "there is no signing key", {});
      return key;
    },
    publicKeys: () => keys.map(({ kid, publicKey }) => ({ ...publicKey, kid })),
    refresh,
  };
}

/** A key pair, its id the thumbprint of the public half (RFC 7638). */
async function makeKey(): Promise<{ kid: string; publicKey: PublicKeyJwk; pem: string }> {
  const pair = await generateKeyPair("ES256", { extractable: true });
  const { x, y } = await exportJWK(pair.publicKey);
  if (x === undefined || y === undefined) throw new Error("a P-256 key has two coordinates");
  const publicKey: PublicKeyJwk = { kty: "EC", crv: "P-256", x, y };
  return { kid: await calculateJwkThumbprint(publicKey), publicKey, pem: await exportPKCS8(pair.privateKey) };
}

function associatedData(kid: string): Buffer {
  return Buffer.from(`octomesh identity signing key ${kid}`, "utf8");
}
