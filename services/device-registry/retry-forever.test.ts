import pino from "pino";
import { describe, expect, it } from "vitest";
import { retryForever } from "./retry-forever.ts";

const log = pino({ level: "silent" });

describe("work that should never end", () => {
  it("is begun again when it fails or ends, until it is stopped", async () => {
    const stop = new AbortController();
    let runs = 0;
    await retryForever({
      async work(progressed) {
        runs += 1;
        if (runs === 1) throw new Error("lost");
        progressed();
        if (runs === 4) stop.abort();
      },
      signal: stop.signal,
      log,
      what: "test",
      firstMs: 1,
    });
    expect(runs).toBe(4);
  });

  it("is not begun when it was stopped before", async () => {
    await retryForever({
      work: () => Promise.reject(new Error("unreachable")),
      signal: AbortSignal.abort(),
      log,
      what: "test",
    });
  });
});
