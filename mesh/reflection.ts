import { type DescFile, type DescService, toBinary } from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema } from "@bufbuild/protobuf/wkt";
import { Code, type ConnectRouter } from "@connectrpc/connect";
import { ServerReflection, type ServerReflectionRequest } from "@octomesh/proto/grpc/reflection/v1/reflection_pb";
import { ServerReflection as ServerReflectionAlpha } from "@octomesh/proto/grpc/reflection/v1alpha/reflection_pb";
import { fail, Reason } from "./errors.ts";

/** Serves gRPC server reflection, versions v1 and v1alpha, for the given rpc services and all that they refer to. */
export function reflectionRoutes(router: ConnectRouter, services: readonly DescService[]): void {
  const index = indexOf(services);
  router.service(ServerReflection, {
    async *serverReflectionInfo(requests) {
      for await (const request of bounded(requests)) yield answer(index, request);
    },
  });
  router.service(ServerReflectionAlpha, {
    async *serverReflectionInfo(requests) {
      for await (const request of bounded(requests)) {
        // The two versions differ in their package's name only.
        const { $typeName: _request, ...fields } = request;
        const { messageResponse } = answer(index, fields as unknown as ServerReflectionRequest);
        yield { validHost: request.host, messageResponse: messageResponse as never };
      }
    },
  });
}

/** Rate limits count a stream once, however much is asked on it. */
const maxRequestsOfStream = 1000;

async function* bounded<T>(requests: AsyncIterable<T>): AsyncIterable<T> {
  let count = 0;
  for await (const request of requests) {
    count += 1;
    if (count > maxRequestsOfStream) {
      throw fail(Reason.RATE_LIMITED, `a stream may ask ${maxRequestsOfStream} times`, {}, { retryAfterMs: 1000 });
    }
    yield request;
  }
}

interface ReflectionIndex {
  readonly serviceNames: readonly string[];
  readonly filesByName: ReadonlyMap<string, DescFile>;
  readonly filesBySymbol: ReadonlyMap<string, DescFile>;
  readonly filesByExtension: ReadonlyMap<string, DescFile>;
  readonly extensionNumbers: ReadonlyMap<string, readonly number[]>;
}

function indexOf(services: readonly DescService[]): ReflectionIndex {
  const filesByName = new Map<string, DescFile>();
  const visit = (file: DescFile): void => {
    if (filesByName.has(`${file.name}.proto`)) return;
    filesByName.set(`${file.name}.proto`, file);
    for (const dependency of file.dependencies) visit(dependency);
  };
  for (const service of services) visit(service.file);
  const filesBySymbol = new Map<string, DescFile>();
  const filesByExtension = new Map<string, DescFile>();
  const extensionNumbers = new Map<string, number[]>();
  for (const file of filesByName.values()) {
    for (const service of file.services) {
      filesBySymbol.set(service.typeName, file);
      for (const method of service.methods) filesBySymbol.set(`${service.typeName}.${method.name}`, file);
    }
    const addMessages = (messages: DescFile["messages"]): void => {
      for (const message of messages) {
        filesBySymbol.set(message.typeName, file);
        addMessages([...message.nestedMessages]);
        for (const type of message.nestedEnums) filesBySymbol.set(type.typeName, file);
      }
    };
    addMessages(file.messages);
    for (const type of file.enums) filesBySymbol.set(type.typeName, file);
    for (const extension of file.extensions) {
      filesBySymbol.set(extension.typeName, file);
      const extendee = extension.extendee.typeName;
      filesByExtension.set(`${extendee}/${extension.number}`, file);
      extensionNumbers.set(extendee, [...(extensionNumbers.get(extendee) ?? []), extension.number]);
    }
  }
  return {
    serviceNames: services.map((service) => service.typeName).sort(),
    filesByName,
    filesBySymbol,
    filesByExtension,
    extensionNumbers,
  };
}

function answer(index: ReflectionIndex, request: ServerReflectionRequest) {
  const { messageRequest, host } = request;
  switch (messageRequest.case) {
    case "listServices":
      return {
        validHost: host,
        messageResponse: {
          case: "listServicesResponse" as const,
          value: { service: index.serviceNames.map((name) => ({ name })) },
        },
      };
    case "fileByFilename":
      return fileAnswer(host, index.filesByName.get(messageRequest.value));
    case "fileContainingSymbol":
      return fileAnswer(host, index.filesBySymbol.get(messageRequest.value));
    case "fileContainingExtension": {
      const { containingType, extensionNumber } = messageRequest.value;
      return fileAnswer(host, index.filesByExtension.get(`${containingType}/${extensionNumber}`));
    }
    case "allExtensionNumbersOfType":
      return {
        validHost: host,
        messageResponse: {
          case: "allExtensionNumbersResponse" as const,
          value: {
            baseTypeName: messageRequest.value,
            extensionNumber: [...(index.extensionNumbers.get(messageRequest.value) ?? [])],
          },
        },
      };
    default:
      return notFound(host);
  }
}

const serialized = new WeakMap<DescFile, Uint8Array>();

function bytesOf(file: DescFile): Uint8Array {
  const known = serialized.get(file);
  if (known !== undefined) return known;
  const bytes = toBinary(FileDescriptorProtoSchema, file.proto);
  serialized.set(file, bytes);
  return bytes;
}

/** A file and everything that it imports, so that one answer suffices. */
function fileAnswer(host: string, file: DescFile | undefined) {
  if (file === undefined) return notFound(host);
  const files = new Map<string, Uint8Array>();
  const visit = (each: DescFile): void => {
    if (files.has(each.name)) return;
    files.set(each.name, bytesOf(each));
    for (const dependency of each.dependencies) visit(dependency);
  };
  visit(file);
  return {
    validHost: host,
    messageResponse: {
      case: "fileDescriptorResponse" as const,
      value: { fileDescriptorProto: [...files.values()] },
    },
  };
}

function notFound(host: string) {
  return {
    validHost: host,
    messageResponse: {
      case: "errorResponse" as const,
      value: { errorCode: Code.NotFound, errorMessage: "there is no such symbol here" },
    },
  };
}
