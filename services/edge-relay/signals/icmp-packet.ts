/** An ICMP echo reply: what it repeats of the request. */
export interface EchoReply {
  readonly id: number;
  readonly sequence: number;
  readonly payload: Buffer;
}

/** Types of messages (RFC 792; RFC 4443 section 4). */
const types = { 4: { request: 8, reply: 0 }, 6: { request: 128, reply: 129 } } as const;

/** Bytes of an echo's header, before its payload. */
const headerLength = 8;
/** An IPv4 packet's length at most (RFC 791 section 3.1). */
const maxPayloadLength = 65_535 - 20 - headerLength;

/**
 * Writes an echo request. `id` and `sequence` are 16-bit numbers. The checksum is written for IPv4 alone: that of
 * ICMPv6 covers addresses that only the kernel knows, which therefore writes it (RFC 3542 section 3.1).
 */
export function writeEchoRequest(version: 4 | 6, id: number, sequence: number, payload: Buffer): Buffer {
  if (payload.length > maxPayloadLength) throw new RangeError(`an echo holds at most ${maxPayloadLength} bytes`);
  const message = Buffer.alloc(headerLength + payload.length);
  message.writeUInt8(types[version].request, 0);
  message.writeUInt16BE(id, 4);
  message.writeUInt16BE(sequence, 6);
  payload.copy(message, headerLength);
  if (version === 4) message.writeUInt16BE(internetChecksum(message), 2);
  return message;
}

/**
 * Reads what a raw ICMP socket received: over IPv4 a whole packet, over IPv6 the message alone. Undefined for
 * anything but a whole echo reply with a right checksum (over IPv6 the kernel has checked it). Never throws.
 */
export function parseEchoReply(version: 4 | 6, packet: Buffer): EchoReply | undefined {
  const message = version === 4 ? contentOfIpv4(packet) : packet;
  if (message === undefined || message.length < headerLength) return undefined;
  if (message.readUInt8(0) !== types[version].reply || message.readUInt8(1) !== 0) return undefined;
  if (version === 4 && internetChecksum(message) !== 0) return undefined;
  return {
    id: message.readUInt16BE(4),
    sequence: message.readUInt16BE(6),
    payload: message.subarray(headerLength),
  };
}

function contentOfIpv4(packet: Buffer): Buffer | undefined {
  if (packet.length < 20 || packet.readUInt8(0) >> 4 !== 4) return undefined;
  const length = 4 * (packet.readUInt8(0) & 0x0f);
  const isIcmp = packet.readUInt8(9) === 1;
  return length >= 20 && packet.length >= length && isIcmp ? packet.subarray(length) : undefined;
}

/** The checksum of RFC 1071 section 1: of a message that holds its right checksum it is zero. */
export function internetChecksum(bytes: Buffer): number {
  let sum = 0;
  for (let i = 0; i + 1 < bytes.length; i += 2) sum += bytes.readUInt16BE(i);
  if (bytes.length % 2 === 1) sum += bytes.readUInt8(bytes.length - 1) << 8;
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}
