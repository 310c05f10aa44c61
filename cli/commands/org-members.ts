import { type Member, Member_StateSchema, MemberSchema } from "@octomesh/proto/octomesh/identity/v1/member_pb";
import { type Role, RoleSchema } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { isIdOf } from "../check-id.ts";
import { collectPages, parseLimit } from "../collect-pages.ts";
import type { CommandContext, CommandInput, CommandSpec } from "../command.ts";
import { formatTime } from "../format-time.ts";
import { choiceWord, parseChoice } from "../parse-choice.ts";

const roleHelp =
  "Roles: member reads models and devices; admin manages models, devices and rollouts; owner may do everything, " +
  "members and deletion included.";

/** `octomil org members …`: the people of an organisation. */
export const orgMemberCommands: readonly CommandSpec[] = [
  {
    name: "add",
    summary: "Invite a person and show the invitation code, once",
    details: roleHelp,
    args: [["<email>", "e-mail address of the person"]],
    options: [["--role <role>", "member, admin or owner; member if left out"]],
    examples: ["org members add user@example.com --role admin"],
    run: add,
  },
  {
    name: "update",
    summary: "Change a member's role",
    details: roleHelp,
    args: [["<member>", "e-mail address or id of the member"]],
    options: [["--role <role>", "member, admin or owner"]],
    examples: ["org members update user@example.com --role member"],
    run: update,
  },
  {
    name: "list",
    summary: "List the members",
    options: [["--limit <number>", "how many to show, or all; 200 if left out"]],
    examples: ["org members list"],
    run: list,
  },
  {
    name: "get",
    summary: "Show one member",
    args: [["<member>", "e-mail address or id of the member"]],
    examples: ["org members get user@example.com"],
    run: get,
  },
  {
    name: "remove",
    summary: "Remove a member and end the member's sessions",
    args: [["<member>", "e-mail address or id of the member"]],
    examples: ["org members remove user@example.com"],
    run: remove,
  },
];

async function add(context: CommandContext, input: CommandInput): Promise<void> {
  const role: Role = parseChoice(RoleSchema, "role", input.text("role") ?? "member");
  const { clients } = await context.connect();
  const member = await clients.members.addMember({ email: input.args[0] ?? "", role });
  context.output.show({
    schema: MemberSchema,
    item: member,
    headline: `${member.email} is invited.`,
    essential: member.invitationCode,
    facts: [
      ["invitation code", context.output.paint.bold(member.invitationCode)],
      ["lapses", formatTime(member.invitationExpireTime)],
      ...factsOf(member),
    ],
  });
  context.output.note(
    `Pass the code on now: it is shown this once. The person runs: octomil login --code … --email ${member.email}`,
  );
}

async function update(context: CommandContext, input: CommandInput): Promise<void> {
  const role: Role = parseChoice(RoleSchema, "role", input.required("role"));
  const { clients } = await context.connect();
  const member = await clients.members.updateMember({ id: input.args[0] ?? "", role });
  context.output.show({
    schema: MemberSchema,
    item: member,
    headline: `${member.email} is now ${choiceWord(RoleSchema, member.role)}.`,
    facts: factsOf(member),
  });
}

async function list(context: CommandContext, input: CommandInput): Promise<void> {
  const limit = parseLimit(input.text("limit"));
  const { clients } = await context.connect();
  const { items, truncated } = await collectPages(limit, async (pageSize, pageToken) => {
    const answer = await clients.members.listMembers({ pageSize, pageToken });
    return { items: answer.members, nextPageToken: answer.nextPageToken };
  });
  context.output.list({
    schema: MemberSchema,
    key: "members",
    items,
    truncated,
    empty: "No members.",
    columns: [
      { title: "ID", value: (member) => member.id },
      { title: "E-MAIL", value: (member) => member.email },
      { title: "ROLE", value: (member) => choiceWord(RoleSchema, member.role) },
      { title: "STATE", value: (member) => choiceWord(Member_StateSchema, member.state) },
      { title: "SINCE", value: (member) => formatTime(member.createTime) },
    ],
  });
}

async function get(context: CommandContext, input: CommandInput): Promise<void> {
  const { clients } = await context.connect();
  const member = await clients.members.getMember({ id: input.args[0] ?? "" });
  context.output.show({ schema: MemberSchema, item: member, facts: [["e-mail", member.email], ...factsOf(member)] });
}

async function remove(context: CommandContext, input: CommandInput): Promise<void> {
  const { clients } = await context.connect();
  const named = input.args[0] ?? "";
  const id = isIdOf("usr", named) ? named : (await clients.members.getMember({ id: named })).id;
  await clients.members.removeMember({ id });
  context.output.result({ deleted: id }, `${named} is no longer a member.`);
}

function factsOf(member: Member): [string, string][] {
  return [
    ["id", member.id],
    ["role", choiceWord(RoleSchema, member.role)],
    ["state", choiceWord(Member_StateSchema, member.state)],
    ["since", formatTime(member.createTime)],
  ];
}
