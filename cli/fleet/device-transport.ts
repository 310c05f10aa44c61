import { Agent as HttpAgent } from "node:http";
import { Agent as HttpsAgent } from "node:https";
import type { Interceptor, Transport } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import type { CallStatistics } from "./call-statistics.ts";
import { registerOverRest } from "./register-over-rest.ts";

/** A connection of one device of a fleet. */
export interface DeviceTransport {
  transport: Transport;
  close(): void;
}

/**
 * Connects one device: over HTTP/1.1, from an address of its own if one is given, counting its calls. It registers by
 * `POST /api/v1/devices/register`; everything after that is Connect.
 */
export function deviceTransport(
  baseUrl: string,
  statistics: CallStatistics,
  localAddress: string | undefined,
): DeviceTransport {
  const settings = { keepAlive: true, maxFreeSockets: 2, localAddress };
  const agent = baseUrl.startsWith("https:") ? new HttpsAgent(settings) : new HttpAgent(settings);
  const transport = createConnectTransport({
    baseUrl,
    httpVersion: "1.1",
    useBinaryFormat: true,
    readMaxBytes: 4 * 1024 * 1024,
    nodeOptions: { agent },
    interceptors: [counting(statistics), registerOverRest(baseUrl, agent)],
  });
  return { transport, close: () => agent.destroy() };
}

function counting(statistics: CallStatistics): Interceptor {
  return (next) => async (request) => {
    const begin = performance.now();
    try {
      const response = await next(request);
      statistics.record(request.method.name, performance.now() - begin);
      return response;
    } catch (error) {
      statistics.record(request.method.name, performance.now() - begin, error);
      throw error;
    }
  };
}
