/** Which measure times are taken. Milliseconds. */
export interface MeasureWindow {
  /** Reports measured longer ago are not stored. */
  readonly pastMs: number;
  /** Reports measured less far in the future count as measured when they were received; others are not stored. */
  readonly futureMs: number;
}

/** A week back, for devices that were offline, and a day ahead, for clocks that are wrong. */
export const defaultMeasureWindow: MeasureWindow = { pastMs: 7 * 86_400_000, futureMs: 86_400_000 };

/**
 * How long batches are remembered: longer than the window is wide, so that whatever a repetition still holds after
 * that is too old to be stored. Hence no report is ever counted twice.
 */
export function batchMemoryMs(window: MeasureWindow): number {
  return window.pastMs + window.futureMs + 3_600_000;
}

/**
 * The minute that a report counts in, milliseconds since the epoch, or undefined when its measure time is outside the
 * window. A time in the future becomes the time of receipt: a device's clock is no reason to fill minutes to come.
 */
export function minuteOf(measureMs: number, receiveMs: number, window: MeasureWindow): number | undefined {
  if (!(measureMs >= receiveMs - window.pastMs && measureMs <= receiveMs + window.futureMs)) return undefined;
  return Math.floor(Math.min(measureMs, receiveMs) / 60_000) * 60_000;
}
