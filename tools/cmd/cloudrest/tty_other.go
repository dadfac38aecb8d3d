//go:build !linux

package main

import "os"

// terminalWidth is 0: output is plain where we do not know how to ask.
func terminalWidth(*os.File) int { return 0 }
