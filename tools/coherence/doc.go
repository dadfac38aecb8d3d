// Package coherence holds only a test: real gateways and a real relay, each with its cache, and
// clients on both ways at once on a network that keeps breaking. Whoever has seen the answer to
// a write must not be told older things later, by anybody (SPEC.md §4.12).
package coherence
