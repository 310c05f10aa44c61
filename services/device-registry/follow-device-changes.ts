import { Reason, reasonOf } from "@octomesh/mesh/errors";
import type { Outbox } from "@octomesh/mesh/outbox";
import type { Logger } from "pino";
import { type DeviceChange, decodeDeviceChange, deviceChangeTopic } from "./device-change.ts";
import { retryForever } from "./retry-forever.ts";

/** What following device changes needs. */
export interface FollowDeviceChangesOptions {
  readonly outbox: Pick<Outbox, "head" | "watch">;
  readonly log: Logger;
  readonly signal: AbortSignal;
  onChange(orgId: string, change: DeviceChange): void;
  /** Changes may have been missed. */
  onGap(): void;
}

/** Follows what all replicas of this service change about devices, for as long as the signal allows. */
export async function followDeviceChanges(options: FollowDeviceChangesOptions): Promise<void> {
  const { outbox, log, signal } = options;
  let cursor: string | undefined;

  const follow = async (progressed: () => void): Promise<void> => {
    if (cursor === undefined) {
      cursor = await outbox.head(deviceChangeTopic);
      options.onGap();
    }
    try {
      for await (const event of outbox.watch({ topic: deviceChangeTopic, cursor, signal })) {
        options.onChange(event.orgId, decodeDeviceChange(event.payload));
        cursor = event.cursor;
        progressed();
      }
    } catch (error) {
      if (reasonOf(error) === Reason.CURSOR_EXPIRED) cursor = undefined;
      throw error;
    }
  };

  await retryForever({ work: follow, signal, log, what: "device changes" });
}
