// Package memory measures what the gateway takes of a small board's memory, idle and
// under load, and says whether that is within its budget.
//
// Load is the load: phones that listen, requests, an upload. It asks any gateway that it
// can reach, also one in an emulated board. Board runs a cloudrestd on this machine as on
// a board with so much memory: in a memory cgroup of that size, where one can be made.
// What the processes of an emulator (qemu-user) take says nothing about the board.
//
// Command tools/cmd/memory is the gate of "make memory".
package memory
