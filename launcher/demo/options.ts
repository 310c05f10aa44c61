import { parseArgs } from "node:util";

/** What the demonstration was asked for. */
export interface DemoOptions {
  /** A mesh that runs already; one is started if not given. */
  readonly url: string | undefined;
  /** The set-up code of that mesh. */
  readonly code: string | undefined;
  /** The edge of that mesh. */
  readonly edge: string | undefined;
  /** How many devices. */
  readonly devices: number;
  /** One process for each service. */
  readonly processes: boolean;
  /** Leaves the state folder of the mesh that was started. */
  readonly keep: boolean;
  readonly help: boolean;
}

/** What `npm run demo -- --help` prints. */
export const demoUsage = `npm run demo -- [options]

  --devices <number>   how many devices, 30 to 2000 (default 200)
  --processes          the mesh runs as one process for each service
  --url <url>          use a mesh that runs already, with --code
  --code <code>        its one-time set-up code, edg_setup_…
  --edge <url>         its edge, such as http://localhost:8090; without it no verdict is asked for
  --keep               leave the state folder of the mesh that was started
  --help
`;

/** Reads the arguments. Throws an error that names what is wrong. */
export function readDemoOptions(argv: readonly string[]): DemoOptions {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      url: { type: "string" },
      code: { type: "string" },
      edge: { type: "string" },
      devices: { type: "string", default: "200" },
      processes: { type: "boolean", default: false },
      keep: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
    strict: true,
    allowPositionals: false,
  });
  const devices = /^\d{1,4}$/.test(values.devices) ? Number(values.devices) : Number.NaN;
  if (!(devices >= 30 && devices <= 2000)) throw new Error("--devices takes a whole number from 30 to 2000");
  if ((values.url === undefined) !== (values.code === undefined)) throw new Error("--url and --code belong together");
  if (values.url !== undefined && values.processes) throw new Error("--processes is about a mesh that the demo starts");
  return {
    url: values.url,
    code: values.code,
    edge: values.edge,
    devices,
    processes: values.processes,
    keep: values.keep,
    help: values.help,
  };
}
