// Copies the third-party contracts that ours import out of their npm packages into third_party/proto.
// buf/validate is in no package as a .proto file; its descriptor is, and is printed back (shape only: options on its
// own fields are left out, the validation library carries them in its own descriptor).
import { copyFileSync, mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { fromBinary, toBinary } from "@bufbuild/protobuf";
import {
  FieldDescriptorProto_Label,
  FieldDescriptorProto_Type,
  FileDescriptorProtoSchema,
} from "@bufbuild/protobuf/wkt";
import { file_buf_validate_validate } from "../node_modules/@bufbuild/protovalidate/dist/esm/gen/buf/validate/validate_pb.js";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const target = join(root, "third_party/proto");

const copies = {
  "google/api/annotations.proto": "google-gax/build/protos/google/api/annotations.proto",
  "google/api/http.proto": "google-gax/build/protos/google/api/http.proto",
  "google/rpc/code.proto": "google-gax/build/protos/google/rpc/code.proto",
  "google/rpc/error_details.proto": "google-gax/build/protos/google/rpc/error_details.proto",
  "google/rpc/status.proto": "google-gax/build/protos/google/rpc/status.proto",
  "grpc/health/v1/health.proto": "grpc-health-check/proto/health/v1/health.proto",
  "grpc/reflection/v1/reflection.proto": "@grpc/reflection/build/proto/grpc/reflection/v1/reflection.proto",
  "grpc/reflection/v1alpha/reflection.proto": "@grpc/reflection/build/proto/grpc/reflection/v1alpha/reflection.proto",
};

for (const [to, from] of Object.entries(copies)) {
  mkdirSync(dirname(join(target, to)), { recursive: true });
  copyFileSync(join(root, "node_modules", from), join(target, to));
}

const descriptor = fromBinary(
  FileDescriptorProtoSchema,
  toBinary(FileDescriptorProtoSchema, file_buf_validate_validate.proto),
);
mkdirSync(join(target, "buf/validate"), { recursive: true });
writeFileSync(join(target, "buf/validate/validate.proto"), printFile(descriptor));

/** Prints a descriptor as source: declarations, ranges and defaults, no options. */
function printFile(file) {
  const out = [`syntax = "${file.syntax || "proto2"}";`, "", `package ${file.package};`, ""];
  for (const dependency of file.dependency) out.push(`import "${dependency}";`);
  out.push("");
  for (const type of file.enumType) printEnum(type, "", out);
  for (const type of file.messageType) printMessage(type, "", out);
  for (const extension of file.extension) {
    out.push(`extend ${extension.extendee} {`, `  ${field(extension)}`, "}", "");
  }
  return `${out.join("\n").trimEnd()}\n`;
}

function printMessage(message, indent, out) {
  out.push(`${indent}message ${message.name} {`);
  const inner = `${indent}  `;
  for (const type of message.enumType) printEnum(type, inner, out);
  for (const type of message.nestedType) if (!type.options?.mapEntry) printMessage(type, inner, out);
  message.oneofDecl.forEach((oneof, index) => {
    const members = message.field.filter((f) => f.oneofIndex === index && hasOneof(f) && !f.proto3Optional);
    if (members.length === 0) return;
    out.push(`${inner}oneof ${oneof.name} {`);
    for (const member of members) out.push(`${inner}  ${field(member, true)}`);
    out.push(`${inner}}`);
  });
  for (const f of message.field) if (!hasOneof(f) || f.proto3Optional) out.push(`${inner}${field(f)}`);
  for (const range of message.extensionRange) {
    out.push(`${inner}extensions ${range.start} to ${range.end > 536870911 ? "max" : range.end - 1};`);
  }
  for (const range of message.reservedRange) out.push(`${inner}reserved ${range.start} to ${range.end - 1};`);
  for (const name of message.reservedName) out.push(`${inner}reserved "${name}";`);
  out.push(`${indent}}`, "");
}

function hasOneof(f) {
  return Object.hasOwn(f, "oneofIndex");
}

function printEnum(type, indent, out) {
  out.push(`${indent}enum ${type.name} {`);
  for (const value of type.value) out.push(`${indent}  ${value.name} = ${value.number};`);
  out.push(`${indent}}`, "");
}

function field(f, inOneof = false) {
  const label =
    f.label === FieldDescriptorProto_Label.REPEATED
      ? "repeated "
      : inOneof
        ? ""
        : f.label === FieldDescriptorProto_Label.REQUIRED
          ? "required "
          : "optional ";
  const named = f.type === FieldDescriptorProto_Type.MESSAGE || f.type === FieldDescriptorProto_Type.ENUM;
  const type = named ? f.typeName : FieldDescriptorProto_Type[f.type].toLowerCase();
  const value = f.defaultValue ? ` [default = ${f.defaultValue}]` : "";
  return `${label}${type} ${f.name} = ${f.number}${value};`;
}
