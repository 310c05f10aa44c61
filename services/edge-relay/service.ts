import type { CreateService } from "@octomesh/mesh/service";
import { registerRoutes } from "./routes.ts";

/** The service's place in the mesh: its routes, and neither state nor background work yet. */
export const createService: CreateService = async () => ({
  routes: registerRoutes,
  http: [],
  start: async () => undefined,
  stop: async () => undefined,
});
