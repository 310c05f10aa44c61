import type { PageRequest, Pager } from "@octomesh/mesh/paging";

/** Where a list goes on: after the item of this time and id. */
export interface PagePosition {
  readonly time: Date;
  readonly id: string;
}

/** Rows of one page and the token of the next, "" at the end. */
export interface Page<R> {
  readonly rows: R[];
  readonly nextPageToken: string;
}

/** Reads one page of a list that is ordered by time and id: asks `list` for one row more than fits, to see the end. */
export async function readPage<R extends { create_time: Date; id: string }>(
  pager: Pager,
  request: PageRequest,
  list: (page: { limit: number; after: PagePosition | undefined }) => Promise<R[]>,
): Promise<Page<R>> {
  const { limit, after } = pager.read(request);
  const [time, id] = after ?? [];
  const position = time === undefined || id === undefined ? undefined : { time: new Date(Number(time)), id };
  const rows = await list({ limit: limit + 1, after: position });
  if (rows.length <= limit) return { rows, nextPageToken: "" };
  const page = rows.slice(0, limit);
  const last = page.at(-1);
  if (last === undefined) return { rows: page, nextPageToken: "" };
  return { rows: page, nextPageToken: pager.next(request, [String(last.create_time.getTime()), last.id]) };
}
