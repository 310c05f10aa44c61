import { runService } from "@octomesh/mesh/main";
import { createService } from "./service.ts";

await runService("device-registry", createService);
