import type { IncomingMessage, ServerResponse } from "node:http";
import type { Http2ServerRequest, Http2ServerResponse } from "node:http2";
import type { DescMethod, DescService } from "@bufbuild/protobuf";
import type { CallOptions, Client, ConnectRouter } from "@connectrpc/connect";
import type { Logger } from "pino";
import type { Registry } from "prom-client";
import type { Call } from "./call.ts";
import type { Clock } from "./clock.ts";
import type { Database } from "./database.ts";
import type { MasterKey } from "./master-key.ts";
import type { Subject } from "./revocations.ts";
import type { ServiceName } from "./service-name.ts";

/** What a service of the mesh is given: everything outside its own folder that it may use. */
export interface Runtime {
  readonly name: ServiceName;
  /** Folder for files of this deployment (`.octomesh` by default). A service keeps its own under `<stateDir>/<name>`. */
  readonly stateDir: string;
  readonly log: Logger;
  readonly clock: Clock;
  readonly masterKey: MasterKey;
  readonly metrics: Registry;
  /** The environment, for the service's own `OCTOMESH_<SERVICE>_…` variables; read with mesh/config. */
  readonly env: Readonly<Record<string, string | undefined>>;
  /** The mesh's trust domain: authority of the SPIFFE IDs, and `iss` of the tokens that identity signs. */
  readonly trustDomain: string;
  /** Where users reach the mesh, without a slash at the end; default `http://localhost:8080`. */
  readonly publicUrl: string;
  /**
   * Where edges and backends reach the verdict service, `https://…` without a slash at the end; by default its port on
   * this machine. Not known before the services listen where the system chooses the port: ask when it is needed.
   */
  verdictUrl(): string;
  /** The mesh's trust bundle as it stands, PEM: in development the authority of the verdict service's certificate too. */
  trustBundle(): string;
  /** Redis for what replicas share; undefined where one process is all there is. */
  readonly redisUrl: string | undefined;
  /**
   * Whether something that identity vouched for was revoked since, as told to every service at once: for services that keep
   * what identity answered. Credentials of callers are looked after by the runtime.
   */
  isRevoked(subject: Subject, id: string): boolean;
  /** Opens the service's database, in its own schema, with its own migrations (numbered SQL files in that folder). */
  openDatabase<DB>(migrations: URL): Promise<Database<DB>>;
  /** A client of the sibling that owns an rpc service: gRPC over mutual TLS to its expected SPIFFE ID. */
  client<S extends DescService>(service: S): Client<S>;
  /** A client of one named sibling, for rpc services that every service implements. */
  clientOf<S extends DescService>(sibling: ServiceName, service: S): Client<S>;
  /** Options that let this service act for a call's organisation at a sibling (methods that admit DELEGATED). */
  delegated(call: Call): CallOptions;
  /** A call of this service's own background work for one organisation ("" for none), audited as the service. */
  systemCall(orgId: string, action?: string): Call;
}

/** An HTTP request of either version. */
export type HttpRequest = IncomingMessage | Http2ServerRequest;
/** An HTTP answer of either version. */
export type HttpResponse = ServerResponse | Http2ServerResponse;

/**
 * HTTP that is no rpc: registered against the rpc method whose `google.api.http` binding is its path and whose policy,
 * limits and audit apply. By the time `handle` runs the caller is admitted. Errors that it throws before the head is
 * sent become problem+json.
 */
export interface HttpRoute {
  readonly method: DescMethod;
  /** `params` holds the variables of the path template, decoded. */
  handle(call: Call, request: HttpRequest, response: HttpResponse, params: Record<string, string>): Promise<void>;
}

/** What a service gives back. */
export interface Service {
  /** Registers the service's rpc implementations. Interceptors are the runtime's. */
  routes(router: ConnectRouter): void;
  /** HTTP that is no rpc. */
  readonly http: readonly HttpRoute[];
  /** Ports that the service opened itself beside the runtime's, by name, once it has started. */
  readonly ports?: () => Readonly<Record<string, number>>;
  /** Starts background loops. Called once the listeners are up. */
  start(): Promise<void>;
  /** Ends background loops and closes what the service opened. */
  stop(): Promise<void>;
}

/** Every `services/<name>/service.ts` exports one, named `createService`. */
export type CreateService = (runtime: Runtime) => Promise<Service>;
