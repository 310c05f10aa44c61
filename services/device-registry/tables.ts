/** What the query builder knows of the tables: nothing. Every statement of this service is SQL text in `store/`. */
export type DeviceRegistryTables = Record<string, never>;
