import {
  create,
  createFileRegistry,
  type DescField,
  type DescMessage,
  fromBinary,
  getOption,
  hasOption,
  type Message,
  ScalarType,
  setExtension,
  toBinary,
} from "@bufbuild/protobuf";
import { type ReflectMessage, reflect } from "@bufbuild/protobuf/reflect";
import {
  type FieldDescriptorProto,
  FieldDescriptorProtoSchema,
  FieldOptionsSchema,
  FileDescriptorProtoSchema,
  FieldDescriptorProto_Label as Label,
  MessageOptionsSchema,
  FieldDescriptorProto_Type as Type,
  timestampFromMs,
} from "@bufbuild/protobuf/wkt";
import { ErrorInfoSchema } from "@octomesh/proto/google/rpc/error_details_pb";
import { RegisterDeviceRequestSchema } from "@octomesh/proto/octomesh/device/v1/device_service_pb";
import {
  BootstrapTokenSchema,
  BootstrapToken_Kind as Kind,
} from "@octomesh/proto/octomesh/identity/v1/bootstrap_token_pb";
import {
  AcceptInvitationRequestSchema,
  GetCallerResponseSchema,
} from "@octomesh/proto/octomesh/identity/v1/session_service_pb";
import { DataClass, data_class, fields as fieldsOption } from "@octomesh/proto/octomesh/policy/v1/policy_pb";
import { ReportTelemetryRequestSchema } from "@octomesh/proto/octomesh/telemetry/v1/telemetry_service_pb";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { contractServices } from "./contract.ts";
import { redact } from "./redact.ts";

describe("a message of the contract", () => {
  test("shows what runs and tells apart, and neither secrets nor people", () => {
    const token = create(BootstrapTokenSchema, {
      id: "btk_a",
      orgId: "org_a",
      kind: Kind.ENROLMENT,
      token: "edg_bootstrap_secret",
      maxUses: 3,
      allowedIdentifiers: ["a", "b"],
      approvalRequired: true,
      createTime: timestampFromMs(1_700_000_000_000),
    });
    expect(redact(BootstrapTokenSchema, token)).toEqual({
      id: "btk_a",
      org_id: "org_a",
      kind: "KIND_ENROLMENT",
      token: "[secret]",
      max_uses: 3,
      allowed_identifiers: ["a", "b"],
      approval_required: true,
      create_time: "2023-11-14T22:13:20.000Z",
    });
    const invitation = create(AcceptInvitationRequestSchema, {
      invitationCode: "edg_invite_x",
      email: "a@example.com",
    });
    expect(redact(AcceptInvitationRequestSchema, invitation)).toEqual({
      invitation_code: "[secret]",
      email: "[personal]",
    });
  });

  test("goes by the classes of the messages in it, whatever the class of the field that holds them", () => {
    const caller = create(GetCallerResponseSchema, { id: "usr_a", member: { id: "usr_a", email: "a@example.com" } });
    const shown = JSON.stringify(redact(GetCallerResponseSchema, caller));
    expect(shown).toContain('"email":"[personal]"');
    expect(shown).not.toContain("example.com");
  });

  test("shows the one that is set of several", () => {
    const report = create(ReportTelemetryRequestSchema, {
      id: "dev_a",
      sequence: 2n ** 60n,
      reports: [{ kind: { case: "health", value: {} } }, {}],
    });
    expect(redact(ReportTelemetryRequestSchema, report)).toEqual({
      id: "dev_a",
      sequence: "1152921504606846976",
      reports: [{ health: {} }, {}],
    });
  });

  test("shows none of its secret and personal fields, however they are filled", () => {
    const schemas = reachable(
      contractServices.flatMap(({ methods }) => methods.flatMap((each) => [each.input, each.output])),
    );
    const guarded = [...schemas].filter((schema) => hides(schema, new Set()));
    expect(guarded.length).toBeGreaterThan(20);
    fc.assert(
      fc.property(fc.constantFrom(...guarded), fc.infiniteStream(hexadecimal), (schema, randomness) => {
        const hidden: string[] = [];
        const message = fill(schema, randomness, hidden, false, 0);
        expect(hidden.length).toBeGreaterThan(0);
        const shown = JSON.stringify(redact(schema, message));
        for (const value of hidden) expect(shown).not.toContain(value);
        expect(shown).toMatch(/\[(secret|personal)\]/);
      }),
      { numRuns: 300 },
    );
  });
});

