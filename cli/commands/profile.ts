import type { JsonObject } from "@bufbuild/protobuf";
import type { CommandContext, CommandInput, CommandSpec } from "../command.ts";
import { CommandError, usageError } from "../command-error.ts";
import { chooseProfile, defaultUrl } from "../connection.ts";
import { exitCode } from "../exit-code.ts";
import { checkProfileName, checkUrl, type Profile, profileOf } from "../profile-store.ts";

/** `octomil profile …`: the meshes and organisations that this machine knows. */
export const profileCommands: readonly CommandSpec[] = [
  {
    name: "list",
    summary: "List the profiles",
    examples: ["profile list", "profile list --json"],
    run: list,
  },
  {
    name: "show",
    summary: "Show a profile, without its secrets",
    args: [["[name]", "name of the profile; the current one if left out"]],
    examples: ["profile show", "profile show acme"],
    run: show,
  },
  {
    name: "use",
    summary: "Make a profile the current one",
    args: [["<name>", "name of the profile"]],
    examples: ["profile use acme"],
    run: use,
  },
  {
    name: "add",
    summary: "Add a profile for a mesh, to sign in to later",
    args: [["<name>", "name of the profile"]],
    examples: ["profile add acme --url https://mesh.example.com"],
    run: add,
  },
  {
    name: "remove",
    summary: "Forget a profile and its credential; the session is not ended at the mesh (see logout)",
    args: [["<name>", "name of the profile"]],
    examples: ["profile remove acme"],
    run: remove,
  },
];

async function list(context: CommandContext): Promise<void> {
  const configuration = await context.store.read();
  const entries = Object.entries(configuration.profiles).sort(([a], [b]) => (a < b ? -1 : 1));
  const text =
    entries.length === 0
      ? "No profiles yet: octomil setup or octomil login makes one."
      : context.output.table(entries, [
          { title: "", value: ([name]) => (name === configuration.current ? "*" : "") },
          { title: "PROFILE", value: ([name]) => name },
          { title: "MESH", value: ([, profile]) => profile.url },
          { title: "ORGANISATION", value: ([, profile]) => profile.org_name || profile.org_id },
          { title: "AS", value: ([, profile]) => signedInAs(profile) },
        ]);
  context.output.result(
    {
      current: configuration.current,
      profiles: entries.map(([name, profile]) => documentOf(name, profile)),
    },
    text,
    entries.map(([name]) => name).join("\n"),
  );
}

async function show(context: CommandContext, input: CommandInput): Promise<void> {
  const { profileName, profile } = await chooseProfile({
    env: context.terminal.env,
    store: context.store,
    profileName: input.args[0] ?? context.profileName,
  });
  if (profile === undefined) throw unknownProfile(profileName);
  context.output.result(
    documentOf(profileName, profile),
    [
      `  profile       ${profileName}`,
      `  mesh          ${profile.url}`,
      `  organisation  ${[profile.org_name, profile.org_id].filter((text) => text !== "").join(" · ") || "-"}`,
      `  as            ${signedInAs(profile)}`,
      `  kept in       ${context.store.path}`,
    ].join("\n"),
    profileName,
  );
}

async function use(context: CommandContext, input: CommandInput): Promise<void> {
  const name = checkProfileName(input.args[0] ?? "");
  await context.store.update((configuration) => {
    if (profileOf(configuration, name) === undefined) throw unknownProfile(name);
    configuration.current = name;
  });
  context.output.result({ current: name }, `Commands now use profile ${name}.`);
}

async function add(context: CommandContext, input: CommandInput): Promise<void> {
  const name = checkProfileName(input.args[0] ?? "");
  const url = checkUrl(context.url ?? defaultUrl);
  await context.store.update((configuration) => {
    if (profileOf(configuration, name) !== undefined) throw usageError(`there is a profile "${name}" already`);
    configuration.profiles[name] = { url, org_id: "", org_name: "", email: "" };
    if (Object.keys(configuration.profiles).length === 1) configuration.current = name;
  });
  context.output.result(
    { profile: name, url },
    `Profile ${name} is for ${url}. Sign in: octomil login --profile ${name}`,
  );
}

async function remove(context: CommandContext, input: CommandInput): Promise<void> {
  const name = checkProfileName(input.args[0] ?? "");
  await context.store.update((configuration) => {
    if (profileOf(configuration, name) === undefined) throw unknownProfile(name);
    delete configuration.profiles[name];
    if (configuration.current === name) configuration.current = Object.keys(configuration.profiles)[0] ?? "default";
  });
  context.output.result({ removed: name }, `Profile ${name} is forgotten.`);
}

function documentOf(name: string, profile: Profile): JsonObject {
  return {
    profile: name,
    url: profile.url,
    org_id: profile.org_id,
    org_name: profile.org_name,
    email: profile.email,
    credential: profile.api_key !== undefined ? "api_key" : profile.session !== undefined ? "session" : "none",
  };
}

function signedInAs(profile: Profile): string {
  if (profile.api_key !== undefined) return `${profile.api_key.slice(0, 13)}… (API key)`;
  if (profile.session !== undefined) return profile.email;
  return "signed out";
}

function unknownProfile(name: string): CommandError {
  return new CommandError(`there is no profile "${name}"`, {
    code: exitCode.notFound,
    hint: "See octomil profile list.",
  });
}
