import { fail, Reason } from "@octomesh/mesh/errors";

/** Collects single questions about devices into batches of one organisation each. */
export interface Batches<T> {
  /** Asks about one device; answered with its batch. OVERLOADED when too many wait. */
  ask(orgId: string, deviceId: string): Promise<T>;
}

/** How batches are made. */
export interface BatchOptions<T> {
  /** Answers for each device of one batch; a device without an entry fails as the batch would. */
  run(orgId: string, deviceIds: readonly string[]): Promise<ReadonlyMap<string, T>>;
  /** Devices in one batch at most. Default 1000, the contract's bound. */
  maxItems?: number;
  /** How long, in milliseconds, the first question of a batch waits for others. Default 4. */
  delayMs?: number;
  /** Questions under way at most. Default 20,000. */
  maxPending?: number;
}

interface Waiting<T> {
  readonly deviceId: string;
  readonly answer: Promise<T>;
  resolve(value: T): void;
  reject(error: unknown): void;
}

/** Opens a collector. Questions about the same device in the same batch share one answer. */
export function batchByOrg<T>(options: BatchOptions<T>): Batches<T> {
  const { run, maxItems = 1000, delayMs = 4, maxPending = 20_000 } = options;
  const collecting = new Map<string, Map<string, Waiting<T>>>();
  let pending = 0;

  const send = (orgId: string): void => {
    const batch = collecting.get(orgId);
    if (batch === undefined) return;
    collecting.delete(orgId);
    run(orgId, [...batch.keys()])
      .finally(() => {
        pending -= batch.size;
      })
      .then(
        (answers) => {
          for (const waiting of batch.values()) {
            const answer = answers.get(waiting.deviceId);
            if (answer === undefined) waiting.reject(new Error("the batch answered without this device"));
            else waiting.resolve(answer);
          }
        },
        (error: unknown) => {
          for (const waiting of batch.values()) waiting.reject(error);
        },
      );
  };

  return {
    async ask(orgId, deviceId) {
      let batch = collecting.get(orgId);
      const asked = batch?.get(deviceId);
      if (asked !== undefined) return await asked.answer;
      if (pending >= maxPending) {
        throw fail(Reason.OVERLOADED, "too many devices ask at once", {}, { retryAfterMs: 1000 });
      }
      if (batch === undefined) {
        batch = new Map();
        collecting.set(orgId, batch);
        const collected = batch;
        setTimeout(() => {
          if (collecting.get(orgId) === collected) send(orgId);
        }, delayMs);
      }
      const waiting = waitingFor<T>(deviceId);
      batch.set(deviceId, waiting);
      pending += 1;
      if (batch.size >= maxItems) send(orgId);
      return await waiting.answer;
    },
  };
}

function waitingFor<T>(deviceId: string): Waiting<T> {
  let resolve: (value: T) => void = () => {};
  let reject: (error: unknown) => void = () => {};
  const answer = new Promise<T>((onAnswer, onError) => {
    resolve = onAnswer;
    reject = onError;
  });
  return { deviceId, answer, resolve, reject };
}
