/** SHA-256 of a session's reference in base64url, 43 characters: all that landmarks learn of the session. */
export async function sessionDigest(sessionRef: string): Promise<string> {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(sessionRef)));
  return btoa(String.fromCharCode(...digest))
    .replace(/\+/g, "-")
    .replace(/\//g, "_")
    .replace(/=+$/, "");
}
