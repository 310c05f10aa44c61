import { createBudget } from "./budget.ts";
import { measureChannel } from "./channel.ts";
import { maxStepMs, measureClockStep } from "./clock-step.ts";
import { type NavigatorLike, readEnvironment } from "./environment.ts";
import { OctetError } from "./octet-error.ts";
import { type Mode, maxLandmarks, readSocketUrl, type Settings, unique } from "./options.ts";
import type { Report } from "./report.ts";
import { measureRoundTrips, roundMs } from "./round-trips.ts";
import { sessionDigest } from "./session-digest.ts";

/** What a mode may take and does. The limit is of measuring; sending has its own. */
const plans: Readonly<Record<Mode, { limitMs: number; pings: number; isFull: boolean }>> = {
  // Somewhat less than the 2 s and 0.6 s that are promised: what is left is for closing and writing.
  full: { limitMs: 1_900, pings: 20, isFull: true },
  lite: { limitMs: 550, pings: 10, isFull: false },
  passive: { limitMs: 0, pings: 0, isFull: false },
};
const landmarkPings = 12;

/**
 * Measures what the mode asks for and makes a report of it. Measurements run side by side within one budget; when it is
 * over, the report holds what there is. Rejects only with `aborted`.
 */
export async function collect(settings: Settings, signal?: AbortSignal): Promise<Report> {
  const began = performance.now();
  const step = measureClockStep(() => performance.now());
  const head = {
    v: 1 as const,
    ref: settings.sessionRef,
    ...(settings.nonce === undefined ? {} : { nonce: settings.nonce }),
    mode: settings.mode,
    env: readEnvironment(navigator as NavigatorLike, timeZone(), new Date().getTimezoneOffset()),
  };
  const timing = (): { step: number; ms: number } => ({
    step: roundMs(step),
    ms: roundMs(performance.now() - began),
  });
  if (settings.mode === "passive") {
    if (signal?.aborted === true) throw aborted();
    return { ...head, timing: { ...timing(), pings: 0 }, end: "done" };
  }

  const { limitMs, pings, isFull } = plans[settings.mode];
  const budget = createBudget(limitMs, signal);
  try {
    const digest = await sessionDigest(settings.sessionRef);
    const landmarks = new Map<string, Promise<{ url: string; m: string | undefined }>>();
    const addLandmarks = (urls: readonly string[]): void => {
      for (const url of urls) {
        if (!isFull || landmarks.has(url) || landmarks.size >= maxLandmarks) continue;
        const measured = measureChannel({ url, digest, pings: landmarkPings, signal: budget.signal });
        landmarks.set(
          url,
          measured.then(({ measurement }) => ({ url, m: measurement })),
        );
      }
    };
    addLandmarks(settings.landmarks);
    const [channel, roundTrips] = await Promise.all([
      measureChannel({
        url: settings.wsUrl,
        digest,
        pings,
        signal: budget.signal,
        greeted: (urls) => addLandmarks(unique(urls.flatMap((each) => readSocketUrl(each) ?? []))),
      }),
      isFull && step <= maxStepMs ? measureRoundTrips(settings.apiUrl, budget.signal) : undefined,
    ]);
    const measured = (await Promise.all(landmarks.values())).flatMap(({ url, m }) =>
      m === undefined ? [] : [{ url, m }],
    );
    const { ended } = budget;
    if (ended === "aborted") throw aborted();
    return {
      ...head,
      ...(channel.channel === undefined ? {} : { channel: channel.channel }),
      timing: {
        ...timing(),
        ...(roundTrips === undefined ? {} : { rt: [roundTrips] }),
        pings: channel.pings,
      },
      ...(measured.length === 0 ? {} : { landmarks: measured }),
      end: ended ?? (channel.isDone ? "done" : "failed"),
    };
  } finally {
    budget.close();
  }
}

function timeZone(): string {
  return Intl.DateTimeFormat().resolvedOptions().timeZone ?? "";
}

function aborted(): OctetError {
  return new OctetError("aborted", "octet: aborted by the page");
}
