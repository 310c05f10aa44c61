// A process of its own that takes the registration from a shared file and sends one heartbeat.
import { createDeviceClient, fileStore } from "../index.ts";

const [baseUrl = "", path = ""] = process.argv.slice(2);
const client = createDeviceClient({ baseUrl, deviceIdentifier: "unit-1", store: fileStore(path) });
await client.register();
await client.heartbeat();
process.stdout.write(`${client.stats().refreshes}\n`);
await client.close();
