import { type Timestamp, timestampMs } from "@bufbuild/protobuf/wkt";

/** Writes a time as tables show it, in UTC to the second: `2026-02-03 04:05:06Z`; `absent` where it is not set. */
export function formatTime(time: Timestamp | undefined, absent = ""): string {
  if (time === undefined) return absent;
  return `${new Date(timestampMs(time)).toISOString().slice(0, 19).replace("T", " ")}Z`;
}

/** Writes how long ago a time was, or how long it is to come, in one unit: `12s ago`, `in 3h`. */
export function formatAge(time: Timestamp | undefined, nowMs: number, absent = "never"): string {
  if (time === undefined) return absent;
  const seconds = Math.round((nowMs - timestampMs(time)) / 1000);
  const amount = Math.abs(seconds);
  if (amount < 1) return "now";
  const units: [number, string][] = [
    [86_400, "d"],
    [3600, "h"],
    [60, "m"],
    [1, "s"],
  ];
  const [size, unit] = units.find(([unitSeconds]) => amount >= unitSeconds) ?? [1, "s"];
  const text = `${Math.floor(amount / size)}${unit}`;
  return seconds < 0 ? `in ${text}` : `${text} ago`;
}
