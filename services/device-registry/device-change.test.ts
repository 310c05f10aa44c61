import { describe, expect, it } from "vitest";
import { decodeDeviceChange, deviceChange, encodeDeviceChange, maxChangedDevices } from "./device-change.ts";

describe("a change of devices", () => {
  it("comes out of its payload as it went in", () => {
    for (const change of [deviceChange(["dev_a", "dev_b"]), deviceChange(undefined), deviceChange([])]) {
      expect(decodeDeviceChange(encodeDeviceChange(change))).toEqual(change);
    }
  });

  it("concerns every device where it names too many", () => {
    const many = Array.from({ length: maxChangedDevices + 1 }, (_, index) => `dev_${index}`);
    expect(deviceChange(many)).toEqual({ deviceIds: [], everyDevice: true });
  });

  it.each(["", "null", "{", '{"device_ids":"dev_a"}', '{"device_ids":[1]}', "{}"])(
    "that cannot be read (%j) concerns every device",
    (text) => {
      expect(decodeDeviceChange(Buffer.from(text))).toEqual({ deviceIds: [], everyDevice: true });
    },
  );
});
