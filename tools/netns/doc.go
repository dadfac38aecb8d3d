// Package netns makes private networks out of Linux network namespaces, for tests and
// benchmarks that need broadcast, multicast, two machines, or a slow link, and must
// not touch the real interfaces of the machine they run on.
//
// A Lab owns everything that was made: namespaces (Space), veth pairs (Join), slow wires
// (Wire) and processes (Command, Daemon). Close takes it all away; and
// because a namespace lives only as long as a holder process that reads from a pipe
// of ours, the kernel takes it away too when this process is killed. Nothing is
// named in /run/netns.
//
// It needs root, and ip(8), unshare(1) and nsenter(1); Available says what is missing.
package netns
