import type { DescEnum, DescFile, DescMessage, DescMethod, DescService } from "@bufbuild/protobuf";
import type { MethodPolicy, ServicePolicy } from "@octomesh/proto/octomesh/policy/v1/policy_pb";

/** One HTTP binding of a method. */
export interface HttpBinding {
  /** GET, POST, PUT, PATCH, DELETE or a custom verb, in capitals. */
  verb: string;
  /** The path template, such as `/api/v1/models/{id}`. */
  path: string;
  /** `*`, a field of the request, or empty. */
  body: string;
  /** A field of the answer, or empty. */
  responseBody: string;
}

/** One method with what the contract says about it. */
export interface ContractMethod {
  /** `ApiKeyService.CreateApiKey`. */
  name: string;
  desc: DescMethod;
  /** Undefined where the service says nothing. */
  owner: ServicePolicy | undefined;
  /** Undefined where the method says nothing. */
  policy: MethodPolicy | undefined;
  bindings: HttpBinding[];
}

/** The whole contract, each list in a stable order. */
export interface Contract {
  files: DescFile[];
  services: DescService[];
  methods: ContractMethod[];
  messages: DescMessage[];
  enums: DescEnum[];
}

/** Loads every file of the contract, ordered by name. Fails when nothing was generated. */
export function loadContract(): Promise<Contract>;

/** The HTTP bindings of a method, its additional ones included, in the order of the contract. */
export function bindingsOf(method: DescMethod): HttpBinding[];

/** The variables of a path template, as field paths: `/a/{id}/b/{c.d=*}` has `id` and `c.d`. */
export function pathVariables(path: string): string[];
