import type { DescMethod, DescService } from "@bufbuild/protobuf";
import type { ConnectRouter, ServiceImpl } from "@connectrpc/connect";

/** An rpc service and its implementation, as a service of the mesh registered it. */
export interface Registration {
  readonly service: DescService;
  readonly implementation: Partial<ServiceImpl<DescService>>;
}

/**
 * What a service registers, so that it can be served on several listeners, each with its own part. Options of a single
 * registration are refused: interceptors among them would replace the runtime's, and with them its policy.
 */
export function registrationsOf(routes: (router: ConnectRouter) => void): readonly Registration[] {
  const registrations: Registration[] = [];
  const recorder: ConnectRouter = {
    handlers: [],
    service(service, implementation, options) {
      if (options !== undefined) throw new Error(`${service.typeName} is registered with options of its own`);
      if (registrations.some((each) => each.service === service)) {
        throw new Error(`${service.typeName} is registered twice`);
      }
      registrations.push({ service, implementation: implementation as Partial<ServiceImpl<DescService>> });
      return recorder;
    },
    rpc(method: DescMethod) {
      throw new Error(`${method.name} is registered by itself: register its whole service`);
    },
  };
  routes(recorder);
  return registrations;
}
