/** Where a device's counting stands: its present boot, and those that it came after. */
export interface BootOrder {
  readonly bootId: string;
  /** The highest number that the boot sent; -1 before the first. */
  readonly sequence: bigint;
  /** Boots before this one, newest first, each with the highest number it had sent. At most `maxEarlierBoots`. */
  readonly earlier: readonly { readonly bootId: string; readonly sequence: bigint }[];
}

/** How many earlier boots of a device are remembered. */
export const maxEarlierBoots = 8;

/** The order of a device that was never heard from. */
export const noBoots: BootOrder = { bootId: "", sequence: -1n, earlier: [] };

/**
 * What a message with a boot id and a number says about the order.
 *
 * - `newer`: the next of the same boot, or the first of a new one.
 * - `repeated`: nothing new: a retry, or a message that was overtaken.
 * - `returned`: a boot that another had followed sends something new. One installation boots once after the other, so
 *   this is a sign that two act as one device.
 */
export type BootMessage = "newer" | "repeated" | "returned";

/** Takes one message into the order. Pure; the order never forgets its present boot and holds each boot once. */
export function followBoot(
  order: BootOrder,
  message: { bootId: string; sequence: bigint },
): { message: BootMessage; order: BootOrder } {
  const { bootId, sequence } = message;
  if (bootId === order.bootId) {
    if (sequence <= order.sequence) return { message: "repeated", order };
    return { message: "newer", order: { ...order, sequence } };
  }
  const before = order.earlier.find((boot) => boot.bootId === bootId);
  if (before !== undefined && sequence <= before.sequence) return { message: "repeated", order };
  const present = order.sequence < 0n ? [] : [{ bootId: order.bootId, sequence: order.sequence }];
  const earlier = [...present, ...order.earlier.filter((boot) => boot !== before)].slice(0, maxEarlierBoots);
  return { message: before === undefined ? "newer" : "returned", order: { bootId, sequence, earlier } };
}
