import type { Database } from "@octomesh/mesh/database";
import { mapDatabaseError } from "@octomesh/mesh/database-error";
import type pg from "pg";

/**
 * A connection outside the pool, in the role system, for single statements that the whole mesh waits for: beats,
 * acknowledgements and leases of revocations. However many calls wait for the pool, these do not wait behind them, for
 * a service that hears no beat refuses everybody.
 */
export interface ControlSession {
  /** Runs one statement. Connects first where there is no connection, and throws DEPENDENCY_UNAVAILABLE if it cannot. */
  query<R extends pg.QueryResultRow>(text: string, values?: readonly unknown[]): Promise<R[]>;
  close(): Promise<void>;
}

/** Opens the control session of a database; it connects with the first statement and again after a failure. */
export function openControlSession<DB>(database: Database<DB>): ControlSession {
  let connecting: Promise<pg.Client> | undefined;
  // The driver runs one statement at a time and wants its callers to wait themselves.
  let last: Promise<unknown> = Promise.resolve();

  function connect(): Promise<pg.Client> {
    if (connecting !== undefined) return connecting;
    const attempt = database.session();
    const forget = (): void => {
      if (connecting === attempt) connecting = undefined;
    };
    connecting = attempt;
    attempt.then((client) => client.once("end", forget), forget);
    return attempt;
  }

  return {
    async query<R extends pg.QueryResultRow>(text: string, values: readonly unknown[] = []): Promise<R[]> {
      const run = async (): Promise<R[]> => {
        const client = await connect();
        return (await client.query<R>(text, [...values])).rows;
      };
      const answer = last.then(run);
      last = answer.catch(() => undefined);
      try {
        return await answer;
      } catch (error) {
        throw mapDatabaseError(error);
      }
    },
    async close() {
      const client = await connecting?.catch(() => undefined);
      await client?.end().catch(() => undefined);
    },
  };
}
