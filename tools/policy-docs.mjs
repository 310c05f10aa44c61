// Writes docs/policy.md: who may call which method, from the options in proto/. With `--check` it fails when the file
// differs from what it would write, so that a policy that was weakened shows in review.
import { getOption, hasOption } from "@bufbuild/protobuf";
import {
  AuditExemption,
  CallerKind,
  PlanFeature,
  Role,
  Scope,
  ScopeSchema,
  Surface,
  scope_meaning,
  scope_name,
} from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { loadContract } from "./contract.mjs";
import { writeGenerated } from "./write-generated.mjs";

const kindMeanings = {
  PUBLIC: "nobody in particular: no credential is needed",
  SESSION: "a member of an organisation, signed in",
  API_KEY: "a server of an organisation, with an API key",
  DEVICE: "a registered device, with its access token",
  BOOTSTRAP: "a device to be, with a bootstrap or enrolment token",
  EDGE: "a partner-run edge, with its certificate and licence",
  PARTNER: "a partner's backend, with its partner key",
  READ_TOKEN: "holder of a short-lived token that may only read",
  PEER: "a service of the mesh on its own account, over mutual TLS",
  DELEGATED: "a service of the mesh on behalf of a caller, over mutual TLS",
};

const exemptionMeanings = {
  REPORT: "what a device, an edge or a service reports is data, not an action",
  PART: "part of a larger action, which is recorded as a whole",
  MESH: "book-keeping between services, which acts for nobody",
};

const contract = await loadContract();
const scopeNames = new Map();
for (const value of ScopeSchema.values) {
  if (hasOption(value, scope_name)) scopeNames.set(value.number, getOption(value, scope_name));
}

const lines = [
  "# Policy",
  "",
  "Generated from the options in `proto/` by `node tools/policy-docs.mjs`; do not edit. Every method is enforced as it",
  "stands here, and a caller that is not listed is refused.",
  "",
  "## Callers",
  "",
  ...table(
    ["Kind", "Who"],
    Object.entries(kindMeanings).map(([kind, meaning]) => [code(kind.toLowerCase()), meaning]),
  ),
  "",
  "API keys and read tokens need the scope of the method, sessions at least its role (member < admin < owner). Peers are",
  "the services named in brackets.",
  "",
];

lines.push("## Methods", "");
for (const service of contract.services) {
  const methods = contract.methods.filter(({ desc }) => desc.parent === service);
  const { owner } = methods[0];
  const implementer = owner.everyService ? "every service, each for its own data" : code(owner.owner);
  lines.push(`### ${service.typeName.replace(/^octomesh\./, "")}`, "", `Implemented by ${implementer}.`, "");
  const head = ["Method", "Callers", "Scope", "Role", "Surface", "Audit", "REST", "Also"];
  lines.push(...table(head, methods.map(methodRow)), "");
}

lines.push("## Scopes", "");
const scopeRows = ScopeSchema.values
  .filter(({ number }) => number !== Scope.UNSPECIFIED)
  .map((value) => {
    const uses = contract.methods.filter(({ policy }) => policy.scope === value.number).length;
    return [
      code(getOption(value, scope_name)),
      getOption(value, scope_meaning),
      uses === 0 ? "none yet" : String(uses),
    ];
  });
lines.push(...table(["Scope", "Gives access to", "Methods"], scopeRows), "");

lines.push(
  "## Without an audit record",
  "",
  "Every other method that changes something writes one in the transaction of the change.",
  "",
);
const exempt = contract.methods.filter(({ policy }) => policy.auditExemption !== AuditExemption.UNSPECIFIED);
lines.push(
  ...table(
    ["Method", "Why"],
    exempt.map(({ name, policy }) => [code(name), exemptionMeanings[AuditExemption[policy.auditExemption]]]),
  ),
  "",
);

writeGenerated("docs/policy.md", lines.join("\n"));

function methodRow({ desc, policy, bindings }) {
  const peers = policy.peers.length === 0 ? "" : ` (${policy.peers.join(", ")})`;
  const callers = policy.callers.map((kind) => {
    const name = code(CallerKind[kind].toLowerCase());
    return kind === CallerKind.PEER || kind === CallerKind.DELEGATED ? name + peers : name;
  });
  const also = [
    policy.selfField === "" ? "" : `devices: own ${code(policy.selfField)} only`,
    policy.orgField === "" ? "" : `own organisation's ${code(policy.orgField)} only`,
    policy.feature === PlanFeature.UNSPECIFIED ? "" : `plan: ${PlanFeature[policy.feature].toLowerCase()}`,
    policy.httpOnly ? "plain HTTP only" : "",
    desc.methodKind === "server_streaming" ? "stream" : "",
  ];
  return [
    desc.name,
    callers.join(", "),
    policy.scope === Scope.UNSPECIFIED ? "" : code(scopeNames.get(policy.scope)),
    policy.role === Role.UNSPECIFIED ? "" : Role[policy.role].toLowerCase(),
    Surface[policy.surface].toLowerCase(),
    policy.audit === "" ? "" : code(policy.audit),
    bindings.map(({ verb, path }) => code(`${verb} ${path}`)).join(", "),
    also.filter((note) => note !== "").join("; "),
  ];
}

function table(head, rows) {
  const line = (cells) => `| ${cells.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`;
  return [line(head), line(head.map(() => "---")), ...rows.map(line)];
}

function code(text) {
  return `\`${text}\``;
}
