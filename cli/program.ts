import { Command, CommanderError, Help, Option } from "commander";
import { addCommands, addGroup, type CommandContext, type Runner, toInput } from "./command.ts";
import { apiKeyCommands } from "./commands/api-keys.ts";
import { bootstrapTokenCommands } from "./commands/bootstrap-tokens.ts";
import { completionCommand } from "./commands/completion.ts";
import { deviceCommands } from "./commands/devices.ts";
import { edgeCertificateCommands } from "./commands/edge-certificates.ts";
import { edgeKeyCommands } from "./commands/edge-keys.ts";
import { edgeCommands } from "./commands/edge-kit.ts";
import { groupCommands } from "./commands/groups.ts";
import { licenseCommands } from "./commands/licenses.ts";
import { modelCommands } from "./commands/models.ts";
import { orgCommands } from "./commands/org.ts";
import { orgMemberCommands } from "./commands/org-members.ts";
import { partnerKeyCommands } from "./commands/partner-keys.ts";
import { profileCommands } from "./commands/profile.ts";
import { pushCommand } from "./commands/push.ts";
import { readTokenCommands } from "./commands/read-tokens.ts";
import { rolloutCommands } from "./commands/rollouts.ts";
import { sessionCommands } from "./commands/session.ts";
import { simulateCommand } from "./commands/simulate.ts";
import { telemetryCommands } from "./commands/telemetry.ts";
import { type Connection, type ConnectionOptions, connect, connectPublic } from "./connection.ts";
import { describeError, type ErrorPlace } from "./describe-error.ts";
import { type ExitCode, exitCode } from "./exit-code.ts";
import { openOutput } from "./output.ts";
import { createPaint, wantsColor } from "./paint.ts";
import { openProfileStore } from "./profile-store.ts";
import type { Terminal } from "./terminal.ts";
import { cliVersion } from "./version.ts";

const footer = `
Environment:
  OCTOMIL_URL       the mesh, instead of the profile's
  OCTOMIL_API_KEY   an API key to call with, instead of the profile's credential
  OCTOMIL_PROFILE   the profile, instead of the current one
  OCTOMIL_HOME      where the configuration is kept; ~/.octomil if not set
  NO_COLOR          no colours

Exit codes:
  0 ok · 1 refused or failed · 2 not a right command line · 3 not signed in
  4 not found · 5 the mesh cannot be reached · 6 too many calls · 130 interrupted

Examples:
  $ octomil setup --code edg_setup_… --org "Acme Robotics" --email ada@example.com
  $ octomil api-keys create --name "ci-pipeline" --scopes models:read,models:write,rollouts:write
  $ octomil push model.onnx --model vad --version 1.0.0
  $ octomil rollouts create vad 1.0.0 --percentage 10 --start
  $ octomil devices list --json`;

/**
 * Runs one command line, without the words `node octomil`, and answers with what the process should exit with. Never
 * throws: every failure is told on standard error, as one JSON line with `--json`.
 */
export async function runOctomil(args: readonly string[], terminal: Terminal): Promise<ExitCode> {
  const json = args.includes("--json");
  if (args.length === 1 && (args[0] === "--version" || args[0] === "-V")) {
    terminal.out(json ? `${JSON.stringify({ version: cliVersion })}\n` : `${cliVersion}\n`);
    return exitCode.ok;
  }
  let place: ErrorPlace | undefined;
  try {
    // With --json what commander finds wrong is told as one JSON line, like every other failure.
    const told = json ? { ...terminal, err: () => {} } : terminal;
    const run = runnerOf(terminal, (connection) => {
      place = connection;
    });
    await createProgram(told, run).parseAsync([...args], { from: "user" });
    return exitCode.ok;
  } catch (error) {
    if (error instanceof CommanderError) {
      if (error.exitCode === 0) return exitCode.ok;
      if (json) tell(terminal, error, json);
      return exitCode.usage;
    }
    if (terminal.signal.aborted) {
      tell(terminal, new Error("interrupted"), json);
      return exitCode.interrupted;
    }
    return tell(terminal, error, json, place);
  }
}

