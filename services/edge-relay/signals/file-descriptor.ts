/**
 * The kernel's number of an open socket or listening server of Node. Undefined once it is closed, which is why it is
 * asked for at every use: the kernel gives a closed number to the next connection.
 */
export function fileDescriptorOf(owner: object): number | undefined {
  const handle: unknown = "_handle" in owner ? owner._handle : undefined;
  if (typeof handle !== "object" || handle === null) return undefined;
  const fd: unknown = "fd" in handle ? handle.fd : undefined;
  return typeof fd === "number" && Number.isInteger(fd) && fd >= 0 ? fd : undefined;
}
