/**
 * Minor version of the telemetry contract that this service was built from. It grows by one with every field or kind of
 * report that is added; a device that announces a greater one may send fields that are not known here yet.
 */
export const contractMinor = 0;
