import { type BootOrder, noBoots } from "../boot-order.ts";

/** The columns that hold an order of boots. */
export interface BootOrderRow {
  readonly boot_id: string;
  readonly sequence: bigint;
  /** Pairs of boot id and decimal number, newest first. */
  readonly earlier_boots: readonly (readonly [string, string])[];
}

/** Reads the order from a row. */
export function bootOrderOf(row: BootOrderRow | undefined): BootOrder {
  if (row === undefined) return noBoots;
  return {
    bootId: row.boot_id,
    sequence: row.sequence,
    earlier: row.earlier_boots.map(([bootId, sequence]) => ({ bootId, sequence: BigInt(sequence) })),
  };
}

/** The JSON of the column `earlier_boots`. */
export function earlierBootsJson(order: BootOrder): string {
  return JSON.stringify(order.earlier.map(({ bootId, sequence }) => [bootId, String(sequence)]));
}
