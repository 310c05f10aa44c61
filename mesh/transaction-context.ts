import type { Transaction } from "kysely";

/** What the storage layer knows of an open transaction, and no store needs to. */
export interface TransactionContext {
  /** The service's schema, a checked identifier. */
  readonly schema: string;
  /** The SQL role the transaction runs in. */
  readonly role: "app" | "ingest" | "system";
  /** Run in order after the commit, never after a rollback; what they throw is logged and dropped. */
  readonly afterCommit: (() => void)[];
  /** Tells this process's outbox watchers that there are new events. */
  readonly announceEvents: () => void;
}

// Kysely's Transaction hides its type parameter in private state, so any of them is looked up as an object.
const contexts = new WeakMap<object, TransactionContext>();

/** Attaches the context to a transaction that `database.ts` has just begun. */
export function setTransactionContext(tx: object, context: TransactionContext): void {
  contexts.set(tx, context);
}

/** The context of a transaction handed out by `Database`. Throws for any other. */
export function transactionContext<DB>(tx: Transaction<DB>): TransactionContext {
  const context = contexts.get(tx);
  if (context === undefined) throw new TypeError("not a transaction of this runtime's database");
  return context;
}

/** Runs `fn` once the transaction has committed, and not at all when it rolls back (each attempt starts afresh). */
export function afterCommit<DB>(tx: Transaction<DB>, fn: () => void): void {
  transactionContext(tx).afterCommit.push(fn);
}
