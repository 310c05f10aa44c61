import { interpolate } from "../../services/verdict/inference/hypotheses.ts";
import type { Random } from "./random.ts";

/**
 * Delay of a round trip above its floor on home connections, in milliseconds, by quantile: how far two pings of one RIPE
 * Atlas home probe lie apart (p50 0.4, p90 3.6, p99 40; RIPE NCC, June-July 2023), taken as if one of them were the floor,
 * which makes it larger than it is. Logarithmic between the quantiles; 200 ms at the end is a guess.
 */
const homeSpread = [
  [0, Math.log(0.05)],
  [0.5, Math.log(0.4)],
  [0.9, Math.log(3.6)],
  [0.99, Math.log(40)],
  [1, Math.log(200)],
] as const;

/**
 * The same on a server's path: least of 1 sample above the floor, p50 1.3, p90 6.1, p99 6.5 ms (86,401 TCP handshakes
 * over the Internet in 24 hours).
 */
const serverSpread = [
  [0, Math.log(0.1)],
  [0.5, Math.log(1.3)],
  [0.9, Math.log(6.1)],
  [0.99, Math.log(6.5)],
  [1, Math.log(20)],
] as const;

/** What Chromium adds to a WebSocket round trip, in milliseconds: 0.23 to 2.6 in direct laboratory sessions. */
const browser = { least: 0.23, most: 2.6 } as const;

/** How long what delays one ping delays those after it. */
export type Holding =
  /** Four spells of five pings each. */
  | "spells"
  /** All pings of the session alike, and not the handshake before them: the worst case for a gap. */
  | "session";

/** The timing of one session's channel, in milliseconds. */
export interface Channel {
  readonly pings: number[];
  readonly tcpMinMs: number;
  readonly helloDelayMs: number;
  readonly tlsHandshakeMs: number;
}

/**
 * Draws the timing of a channel of 20 pings.
 *
 * @param tcpMs floor of the round trip to whoever ends the TCP connection
 * @param legMs floor of the round trip from there to the browser; 0 where it is the browser
 */
export function sampleChannel(tcpMs: number, legMs: number, random: Random, holding: Holding = "spells"): Channel {
  const home = (): number => Math.exp(interpolate(homeSpread, random()));
  const server = (): number => Math.exp(interpolate(serverSpread, random()));
  const isEnded = legMs > 0;
  const overhead = browser.least * (browser.most / browser.least) ** random();
  const spells = holding === "spells" ? 4 : 1;
  const pings: number[] = [];
  // The handshake is before the pings, and has a spell of its own.
  const handshake = isEnded ? server() : home();
  let tcpMin = tcpMs + handshake;
  for (let spell = 0; spell < spells; spell += 1) {
    const held = home();
    for (let ping = 0; ping < 20 / spells; ping += 1) {
      const jitter = -0.3 * Math.log(1 - random());
      const path = isEnded ? server() : held;
      tcpMin = Math.min(tcpMin, tcpMs + path + (isEnded ? 0 : jitter));
      pings.push(tcpMs + path + jitter + (isEnded ? legMs + held : 0) + overhead);
    }
  }
  const lateness = 0.5 + 1.3 * random() + (isEnded ? legMs + home() : Math.abs(home() - home()));
  return {
    pings,
    tcpMinMs: tcpMin,
    helloDelayMs: lateness,
    tlsHandshakeMs: tcpMs + legMs + handshake + 2 + 3 * random(),
  };
}
