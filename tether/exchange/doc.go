// Package exchange carries one HTTP exchange over one stream: Forward turns a client's
// request into frames on the relay, Server turns frames into a request for an
// http.Handler on the device (SPEC.md §5). Bodies stream both ways and only as far as the
// reader takes them; early answers, interim heads, trailers and upgrades pass.
//
// The rule for failures: until the first byte of the response head the relay may still
// answer 502, 503 or 504; after it the client's connection is aborted, never ended as if
// the answer were complete.
package exchange
