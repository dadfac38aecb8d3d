//go:build !linux

package main

import (
	"errors"
	"syscall"
	"time"
)

func cpu(int) (time.Duration, error) {
	return 0, errors.New("processor times are read from /proc: this bench needs Linux")
}

func rss(int) int { return 0 }

func deathSignal() *syscall.SysProcAttr { return nil }
