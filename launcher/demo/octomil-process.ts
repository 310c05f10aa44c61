import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";

/** What one `octomil` command said. */
export interface OctomilResult {
  code: number;
  stdout: string;
  stderr: string;
  /** How long it took, start of the process included, in milliseconds. */
  durationMs: number;
}

/** How a command is run. */
export interface OctomilOptions {
  /** Environment variables of this command. */
  env?: Readonly<Record<string, string>>;
  /** Shows its standard error, such as a progress bar, as it comes. */
  showStderr?: boolean;
}

/** Runs the `octomil` command as a process of its own, as a person or a script does. */
export type Octomil = (args: readonly string[], options?: OctomilOptions) => Promise<OctomilResult>;

const bin = fileURLToPath(new URL("../../cli/bin/octomil.mjs", import.meta.url));

/** Prepares to run commands against a mesh, with a configuration in `home`. */
export function octomilAt(url: string, home: string): Octomil {
  return (args, options = {}) =>
    new Promise((resolve, reject) => {
      const begin = performance.now();
      const child = spawn(process.execPath, [bin, ...args], {
        env: {
          ...withoutOctomil(process.env),
          OCTOMIL_URL: url,
          OCTOMIL_HOME: home,
          ...options.env,
        },
        stdio: ["ignore", "pipe", options.showStderr === true ? "inherit" : "pipe"],
      });
      let stdout = "";
      let stderr = "";
      child.stdout?.setEncoding("utf8").on("data", (text: string) => {
        stdout += text;
      });
      child.stderr?.setEncoding("utf8").on("data", (text: string) => {
        stderr += text;
      });
      child.once("error", reject);
      child.once("close", (code) => {
        resolve({ code: code ?? 130, stdout, stderr, durationMs: performance.now() - begin });
      });
    });
}

/** Writes a command line as a person types it. */
export function commandLine(args: readonly string[]): string {
  return [
    "octomil",
    ...args.map((arg) => (/^[\w@%+=:,./-]+$/.test(arg) ? arg : `"${arg.replaceAll('"', '\\"')}"`)),
  ].join(" ");
}

// The person's own profile and keys have no place in a demonstration.
function withoutOctomil(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  return Object.fromEntries(Object.entries(env).filter(([name]) => !name.startsWith("OCTOMIL_")));
}
