import { parseArgs } from "node:util";

/** What `npm start` was asked for. */
export interface LaunchOptions {
  readonly processes: boolean;
  readonly stateDir: string;
  readonly port: number;
  readonly host: string;
  /** Every other port is the system's choice, so that several meshes fit on one machine. */
  readonly ephemeralPorts: boolean;
  readonly help: boolean;
}

/** What `npm start -- --help` prints. */
export const usage = `npm start -- [options]

  --processes          one process for each service, as production does
  --port <port>        the public origin's port (OCTOMESH_PUBLIC_PORT, default 8080)
  --host <address>     the public origin's address (OCTOMESH_HOST, default 127.0.0.1)
  --state-dir <path>   where state lives (OCTOMESH_STATE_DIR, default .octomesh)
  --help
`;

/** Reads arguments and environment. Throws an error that names what is wrong. */
export function readLaunchOptions(
  argv: readonly string[],
  environment: Readonly<Record<string, string | undefined>>,
): LaunchOptions {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      processes: { type: "boolean", default: false },
      port: { type: "string" },
      host: { type: "string" },
      "state-dir": { type: "string" },
      help: { type: "boolean", default: false },
    },
    strict: true,
    allowPositionals: false,
  });
  const port = values.port ?? environment.OCTOMESH_PUBLIC_PORT ?? "8080";
  if (!/^\d{1,5}$/.test(port) || Number(port) > 65_535) {
    const source = values.port === undefined ? "OCTOMESH_PUBLIC_PORT" : "--port";
    throw new Error(`${source} is ${JSON.stringify(port.slice(0, 20))}: a port from 0 to 65535 is expected`);
  }
  return {
    processes: values.processes,
    stateDir: values["state-dir"] ?? environment.OCTOMESH_STATE_DIR ?? ".octomesh",
    port: Number(port),
    host: values.host ?? environment.OCTOMESH_HOST ?? "127.0.0.1",
    ephemeralPorts: environment.OCTOMESH_EPHEMERAL_PORTS === "1",
    help: values.help,
  };
}
