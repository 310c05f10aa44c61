import pg from "pg";
import { sqlStateOf } from "./database-error.ts";

/** Where a database URL leads, as `host:port/database`: what a message may show, for it holds no user or password. */
export function databaseTarget(url: string, variable: string): string {
  const { host, port, database } = parse(url, variable);
  return host.startsWith("/") ? `${host}/${database ?? ""}` : `${host}:${port}/${database ?? ""}`;
}

/**
 * Demands an authenticated, encrypted connection to a database that is not on this machine: throws, naming the
 * variable, unless the URL says `sslmode=verify-full` exactly once. Loopback addresses and Unix sockets pass.
 */
export function requireEncryptedTransport(url: string, variable: string): void {
  const { host } = parse(url, variable);
  if (isLocal(host)) return;
  const parameters = new URLSearchParams(url.slice(url.indexOf("?") + 1));
  const modes = parameters.getAll("sslmode");
  if (modes.length !== 1 || modes[0] !== "verify-full" || parameters.has("ssl")) {
    throw new Error(
      `${variable}: a remote PostgreSQL (${host}) needs sslmode=verify-full in production; add it to the URL, with sslrootcert=<file> when its certificate comes from a private authority`,
    );
  }
}

/** `localhost` counts as local by name: it is resolved by this machine. */
function isLocal(host: string): boolean {
  return host.startsWith("/") || host === "localhost" || host === "::1" || /^127(\.\d{1,3}){3}$/.test(host);
}

function parse(url: string, variable: string): { host: string; port: number; database: string | undefined } {
  const expected = "expected postgres://user:password@host:port/database";
  if (!/^postgres(ql)?:\/\//.test(url)) throw new Error(`${variable}: ${expected}`);
  try {
    // The driver's own reading of the URL, `host=` parameter and all, so that the check sees what will be used.
    const client = new pg.Client({ connectionString: url });
    return { host: client.host, port: client.port, database: client.database };
  } catch (error) {
    // Besides its shape only the files it names can be wrong, and those messages hold nothing but a path.
    throw new Error(`${variable}: ${/^E[A-Z]+$/.test(sqlStateOf(error) ?? "") ? messageOf(error) : expected}`);
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
