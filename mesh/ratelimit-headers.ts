import type { RateLimitResult } from "./ratelimit.ts";

/** Says in an answer's headers what the limit is and what is left of it (draft-ietf-httpapi-ratelimit-headers-10). */
export function writeLimitHeaders(header: Headers, limit: RateLimitResult | undefined): void {
  if (limit === undefined) return;
  for (const [name, value] of limitHeaders(limit)) header.set(name, value);
}

/** The header fields of a limit: policy, and what is left in how many seconds. */
export function limitHeaders(limit: RateLimitResult): [string, string][] {
  const seconds = Math.max(0, Math.ceil(limit.resetMs / 1000));
  return [
    ["ratelimit-policy", `"default";q=${limit.limit};w=60`],
    ["ratelimit", `"default";r=${Math.max(0, limit.remaining)};t=${seconds}`],
  ];
}
