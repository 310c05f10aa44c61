import { runOctomil } from "./program.ts";
import { processTerminal } from "./terminal.ts";

// The entry point of the command: everything that reads this process's arguments or ends it is here.
const code = await runOctomil(process.argv.slice(2), processTerminal());
process.exitCode = code;
// Standard output may be a pipe that is still being written: let it drain, then do not wait for idle connections.
process.stdout.write("", () => process.stderr.write("", () => process.exit(code)));
