/** Life of a session's access token: 15 minutes. */
export const sessionAccessMs = 15 * 60_000;

/** Life of a session's refresh token, from its last use: 30 days. */
export const sessionRefreshMs = 30 * 86_400_000;

/** Life of a device's refresh token, from its last use: 90 days, for devices that are switched off for long. */
export const deviceRefreshMs = 90 * 86_400_000;

/** Life of a device's access token where the organisation has not chosen another: 24 hours. */
export const defaultDeviceTokenExpiryMs = 86_400_000;

/** Greatest life of any access token: 30 days. */
export const maxAccessMs = 30 * 86_400_000;

/**
 * How long a registration whose answer was lost can be repeated: the two minutes that the registry grants, and one for
 * clocks that differ.
 */
export const registrationGraceMs = 3 * 60_000;

/** Life of an invitation: 7 days. */
export const invitationMs = 7 * 86_400_000;

/** How much longer than the tokens it concerns a revocation is kept, for clocks that differ: 5 minutes. */
export const revocationSlackMs = 5 * 60_000;

/** How long services may keep an opaque credential without asking again, with room to spare: an hour. */
export const opaqueCacheMs = 3_600_000;

/** Life of a single-use bootstrap token where the request gives none: 15 minutes. */
export const singleUseTokenMs = 15 * 60_000;

/** Life of an enrolment token where the request gives none: 30 days. */
export const enrolmentTokenMs = 30 * 86_400_000;

/** Life of a licence where the request gives none: a year. */
export const licenseMs = 365 * 86_400_000;

/** Life of an edge's client certificate, no longer than its licence's: 90 days. */
export const edgeCertificateMs = 90 * 86_400_000;

/** Life of the edges' certificate authority: 10 years. */
export const edgeAuthorityMs = 3650 * 86_400_000;

/** Life of a read token where the request gives none: 15 minutes. */
export const readTokenMs = 15 * 60_000;
