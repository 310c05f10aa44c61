/** A source of wall-clock time, injected so that a test can hold it still. */
export interface Clock {
  /** Milliseconds since the Unix epoch; never rounded by the caller, may step backwards as wall clocks do. */
  now(): number;
}

/** The machine's clock. Leases do not use it: they live by the database's (`lease.ts`). */
export const systemClock: Clock = { now: () => Date.now() };
