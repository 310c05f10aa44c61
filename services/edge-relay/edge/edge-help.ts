import { edgeVersion } from "./edge-version.ts";

/** What `octet-edge --help` prints. */
export const edgeHelp = `octet-edge ${edgeVersion}: takes what browsers report, adds what the connection says, signs it and forwards it.

  octet-edge                       runs, configured by its environment
  octet-edge --check [--url URL]   looks at configuration, certificates, verdict service, clock and timing;
                                   URL is where pages reach this edge. Exit code 1 where something failed
  octet-edge --version
  octet-edge --help

Required (an edge)
  OCTET_URL                https URL of the verdict service
  LICENSE                  the licence, octet_live_… or octet_test_…
  EDGE_SIGNING_KEY         base64 of 32 bytes; EDGE_SIGNING_KEY_ID: its id, esk_…
  ALLOWED_ORIGIN           origins of the pages, separated by commas; * for all
  EDGE_CLIENT_CERT_FILE    client certificate, PEM; EDGE_CLIENT_KEY_FILE: its key. Where the licence requires them
  EDGE_TLS_CERT_FILE       certificate of the edge, PEM; EDGE_TLS_KEY_FILE: its key. Both are read again when replaced
Required (a landmark, EDGE_ROLE=landmark)
  EDGE_SIGNING_KEY, EDGE_SIGNING_KEY_ID, ALLOWED_ORIGIN, EDGE_TLS_…, EDGE_LOCATION

Address
  EDGE_HOST                0.0.0.0                PORT                   8080
  EDGE_PATH_PREFIX         none; such as /octet
  EDGE_ALLOW_PLAINTEXT     false; true only where something in front ends TLS: the timing is lost
  EDGE_TRUSTED_PROXIES     none; addresses and networks whose X-Forwarded-For is believed
  EDGE_PROXY_PROTOCOL      false; true demands PROXY protocol of EDGE_TRUSTED_PROXIES
Measuring
  EDGE_NAME                edge                   EDGE_LOCATION          latitude,longitude
  EDGE_LANDMARKS           wss URLs of other edges, separated by commas
  EDGE_ICMP                false; true sends ICMP echoes, and needs CAP_NET_RAW
Forwarding
  OCTET_CA_FILE            authorities of the verdict service, PEM; those of the machine if not set
  EDGE_FORWARD_WAIT        1500ms; how long a browser waits for the verdict service
  EDGE_QUEUE_MAX           10000 bundles that wait while it is away
  EDGE_ADDRESS_LIMIT       600 reports and channels a minute of one address
  EDGE_GRACE               10s for requests, and again for bundles, at SIGTERM
Watching
  EDGE_METRICS_TOKEN       bearer token of /metrics; without one private addresses may read it
  EDGE_LOG_LEVEL           info                   EDGE_DEBUG             false; true logs addresses of visitors
Tests
  EDGE_EXPOSE_VERDICT      false; true tells browsers the verdict
  EXIT_IP                  stands in for visitors' addresses; with a test licence or on loopback alone

LICENSE, EDGE_SIGNING_KEY and EDGE_METRICS_TOKEN may come from the file that NAME_FILE names.
`;
