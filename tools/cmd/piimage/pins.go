//go:build pins

// What an image is made of and by besides our own programs, so that go.mod and go.sum pin it all:
// the build takes its versions from there.
package main

import (
	_ "github.com/gokrazy/firmware"
	_ "github.com/gokrazy/gokrazy"
	_ "github.com/gokrazy/kernel.arm64"
	_ "github.com/gokrazy/kernel.rpi"
	_ "github.com/gokrazy/rpi-eeprom"
	_ "github.com/gokrazy/tools/gok"
)
