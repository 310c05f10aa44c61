import { ConnectError } from "@connectrpc/connect";
import { fail, Reason } from "./errors.ts";

const socketCodes = new Set([
  "ECONNREFUSED",
  "ECONNRESET",
  "ETIMEDOUT",
  "EHOSTUNREACH",
  "ENETUNREACH",
  "ENOTFOUND",
  "EAI_AGAIN",
  "EPIPE",
]);

/** The driver's errors without a code: no connection free in time, or one that ended in the middle of a statement. */
const connectionMessages =
  /^(timeout exceeded when trying to connect|Connection terminated|Client has encountered a connection error|Cannot use a pool after calling end)/;

/**
 * Turns an error of the driver that says something about the database as a whole into a refusal: away or out of
 * connections (DEPENDENCY_UNAVAILABLE), disk full (STORAGE_FULL), statement too long (DEADLINE_EXCEEDED), lost to
 * concurrent changes after every retry (TRANSACTION_CONFLICT), text that it cannot hold (VALIDATION_FAILED). All others, constraint violations among them, come back
 * as they are for `store.ts` to map by SQLSTATE; errors that are refusals already do too.
 */
export function mapDatabaseError(error: unknown): unknown {
  if (error instanceof ConnectError) return error;
  const state = sqlStateOf(error);
  const message = error instanceof Error ? error.message : "";
  if (state === undefined) {
    return connectionMessages.test(message) ? unavailable("the database cannot be reached", error) : error;
  }
  if (state === "53100" || state === "ENOSPC") {
    return fail(Reason.STORAGE_FULL, "the database's disk is full: nothing was stored", {}, { cause: error });
  }
  if (state === "53300" || state === "53400") return unavailable("the database has no connection left", error);
  // 25P03: the server ended a transaction that sat idle, an overload of this process.
  if (socketCodes.has(state) || /^(08|57P0|58)/.test(state) || state === "25P03" || state === "53200") {
    return unavailable("the database cannot be reached", error);
  }
  // Character not in repertoire, untranslatable character: text of the request that holds U+0000.
  if (state === "22021" || state === "22P05") {
    return fail(Reason.VALIDATION_FAILED, "the request holds the character U+0000", {}, { cause: error });
  }
  if (state === "57014") {
    return fail(Reason.DEADLINE_EXCEEDED, "the database took too long for this call", {}, { cause: error });
  }
  // 22021: text with a byte that no text has, such as NUL, which JSON can carry.
  if (state === "22021") {
    return fail(Reason.REQUEST_MALFORMED, "a text holds a character that cannot be stored", {}, { cause: error });
  }
  if (state === "40001" || state === "40P01" || state === "55P03") {
    return fail(
      Reason.TRANSACTION_CONFLICT,
      "another change is under way: repeat the call",
      {},
      { retryAfterMs: 100, cause: error },
    );
  }
  return error;
}

/** The SQLSTATE of a PostgreSQL error, or the code of a socket error such as `ECONNREFUSED`; undefined for others. */
export function sqlStateOf(error: unknown): string | undefined {
  if (typeof error !== "object" || error === null || !("code" in error)) return undefined;
  return typeof error.code === "string" ? error.code : undefined;
}

/** The constraint that a PostgreSQL error names (unique, foreign key, check); undefined for others. */
export function constraintOf(error: unknown): string | undefined {
  if (typeof error !== "object" || error === null || !("constraint" in error)) return undefined;
  return typeof error.constraint === "string" ? error.constraint : undefined;
}

function unavailable(message: string, cause: unknown): ConnectError {
  return fail(Reason.DEPENDENCY_UNAVAILABLE, message, { dependency: "postgresql" }, { retryAfterMs: 1000, cause });
}
