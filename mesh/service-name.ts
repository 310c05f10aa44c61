/** The six services of the mesh, in the order of their port numbers. */
export const serviceNames = ["identity", "device-registry", "rollout", "telemetry", "edge-relay", "verdict"] as const;

/** Name of a service of the mesh: its folder, its certificate's identity, its DNS name. */
export type ServiceName = (typeof serviceNames)[number];

/** Whether a string names a service of the mesh. */
export function isServiceName(value: string): value is ServiceName {
  return (serviceNames as readonly string[]).includes(value);
}

/** Default ports of a service: mesh 710x, public 720x, admin 730x. */
export function portsOf(service: ServiceName): { mesh: number; public: number; admin: number } {
  const x = serviceNames.indexOf(service) + 1;
  return { mesh: 7100 + x, public: 7200 + x, admin: 7300 + x };
}

/** The service's schema in PostgreSQL: its name with `_` for `-`. */
export function schemaOf(service: ServiceName): string {
  return service.replaceAll("-", "_");
}

/** The service's part of environment variables, such as `DEVICE_REGISTRY`. */
export function variableOf(service: ServiceName): string {
  return schemaOf(service).toUpperCase();
}
