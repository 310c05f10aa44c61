/** Minor version of the contract that this SDK was built from: told with telemetry, so that an older mesh knows. */
export const contractMinor = 0;

/** Version of this SDK. */
export const sdkVersion = "0.1.0";
