//go:build !linux

package rig

import (
	"errors"
	"syscall"
	"time"
)

// CPU needs Linux.
func CPU(int) (time.Duration, error) {
	return 0, errors.New("processor times of other processes are only read on Linux")
}

// Resident needs Linux.
func Resident(int) Memory { return Memory{} }

func deathSignal() *syscall.SysProcAttr { return nil }
