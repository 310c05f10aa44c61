import { parseArgs } from "node:util";
import { edgeHelp } from "./edge/edge-help.ts";
import { edgeVersion } from "./edge/edge-version.ts";

/** Exit code of arguments that are not understood, by sysexits.h. */
const usageCode = 64;

const options = readArguments();
if (options !== undefined) {
  // Loaded when it is needed: help and version come without it.
  const { runEdge } = await import("./edge/run-edge.ts");
  await runEdge(process.env, options);
}

/** What was asked for; undefined where it is answered already. */
function readArguments(): { check: boolean; url: string | undefined } | undefined {
  try {
    const { values } = parseArgs({
      options: {
        check: { type: "boolean", default: false },
        url: { type: "string" },
        help: { type: "boolean", short: "h", default: false },
        version: { type: "boolean", default: false },
      },
    });
    if (values.url !== undefined && (!values.check || !isWebUrl(values.url)))
      throw new TypeError("--url takes an http or https URL, and goes with --check");
    if (values.help || values.version) {
      process.stdout.write(values.help ? edgeHelp : `octet-edge ${edgeVersion}\n`);
      return undefined;
    }
    return { check: values.check, url: values.url };
  } catch (error) {
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n\n${edgeHelp}`);
    process.exitCode = usageCode;
    return undefined;
  }
}

function isWebUrl(text: string): boolean {
  return URL.canParse(text) && /^https?:$/.test(new URL(text).protocol);
}
