import { timestampMs } from "@bufbuild/protobuf/wkt";
import { SetUpOrganizationResponseSchema } from "@octomesh/proto/octomesh/identity/v1/organization_service_pb";
import type { Session } from "@octomesh/proto/octomesh/identity/v1/session_pb";
import { GetCallerResponseSchema } from "@octomesh/proto/octomesh/identity/v1/session_service_pb";
import { CallerKind, CallerKindSchema, RoleSchema } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { isReason } from "@octomesh/sdk";
import type { CommandContext, CommandInput, CommandSpec } from "../command.ts";
import { CommandError, usageError } from "../command-error.ts";
import { type Connection, chooseProfile } from "../connection.ts";
import { exitCode } from "../exit-code.ts";
import { HintedError } from "../hinted-error.ts";
import { toDocument } from "../output.ts";
import { choiceWord } from "../parse-choice.ts";
import { scopeName } from "../parse-scopes.ts";
import { profileOf, type StoredSession } from "../profile-store.ts";

/** `octomil setup`, `login`, `logout` and `whoami`: who the person is to the mesh. */
export const sessionCommands: readonly CommandSpec[] = [
  {
    name: "setup",
    summary: "Create the first organisation of a mesh and sign in as its owner",
    details:
      "The mesh prints its one-time set-up code at the first start and keeps it in its state folder, in " +
      "secrets/set-up-code. The session is stored in the profile.",
    options: [
      ["--code <code>", "the set-up code, edg_setup_…; asked for if left out"],
      ["--org <name>", "name of the organisation"],
      ["--email <address>", "your e-mail address"],
    ],
    examples: [
      'setup --code edg_setup_… --org "Acme Robotics" --email ada@example.com',
      'setup --url https://mesh.example.com --profile acme --org "Acme" --email ada@example.com',
    ],
    run: setUp,
  },
  {
    name: "login",
    summary: "Sign in with an invitation, or store an API key in the profile",
    details:
      "An owner invites you with `octomil org members add`, which shows the code once. With --api-key the key is read " +
      "from standard input, so that it stands in no command line.",
    options: [
      ["--code <code>", "the invitation code, edg_invite_…; asked for if left out"],
      ["--email <address>", "the e-mail address that was invited"],
      ["--api-key", "read an API key from standard input and store it"],
    ],
    examples: [
      "login --code edg_invite_… --email user@example.com",
      "login --profile ci --url https://mesh.example.com --api-key < key.txt",
    ],
    run: logIn,
  },
  {
    name: "logout",
    summary: "End the session and forget the profile's credential",
    examples: ["logout", "logout --profile acme"],
    run: logOut,
  },
  {
    name: "whoami",
    summary: "Show who the mesh takes you for",
    examples: ["whoami", "whoami --profile acme --json"],
    run: whoAmI,
  },
];

const invitationHint =
  "Check that --email is the address that was invited and --code the newest invitation, and that --url is the mesh of it.";

async function setUp(context: CommandContext, input: CommandInput): Promise<void> {
  const org = input.required("org");
  const email = input.required("email");
  const code = await codeOf(context, input, "Set-up code: ");
  const connection = await context.connectPublic();
  const answer = await connection.clients.organizations.setUpOrganization({
    setupCode: code,
    displayName: org,
    ownerEmail: email,
  });
  if (answer.session === undefined || answer.organization === undefined) {
    throw new CommandError("the mesh set the organisation up but gave no session");
  }
  await keepSession(context, connection, answer.session, email, answer.organization.displayName);
  const { organization } = answer;
  answer.session = undefined;
  const document = toDocument(SetUpOrganizationResponseSchema, answer);
  context.output.result(
    document,
    [
      context.output.paint.green(`${organization.displayName} is set up, and you are signed in as its owner.`),
      `  organisation  ${organization.id}`,
      `  sandbox       ${organization.pairedId}`,
      `  profile       ${connection.profileName} (${context.store.path})`,
      "",
      "Next: octomil api-keys create --name ci-pipeline --scopes models:read,models:write,rollouts:write",
    ].join("\n"),
    organization.id,
  );
}

