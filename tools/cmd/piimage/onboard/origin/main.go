// Command origin runs in the image in the place of the maker's service, when that is a
// program that was built elsewhere, in whatever language: gokrazy starts only Go programs
// that it built, so this one becomes the maker's.
package main

import (
	"fmt"
	"os"
	"syscall"
	"time"
)

// Program is where piimage puts the maker's file.
const Program = "/opt/origin"

func main() {
	err := syscall.Exec(Program, append([]string{Program}, os.Args[1:]...), os.Environ())
	fmt.Fprintln(os.Stderr, "start the maker's service:", err)
	time.Sleep(time.Second) // gokrazy starts it again: not in a tight loop
	os.Exit(1)
}
