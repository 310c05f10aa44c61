/**
 * Leases for singletons: work that one replica at a time does. The database's clock decides, so replicas need not
 * agree on the time; every acquisition gets a larger fencing token, so a holder that was paused past its time can be
 * told from its successor.
 */
import { randomBytes } from "node:crypto";
import { sql, type Transaction } from "kysely";
import type { Logger } from "pino";
import type { Database } from "./database.ts";

/** A lease that was acquired. */
export interface Lease {
  readonly name: string;
  /** Who holds it; unique per process start. */
  readonly holder: string;
  /** Grows with every acquisition of this name. */
  readonly token: bigint;
  /**
   * Until when this process may believe in it, on the clock of `performance.now()`: counted from before the request,
   * so never later than the database's own expiry.
   */
  readonly validUntil: number;
}

/** This process as a holder of leases. */
const processHolder = `${process.pid}-${randomBytes(8).toString("hex")}`;

/**
 * Tries to acquire a lease for `ttlMs` (100 to 600,000). Undefined when somebody else, or an earlier acquisition of the
 * same holder, still has it.
 */
export async function acquireLease<DB>(
  database: Database<DB>,
  options: { name: string; ttlMs: number; holder?: string },
): Promise<Lease | undefined> {
  const { name, holder = processHolder } = options;
  const ttlMs = checkedTtl(options.ttlMs);
  const asked = performance.now();
  return await database.system(async (tx) => {
    const { rows } = await sql<{ token: bigint }>`
      insert into leases as l (name, holder, token, expires)
      values (${name}, ${holder}, 1, clock_timestamp() + ${ttlMs} * interval '1 millisecond')
      on conflict (name) do update
      set holder = excluded.holder, token = l.token + 1,
        expires = clock_timestamp() + ${ttlMs} * interval '1 millisecond'
      where l.expires <= clock_timestamp()
      returning token`.execute(tx);
    const row = rows[0];
    return row === undefined ? undefined : { name, holder, token: row.token, validUntil: asked + ttlMs };
  });
}

/** Extends a lease that is still ours and unexpired; undefined when it was lost, and then it stays lost. */
export async function renewLease<DB>(database: Database<DB>, lease: Lease, ttlMs: number): Promise<Lease | undefined> {
  const ttl = checkedTtl(ttlMs);
  const asked = performance.now();
  return await database.system(async (tx) => {
    const { rows } = await sql`
      update leases set expires = clock_timestamp() + ${ttl} * interval '1 millisecond'
      where name = ${lease.name} and holder = ${lease.holder} and token = ${lease.token.toString()}::bigint
        and expires > clock_timestamp()
      returning token`.execute(tx);
    return rows.length === 0 ? undefined : { ...lease, validUntil: asked + ttl };
  });
}

/** Gives a lease back at once. Harmless when it was lost already. */
export async function releaseLease<DB>(database: Database<DB>, lease: Lease): Promise<void> {
  await database.system(async (tx) => {
    await sql`
      update leases set expires = clock_timestamp()
      where name = ${lease.name} and holder = ${lease.holder} and token = ${lease.token.toString()}::bigint
        and expires > clock_timestamp()`.execute(tx);
  });
}

/**
 * Makes a transaction of any role depend on a lease: true while it is the newest of its name and unexpired, and no
 * other can acquire it until this transaction ends. A holder that finds false must change nothing.
 */
export async function fenceLease<DB>(tx: Transaction<DB>, lease: Lease): Promise<boolean> {
  const { rows } = await sql<{
    held: boolean;
  }>`select fence(${lease.name}, ${lease.token.toString()}::bigint) as held`.execute(tx);
  return rows[0]?.held === true;
}

/** What `holdLease` needs. */
export interface HoldLeaseOptions {
  name: string;
  /** How long after the last renewal the lease falls to another replica. Default 15,000. */
  ttlMs?: number;
  /** How often a replica without the lease tries for it. Default `ttlMs / 3`. */
  retryMs?: number;
  /** For tests of two contenders in one process. */
  holder?: string;
  log: Logger;
  /** Ends the work and gives the lease back. */
  signal: AbortSignal;
  /** The singleton's work. Its signal aborts when the lease is lost or `signal` does; it must then return soon. */
  run(lease: Lease, signal: AbortSignal): Promise<void>;
}

/**
 * Runs `run` whenever this process holds the lease, renewing it every third of its time, until `signal` aborts. When
 * `run` returns or throws before that, the lease is given back and tried for again after `retryMs`. Never rejects.
 */
export async function holdLease<DB>(database: Database<DB>, options: HoldLeaseOptions): Promise<void> {
  const { name, log, signal } = options;
  const ttlMs = checkedTtl(options.ttlMs ?? 15_000);
  const retryMs = options.retryMs ?? ttlMs / 3;
  while (!signal.aborted) {
    try {
      const lease = await acquireLease(database, { name, ttlMs, holder: options.holder });
      if (lease !== undefined) await hold(lease);
    } catch (error) {
      if (!signal.aborted) log.warn({ err: error, lease: name }, "the lease cannot be asked for");
    }
    await pause(retryMs * (0.75 + Math.random() / 2), signal);
  }

  async function hold(first: Lease): Promise<void> {
    const lost = new AbortController();
    const running = AbortSignal.any([signal, lost.signal]);
    const finished = new AbortController();
    log.info({ lease: name, token: first.token.toString() }, "lease acquired");
    const renewing = keep(first, lost, finished.signal);
    try {
      await options.run(first, running);
    } catch (error) {
      if (!running.aborted) log.error({ err: error, lease: name }, "the lease's work failed");
    } finally {
      finished.abort();
      await renewing;
      if (!lost.signal.aborted) {
        await releaseLease(database, first).catch((error: unknown) => {
          log.warn({ err: error, lease: name }, "the lease could not be given back: it runs out by itself");
        });
      }
    }
  }

  async function keep(first: Lease, lost: AbortController, finished: AbortSignal): Promise<void> {
    let lease = first;
    // The work stops by this process's own clock even while a renewal hangs.
    const stop = () => {
      log.warn({ lease: name }, "lease lost");
      lost.abort();
    };
    let timer = setTimeout(stop, lease.validUntil - performance.now());
    while (!finished.aborted && !lost.signal.aborted) {
      await pause(ttlMs / 3, AbortSignal.any([finished, lost.signal]));
      if (finished.aborted || lost.signal.aborted) break;
      try {
        const renewed = await renewLease(database, lease, ttlMs);
        clearTimeout(timer);
        if (lost.signal.aborted) break;
        if (renewed === undefined) {
          stop();
          break;
        }
        lease = renewed;
        timer = setTimeout(stop, Math.max(0, lease.validUntil - performance.now()));
      } catch (error) {
        log.warn({ err: error, lease: name }, "the lease could not be renewed");
      }
    }
    clearTimeout(timer);
  }
}

function checkedTtl(ttlMs: number): number {
  if (!(ttlMs >= 100 && ttlMs <= 600_000)) throw new RangeError("a lease lasts 100 to 600,000 ms");
  return ttlMs;
}

async function pause(ms: number, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  await new Promise<void>((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", done);
  });
}