describe("a field", () => {
  test("without a class is refused, in foreign contracts too", () => {
    const info = create(ErrorInfoSchema, { reason: "X", domain: "octomesh", metadata: { a: "b" } });
    expect(redact(ErrorInfoSchema, info)).toEqual({
      reason: "[unclassified]",
      domain: "[unclassified]",
      metadata: "[unclassified]",
    });
    const schema = schemaOf({
      fields: [field("text", 1, Type.STRING), field("odd", 2, Type.STRING, DataClass.UNSPECIFIED)],
    });
    expect(redact(schema, filled(schema, { text: "x", odd: "y" }))).toEqual({
      text: "[unclassified]",
      odd: "[unclassified]",
    });
  });

  test("goes by its own class before that of its message, and is left out while it is not set", () => {
    const fields = [
      field("plain", 1, Type.STRING),
      field("open", 2, Type.STRING, DataClass.PUBLIC),
      field("count", 3, Type.INT32, DataClass.PERSONAL),
      field("absent", 4, Type.STRING, DataClass.PUBLIC),
      field("undone", 5, Type.STRING, DataClass.UNSPECIFIED),
    ];
    const schema = schemaOf({ fields, fallback: DataClass.SECRET });
    const message = filled(schema, { plain: "x", open: "y", count: 7, undone: "z" });
    expect(redact(schema, message)).toEqual({
      plain: "[secret]",
      open: "y",
      count: "[personal]",
      undone: "[unclassified]",
    });
  });

  test("that the contract does not know is not shown", () => {
    const newer = schemaOf({
      fields: [field("a", 1, Type.STRING), field("b", 2, Type.STRING)],
      fallback: DataClass.PUBLIC,
    });
    const older = schemaOf({ fields: [field("a", 1, Type.STRING)], fallback: DataClass.PUBLIC });
    const message = fromBinary(older, toBinary(newer, filled(newer, { a: "x", b: "unknown" })));
    expect(redact(older, message)).toEqual({ a: "x" });
  });
});

describe("what is shown is bounded", () => {
  const everything = schemaOf({
    fallback: DataClass.OPERATIONAL,
    fields: [
      field("text", 1, Type.STRING),
      field("data", 2, Type.BYTES),
      field("number", 3, Type.DOUBLE),
      { ...field("list", 4, Type.STRING), label: Label.REPEATED },
      { ...field("nodes", 5, Type.MESSAGE), label: Label.REPEATED, typeName: ".test.Node" },
    ],
  });

  test("text to its first 128 characters, bytes to their length", () => {
    const message = filled(everything, { text: "ab".repeat(100), data: new Uint8Array(77), number: Number.NaN });
    expect(redact(everything, message)).toEqual({
      text: `${"ab".repeat(64)}… (200 characters)`,
      data: "77 bytes",
      number: "NaN",
    });
  });

  test("lists to their first 8 elements, and maps as well", () => {
    const list = Array.from({ length: 20 }, (_, index) => `e${index}`);
    expect(redact(everything, filled(everything, { list }))).toEqual({
      list: ["e0", "e1", "e2", "e3", "e4", "e5", "e6", "e7", "… 12 more"],
    });
    const labels = Object.fromEntries(list.map((name) => [name, "x".repeat(300)]));
    const device = redact(RegisterDeviceRequestSchema, create(RegisterDeviceRequestSchema, { labels }));
    expect(Object.keys((device as { labels: object }).labels)).toHaveLength(9);
    expect((device as { labels: Record<string, string> }).labels["…"]).toBe("… 12 more");
    expect(JSON.stringify(device).length).toBeLessThan(2000);
  });

  test("a key of a map that every object has is only a key", () => {
    const labels = Object.fromEntries([["__proto__", "x"]]);
    const device = redact(RegisterDeviceRequestSchema, create(RegisterDeviceRequestSchema, { labels }));
    expect(JSON.stringify(device)).toBe('{"labels":{"__proto__":"x"}}');
  });

  test("messages to a depth of 8, and all of them to 256 values", () => {
    let deep = filled(everything, { text: "bottom" });
    for (let depth = 0; depth < 50; depth += 1) deep = filled(everything, { nodes: [deep] });
    const shown = JSON.stringify(redact(everything, deep));
    expect(shown).toContain("[too deep]");
    expect(shown.split('"nodes"')).toHaveLength(9);
    let wide = filled(everything, { text: "leaf" });
    for (let depth = 0; depth < 6; depth += 1) wide = filled(everything, { text: "node", nodes: Array(8).fill(wide) });
    const cut = JSON.stringify(redact(everything, wide));
    expect(cut.split(/"(?:text|nodes)":/).length).toBeLessThanOrEqual(257);
    expect(cut).toContain("more");
  });

  test("whatever a message holds, it becomes JSON of a bounded size", () => {
    const schemas = [...reachable(contractServices.flatMap(({ methods }) => methods.map((each) => each.input)))];
    fc.assert(
      fc.property(
        fc.constantFrom(...schemas),
        fc.infiniteStream(fc.string({ maxLength: 400 })),
        (schema, randomness) => {
          const message = fill(schema, randomness, [], false, 0);
          expect(JSON.stringify(redact(schema, message)).length).toBeLessThan(128 * 1024);
        },
      ),
    );
  });
});

