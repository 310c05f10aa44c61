import { type Timestamp, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { parseDuration } from "./parse-duration.ts";

/**
 * The time that lies a duration (such as `90d`) after `nowMs`, milliseconds since the Unix epoch; undefined if no
 * duration is given. Throws a usage error for one that cannot be read.
 */
export function timeAfter(duration: string | undefined, nowMs: number): Timestamp | undefined {
  return duration === undefined ? undefined : timestampFromMs(nowMs + parseDuration(duration) * 1000);
}
