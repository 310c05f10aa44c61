/** What decides whether a bootstrap token is good. */
export interface BootstrapTokenFacts {
  readonly max_uses: number;
  readonly uses: number;
  readonly expire_time: Date;
  readonly revoke_time: Date | null;
  readonly allowed_identifiers: readonly string[];
}

/** Where a bootstrap token stands. */
export type BootstrapTokenState = "active" | "used" | "expired" | "revoked";

/** Where a token stands at a time (milliseconds since the Unix epoch). A kill outweighs all, use outweighs age. */
export function bootstrapTokenState(token: BootstrapTokenFacts, now: number): BootstrapTokenState {
  if (token.revoke_time !== null) return "revoked";
  if (token.uses >= token.max_uses) return "used";
  return token.expire_time.getTime() <= now ? "expired" : "active";
}

/** Whether a token admits a device identifier: any, where it lists none. */
export function admitsIdentifier(token: BootstrapTokenFacts, identifier: string): boolean {
  return token.allowed_identifiers.length === 0 || token.allowed_identifiers.includes(identifier);
}
