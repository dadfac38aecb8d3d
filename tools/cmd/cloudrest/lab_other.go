//go:build !linux

package main

import (
	"context"
	"os"
	"syscall"

	"github.com/cloudrest/cloudrest/tether/settings"
)

func tied() *syscall.SysProcAttr { return nil }

func terminate(p *os.Process) { p.Kill() }
func kill(p *os.Process)      { p.Kill() }

func (d *demo) privateLAN(context.Context) (device, error) {
	return device{}, &leftOut{"private networks need Linux; --lan uses the real one"}
}

func labCommands(environment) []*settings.Command { return nil }
