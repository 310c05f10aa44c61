import { open } from "node:fs/promises";
import { CommandError, usageError } from "./command-error.ts";
import { exitCode } from "./exit-code.ts";

/** Reads a file of at most `maxBytes` as text. Throws a usage error for what is no readable file, or holds more. */
export async function readSmallFile(path: string, maxBytes = 16_384): Promise<string> {
  try {
    const file = await open(path, "r");
    try {
      if (!(await file.stat()).isFile()) throw usageError(`${path} is not a file`);
      const { buffer, bytesRead } = await file.read(Buffer.alloc(maxBytes + 1), 0, maxBytes + 1, 0);
      if (bytesRead > maxBytes) throw usageError(`${path} holds more than ${maxBytes} bytes`);
      return buffer.toString("utf8", 0, bytesRead);
    } finally {
      await file.close();
    }
  } catch (cause) {
    if (cause instanceof CommandError) throw cause;
    const { code, message } = cause as NodeJS.ErrnoException;
    const why = code === "ENOENT" || code === "ENOTDIR" ? "no such file" : message;
    throw new CommandError(`cannot read ${path}: ${why}`, { code: exitCode.usage, cause });
  }
}
