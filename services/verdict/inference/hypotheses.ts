import { Verdict_Alarm as Alarm } from "@octomesh/proto/octomesh/verdict/v1/verdict_pb";

/**
 * How much likelier one piece of evidence is under each way of hiding than where nothing hides the session, in bits (log
 * to base 2). The two ways are kept apart because what speaks against one says nothing of the other: a clean gap rules
 * out who ends the TCP connection, and a tunnel below TCP leaves the gap clean.
 */
export interface Bits {
  /** Somebody between the browser and the edge ends the TCP connection: HTTP CONNECT, SOCKS, SSH, Tor. */
  readonly proxy: number;
  /** Somebody forwards the browser's own packets: WireGuard, OpenVPN, IPsec. */
  readonly tunnel: number;
}

/** Odds of either way of hiding, against none, before any evidence. Taken, not measured: partners' visitors differ. */
const priorOdds = 1 / 24;

/** Probability that something hides the session from which on an alarm is raised. */
export const alarmFrom = { low: 0.15, medium: 0.7, high: 0.97 } as const;

/** Probabilities of the three hypotheses; they add up to 1. */
export interface Posterior {
  readonly none: number;
  readonly proxy: number;
  readonly tunnel: number;
}

/** Posterior of the hypotheses by Bayes' rule, taking pieces of evidence for independent under each of them. */
export function posteriorOf(evidence: readonly Bits[]): Posterior {
  const odds = (of: (bits: Bits) => number): number =>
    priorOdds * 2 ** evidence.reduce((sum, bits) => sum + of(bits), 0);
  const proxy = odds((bits) => bits.proxy);
  const tunnel = odds((bits) => bits.tunnel);
  const total = 1 + proxy + tunnel;
  return { none: 1 / total, proxy: proxy / total, tunnel: tunnel / total };
}

/** The alarm that a posterior calls for. */
export function alarmOf({ none }: Posterior): Alarm {
  const hidden = 1 - none;
  if (hidden >= alarmFrom.high) return Alarm.HIGH;
  if (hidden >= alarmFrom.medium) return Alarm.MEDIUM;
  return hidden >= alarmFrom.low ? Alarm.LOW : Alarm.NONE;
}

/** Weight of one piece of evidence for "something hides the session", whichever way: what a finding publishes, in bits. */
export function weightOf({ proxy, tunnel }: Bits): number {
  return Math.log2((2 ** proxy + 2 ** tunnel) / 2);
}

/** Evidence that does not tell one way of hiding from the other. */
export function either(bits: number): Bits {
  return { proxy: bits, tunnel: bits };
}

/** A line through points by their x, level beyond its ends. `points` are in rising order of x; there is at least one. */
export function interpolate(points: readonly (readonly [x: number, y: number])[], x: number): number {
  let [before] = points;
  for (const point of points) {
    if (before !== undefined && x < point[0]) {
      const [x0, y0] = before;
      return point === before ? y0 : y0 + ((x - x0) / (point[0] - x0)) * (point[1] - y0);
    }
    before = point;
  }
  return before?.[1] ?? 0;
}
