/** Where a device keeps artifacts and the record of which are active: a port. Artifacts are known by their SHA-256. */
export interface ArtifactStore {
  /** Takes the store for this client alone. Throws DeviceError STORE_LOCKED where another has it. */
  open(): Promise<void>;
  /** The record of what is active, as last written; undefined at first. */
  readActivation(): Promise<string | undefined>;
  /** Replaces that record, whole or not at all; durable when it resolves. This is the moment a version becomes active. */
  writeActivation(record: string): Promise<void>;
  /** Size in bytes of an artifact that is complete; undefined where it is not there. */
  sizeOf(sha256: string): Promise<number | undefined>;
  /** Reads a complete artifact piece by piece. */
  read(sha256: string): AsyncIterable<Uint8Array>;
  /** Where a complete artifact can be opened by path, for stores that have paths. */
  pathOf?(sha256: string): string;
  /** Opens what there is of an artifact that is not complete, empty at first. */
  openPartial(sha256: string): Promise<PartialArtifact>;
  /** Deletes an artifact, complete or not. */
  remove(sha256: string): Promise<void>;
  /** Digests of all artifacts there are, complete or not. */
  list(): Promise<string[]>;
  /** Gives the store back. */
  close(): Promise<void>;
}

/** An artifact on its way. */
export interface PartialArtifact {
  /** The entity tag that its bytes came under; undefined before the first. */
  readonly etag: string | undefined;
  /** How many bytes it has. */
  readonly offset: number;
  /** Reads those bytes. */
  read(): AsyncIterable<Uint8Array>;
  /** Drops every byte, and begins anew under an entity tag. */
  restart(etag: string | undefined): Promise<void>;
  /** Appends bytes. */
  append(bytes: Uint8Array): Promise<void>;
  /** Makes what was appended survive a crash, and records how far it goes. */
  checkpoint(): Promise<void>;
  /** Turns it into a complete artifact, whole or not at all; durable when it resolves. It is closed then. */
  complete(): Promise<void>;
  /** Lets go of it; what was recorded stays. */
  close(): Promise<void>;
}
