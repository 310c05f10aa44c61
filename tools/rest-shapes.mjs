// REST answers whose JSON is not that of their rpc: what docs/openapi.json says of them instead. Their truth is the code
// that writes them; services/verdict/verdict-json.test.ts holds the two against each other.

const place = {
  type: "object",
  description: "A place on the globe, in degrees.",
  required: ["lat", "lon"],
  properties: {
    lat: { type: "number", minimum: -90, maximum: 90, description: "Degrees north." },
    lon: { type: "number", minimum: -180, maximum: 180, description: "Degrees east." },
  },
  additionalProperties: false,
};

const verdict = {
  type: "object",
  description: "Where a browser session is, and how sure that is. What the signals do not say is absent.",
  required: ["confidence", "alarm"],
  properties: {
    country: { type: "string", pattern: "^[A-Z]{2}$", description: "Country, ISO 3166-1 alpha-2." },
    confidence: { type: "number", minimum: 0, maximum: 1, description: "Probability that the country is right." },
    alarm: {
      type: "string",
      enum: ["none", "low", "medium", "high"],
      description: "How much speaks for something that hides the session.",
    },
    estimatedLocation: { $ref: "#/components/schemas/rest.Place" },
    confidenceRadiusKm: {
      type: "number",
      exclusiveMinimum: 0,
      maximum: 20_038,
      description: "Radius around the location that is taken to hold the session, in kilometres.",
    },
    feasibleRegion: {
      type: "array",
      items: { $ref: "#/components/schemas/rest.Place" },
      minItems: 1,
      maxItems: 256,
      description:
        "Ordered vertices of the polygon that holds the session, not closed; it may cross the antimeridian, where longitudes jump. The circle holds where it is absent.",
    },
    token: {
      type: "string",
      maxLength: 4096,
      format: "password",
      description: "The verdict as a signed token, JWS with EdDSA, verifiable offline.",
    },
  },
  additionalProperties: false,
};

const pendingVerdict = {
  type: "object",
  description: "There is no verdict of the session yet, or no longer.",
  required: ["status", "ref", "reason"],
  properties: {
    status: { type: "string", const: "pending" },
    ref: { type: "string", minLength: 1, maxLength: 128, description: "The partner's reference of the session." },
    reason: {
      type: "string",
      enum: ["collecting", "unknown", "expired"],
      description: "Registered and not reported; never heard of; or forgotten.",
    },
  },
  additionalProperties: false,
};

/** Schemas of the shapes, by name, for `components.schemas`. */
export const restSchemas = {
  "rest.Place": place,
  "rest.PendingVerdict": pendingVerdict,
  "rest.Verdict": verdict,
};

/** What an operation's description says differently, by `Service.Method`. */
export const restShapes = new Map([
  [
    "VerdictService.GetVerdict",
    {
      query: [
        {
          name: "waitMs",
          in: "query",
          required: false,
          description: "How long to wait for the verdict, in milliseconds. `wait_ms` is taken too.",
          schema: { type: "integer", format: "int32", minimum: 0, maximum: 10_000, default: 0 },
        },
      ],
      responses: {
        200: {
          description: "The verdict.",
          content: { "application/json": { schema: { $ref: "#/components/schemas/rest.Verdict" } } },
        },
        404: {
          description: "There is no verdict, and why.",
          headers: {
            "retry-after": { description: "Seconds to wait before trying again.", schema: { type: "integer" } },
          },
          content: { "application/json": { schema: { $ref: "#/components/schemas/rest.PendingVerdict" } } },
        },
      },
    },
  ],
]);
