// Reads the contract as the generated code describes it. Every rule, table and document that is about "all methods" or
// "all messages" starts here, so that none of them can forget one.
import { readdirSync } from "node:fs";
import { getOption, hasOption } from "@bufbuild/protobuf";
import { http } from "@octomesh/proto/google/api/annotations_pb";
import { method as methodOption, service as serviceOption } from "@octomesh/proto/octomesh/policy/v1/policy_pb";

const folder = new URL("../proto/gen/octomesh/", import.meta.url);

/** Loads every file of the contract, ordered by name. Fails when nothing was generated. */
export async function loadContract() {
  const names = readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith("_pb.js"))
    .map((entry) => `${entry.parentPath}/${entry.name}`)
    .sort();
  if (names.length === 0) throw new Error("proto/gen holds no contract: run `npm run generate` first");
  const files = [];
  for (const name of names) {
    const generated = await import(new URL(name, "file:").href);
    files.push(...Object.values(generated).filter((value) => value?.kind === "file"));
  }
  files.sort((a, b) => compare(a.name, b.name));

  const messages = [];
  const enums = [];
  for (const file of files) {
    enums.push(...file.enums);
    for (const message of file.messages) collect(message, messages, enums);
  }
  const services = files.flatMap((file) => file.services);
  services.sort((a, b) => compare(a.typeName, b.typeName));
  const methods = services.flatMap((service) =>
    service.methods.map((method) => ({
      name: `${service.name}.${method.name}`,
      desc: method,
      owner: hasOption(service, serviceOption) ? getOption(service, serviceOption) : undefined,
      policy: hasOption(method, methodOption) ? getOption(method, methodOption) : undefined,
      bindings: bindingsOf(method),
    })),
  );
  return { files, services, methods, messages, enums };
}

/** The HTTP bindings of a method, its additional ones included, in the order of the contract. */
export function bindingsOf(method) {
  if (!hasOption(method, http)) return [];
  const rule = getOption(method, http);
  return [rule, ...rule.additionalBindings].map((binding) => {
    const { pattern } = binding;
    const verb = pattern.case === "custom" ? pattern.value.kind : (pattern.case ?? "");
    const path = pattern.case === "custom" ? pattern.value.path : (pattern.value ?? "");
    return { verb: verb.toUpperCase(), path, body: binding.body, responseBody: binding.responseBody };
  });
}

/** The variables of a path template, as field paths: `/a/{id}/b/{c.d=*}` has `id` and `c.d`. */
export function pathVariables(path) {
  return [...path.matchAll(/\{([^}=]+)(?:=[^}]*)?\}/g)].map((match) => match[1]);
}

function collect(message, messages, enums) {
  messages.push(message);
  enums.push(...message.nestedEnums);
  for (const nested of message.nestedMessages) collect(nested, messages, enums);
}

function compare(a, b) {
  return a < b ? -1 : a > b ? 1 : 0;
}
