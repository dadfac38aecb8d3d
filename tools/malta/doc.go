// Package malta holds no code of the product: its tests run the OpenWrt package of the
// gateway on a MIPS board, with a real kernel, flash file system and network card, in QEMU.
// Emulating only the program (qemu-user, as tools/e2e does) shows neither what JFFS2 and an
// overlay over it refuse, nor what a power cut leaves, nor what the memory controller counts.
//
// The board is a Malta with a 24Kc core, as in the routers that the package is for, under
// Debian's kernel. Its flash is the upper end of the memory, which is a file of the host:
// a SIGKILL to QEMU leaves there exactly what the kernel had written up to that instruction, as a power cut
// leaves a NOR chip. (Debian's kernel has no driver for the CFI flash that QEMU offers, and block2mtd
// would put a cache in between that JFFS2 does not know of.) As on a router, the programs are in a
// squashfs, and what is written goes to an overlay on JFFS2.
//
//	make test-malta       # about ten minutes; fetches the kernel, builds the package, runs this
//
// Without the flag -malta the tests are skipped.
package malta
