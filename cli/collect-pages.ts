import { usageError } from "./command-error.ts";

/** How many items a list shows if the person does not say. */
export const defaultLimit = 200;

/** Reads `--limit`: a whole number from 1 up, or `all`. Throws a usage error. */
export function parseLimit(text: string | undefined): number {
  if (text === undefined) return defaultLimit;
  if (text === "all") return Number.POSITIVE_INFINITY;
  if (!/^[1-9]\d{0,8}$/.test(text))
    throw usageError(`--limit takes a number from 1 up or "all", not "${text.slice(0, 40)}"`);
  return Number(text);
}

/**
 * Reads pages until there are `limit` items or no page is left. Says whether there were more.
 *
 * @param page reads one page of at most `pageSize` items from `pageToken` on
 */
export async function collectPages<T>(
  limit: number,
  page: (pageSize: number, pageToken: string) => Promise<{ items: readonly T[]; nextPageToken: string }>,
): Promise<{ items: T[]; truncated: boolean }> {
  const items: T[] = [];
  let pageToken = "";
  for (;;) {
    const answer = await page(Math.min(1000, limit - items.length), pageToken);
    items.push(...answer.items);
    if (answer.nextPageToken === "") return { items: items.slice(0, limit), truncated: items.length > limit };
    if (items.length >= limit) return { items: items.slice(0, limit), truncated: true };
    pageToken = answer.nextPageToken;
  }
}