async function logIn(context: CommandContext, input: CommandInput): Promise<void> {
  if (input.flag("api-key")) {
    if (input.text("code") !== undefined) throw usageError("--code and --api-key exclude each other");
    await storeKey(context);
    return;
  }
  const email = input.required("email");
  const code = await codeOf(context, input, "Invitation code: ");
  const connection = await context.connectPublic();
  const session = await connection.clients.sessions
    .acceptInvitation({ invitationCode: code, email })
    .catch((error: unknown) => {
      // The mesh does not say which of the two is wrong: who has the code alone learns nothing of the address.
      throw isReason(error, "CREDENTIAL_UNKNOWN") ? new HintedError(error, invitationHint) : error;
    });
  await keepSession(context, connection, session, email, "");
  context.output.result(
    { org_id: session.orgId, member_id: session.memberId, profile: connection.profileName },
    context.output.paint.green(`Signed in to ${session.orgId} as ${email}; profile ${connection.profileName}.`),
    session.memberId,
  );
}

async function storeKey(context: CommandContext): Promise<void> {
  const key = context.terminal.canAsk
    ? await context.terminal.ask("API key: ", { hidden: true })
    : (await context.terminal.readInput()).trim();
  if (!/^edg_(?:live|test)_[0-9A-Za-z]{28,}$/.test(key.trim())) {
    throw usageError(
      "that is not an API key",
      "Keys begin with edg_live_ or edg_test_ and are shown once, when created.",
    );
  }
  const connection = await context.connectPublic();
  await context.store.update((configuration) => {
    configuration.profiles[connection.profileName] = {
      url: connection.url,
      org_id: "",
      org_name: "",
      email: "",
      api_key: key.trim(),
    };
    configuration.current = connection.profileName;
  });
  context.output.result(
    { profile: connection.profileName, url: connection.url },
    context.output.paint.green(`The key is stored in profile ${connection.profileName}.`),
  );
}

async function logOut(context: CommandContext): Promise<void> {
  const { profileName, profile } = await chooseProfile({
    env: context.terminal.env,
    store: context.store,
    profileName: context.profileName,
  });
  if (profile === undefined)
    throw new CommandError(`there is no profile "${profileName}"`, { code: exitCode.notFound });
  let ended = false;
  if (profile.session !== undefined) {
    const connection = await context.connect();
    // A session that is over already is as good as ended.
    ended = await connection.clients.sessions.endSession({}).then(
      () => true,
      (error: unknown) => {
        context.output.warn(`The mesh could not be told: ${error instanceof Error ? error.message : "no answer"}.`);
        return false;
      },
    );
  }
  await context.store.update((configuration) => {
    const stored = profileOf(configuration, profileName);
    if (stored === undefined) return;
    delete stored.session;
    delete stored.api_key;
  });
  context.output.result({ profile: profileName, session_ended: ended }, `Signed out of profile ${profileName}.`);
}

async function whoAmI(context: CommandContext): Promise<void> {
  const connection = await context.connect();
  const caller = await connection.clients.sessions.getCaller({});
  context.output.show({
    schema: GetCallerResponseSchema,
    item: caller,
    essential: caller.id,
    facts: [
      ["kind", choiceWord(CallerKindSchema, caller.kind)],
      ["id", caller.id],
      ["e-mail", caller.member?.email ?? ""],
      ["role", caller.kind === CallerKind.SESSION ? choiceWord(RoleSchema, caller.role) : ""],
      ["scopes", caller.scopes.map(scopeName).join(", ")],
      ["organisation", caller.orgId],
      ["mesh", connection.url],
      ["profile", connection.profileName],
    ],
  });
}

async function codeOf(context: CommandContext, input: CommandInput, question: string): Promise<string> {
  const given = input.text("code");
  if (given !== undefined && given !== "") return given.trim();
  if (!context.terminal.canAsk) throw usageError("--code is missing");
  return (await context.terminal.ask(question, { hidden: true })).trim();
}

async function keepSession(
  context: CommandContext,
  connection: Connection,
  session: Session,
  email: string,
  orgName: string,
): Promise<void> {
  const stored: StoredSession = {
    id: session.id,
    access_token: session.accessToken,
    expire_time_ms: session.expireTime === undefined ? 0 : timestampMs(session.expireTime),
    refresh_token: session.refreshToken,
  };
  await context.store.update((configuration) => {
    configuration.profiles[connection.profileName] = {
      url: connection.url,
      org_id: session.orgId,
      org_name: orgName,
      email,
      session: stored,
    };
    configuration.current = connection.profileName;
  });
}