const hexadecimal = fc.stringMatching(/^[0-9a-f]{24}$/);

/** Every message type that can be reached from the given ones. */
function reachable(roots: readonly DescMessage[]): Set<DescMessage> {
  const found = new Set<DescMessage>();
  const visit = (schema: DescMessage): void => {
    if (found.has(schema)) return;
    found.add(schema);
    for (const each of schema.fields) if (each.message !== undefined) visit(each.message);
  };
  for (const root of roots) visit(root);
  return found;
}

function isHidden(each: DescField): boolean {
  const own = hasOption(each, data_class) ? getOption(each, data_class) : getOption(each.parent, fieldsOption);
  return own === DataClass.SECRET || own === DataClass.PERSONAL;
}

function hides(schema: DescMessage, seen: Set<DescMessage>): boolean {
  if (seen.has(schema)) return false;
  seen.add(schema);
  return schema.fields.some((each) => isHidden(each) || (each.message !== undefined && hides(each.message, seen)));
}

/** A message with every field set; texts, bytes and numbers in what is to be hidden are collected. */
function fill(
  schema: DescMessage,
  randomness: Iterator<string>,
  hidden: string[],
  isBelowHidden: boolean,
  depth: number,
): Message {
  const target: ReflectMessage = reflect(schema);
  for (const each of schema.fields) {
    const isSecret = isBelowHidden || isHidden(each);
    const scalar = (type: ScalarType): unknown => {
      const text = randomness.next().value as string;
      if (type === ScalarType.STRING) {
        if (isSecret) hidden.push(text);
        return text;
      }
      if (type === ScalarType.BYTES) {
        if (isSecret) hidden.push(text, Buffer.from(text).toString("base64"), Buffer.from(text).join(","));
        return Buffer.from(text);
      }
      if (type === ScalarType.BOOL) return true;
      const number = isSecret ? 100_000_000 + (Number.parseInt(text.slice(0, 7), 16) || 0) : 5;
      if (isSecret) hidden.push(String(number));
      const isLong = [ScalarType.INT64, ScalarType.UINT64, ScalarType.SINT64, ScalarType.FIXED64, ScalarType.SFIXED64];
      return isLong.includes(type) ? BigInt(number) : number;
    };
    const message = (of: DescMessage): ReflectMessage =>
      reflect(of, fill(of, randomness, hidden, isSecret, depth + 1), false);
    if (each.message !== undefined && depth >= 4) continue;
    if (each.message !== undefined && /^google\.protobuf\.(Timestamp|Duration)$/.test(each.message.typeName)) continue;
    if (each.fieldKind === "message") target.set(each, message(each.message));
    else if (each.fieldKind === "enum") target.set(each, 1);
    else if (each.fieldKind === "scalar") target.set(each, scalar(each.scalar));
    else if (each.fieldKind === "list") {
      const list = target.get(each);
      for (let index = 0; index < 2; index += 1) {
        if (each.listKind === "message") list.add(message(each.message));
        else list.add(each.listKind === "enum" ? 1 : scalar(each.scalar));
      }
    } else {
      const map = target.get(each);
      const key = each.mapKey === ScalarType.STRING ? scalar(ScalarType.STRING) : 5;
      if (each.mapKind === "message") map.set(key, message(each.message));
      else map.set(key, each.mapKind === "enum" ? 1 : scalar(each.scalar));
    }
  }
  return target.message;
}

/** A field of a contract made up for a test. */
function field(name: string, number: number, type: Type, dataClass?: DataClass): FieldDescriptorProto {
  const options = dataClass === undefined ? undefined : create(FieldOptionsSchema);
  if (options !== undefined) setExtension(options, data_class, dataClass ?? DataClass.UNSPECIFIED);
  return create(FieldDescriptorProtoSchema, { name, number, type, options, label: Label.OPTIONAL });
}

/** The schema of a message `test.Node` made up for a test. */
function schemaOf(node: { fields: FieldDescriptorProto[]; fallback?: DataClass }): DescMessage {
  const options = create(MessageOptionsSchema);
  if (node.fallback !== undefined) setExtension(options, fieldsOption, node.fallback);
  const file = create(FileDescriptorProtoSchema, {
    name: "test/node.proto",
    package: "test",
    syntax: "proto3",
    messageType: [{ name: "Node", field: node.fields, options }],
  });
  const schema = createFileRegistry(file, () => undefined).getMessage("test.Node");
  if (schema === undefined) throw new Error("there is no such message");
  return schema;
}

function filled(schema: DescMessage, values: Record<string, unknown>): Message {
  return create(schema, values);
}
