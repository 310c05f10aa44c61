import type { IdentityTransaction } from "../schema.ts";

/** Where a refresh token belongs. */
export interface RefreshTokenOwner {
  readonly org_id: string;
  readonly family_id: string;
  readonly generation: number;
}

/** Whose refresh token has this digest; role system. */
export async function findRefreshToken(
  tx: IdentityTransaction,
  digest: Buffer,
): Promise<RefreshTokenOwner | undefined> {
  return await tx
    .selectFrom("refresh_tokens")
    .select(["org_id", "family_id", "generation"])
    .where("digest", "=", digest)
    .executeTakeFirst();
}

/** Remembers a token of a family, and forgets those more than `remembered` generations older. */
export async function insertRefreshToken(
  tx: IdentityTransaction,
  token: RefreshTokenOwner & { digest: Buffer },
  remembered: number,
): Promise<void> {
  const { org_id, digest, family_id, generation } = token;
  await tx.insertInto("refresh_tokens").values({ org_id, digest, family_id, generation }).execute();
  if (generation <= remembered) return;
  await tx
    .deleteFrom("refresh_tokens")
    .where("org_id", "=", org_id)
    .where("family_id", "=", family_id)
    .where("generation", "<=", generation - remembered)
    .execute();
}
