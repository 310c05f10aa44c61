import { durationFromMs } from "@bufbuild/protobuf/wkt";
import {
  LicenseKey_ClientCertificateMode as ClientCertificateMode,
  LicenseKey_ClientCertificateModeSchema as ClientCertificateModeSchema,
  type LicenseKey,
  LicenseKeySchema,
} from "@octomesh/proto/octomesh/identity/v1/license_key_pb";
import { EnvironmentSchema } from "@octomesh/proto/octomesh/identity/v1/organization_pb";
import { checkId } from "../check-id.ts";
import { collectPages, parseLimit } from "../collect-pages.ts";
import type { CommandContext, CommandInput, CommandSpec } from "../command.ts";
import { usageError } from "../command-error.ts";
import { credentialState } from "../credential-state.ts";
import { formatAge, formatTime } from "../format-time.ts";
import { choiceWord, parseChoice } from "../parse-choice.ts";
import { parseDuration } from "../parse-duration.ts";
import { environmentOptions, parseEnvironment } from "../parse-environment.ts";

/** The options of what a licence says, for every command that creates one. */
export const licenseOptions: readonly (readonly [flags: string, meaning: string])[] = [
  ...environmentOptions,
  ["--mtls <mode>", "client certificate of the edge: off, request or require; require if left out"],
  ["--lifetime <duration>", "how long the licence is good, from 1m to 732d; a year if left out"],
];

/** `octomil licenses …`: what authorises edges to forward what browsers report. */
export const licenseCommands: readonly CommandSpec[] = [
  {
    name: "create",
    summary: "Create an edge's licence and show it, once",
    details:
      "`octomil edge kit` creates a licence together with all else that an edge needs. By --mtls the edge need not show " +
      "a client certificate (off), has to show a fitting one if it shows any (request), or has to show one (require).",
    options: [["--name <name>", "name for people"], ...licenseOptions],
    examples: [
      'licenses create --name "edge Frankfurt"',
      'licenses create --name "staging" --env test --mtls request --lifetime 90d',
      "licenses create --name edge --quiet > license",
    ],
    run: create,
  },
  {
    name: "list",
    summary: "List licences, those of the sandbox included, without the licences themselves",
    options: [["--limit <number>", "how many to show, or all; 200 if left out"]],
    examples: ["licenses list", "licenses list --json"],
    run: list,
  },
  {
    name: "revoke",
    summary: "Revoke a licence: no edge forwards under it any more",
    args: [["<id>", "id of the licence, lic_…"]],
    examples: ["licenses revoke lic_…"],
    run: revoke,
  },
];

/** Reads what a licence is to say. Throws a usage error for what the contract would refuse. */
export function parseLicense(input: CommandInput) {
  const lifetime = input.text("lifetime");
  const seconds = lifetime === undefined ? undefined : parseDuration(lifetime);
  if (seconds !== undefined && (seconds < 60 || seconds > 63_244_800)) {
    throw usageError("--lifetime of a licence is from 1m to 732d");
  }
  const mode = input.text("mtls");
  const clientCertificate: ClientCertificateMode =
    mode === undefined ? ClientCertificateMode.REQUIRE : parseChoice(ClientCertificateModeSchema, "--mtls", mode);
  return {
    environment: parseEnvironment(input),
    clientCertificate,
    lifetime: seconds === undefined ? undefined : durationFromMs(seconds * 1000),
  };
}

async function create(context: CommandContext, input: CommandInput): Promise<void> {
  const name = input.required("name");
  const request = { name, ...parseLicense(input) };
  const { clients } = await context.connect();
  const license = await clients.edgeCredentials.createLicenseKey(request);
  context.output.show({
    schema: LicenseKeySchema,
    item: license,
    essential: license.license,
    headline: `Licence ${license.name} is created.`,
    facts: [["licence", context.output.paint.bold(license.license)], ...factsOf(license)],
  });
  if (license.license === "") {
    context.output.warn("The licence itself was shown when it was created; it cannot be read again.");
  } else context.output.note("Store the licence now: it is shown this once and cannot be read again.");
}

async function list(context: CommandContext, input: CommandInput): Promise<void> {
  const limit = parseLimit(input.text("limit"));
  const { clients } = await context.connect();
  const { items, truncated } = await collectPages(limit, async (pageSize, pageToken) => {
    const answer = await clients.edgeCredentials.listLicenseKeys({ pageSize, pageToken });
    return { items: answer.licenseKeys, nextPageToken: answer.nextPageToken };
  });
  const now = context.terminal.now();
  context.output.list({
    schema: LicenseKeySchema,
    key: "license_keys",
    items,
    truncated,
    empty: "No licences yet.",
    columns: [
      { title: "ID", value: (license) => license.id },
      { title: "NAME", value: (license) => license.name },
      { title: "ENV", value: (license) => choiceWord(EnvironmentSchema, license.environment) },
      { title: "MTLS", value: (license) => choiceWord(ClientCertificateModeSchema, license.clientCertificate) },
      { title: "STATE", value: (license) => credentialState(license, now) },
      { title: "EXPIRES", value: (license) => formatAge(license.expireTime, now, "never") },
    ],
  });
}

async function revoke(context: CommandContext, input: CommandInput): Promise<void> {
  const id = checkId("lic", input.args[0] ?? "");
  const { clients } = await context.connect();
  const license = await clients.edgeCredentials.revokeLicenseKey({ id });
  context.output.show({
    schema: LicenseKeySchema,
    item: license,
    headline: `Licence ${license.name} is revoked; no edge forwards under it any more.`,
    facts: factsOf(license),
  });
}

function factsOf(license: LicenseKey): [string, string][] {
  return [
    ["id", license.id],
    ["environment", choiceWord(EnvironmentSchema, license.environment)],
    ["mtls", choiceWord(ClientCertificateModeSchema, license.clientCertificate)],
    ["created", formatTime(license.createTime)],
    ["expires", formatTime(license.expireTime, "never")],
    ["revoked", formatTime(license.revokeTime)],
  ];
}
