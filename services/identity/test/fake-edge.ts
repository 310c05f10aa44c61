import { clone, type MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { type Client, createClient, createRouterTransport } from "@connectrpc/connect";
import { createValidateInterceptor } from "@connectrpc/validate";
import { fail, Reason } from "@octomesh/mesh/errors";
import * as x509 from "@octomesh/mesh/x509";
import {
  EdgeService,
  type GetEdgeStateResponseSchema,
  type ProvisionEdgeRequest,
  ProvisionEdgeRequestSchema,
} from "@octomesh/proto/octomesh/edge/v1/edge_service_pb";

/** The deployment's own edge as identity sees it: it keeps the kit that it was given, and says so. */
export interface FakeEdge {
  /** Answers no call. True at first. */
  isAway: boolean;
  /** What it does with the next kits: takes them, refuses them, or takes them without identity hearing of it. */
  answer: "takes" | "refuses" | "takes in silence";
  /** The kit that it holds. A test takes it away as a restart would. */
  kit: ProvisionEdgeRequest | undefined;
  /** Every kit that it was ever offered. */
  readonly offered: ProvisionEdgeRequest[];
  readonly client: Client<typeof EdgeService>;
}

/** Makes the fake: behind the contract's own validation, in memory. */
export function createFakeEdge(): FakeEdge {
  const edge: { -readonly [K in keyof Omit<FakeEdge, "client">]: FakeEdge[K] } = {
    isAway: true,
    answer: "takes",
    kit: undefined,
    offered: [],
  };
  const transport = createRouterTransport(
    (router) => {
      router.service(EdgeService, {
        getEdgeState() {
          if (edge.isAway) throw fail(Reason.SERVICE_UNAVAILABLE, "edge-relay is away");
          return edge.kit === undefined ? { provisioned: false } : stateOf(edge.kit);
        },
        provisionEdge(request) {
          if (edge.isAway) throw fail(Reason.SERVICE_UNAVAILABLE, "edge-relay is away");
          const kit = clone(ProvisionEdgeRequestSchema, request);
          edge.offered.push(kit);
          if (edge.answer === "refuses") throw fail(Reason.OVERLOADED, "not now");
          edge.kit = kit;
          if (edge.answer === "takes in silence") throw fail(Reason.DEADLINE_EXCEEDED, "the answer was lost");
          return { provisioned: true };
        },
      });
    },
    { router: { interceptors: [createValidateInterceptor()] } },
  );
  return Object.assign(edge, { client: createClient(EdgeService, transport) });
}

function stateOf(kit: ProvisionEdgeRequest): MessageInitShape<typeof GetEdgeStateResponseSchema> {
  const { orgId, licenseKeyId, signingKeyId } = kit;
  const expireTime = timestampFromMs(new x509.X509Certificate(kit.certificatePem).notAfter.getTime());
  return { provisioned: true, orgId, licenseKeyId, signingKeyId, expireTime };
}
