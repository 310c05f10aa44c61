import type { Command } from "commander";
import type { CommandContext, CommandInput, CommandSpec } from "../command.ts";
import { usageError } from "../command-error.ts";

/** `octomil completion`: a script by which a shell completes command lines. */
export const completionCommand: CommandSpec = {
  name: "completion",
  summary: "Print a script by which a shell completes octomil's command lines",
  args: [["<shell>", "bash or zsh"]],
  examples: ["completion bash > ~/.local/share/bash-completion/completions/octomil", "completion zsh"],
  run,
};

async function run(context: CommandContext, input: CommandInput): Promise<void> {
  const shell = input.args[0];
  if (shell !== "bash" && shell !== "zsh")
    throw usageError(`there is no completion for "${shell}"`, "Choose bash or zsh.");
  const script = completionScript(context.program);
  const text = shell === "zsh" ? `autoload -U +X bashcompinit && bashcompinit\n${script}` : script;
  context.output.result({ shell, script: text }, text, text);
}

/** The script for bash: a table from the words so far to the words that may follow. */
export function completionScript(program: Command): string {
  const lines: string[] = [];
  const visit = (command: Command, path: string[], inherited: string[]) => {
    const options = command.options.map((option) => option.long ?? "").filter((long) => long !== "");
    const words = command.commands.map((child) => child.name());
    const all = [...words, ...options, ...inherited, "--help"];
    lines.push(`    "${path.join(" ")}") words="${all.join(" ")}" ;;`);
    for (const child of command.commands) visit(child, [...path, child.name()], [...inherited, ...options]);
  };
  visit(program, [], []);
  return `_octomil() {
  local word path="" words=""
  for word in "\${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    [[ "$word" == -* ]] && continue
    case "\${path:+$path }$word" in
${groupsOf(program)
  .map((path) => `      "${path}") path="${path}" ;;`)
  .join("\n")}
    esac
  done
  case "$path" in
${lines.join("\n")}
  esac
  COMPREPLY=($(compgen -W "$words" -- "\${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _octomil octomil
`;
}

function groupsOf(command: Command, path: readonly string[] = []): string[] {
  return command.commands.flatMap((child) => {
    const words = [...path, child.name()];
    return [words.join(" "), ...groupsOf(child, words)];
  });
}
