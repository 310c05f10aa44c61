import { createHmac, timingSafeEqual } from "node:crypto";
import { fail, Reason } from "./errors.ts";

/** What a page is asked of. The token of one page is good only for the same method, organisation and filter. */
export interface PageRequest {
  /** Full name of the method, such as `octomesh.model.v1.ModelService/ListModels`. */
  readonly method: string;
  readonly orgId: string;
  /** Every filter of the request, in a fixed order. */
  readonly filter: readonly string[];
  readonly pageSize: number;
  readonly pageToken: string;
}

/** Reads and writes page tokens. */
export interface Pager {
  /** How many to return, and the key of the last item before (undefined for the first page). Throws PAGE_TOKEN_INVALID. */
  read(request: PageRequest): { limit: number; after: readonly string[] | undefined };
  /** The token of the page after the item with this key, in which the key can be read but not changed. */
  next(request: PageRequest, last: readonly string[]): string;
}

/** Page size where the request gives none. */
export const defaultPageSize = 100;
/** Page size at most; greater ones are brought down to it (AIP-158). */
export const maxPageSize = 1000;

/** Characters of a token at most, as in the contract. */
const maxTokenLength = 1024;

/** Opens a pager whose tokens nobody can make without the key. */
export function createPager(key: Uint8Array): Pager {
  const mac = (request: PageRequest, last: readonly string[]): Buffer =>
    createHmac("sha256", key)
      .update(JSON.stringify([request.method, request.orgId, request.filter, last]))
      .digest()
      .subarray(0, 16);
  return {
    read(request) {
      const limit = request.pageSize <= 0 ? defaultPageSize : Math.min(request.pageSize, maxPageSize);
      if (request.pageToken === "") return { limit, after: undefined };
      const invalid = fail(Reason.PAGE_TOKEN_INVALID, "the page token is not one of this list's", {});
      if (request.pageToken.length > maxTokenLength) throw invalid;
      const [body, sum, ...more] = request.pageToken.split(".");
      if (body === undefined || sum === undefined || more.length > 0) throw invalid;
      let last: unknown;
      try {
        last = JSON.parse(Buffer.from(body, "base64url").toString("utf8"));
      } catch {
        throw invalid;
      }
      if (!Array.isArray(last) || !last.every((part): part is string => typeof part === "string")) throw invalid;
      const given = Buffer.from(sum, "base64url");
      const expected = mac(request, last);
      if (given.length !== expected.length || !timingSafeEqual(given, expected)) throw invalid;
      return { limit, after: last };
    },
    next(request, last) {
      const body = Buffer.from(JSON.stringify(last)).toString("base64url");
      return `${body}.${mac(request, last).toString("base64url")}`;
    },
  };
}
