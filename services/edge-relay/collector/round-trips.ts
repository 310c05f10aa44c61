/** Round trips of requests to one origin, in milliseconds. */
export interface RoundTrips {
  /** The origin. */
  readonly url: string;
  readonly n: number;
  readonly min: number;
  readonly med: number;
}

/** The part of a `PerformanceResourceTiming` that is read. */
export interface ResourceEntry {
  readonly name: string;
  readonly requestStart: number;
  readonly responseStart: number;
}

const requests = 12;
const entryWaitMs = 100;

/**
 * Makes one request to warm the connection up and then 12, one after the other, and reads from Resource Timing how long
 * each waited for the first byte. Ends early, with what it has, when the signal fires or a request fails. Undefined
 * where nothing was measured: the edge is out of reach, or its answers lack `Timing-Allow-Origin`.
 */
export async function measureRoundTrips(apiUrl: string, signal: AbortSignal): Promise<RoundTrips | undefined> {
  const entries: ResourceEntry[] = [];
  const keep = (list: PerformanceEntryList): void => {
    for (const entry of list) {
      // What the page loads besides is none of our business, and is not kept.
      if (entry.name.startsWith(`${apiUrl}/v1/ping?n=`)) entries.push(entry as PerformanceResourceTiming);
    }
  };
  let wake = (): void => undefined;
  const observer = new PerformanceObserver((list) => {
    keep(list.getEntries());
    wake();
  });
  observer.observe({ type: "resource" });
  const wanted: string[] = [];
  try {
    for (let n = 0; n <= requests && !signal.aborted; n += 1) {
      const url = `${apiUrl}/v1/ping?n=${n}`;
      const response = await fetch(url, { cache: "no-store", credentials: "omit", redirect: "error", signal });
      await response.arrayBuffer();
      if (!response.ok) break;
      if (n > 0) wanted.push(url);
    }
  } catch {
    // What was measured until here counts.
  }
  // Entries come a little after the answers that they are of.
  if (!signal.aborted && wanted.some((url) => !entries.some(({ name }) => name === url))) {
    await new Promise<void>((resolve) => {
      const finish = (): void => {
        clearTimeout(timer);
        signal.removeEventListener("abort", finish);
        resolve();
      };
      const timer = setTimeout(finish, entryWaitMs);
      signal.addEventListener("abort", finish);
      wake = () => {
        if (wanted.every((url) => entries.some(({ name }) => name === url))) finish();
      };
    });
  }
  keep(observer.takeRecords());
  observer.disconnect();
  return summarizeRoundTrips(new URL(apiUrl).origin, wanted, entries);
}

/**
 * The least and the median wait for the first byte over the first entry of each URL. Entries that keep their times to
 * themselves, as those of other origins do without `Timing-Allow-Origin`, have zeros, and do not count.
 */
export function summarizeRoundTrips(
  origin: string,
  urls: readonly string[],
  entries: readonly ResourceEntry[],
): RoundTrips | undefined {
  const waits: number[] = [];
  for (const url of urls) {
    const entry = entries.find(({ name }) => name === url);
    if (entry === undefined || entry.requestStart <= 0 || entry.responseStart < entry.requestStart) continue;
    waits.push(entry.responseStart - entry.requestStart);
  }
  waits.sort((a, b) => a - b);
  const middle = waits.length >> 1;
  const [least, upper, lower] = [waits[0], waits[middle], waits[middle - 1]];
  if (least === undefined || upper === undefined) return undefined;
  const median = waits.length % 2 === 1 || lower === undefined ? upper : (lower + upper) / 2;
  return { url: origin, n: waits.length, min: roundMs(least), med: roundMs(median) };
}

/** Milliseconds to the microsecond. */
export function roundMs(ms: number): number {
  return Math.round(ms * 1000) / 1000;
}
