// Package e2e holds only tests: the built programs, started as their users start them,
// against real peers on loopback or in private network namespaces. Every process is
// started by the test that needs it, on free ports, in a temporary folder, and ended
// with it.
package e2e