/** Builds the tree of commands. `run` takes the place of really running one, for completion and tests. */
export function createProgram(terminal: Terminal, run: Runner = runnerOf(terminal)): Command {
  const program = new Command("octomil")
    .description(
      "Manages on-device models and edges: keys, devices, model versions, rollouts, telemetry and what edges prove " +
        "themselves with, of an Octomesh.",
    )
    .usage("<command> [options]")
    .option("--profile <name>", "the profile to use")
    .option("--url <url>", "public origin of the mesh")
    .option("--json", "print one JSON document, for programs")
    .option("--quiet", "print the essential value only: no notes, no progress")
    .option("--no-color", "print without colours")
    .option("--allow-plaintext", "send credentials over plain HTTP to another machine")
    .helpOption("-h, --help", "show help")
    .helpCommand(false)
    .exitOverride()
    .showHelpAfterError("(add --help for what there is)")
    .showSuggestionAfterError(true)
    .configureOutput({
      writeOut: (text) => terminal.out(text),
      writeErr: (text) => terminal.err(text),
      getOutHelpWidth: () => terminal.columns,
      getErrHelpWidth: () => terminal.columns,
    })
    .addHelpText("after", footer);
  program.configureHelp({
    sortSubcommands: false,
    // No option of the parser's: --version of a command, such as push, would be taken for it.
    visibleOptions(command) {
      return [...Help.prototype.visibleOptions.call(this, command), new Option("-V, --version", "print the version")];
    },
  });

  addCommands(program, run, sessionCommands);
  addCommands(
    addGroup(program, "profile", "Switch between meshes and organisations", ["profiles"]),
    run,
    profileCommands,
  );
  addCommands(addGroup(program, "api-keys", "Keys by which servers call the API"), run, apiKeyCommands);
  addCommands(addGroup(program, "bootstrap-tokens", "Tokens by which devices register"), run, bootstrapTokenCommands);
  addCommands(addGroup(program, "read-tokens", "Short-lived tokens that may only read"), run, readTokenCommands);
  const org = addGroup(program, "org", "The organisation and its settings");
  addCommands(org, run, orgCommands);
  addCommands(addGroup(org, "members", "The people of the organisation"), run, orgMemberCommands);
  addCommands(addGroup(program, "devices", "The fleet"), run, deviceCommands);
  addCommands(addGroup(program, "groups", "Sets of devices that rollouts can target"), run, groupCommands);
  addCommands(addGroup(program, "models", "Models and their versions"), run, modelCommands);
  addCommands(program, run, [pushCommand]);
  addCommands(addGroup(program, "rollouts", "Versions reaching devices, by stages"), run, rolloutCommands);
  addCommands(addGroup(program, "telemetry", "What the fleet reports, summed up"), run, telemetryCommands);
  addCommands(addGroup(program, "edge", "Edges that partners run themselves"), run, edgeCommands);
  addCommands(addGroup(program, "licenses", "What authorises edges to forward signals"), run, licenseCommands);
  addCommands(addGroup(program, "edge-certificates", "Client certificates of edges"), run, edgeCertificateCommands);
  addCommands(addGroup(program, "edge-keys", "Keys with which edges sign"), run, edgeKeyCommands);
  addCommands(
    addGroup(program, "partner-keys", "Keys by which partners' backends read verdicts"),
    run,
    partnerKeyCommands,
  );
  addCommands(program, run, [simulateCommand, completionCommand]);
  return program;
}

function runnerOf(terminal: Terminal, onConnect: (connection: Connection) => void = () => {}): Runner {
  return async (spec, command, args) => {
    const globals: Record<string, unknown> = command.optsWithGlobals();
    const output = openOutput(terminal, {
      json: globals.json === true,
      quiet: globals.quiet === true,
      color: globals.color !== false,
    });
    const text = (name: string) => (typeof globals[name] === "string" ? globals[name] : undefined);
    const store = openProfileStore(terminal.env);
    const options: ConnectionOptions = {
      env: terminal.env,
      store,
      profileName: text("profile"),
      url: text("url"),
      allowPlaintext: globals.allowPlaintext === true,
      onWait: (message) => output.note(message),
    };
    const opened: Connection[] = [];
    const keep = async (connection: Promise<Connection>) => {
      opened.push(await connection);
      onConnect(await connection);
      return connection;
    };
    const context: CommandContext = {
      terminal,
      output,
      store,
      profileName: options.profileName,
      url: options.url,
      program: rootOf(command),
      connect: () => keep(connect(options)),
      connectPublic: () => keep(connectPublic(options)),
    };
    try {
      await spec.run(context, toInput(command, args));
    } finally {
      for (const connection of opened) connection.clients.close();
    }
  };
}

function rootOf(command: Command): Command {
  return command.parent === null ? command : rootOf(command.parent);
}

function tell(terminal: Terminal, error: unknown, json: boolean, place?: ErrorPlace): ExitCode {
  const { code, message, reason, metadata, hint, retryAfterMs } = describeError(error, place);
  if (json) {
    const document = { exit_code: code, reason, message, metadata, hint, retry_after_ms: retryAfterMs };
    terminal.err(`${JSON.stringify({ error: document })}\n`);
    return code;
  }
  const paint = createPaint(wantsColor(terminal.env, terminal.errIsTty));
  terminal.err(`${paint.red("error:")} ${message}${reason === "" ? "" : paint.dim(` (${reason})`)}\n`);
  if (hint !== "") terminal.err(`${paint.dim("hint:")}  ${hint}\n`);
  return code;
}
