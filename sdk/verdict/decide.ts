import type { Alarm, VerifiedVerdict } from "./verify-verdict.ts";

/** What a partner makes of verdicts. Every part has a default, and the defaults never turn anybody away. */
export interface VerdictPolicy {
  /** Countries that are served, ISO 3166-1 alpha-2; all if not given. */
  readonly countries?: readonly string[];
  /** Countries that are not served. They win over `countries`. */
  readonly excludedCountries?: readonly string[];
  /** Below it a country counts as not known, 0 to 1. Default 0.7. */
  readonly minConfidence?: number;
  /** From this alarm on a session is challenged. Default `medium`. */
  readonly challengeFrom?: Exclude<Alarm, "none">;
  /** What to do where the country is not known well enough, while `countries` or `excludedCountries` ask for it. Default `challenge`. */
  readonly unknownCountry?: VerdictAction;
  /** What to do where there is no verdict (yet). Default `challenge`. */
  readonly pending?: VerdictAction;
}

/** Allow; allow and take a note; or ask for more: a second factor, a review, another check. */
export type VerdictAction = "allow" | "log" | "challenge";

/** Why, for the log of your backend. Not for the browser. */
export type DecisionReason = "pending" | "alarm" | "country_excluded" | "country_not_served" | "country_unknown";

/** What to do with a session. */
export interface VerdictDecision {
  readonly action: VerdictAction;
  readonly reasons: readonly DecisionReason[];
}

const order: Readonly<Record<Alarm, number>> = { none: 0, low: 1, medium: 2, high: 3 };
const weight: Readonly<Record<VerdictAction, number>> = { allow: 0, log: 1, challenge: 2 };

/**
 * Decides by a policy what to do with a session; `undefined` stands for a verdict that is pending. An alarm below
 * `challengeFrom` other than `none` is logged. A low confidence says that there was not enough signal and is no sign of
 * anything by itself: it matters only where the policy asks for the country. Pure.
 */
export function decide(
  verdict: Pick<VerifiedVerdict, "alarm" | "confidence" | "country"> | undefined,
  policy: VerdictPolicy = {},
): VerdictDecision {
  if (verdict === undefined) return { action: policy.pending ?? "challenge", reasons: ["pending"] };
  let action: VerdictAction = "allow";
  const reasons: DecisionReason[] = [];
  const raise = (to: VerdictAction, reason: DecisionReason): void => {
    if (weight[to] > weight[action]) action = to;
    reasons.push(reason);
  };
  if (verdict.alarm !== "none") {
    const isChallenged = order[verdict.alarm] >= order[policy.challengeFrom ?? "medium"];
    raise(isChallenged ? "challenge" : "log", "alarm");
  }
  const { countries, excludedCountries } = policy;
  if (countries !== undefined || excludedCountries !== undefined) {
    const isKnown = verdict.country !== undefined && verdict.confidence >= (policy.minConfidence ?? 0.7);
    if (!isKnown) raise(policy.unknownCountry ?? "challenge", "country_unknown");
    else if (excludedCountries?.includes(verdict.country ?? "")) raise("challenge", "country_excluded");
    else if (countries !== undefined && !countries.includes(verdict.country ?? "")) {
      raise("challenge", "country_not_served");
    }
  }
  return { action, reasons };
}
