import type { Verdict } from "@octomesh/proto/octomesh/verdict/v1/verdict_pb";
import type { Clients } from "../clients.ts";
import { factsOf, isReason, retryAfterMsOf } from "../reason.ts";

/** A verdict, or why there is none. */
export type VerdictReading =
  | { readonly state: "ready"; readonly verdict: Verdict }
  | {
      readonly state: "pending";
      /** `collecting`: registered, not reported. `unknown`: never heard of. `expired`: forgotten. */
      readonly pending: string;
      /** When to ask again, milliseconds. */
      readonly retryAfterMs: number;
    };

/**
 * Reads the verdict of a session with a partner key, an API key or a read token, and waits for it up to `waitMs` (10,000
 * at most, 2,000 by default). A verdict that is not there is an answer, not an error; every other refusal is thrown.
 */
export async function readVerdict(
  mesh: Pick<Clients, "verdicts">,
  sessionRef: string,
  options: { readonly waitMs?: number; readonly signal?: AbortSignal } = {},
): Promise<VerdictReading> {
  const { waitMs = 2000, signal } = options;
  try {
    const verdict = await mesh.verdicts.getVerdict({ sessionRef, waitMs }, { signal, timeoutMs: waitMs + 5000 });
    return { state: "ready", verdict };
  } catch (error) {
    if (!isReason(error, "VERDICT_PENDING")) throw error;
    const { pending = "unknown" } = factsOf(error);
    return { state: "pending", pending, retryAfterMs: retryAfterMsOf(error) ?? 1000 };
  }
}
